"""What is accepted as a baseline's output: what rounds otherwise within its bounds, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tunegen.bench.agreement import RopeOutputs, mxfp4_agreement, rope_failures
from tunegen.runtime.families.mla_rope import MlaRopeCache
from tunegen.runtime.reference import rmsnorm_mxfp4 as reference
from tunegen.runtime.reference.mla_rope import load_angles, rotate, to_fp8
from tunegen.runtime.reference.mxfp4 import E2M1_VALUES, e2m1_magnitude, pack_codes, unpack_codes

CPU = torch.device("cpu")
TOKENS, HIDDEN_SIZE = 7, 1536
SIZES = {"num_heads": 3, "kv_lora_rank": 64, "rope_dim": 16}
Tensors = tuple[torch.Tensor, ...]


def quant_args(form: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(5)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    x, residual, weight = normal(TOKENS, HIDDEN_SIZE), normal(TOKENS, HIDDEN_SIZE), normal(HIDDEN_SIZE)
    return {
        "dynamic": (x,),
        "norm": (x, weight, 1e-6, "none"),
        "add": (x, residual, weight, 1e-6, "none"),
    }[form]


def computed(form: str, args: Sequence[Any], rounding: str = "none") -> Tensors:
    if form == "dynamic":
        return reference.dynamic_mxfp4_quant(*args)
    function = reference.rmsnorm_add_mxfp4_quant if form == "add" else reference.rmsnorm_mxfp4_quant
    return function(*args[:-1], rounding)


@pytest.mark.parametrize("form", ["dynamic", "norm", "add"])
@pytest.mark.parametrize("rounding", ["none", "output", "sum_output"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_agrees(form: str, rounding: str, dtype: torch.dtype) -> None:
    args = quant_args(form, dtype)
    found = mxfp4_agreement(args, rounding, computed(form, args, rounding))
    assert (found.failures, found.undefined_scales) == ([], 0)
    assert found.blocks == TOKENS * HIDDEN_SIZE // 32


def test_another_rounding_before_the_quantisation_does_not() -> None:
    # Not the other way round: the ends of codes are values of bfloat16, so that what it moves over one becomes a tie.
    args = quant_args("add")
    for rounding, other in (("none", "output"), ("output", "sum_output")):
        assert mxfp4_agreement(args, rounding, computed("add", args, other)).failures != []


def halves_up(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The codes of a quantiser that takes the larger of two neighbours at the same distance."""
    scaled = x.to(torch.float32).unflatten(-1, (-1, 32)) * torch.exp2(127.0 - scales.to(torch.float32))[..., None]
    codes = e2m1_magnitude(scaled.abs() * (1 + 2**-20)) | (torch.signbit(scaled).int() << 3)
    up = pack_codes(codes.flatten(-2))
    assert bool((up != q).any())
    return up


def test_either_neighbour_of_a_tie_is_right() -> None:
    args = quant_args("dynamic")
    q, scales = computed("dynamic", args)
    assert mxfp4_agreement(args, "none", (halves_up(args[0], q, scales), scales)).failures == []


@pytest.mark.parametrize("form", ["dynamic", "norm", "add"])
def test_a_wrong_code_scale_or_sum_does_not_agree(form: str) -> None:
    args = quant_args(form)
    right = computed(form, args)

    def changed(at: int, index: tuple[int, int], change: int) -> list[str]:
        outputs = [tensor.clone() for tensor in right]
        outputs[at].view(torch.uint8)[index] ^= change
        return mxfp4_agreement(args, "none", outputs).failures

    assert changed(0, (3, 100), 0) == []
    for bit in range(8):
        assert changed(0, (3, 100), 1 << bit) != [], bit
    assert changed(1, (6, 20), 1) != []
    assert changed(1, (6, 20), 1 << 7) != []
    if form == "add":
        assert changed(2, (2, 2 * 77), 1) == ["residual_out: 1 of 10752 wrong, first at [2, 77]"]


