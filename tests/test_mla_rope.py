"""mla_rope_cache and mla_rope_cache_ but for their kernels: host side, reference, judge, family."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_mla_rope_kernel import DEEPSEEK, TARGETS, any_config, problems

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render
from tunegen.errors import ConfigError, ShapeError, UnknownNameError
from tunegen.evaluate.conformance import pairwise
from tunegen.evaluate.conformance.mla_rope import WRITTEN, Case, candidates, case_factors, make_args, run_case
from tunegen.evaluate.truth.mla_rope import failures
from tunegen.ops import Problem
from tunegen.ops.mla_rope import FUNCTIONAL, INPLACE, MLA_ROPE
from tunegen.runtime.families import OPS, OpInputError
from tunegen.runtime.families.mla_rope import Variant, _grid
from tunegen.runtime.reference import mla_rope as reference
from tunegen.targets import TARGETS as ALL_TARGETS
from tunegen.targets import get_target

CPU = torch.device("cpu")
SIZES = {"num_heads": 5, "kv_lora_rank": 64, "rope_dim": 16}
E4M3 = torch.float8_e4m3fn


def inputs(op: str, variant: str, tokens: int = 6, sizes: dict[str, int] = SIZES) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return list(OPS[op].inputs(sizes, tokens, torch.bfloat16, CPU, generator, variant))


# --- Variants ---


def test_variants_are_strings_and_back() -> None:
    for rounding, flags in itertools.product(("none", "act"), itertools.product((False, True), repeat=4)):
        variant = Variant(rounding, *flags)
        assert Variant.parse(str(variant)) == variant
    assert str(Variant()) == "none"
    assert str(Variant.parse("act,q_fp8,neox")) == "act,neox,q_fp8"


@pytest.mark.parametrize("text", ["", "output", "none,fp4", "neox", "none,", "none,,fp8"])
def test_other_variants_are_refused(text: str) -> None:
    with pytest.raises(OpInputError, match="a variant is one of none, act"):
        Variant.parse(text)


@pytest.mark.parametrize("problem", [p for p in problems() if p.sizes["num_heads"] == 5], ids=str)
def test_inputs_are_of_their_variant(problem: Problem) -> None:
    op = OPS[problem.op]
    args = inputs(problem.op, problem.rounding, sizes=problem.sizes)
    op.check(*args)
    assert op.variant(*args) == problem.rounding
    assert op.shape(*args) == problem.sizes
    assert op.num_tokens(*args) == 6
    assert [str(p) for p in torch._C.parse_schema(op.name + op.schema).arguments]  # PyTorch takes the schema


def test_schemas_say_what_is_written() -> None:
    for op in (OPS[FUNCTIONAL], OPS[INPLACE]):
        schema = torch._C.parse_schema(op.name + op.schema)
        written = tuple(i for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write)
        assert written == WRITTEN[op.name]


# --- Checks ---


def cut(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    return tensor[..., :columns]


BAD_FUNCTIONAL: list[tuple[str, int, Callable[[Any], Any]]] = [
    (r"q_pe must be \[queries, heads, rope dim\]", 1, lambda x: x[0]),
    ("rope dim must be a multiple of 8; got 12", 1, lambda x: cut(x, 12)),
    ("kv_lora_rank must be a multiple of 8; got 60", 2, lambda x: cut(x, 60)),
    ("there must be 1 to 1024 heads; q_pe has 0", 1, lambda x: x[:, :0]),
    ("queries must be the first of the tokens: q_pe has 6, kv_c only 4", 2, lambda x: x[:4]),
    ("q_pe must be bfloat16, float16; got float32", 1, lambda x: x.float()),
    ("kv_c must be bfloat16; got float16", 2, lambda x: x.half()),
    (r"k_pe must have shape \[6, 16\]; got \[5, 16\]", 3, lambda x: x[:5]),
    (r"k_pe must have shape \[6, 1, 16\]; got \[6, 2, 16\]", 3, lambda x: torch.stack((x, x), 1)),
    ("last dimension of kv_c must be contiguous", 2, lambda x: x.t().contiguous().t()),
    (r"positions must have one for each of the 6 tokens; got \[5\]", 4, lambda x: x[:5]),
    ("positions must be int64, int32; got float32", 4, lambda x: x.float()),
    (r"cos_sin_cache must be \[positions, 16\], each row cos and then sin of the 8 angles", 5, lambda x: cut(x, 8)),
    ("cos_sin_cache must be bfloat16, float16, float32; got float64", 5, lambda x: x.double()),
    (r"kv_cache must be \[slots, 80\] or \[blocks, block size, 80\]", 6, lambda x: cut(x, 72)),
    ("kv_cache must be bfloat16, .*uint8; got float16", 6, lambda x: x.half()),
    ("kv_cache is written: its elements must not share memory", 6, lambda x: x[:1].expand(4, -1, -1)),
    (r"slot_mapping must have at most one slot a token, 6; got \[7\]", 7, lambda x: torch.cat((x, x[:1]))),
    ("slot_mapping must be int64; got int32", 7, lambda x: x.int()),
    ("k_scale must be a one-element float32 tensor", 8, lambda x: torch.ones(2)),
    ("q_scale must be a one-element float32 tensor", 9, lambda x: torch.ones(1, dtype=torch.float64)),
    ("q_scale is for an fp8 q_out alone", 9, lambda x: torch.ones(1)),
    ("q_out_dtype must be one of bfloat16, .*; got float32", 10, lambda x: torch.float32),
    ("rounding must be one of none, act; got 'output'", 13, lambda x: "output"),
    (r"q_nope must have shape \[6, 5, 64\]; got \[6, 5, 32\]", 0, lambda x: cut(x, 32)),
    ("q_nope must be on cpu, where q_pe is; got meta", 0, lambda x: x.to("meta")),
]

BAD_INPLACE: list[tuple[str, int, Callable[[Any], Any]]] = [
    ("kv_cache_dtype must be auto, fp8 or fp8_e4m3; got 'fp8_e5m2'", 8, lambda x: "fp8_e5m2"),
    ("kv_cache must be uint8, .*; got bfloat16", 8, lambda x: "fp8"),
    ("kv_cache must be bfloat16; got uint8", 7, lambda x: x.view(torch.uint8)[..., :80]),
    ("q_pe is written: its elements must not share memory", 1, lambda x: x[:, :1].expand(-1, 5, -1)),
    ("k_pe is written: its elements must not share memory", 2, lambda x: x[:1].expand(6, -1)),
]


@pytest.mark.parametrize(
    ("op", "message", "index", "spoil"),
    [(FUNCTIONAL, *bad) for bad in BAD_FUNCTIONAL] + [(INPLACE, *bad) for bad in BAD_INPLACE],
)
def test_bad_arguments_are_refused(op: str, message: str, index: int, spoil: Callable[[Any], Any]) -> None:
    args = inputs(op, "none")
    OPS[op].check(*args)
    args[index] = spoil(args[index])
    with pytest.raises(OpInputError, match=message):
        OPS[op].check(*args)


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        (FUNCTIONAL, {3: lambda x: x.unsqueeze(1)}),
        (FUNCTIONAL, {4: lambda x: torch.cat((x, x)).int(), 5: lambda x: x.float()}),
        (FUNCTIONAL, {6: lambda x: x.flatten(0, 1), 7: lambda x: x[:0]}),
        (FUNCTIONAL, {0: lambda x: x[:2], 1: lambda x: x[:2]}),
        (FUNCTIONAL, {8: lambda x: torch.ones(())}),
        (INPLACE, {2: lambda x: x.unsqueeze(1), 6: lambda x: x[:3]}),
    ],
)
def test_other_forms_are_accepted(op: str, changes: dict[int, Callable[[Any], Any]]) -> None:
    args = inputs(op, "none")
    for index, change in changes.items():
        args[index] = change(args[index])
    OPS[op].check(*args)


@pytest.mark.parametrize("op", [FUNCTIONAL, INPLACE])
def test_values_are_checked_when_asked(op: str) -> None:
    names = [a.name for a in torch._C.parse_schema(op + OPS[op].schema).arguments]
    position, slot = names.index("positions"), names.index("slot_mapping")
    scale = names.index("k_scale" if op == FUNCTIONAL else "kv_cache_scale")

    def refused(index: int, change: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
        args = inputs(op, "none,fp8")
        OPS[op].check_values(*args)
        args[index] = change(args[index].clone())
        OPS[op].check(*args)
        with pytest.raises(OpInputError, match=message):
            OPS[op].check_values(*args)

    def put(at: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x.index_fill(0, torch.tensor(at), value)

    refused(position, put(2, 16384), "1 positions are not in cos_sin_cache, which has 16384 rows: .* 16384, of token 2")
    refused(position, put(5, -1), "the first is -1, of token 5")
    refused(slot, put(3, 128), "1 slots are not in kv_cache, which has 128: the first is 128, of token 3")
    refused(slot, lambda x: x.index_fill(0, torch.tensor([1, 4]), 7), r"the first is 7, of tokens \[1, 4\]")
    refused(scale, lambda x: x * 0, "scale must be positive and finite; got 0.0")
    args = inputs(op, "none")
    args[slot] = torch.full_like(args[slot], -1)  # negative slots may be alike
    OPS[op].check_values(*args)


def test_outputs_have_the_promised_shapes_without_values() -> None:
    args = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs(FUNCTIONAL, "none,q_fp8")]
    OPS[FUNCTIONAL].check(*args)
    q_out, k_pe_out = OPS[FUNCTIONAL].allocate(*args)
    assert (q_out.shape, q_out.dtype) == ((6, 5, 80), E4M3)
    assert (k_pe_out.shape, k_pe_out.dtype) == ((6, 16), torch.bfloat16)
    assert OPS[INPLACE].allocate(*inputs(INPLACE, "act")) == ()


# --- Reference ---


@pytest.mark.parametrize("is_neox", [False, True])
def test_the_reference_turns_by_the_angle_of_the_real_position(is_neox: bool) -> None:
    tokens, heads, rank, rope_dim = 7, 3, 16, 8
    generator = torch.Generator().manual_seed(0)
    frequencies = 10000.0 ** (-torch.arange(0, rope_dim, 2, dtype=torch.float64) / rope_dim)
    angles = torch.arange(50, dtype=torch.float64)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).float()
    positions = torch.tensor([0, 1, 49, 7, 7, 30, 2])
    q_nope = torch.randn((tokens, heads, rank), generator=generator).to(torch.bfloat16)
    q_pe = torch.randn((tokens, heads, rope_dim), generator=generator).to(torch.bfloat16)
    k_pe = torch.randn((tokens, rope_dim), generator=generator).to(torch.bfloat16)
    kv_c = torch.randn((tokens, rank), generator=generator).to(torch.bfloat16)
    cache = torch.zeros((2, 4, rank + rope_dim), dtype=torch.bfloat16)
    slots = torch.tensor([7, 0, -1, 3, 1, 2, 6])
    q_out, k_pe_out = reference.mla_rope_cache(
        q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots, is_neox=is_neox
    )

    def turned(values: torch.Tensor) -> torch.Tensor:
        pairs = values.double().unflatten(-1, (2, -1) if is_neox else (-1, 2))
        numbers = torch.complex(*pairs.unbind(-2 if is_neox else -1))
        by = torch.exp(1j * (positions[:, None] * frequencies))
        numbers = numbers * (by[:, None] if values.dim() == 3 else by)
        return torch.stack((numbers.real, numbers.imag), dim=-2 if is_neox else -1).flatten(-2)

    assert torch.equal(q_out[..., :rank], q_nope)
    # Half an ulp of bfloat16 of a value of that size, and what the fp32 table is off by.
    bound = 2.0**-8 * q_pe.double().norm(dim=-1, keepdim=True)
    assert bool(((q_out[..., rank:].double() - turned(q_pe)).abs() <= bound).all())
    assert bool((k_pe_out.double() - turned(k_pe)).abs().max() < 2.0**-7)
    assert torch.equal(q_out[0, :, rank:], q_pe[0])  # position 0 is no turn
    assert not torch.equal(q_out[1:, :, rank:], q_pe[1:])
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert torch.equal(cache[slot // 4, slot % 4], torch.cat((kv_c[token], k_pe_out[token])))
    assert int((cache != 0).any(-1).sum()) == 6


def test_the_two_ops_agree_where_both_write() -> None:
    args = inputs(FUNCTIONAL, "act", tokens=9)
    q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots = (x.clone() for x in args[:8])
    slots[3] = -1
    other = cache.clone()
    q_out, k_pe_out = reference.mla_rope_cache(q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots, rounding="act")
    rotated_q, rotated_k = q_pe.clone(), k_pe.clone()
    reference.mla_rope_cache_(positions, rotated_q, rotated_k, kv_c, table, False, slots, other, "auto", torch.ones(1))
    kept = slots >= 0
    assert torch.equal(cache.view(torch.int16), other.view(torch.int16))
    assert torch.equal(rotated_q[kept], q_out[kept][..., 64:])
    assert torch.equal(rotated_k[kept], k_pe_out[kept])
    assert torch.equal(rotated_q[3], q_pe[3])
    assert torch.equal(rotated_k[3], k_pe[3])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_fp8_saturates_and_keeps_nan(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    values = torch.tensor([0.0, -0.0, 1.0, most, most * 1.5, -1e30, math.inf, -math.inf, math.nan, 1.0625, 1.1875])
    got = reference.to_fp8(values, None, dtype).float().tolist()
    assert got[2:8] == [1.0, most, most, -most, most, -most]
    assert got[8] != got[8]
    assert got[9:] == [1.0, 1.25]  # ties, to even
    assert reference.to_fp8(torch.tensor([3.0]), torch.tensor([0.5]), dtype).item() == 6.0


def reference_launch(case: Case) -> Callable[[tuple[torch.Tensor, ...], tuple[Any, ...]], None]:
    def launch(outputs: tuple[torch.Tensor, ...], args: tuple[Any, ...]) -> None:
        returned = getattr(reference, case.op.name)(*args) or ()
        for output, right in zip(outputs, returned, strict=True):
            output.copy_(right)

    return launch


def test_the_reference_conforms() -> None:
    small = [
        Problem(
            p.op, tuple(sorted({**p.sizes, "num_heads": heads, "kv_lora_rank": 40, "rope_dim": 24}.items())), p.rounding
        )
        for p in problems()
        if p.sizes["num_heads"] == 3
        for heads in (2, 5)
    ]
    cases = pairwise(candidates(small, (0, 1, 3, 17)), case_factors)
    for index, case in enumerate(cases):
        fp8 = ("float8_e4m3fn", "float8_e4m3fnuz")[index % 2]
        assert run_case(reference_launch(case), replace(case, fp8=fp8), CPU) == [], str(case)


def test_a_uint8_cache_holds_the_fp8_of_the_device() -> None:
    args = inputs(FUNCTIONAL, "none,fp8")
    as_bytes = [*args]
    as_bytes[6] = args[6].clone().view(torch.uint8)
    OPS[FUNCTIONAL].check(*as_bytes)
    assert OPS[FUNCTIONAL].variant(*as_bytes) == "none,fp8"
    OPS[FUNCTIONAL].reference(*args)
    OPS[FUNCTIONAL].reference(*as_bytes)
    assert torch.equal(args[6].view(torch.uint8), as_bytes[6])


# --- The judge ---


def spoilt(op: str, variant: str, spoil: Callable[[list[Any], list[torch.Tensor]], None], **about: Any) -> list[str]:
    """What the judge says of the reference's results after they are spoilt."""
    case = replace(Case(Problem.of(op, SIZES, variant), 6, 6, 6, seed=5), **about)
    args = list(make_args(case, CPU))
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
    outputs = list(case.op.reference(*args))
    assert failures(case.problem, before, args, outputs) == []
    spoil(args, outputs)
    return failures(case.problem, before, args, outputs)