def test_undefined_scales_are_counted_and_their_codes_judged() -> None:
    """As AITER on NVIDIA: a negative exponent becomes 0."""
    args = quant_args("norm")
    q, scales = computed("norm", args)
    undefined = scales.clamp_min(127)
    below = int((scales < 127).sum())
    assert 0 < below < scales.numel()
    assert mxfp4_agreement(args, "none", (q, undefined)).failures != []
    found = mxfp4_agreement(args, "none", (q, undefined), undefined_scales_allowed=True)
    assert (found.failures, found.undefined_scales) == ([], below)
    row, block = (int(i) for i in (scales < 127).nonzero()[0])
    q[row, 16 * block + 3] ^= 2
    assert mxfp4_agreement(args, "none", (q, undefined), True).failures != []
    q[row, 16 * block + 3] ^= 2
    row, block = (int(i) for i in (scales >= 127).nonzero()[0])
    undefined[row, block] += 1
    assert mxfp4_agreement(args, "none", (q, undefined), True).failures != []


@pytest.mark.parametrize("e8", [126, 127])
def test_codes_beside_an_undefined_scale_may_be_of_either_end(e8: int) -> None:
    """The amax may be 3.5 or a bit less, so the scale 1 or half of it, which AITER on NVIDIA stores as 1 too."""
    x = torch.full((1, 32), 0.5, dtype=torch.bfloat16)
    x[0, 0] = 1.0
    # Half way between 3.5 and the bfloat16 below it, after the norm.
    middle = 3.5 - 2.0**-7
    epsilon = middle**-2 - float((x.double() ** 2).mean())
    args = (x, torch.ones(32, dtype=torch.bfloat16), epsilon, "output")
    y = torch.full((1, 32), middle / 2).to(torch.bfloat16).float()
    y[0, 0] = 3.5 if e8 == 127 else 3.5 - 2.0**-6
    q = pack_codes(e2m1_magnitude(y * 2.0 ** (127 - e8)))
    scales = torch.full((1, 1), 127, dtype=torch.uint8)
    assert mxfp4_agreement(args, "output", (q, scales), undefined_scales_allowed=True).failures == []
    assert bool(mxfp4_agreement(args, "output", (q, scales)).failures) == (e8 == 126)
    q[0, 3] ^= 1
    assert mxfp4_agreement(args, "output", (q, scales), undefined_scales_allowed=True).failures != []


def test_a_code_may_not_be_a_step_away() -> None:
    """No code but those of the interval, for every code: each one moved a step is found in its block."""
    args = quant_args("norm")
    q, scales = computed("norm", args)
    codes = unpack_codes(q)
    for magnitude in range(len(E2M1_VALUES) - 1):
        at = tuple(int(i) for i in ((codes & 7) == magnitude).nonzero()[9])
        moved = codes.clone()
        moved[at] += 1
        assert mxfp4_agreement(args, "none", (pack_codes(moved), scales)).failures != [], magnitude


# --- MLA RoPE ---


def rope_args(variant: str = "none", dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    return MlaRopeCache().inputs(SIZES, TOKENS, dtype, CPU, generator, variant)


def left_by_reference(args: Sequence[Any], rounding: str) -> tuple[torch.Tensor, RopeOutputs]:
    """The cache before, and what the reference leaves; the arguments stay as they are."""
    width = args[6].shape[-1]
    before = args[6].clone().view(-1, width)
    after = args[6].clone()
    q_out, k_pe_out = MlaRopeCache().reference(*args[:6], after, *args[7:-1], rounding)
    return before, RopeOutputs(q_out, k_pe_out, after.view(-1, width))


@pytest.mark.parametrize("variant", ["none", "none,neox", "none,fp8", "none,neox,fp8"])
@pytest.mark.parametrize("rounding", ["none", "act"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_roundings_of_a_rotation_agree(variant: str, rounding: str, dtype: torch.dtype) -> None:
    args = rope_args(variant, dtype)
    args[7][2] = -1
    before, outputs = left_by_reference(args, rounding)
    outputs.k_pe_out[2] = float("nan")
    assert rope_failures(args, before, outputs) == []


def test_fused_multiply_adds_and_reciprocals_agree() -> None:
    """x cos - (y sin rounded) with one rounding, then the product with 1 / scale, as AITER's kernel may compile."""
    args = rope_args("none,fp8")
    before, outputs = left_by_reference(args, "none")
    cos, sin = load_angles(args[4], args[5], "none", torch.bfloat16)
    x, y = args[3][:, 0::2].double(), args[3][:, 1::2].double()
    first = (x * cos - (y * sin).bfloat16().double()).bfloat16()
    second = (y * cos + (x * sin).bfloat16().double()).bfloat16()
    k_pe = torch.stack((first, second), -1).flatten(-2)
    assert bool((k_pe != rotate(args[3], cos, sin, False, "none").bfloat16()).any())
    rows = torch.cat((args[2], k_pe), dim=-1).float() * (1 / args[8])
    outputs.kv_cache[args[7]] = to_fp8(rows, None, torch.float8_e4m3fn)
    assert rope_failures(args, before, replace(outputs, k_pe_out=k_pe)) == []


WRONG = {
    "q_nope": lambda o: o.q_out[1, 2].view(torch.int16).__setitem__(5, 1),
    "q rotated backwards": lambda o: o.q_out[..., 64:].mul_(-1),
    "a rotated value": lambda o: o.q_out.__setitem__((4, 2, 70), o.q_out[4, 2, 70] + 0.1),
    "k_pe_out": lambda o: o.k_pe_out.__setitem__((3, 3), o.k_pe_out[3, 3] + 0.1),
    "a value missing": lambda o: o.k_pe_out.__setitem__((3, 3), float("nan")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outputs_do_not_agree(name: str) -> None:
    args = rope_args()
    before, outputs = left_by_reference(args, "none")
    WRONG[name](outputs)
    assert len(rope_failures(args, before, outputs)) == 1


def test_the_bound_of_a_rotated_value() -> None:
    """Of its 2 u and the 2 u that storing it and adding here take, 6 u are outside."""
    args = rope_args()
    before, outputs = left_by_reference(args, "none")
    cos, sin = load_angles(args[4], args[5], "none", torch.bfloat16)
    magnitude = rotate(args[3].abs(), cos.abs(), -sin.abs(), False, "none")[:, 0::2]
    outputs.k_pe_out[:, 0::2] += 6 * 2**-8 * magnitude
    assert rope_failures(args, before, outputs) == [f"k_pe_out: {8 * TOKENS} of {16 * TOKENS} wrong, first at [0, 0]"]


@pytest.mark.parametrize("variant", ["none", "none,fp8"])
@pytest.mark.parametrize("column", [0, 63, 64, 79])
def test_a_wrong_cache_does_not_agree(variant: str, column: int) -> None:
    args = rope_args(variant)
    before, outputs = left_by_reference(args, "none")
    cache = outputs.kv_cache
    bits = cache.view(torch.uint8 if cache.element_size() == 1 else torch.int16)
    slot = int(args[7][4])
    sign = 0x80 if cache.element_size() == 1 else -0x8000
    bits[slot, column] ^= sign
    assert len(rope_failures(args, before, outputs)) == 1
    bits[slot, column] ^= sign
    assert rope_failures(args, before, outputs) == []
    free = next(slot for slot in range(len(bits)) if slot not in args[7].tolist())
    bits[free, column] ^= 1
    assert rope_failures(args, before, outputs) == [
        f"kv_cache of other slots: 1 of {(len(bits) - TOKENS) * 80} wrong, first at {[free_index(args, free), column]}"
    ]


def free_index(args: Sequence[Any], slot: int) -> int:
    """Where a slot is among those that no token has."""
    return slot - sum(used < slot for used in args[7].tolist())


@pytest.mark.parametrize("variant", ["none,pe_first", "none,pe_first,fp8,q_fp8", "none,neox,q_fp8"])
def test_other_layouts(variant: str) -> None:
    args = rope_args(variant)
    before, outputs = left_by_reference(args, "none")
    assert rope_failures(args, before, outputs) == []
    for tensor, column in ((outputs.q_out[1, 2], 3), (outputs.q_out[1, 2], 70), (outputs.kv_cache[args[7][4]], 3)):
        bits = tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.int16)
        bits[column] ^= 0x40
        assert len(rope_failures(args, before, outputs)) == 1
        bits[column] ^= 0x40