def flip(tensor: torch.Tensor, at: tuple[int, ...], bit: int = 1) -> None:
    bits = tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.int16)
    bits[at] = bits[at] ^ bit


@pytest.mark.parametrize("rounding", ["none", "act"])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("q_out of q_nope", lambda args, outputs: flip(outputs[0], (1, 2, 3))),
        ("q_out of q_pe", lambda args, outputs: flip(outputs[0], (1, 2, 70), 4)),
        ("k_pe_out", lambda args, outputs: flip(outputs[1], (4, 3), 4)),
        ("kv_cache of kv_c", lambda args, outputs: flip(args[6], (int(args[7][1]) // 4, int(args[7][1]) % 4, 5))),
        ("kv_cache of k_pe", lambda args, outputs: flip(args[6], (int(args[7][1]) // 4, int(args[7][1]) % 4, 70), 4)),
        ("q_out of q_pe", lambda args, outputs: outputs[0][2, :, 64:].fill_(float("nan"))),
    ],
)
def test_the_judge_finds_one_wrong_bit(
    rounding: str, name: str, spoil: Callable[[list[Any], list[torch.Tensor]], None]
) -> None:
    found = spoilt(FUNCTIONAL, rounding, spoil)
    assert len(found) == 1
    assert found[0].startswith(name)


def test_the_judge_finds_a_row_where_none_belongs() -> None:
    def write(args: list[Any], outputs: list[torch.Tensor]) -> None:
        cache, slots = args[6].flatten(0, 1), args[7].tolist()
        free = next(slot for slot in range(len(cache)) if slot not in slots)
        cache[free, -1] = 1.0 + cache[free, -1].nan_to_num(0.0, 0.0, 0.0)

    found = spoilt(FUNCTIONAL, "none", write)
    assert len(found) == 1
    assert found[0].startswith("kv_cache of other slots")


def test_the_judge_tells_the_roundings_apart() -> None:
    """A third of the rotated values differ, and 3 % of their fp8 codes."""
    case = Case(Problem.of(FUNCTIONAL, {"num_heads": 16, **DEEPSEEK}, "none"), 17, 17, 17, table="float32")
    for flags in ("", ",fp8,q_fp8"):
        for done, asked in itertools.permutations(("none", "act")):
            done_case = replace(case, problem=Problem(case.problem.op, case.problem.shape, done + flags))
            args = list(make_args(done_case, CPU))
            before = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
            outputs = case.op.reference(*args)
            assert failures(done_case.problem, before, args, outputs) == []
            before[-1] = asked
            found = failures(done_case.problem, before, args, outputs)
            assert any(line.startswith("q_out of q_pe") for line in found)
            assert not any("q_nope" in line or "kv_c:" in line for line in found)


def test_the_judge_finds_inplace_work_on_tokens_without_a_slot() -> None:
    for index, name in ((1, "q_pe of tokens without"), (2, "k_pe of tokens without")):
        found = spoilt(INPLACE, "act", lambda args, outputs, i=index: args[i][0].neg_(), slots="negative")
        assert len(found) == 1
        assert found[0].startswith(name)


# --- The family ---


def test_shapes_that_no_kernel_has_are_refused() -> None:
    for sizes, message in (
        ({"num_heads": 5}, "has the sizes kv_lora_rank, num_heads, rope_dim; got num_heads"),
        ({**SIZES, "num_heads": 0}, "num_heads must be from 1 to 1024; got 0"),
        ({**SIZES, "kv_lora_rank": 100}, "kv_lora_rank must be a multiple of 8 .*; got 100. The next multiple is 104"),
        ({**SIZES, "rope_dim": 0}, "rope_dim must be a multiple of 8 from 8"),
    ):
        with pytest.raises(ShapeError, match=message):
            MLA_ROPE.check_shape(Problem.of(FUNCTIONAL, sizes))
    with pytest.raises(ShapeError, match="a variant is one of"):
        MLA_ROPE.check_shape(Problem.of(FUNCTIONAL, SIZES, "none,int8"))
    with pytest.raises(ShapeError, match="has no variants pe_first and q_fp8"):
        MLA_ROPE.check_shape(Problem.of(INPLACE, SIZES, "act,pe_first"))


def test_variants_are_made_canonical() -> None:
    problem = MLA_ROPE.canonical_problem(Problem.of(FUNCTIONAL, SIZES, "act,q_fp8,fp8,neox"))
    assert problem.rounding == "act,neox,fp8,q_fp8"


def test_configs_that_do_not_fit_are_refused() -> None:
    problem, target = Problem.of(FUNCTIONAL, {"num_heads": 128, **DEEPSEEK}), get_target("sm90")
    for given, message in (
        ({"heads": 3}, "heads must be one of 1, 2, 4, 8, 16, 32 on sm90; got 3"),
        ({"heads": 32, "num_warps": 1}, "A lane holds at most 128 activations"),
        ({"heads": 1, "num_warps": 8}, "must have at least 4 activations of a token"),
        ({"heads": 32, "num_warps": 4, "tokens": 4}, "A lane holds at most 128"),
        ({"split": "no"}, "split must be one of rows_apart, together, rope_apart"),
        ({"vector": 16}, "vector must be one of 8, 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            MLA_ROPE.resolve(problem, target, given)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(UnknownNameError, match="Did you mean 'heads'"):
        MLA_ROPE.resolve(problem, target, {"head": 4})
    converted = Problem.of(FUNCTIONAL, {"num_heads": 128, **DEEPSEEK}, "none,q_fp8")
    MLA_ROPE.resolve(problem, target, {"heads": 16, "num_warps": 2})
    with pytest.raises(ConfigError, match="A lane holds at most 64 activations"):
        MLA_ROPE.resolve(converted, target, {"heads": 16, "num_warps": 2})
    wide = Problem.of(FUNCTIONAL, {"num_heads": 128, "kv_lora_rank": 8, "rope_dim": 512})
    with pytest.raises(ConfigError, match="rotated in 32 chunks, more than 16"):
        MLA_ROPE.resolve(wide, target, {"heads": 32, "num_warps": 1})


@pytest.mark.parametrize("arch", TARGETS)
def test_the_default_rule(arch: str) -> None:
    def default(op: str, heads: int) -> tuple[int | str, ...]:
        config = MLA_ROPE.default(Problem.of(op, {"num_heads": heads, **DEEPSEEK}), get_target(arch))
        assert MLA_ROPE.valid(Problem.of(op, {"num_heads": heads, **DEEPSEEK}), get_target(arch), config)
        return config["heads"], config["num_warps"], config["split"]

    wave64 = arch != "sm90"
    for heads in (128, 64, 16):
        assert default(FUNCTIONAL, heads) == (4, 1 if wave64 else 2, "rows_apart")
    assert default(FUNCTIONAL, 5) == (1, 1, "rows_apart")
    assert default(INPLACE, 128) == (32, 2 if wave64 else 4, "rows_apart")
    assert default(INPLACE, 16) == (16, 1 if wave64 else 2, "rows_apart")


def test_every_knob_matters_and_every_config_renders() -> None:
    chooser = random.Random(1)
    for problem in [p for p in problems() if p.sizes["num_heads"] in (128, 5, 3)][::3]:
        for target in map(get_target, TARGETS):
            for _ in range(2):
                config = any_config(problem, target, chooser)
                source = render(problem, target, config).source
                compile(source, "kernel", "exec")
                assert "{{" not in source
    problem, target = Problem.of(FUNCTIONAL, {"num_heads": 128, **DEEPSEEK}, "none,fp8"), get_target("gfx950")
    default = MLA_ROPE.default(problem, target)
    bodies = set()
    for knob in MLA_ROPE.knobs(problem, target):
        changed = {**default, knob.name: next(c for c in knob.choices if c != default[knob.name])}
        bodies.add(render(problem, target, changed).source.split("\nimport triton\n")[1])
    bodies.add(render(problem, target, default).source.split("\nimport triton\n")[1])
    assert len(bodies) == len(MLA_ROPE.knobs(problem, target)) + 1


@pytest.mark.parametrize("op", [FUNCTIONAL, INPLACE])
def test_the_grid_is_the_families(op: str) -> None:
    """The grid of a launch is that of predictions, and has a program for each piece of work."""
    chooser = random.Random(2)
    for sizes, _ in itertools.product(({"num_heads": 128, **DEEPSEEK}, {"num_heads": 5, **DEEPSEEK}), range(10)):
        problem, target = Problem.of(op, sizes, "act"), get_target("sm90")
        config = any_config(problem, target, chooser)
        constants: dict[str, Any] = {}
        tail = render(problem, target, config).source.split("\nTOKENS = ")[1]
        exec("TOKENS = " + tail, constants)
        kernel: Any = SimpleNamespace(constants=constants)
        for tokens in (1, 7, 64):
            assert MLA_ROPE.grid(problem, config, tokens, 132)[1] == _grid(kernel, tokens, tokens)[0]
        tile = int(config["tokens"])
        alone = _grid(kernel, 0, 9)[0]
        assert alone == -(-9 // tile)  # no queries: cache rows only


@pytest.mark.parametrize("problem", [p for p in problems() if p.sizes["num_heads"] == 16], ids=str)
def test_bytes_moved_are_those_of_the_tensors(problem: Problem) -> None:
    tokens = 11
    args = inputs(problem.op, problem.rounding, tokens, problem.sizes)
    outputs = OPS[problem.op].allocate(*args)

    def size(tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    cache, table = (args[i] for i in ((6, 5) if problem.op == FUNCTIONAL else (7, 4)))
    rest = [x for x in args if isinstance(x, torch.Tensor) and x is not cache and x is not table and x.numel() > 1]
    total = sum(map(size, rest)) + sum(map(size, outputs))
    if problem.op == INPLACE:  # read, and written again
        total += size(args[1]) + size(args[2])
    total += tokens * cache.shape[-1] * cache.element_size() + tokens * table.shape[1] * table.element_size()
    assert MLA_ROPE.bytes_moved(problem, tokens) == total


def test_twins_have_the_choices_of_the_kernel() -> None:
    for problem in [p for p in problems() if p.sizes["num_heads"] in (128, 5)][::4]:
        for target in map(get_target, TARGETS):
            configs = MLA_ROPE.twin_configs(problem, target)
            assert len(configs) > 3
            assert all(MLA_ROPE.valid(problem, target, config) for config in configs)


# --- Compiled, without a GPU ---


@pytest.mark.parametrize("arch", ALL_TARGETS)
@pytest.mark.parametrize(
    ("op", "variant", "given"),
    [
        (FUNCTIONAL, "none", {}),
        (FUNCTIONAL, "none", {"heads": 16, "num_warps": 2, "split": "together"}),
        (FUNCTIONAL, "act,neox,fp8,q_fp8", {"tokens": 2}),
        (FUNCTIONAL, "none,pe_first,fp8", {"heads": 1, "num_warps": 1, "split": "rope_apart"}),
        (INPLACE, "act", {}),
        (INPLACE, "none,neox,fp8", {"split": "together"}),
    ],
)
def test_compiled_kernels_move_sixteen_bytes_and_share_nothing(
    arch: str, op: str, variant: str, given: dict[str, int | str]
) -> None:
    """No value passes through shared memory or other lanes, nothing spills, copies are 16 bytes wide."""
    problem, where = Problem.of(op, {"num_heads": 128, **DEEPSEEK}, variant), get_target(arch)
    rendered = render(problem, where, MLA_ROPE.resolve(problem, where, given))
    compiled = compile_kernel(rendered)
    assert compiled.usage.spills == 0
    assert compiled.usage.shared_memory == 0
    if where.backend == "hip":
        assert "ds_" not in compiled.assembly
        wide = ("load_dwordx4", "store_dwordx4") if "q_fp8" not in variant else ("load_dwordx4", "store_dwordx2")
    else:
        assert "shfl" not in compiled.assembly
        wide = ("ld.global.*v4.b32", "st.global.*v4.b32") if "q_fp8" not in variant else ("ld.global.*v4.b32", "v2.b32")
    if op == FUNCTIONAL:
        for pattern in wide:
            assert re.search(pattern, compiled.assembly), pattern
