"""The judge of every kernel must itself be judged: it passes what is right, and nothing that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from tunegen.errors import ConformanceError
from tunegen.evaluate.conformance import Arguments, Outputs, check, pairwise
from tunegen.evaluate.conformance._buffers import GUARD_BYTES
from tunegen.evaluate.conformance.rows import LAYOUTS, Case, candidates, case_factors, make_args, matrix, run_case
from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem
from tunegen.ops.rmsnorm_mxfp4 import DYNAMIC, NORM, NORM_ADD, RMSNORM_MXFP4
from tunegen.runtime.families import OPS
from tunegen.runtime.reference.mxfp4 import pack_codes, quantize_mxfp4, unpack_codes
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS, rounds_norm

OP_NAMES = RMSNORM_MXFP4.ops
CPU = torch.device("cpu")
LANES = 64
SIZES = {"hidden_size": 1024}


def case_of(op: str, rounding: str = "none", dtype: str = "bfloat16", special: bool = False, tokens: int = 16) -> Case:
    problem = RMSNORM_MXFP4.canonical_problem(Problem.of(op, SIZES, rounding))
    return Case(problem, tokens, dtype, "contiguous", special, seed=7)  # type: ignore[arg-type]  # dtype: one of Dtype


# Returns what run_case takes.
def reference_launch(case: Case, spoil: Callable[[Outputs, Arguments], None] | None = None):  # type: ignore[no-untyped-def]  # a closure
    """The reference as a kernel, its outputs then spoilt."""

    def launch(outputs: Outputs, args: Arguments) -> None:
        for output, right in zip(outputs, OPS[case.problem.op].reference(*args), strict=True):
            output.copy_(right)
        if spoil:
            spoil(outputs, args)

    return launch


def judged(case: Case, spoil: Callable[[Outputs, Arguments], None] | None = None) -> list[str]:
    return run_case(reference_launch(case, spoil), case, CPU, LANES)


def of_reference(case: Case) -> tuple[Arguments, list[torch.Tensor]]:
    args = make_args(case, CPU)
    return args, [output.clone() for output in OPS[case.problem.op].reference(*args)]


def count_of(found: list[str], name: str) -> int:
    """How many elements of an output a judgement says are wrong."""
    line = next((line for line in found if line.startswith(f"{name}:")), f"{name}: 0 of")
    return int(line.split(": ")[1].split(" of")[0])


# --- What is right passes ---

REFERENCE_PROBLEMS = [
    Problem.of(op, {"hidden_size": size}, rounding)
    for op, size, rounding in itertools.product(OP_NAMES, (32, 96, 1536, 7168), ROUNDINGS)
]


@pytest.mark.parametrize("case", matrix(REFERENCE_PROBLEMS), ids=str)
def test_the_reference_passes(case: Case) -> None:
    assert judged(case) == []


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("special", [False, True])
def test_the_reference_passes_every_rounding(rounding: str, dtype: str, special: bool) -> None:
    assert judged(case_of(NORM_ADD, rounding, dtype, special, tokens=64)) == []


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_epsilon_0_and_tiny_rows_pass(rounding: str) -> None:
    """Where the squares underflow, all that is known of the norm is an interval."""
    case = case_of(NORM, rounding, tokens=64)
    args = list(make_args(case, CPU))
    args[0] *= 2.0 ** -torch.arange(40, 104).unsqueeze(1)
    args[0][5] = 0.0
    args[2] = 0.0
    outputs = OPS[NORM].reference(*args)
    assert failures(case.problem, args, outputs, LANES) == []


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("rsqrt_error", [-2.0, 2.0])
def test_the_least_accurate_reduction_passes(rounding: str, rsqrt_error: float) -> None:
    """Each lane sums its part one by one, onto a large first square, and the instruction errs as far as it may."""
    case = Case(Problem.of(NORM, {"hidden_size": 16384}, rounding), 8, "bfloat16", "contiguous", special=False)
    args = make_args(case, CPU)
    args[0][:, :32] *= 256
    x, weight, epsilon, _ = args
    squares = x.float().square().view(8, -1, 32)
    lanes = torch.zeros(8, 32)
    for step in range(squares.shape[1]):
        lanes = lanes + squares[:, step]
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    norm = torch.rsqrt(lanes * (1 / 16384) + epsilon) * (1 + rsqrt_error * 2.0**-24)
    y, w = x.float(), weight.float()
    if rounding == "none":
        y = y * w * norm
    elif rounds_norm(rounding):
        y = ((y * norm).bfloat16().float() * w).bfloat16().float()
    else:
        y = (y * norm * w).bfloat16().float()
    assert failures(case.problem, args, quantize_mxfp4(y, zero_blocks=True), lanes_per_row=32) == []


def test_any_nan_of_the_sum_passes() -> None:
    case = case_of(NORM_ADD, special=True)
    args, outputs = of_reference(case)
    bits = outputs[2].view(torch.int16)
    nan = torch.isnan(outputs[2])
    assert nan.any()
    bits[nan] = -1
    assert failures(case.problem, args, outputs, LANES) == []


def test_no_tokens_pass_without_a_launch() -> None:
    def launch(outputs: Outputs, args: Arguments) -> None:
        raise AssertionError("launched")

    for op in OP_NAMES:
        assert run_case(launch, case_of(op, tokens=0), CPU, LANES) == []


# --- What is wrong does not ---


@pytest.mark.parametrize("op", OP_NAMES)
def test_swapped_nibbles_fail(op: str) -> None:
    def swap(outputs: Outputs, args: Arguments) -> None:
        outputs[0].copy_((outputs[0] >> 4) | (outputs[0] << 4))

    found = judged(case_of(op), swap)
    assert any(line.startswith(("codes:", "code magnitudes:")) for line in found)


@pytest.mark.parametrize("op", OP_NAMES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("step", [1, -1])
def test_every_scale_off_by_one_fails(op: str, rounding: str, step: int) -> None:
    case = case_of(op, rounding)
    args, outputs = of_reference(case)
    outputs[1] += step
    # A block whose amax lies on the boundary may have either of two scales; there are none among these.
    assert count_of(failures(case.problem, args, outputs, LANES), "scales") == outputs[1].numel()


@pytest.mark.parametrize("op", OP_NAMES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("step", [1, -1])
def test_nearly_every_code_off_by_one_fails(op: str, rounding: str, step: int) -> None:
    """The codes that may be either of two, those of values on a boundary, are few: the intervals are narrow."""
    case = case_of(op, rounding)
    args, outputs = of_reference(case)
    codes = unpack_codes(outputs[0])
    stepped = ((codes & 7) + step).clamp(0, 7) | (codes & 8)
    changed = int((stepped != codes).sum())
    outputs[0] = pack_codes(stepped)
    found = failures(case.problem, args, outputs, LANES)
    caught = count_of(found, "codes") + count_of(found, "code magnitudes")
    # A code may be either of two if its value lies within about 40 * 2^-24 of the boundary between them. With a
    # rounding to the activation dtype one step of that, 2^-8, may move with it, for the values near its boundaries.
    assert changed - caught <= (0 if op == DYNAMIC else changed * 1e-4)


@pytest.mark.parametrize("op", OP_NAMES)
def test_one_code_off_by_one_fails(op: str) -> None:
    case = case_of(op, tokens=1)
    args, outputs = of_reference(case)
    right = outputs[0].clone()
    for element in range(0, 1024, 61):
        codes = unpack_codes(right)
        codes[0, element] ^= 1
        outputs[0] = pack_codes(codes)
        found = failures(case.problem, args, outputs, LANES)
        assert len(found) == 1
        assert f"1 of 1024 wrong, first at [0, {element}]" in found[0]


@pytest.mark.parametrize("op", OP_NAMES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_wrong_sign_fails_on_zero_too(op: str, rounding: str) -> None:
    case = case_of(op, rounding, special=True)
    args, outputs = of_reference(case)
    codes = unpack_codes(outputs[0])
    kept = (outputs[1] != 255) & (outputs[1] != 0)
    zeros = (codes & 7 == 0) & kept.repeat_interleave(32, dim=1)
    assert zeros.sum() > 100
    outputs[0] = pack_codes(torch.where(zeros, codes ^ 8, codes))
    found = failures(case.problem, args, outputs, LANES)
    assert count_of(found, "codes") + count_of(found, "code signs") == int(zeros.sum())
    assert len(found) == 1


@pytest.mark.parametrize("op", OP_NAMES)
def test_codes_of_bad_and_zero_blocks_must_be_0(op: str) -> None:
    case = case_of(op, special=True)
    args, outputs = of_reference(case)
    dead = outputs[1] == 255 if op == DYNAMIC else (outputs[1] == 255) | (outputs[1] == 0)
    codes = unpack_codes(outputs[0]) | (8 * dead.repeat_interleave(32, dim=1)).int()
    outputs[0] = pack_codes(codes)
    found = failures(case.problem, args, outputs, LANES)
    assert count_of(found, "codes") + count_of(found, "code signs") == 32 * int(dead.sum())


@pytest.mark.parametrize("op", OP_NAMES)
@pytest.mark.parametrize("fill", [0, 254])
def test_bad_blocks_need_their_scale(op: str, fill: int) -> None:
    case = case_of(op, special=True)
    args, outputs = of_reference(case)
    bad = outputs[1] == 255
    assert bad.any()
    outputs[1][bad] = fill
    assert count_of(failures(case.problem, args, outputs, LANES), "scales") == int(bad.sum())


def test_a_good_block_may_not_be_called_bad() -> None:
    case = case_of(NORM)
    args, outputs = of_reference(case)
    outputs[1][3, 4] = 255
    outputs[0][3, 64:80] = 0
    found = failures(case.problem, args, outputs, LANES)
    assert len(found) == 1
    assert "scales: 1 of 512 wrong, first at [3, 4]: got 255, allowed " in found[0]


@pytest.mark.parametrize(("computed", "asked"), list(itertools.permutations(ROUNDINGS, 2)))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_rounding_fails(computed: str, asked: str, dtype: str) -> None:
    # fp16 differs in fewer codes: one in some thousands.
    case = case_of(NORM_ADD, asked, dtype, tokens=64)
    args = make_args(case, CPU)
    outputs = OPS[NORM_ADD].reference(*args[:-1], computed)
    assert failures(case.problem, args, outputs, LANES) != []


def test_a_norm_off_by_a_ten_thousandth_fails() -> None:
    """As with a wrong constant for 1 / N."""
    case = case_of(NORM)
    args = make_args(case, CPU)
    outputs = OPS[NORM].reference(args[0], args[1] * 1.0, args[2] + 2e-4, "none")
    assert failures(case.problem, args, outputs, LANES) != []


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_truncated_sum_fails(rounding: str) -> None:
    def truncate(outputs: Outputs, args: Arguments) -> None:
        total = args[0].float() + args[1].float()
        outputs[2].copy_((total.view(torch.int32) & -65536).view(torch.float32))

    found = judged(case_of(NORM_ADD, rounding), truncate)
    assert [line.split(":")[0] for line in found] == ["residual_out"]


@pytest.mark.parametrize("op", OP_NAMES)
def test_every_output_must_be_written(op: str) -> None:
    case = case_of(op)

    for index in range(len(OPS[op].allocate(*make_args(case, CPU)))):

        def launch(outputs: Outputs, args: Arguments, index: int = index) -> None:
            rights = OPS[op].reference(*args)
            for i, (output, right) in enumerate(zip(outputs, rights, strict=True)):
                if i == index:
                    output[:-1].copy_(right[:-1])
                    output[-1, 1:].copy_(right[-1, 1:])
                else:
                    output.copy_(right)

        found = run_case(launch, case, CPU, LANES)
        assert any(f"output {index}: " in line and "bytes not written" in line for line in found)


def _outside(output: torch.Tensor, offset: int) -> torch.Tensor:
    """The byte at an offset from the start of an output, in or outside of it."""
    everything = torch.empty(0, dtype=torch.uint8).set_(output.untyped_storage())
    start = output.storage_offset() * output.element_size()
    return everything[start + offset : start + offset + 1]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("distance", [1, GUARD_BYTES])
def test_nothing_may_be_written_outside(index: int, before: bool, distance: int) -> None:
    def spill(outputs: Outputs, args: Arguments) -> None:
        output = outputs[index]
        size = output.numel() * output.element_size()
        _outside(output, -distance if before else size + distance - 1).fill_(0x77)

    found = judged(case_of(NORM_ADD), spill)
    assert len(found) == 1
    assert f"output {index}: 1 guard bytes {'before' if before else 'after'} it overwritten" in found[0]
    assert f"{distance if before else distance - 1} bytes" in found[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_inputs_may_not_be_modified(layout: str, index: int) -> None:
    def modify(outputs: Outputs, args: Arguments) -> None:
        args[index][..., 5] += 1

    # Pytest's parameter.
    case = Case(Problem.of(NORM_ADD, SIZES), 3, "bfloat16", layout, special=False)  # type: ignore[arg-type]  # parametrised as text
    found = judged(case, modify)
    assert f"argument {index} was modified" in found


def test_a_result_that_changes_from_run_to_run_fails() -> None:
    case = case_of(NORM)
    flips = itertools.count()

    def flip(outputs: Outputs, args: Arguments) -> None:
        outputs[0][2, 3] ^= next(flips)

    assert any("output 0: 1 of 8192 bytes different from run to run" in line for line in judged(case, flip))


def test_check_says_what_is_wrong() -> None:
    case = case_of(NORM)
    check(reference_launch(case), case, CPU, LANES)

    def spoil(outputs: Outputs, args: Arguments) -> None:
        outputs[1].add_(1)

    with pytest.raises(ConformanceError, match=r"hidden_size 1024.*\n.*scales: 512 of 512 wrong, first at \[0, 0\]"):
        check(reference_launch(case, spoil), case, CPU, LANES)


# --- The cases themselves ---


def test_matrix_shows_every_pair() -> None:
    cases = matrix(REFERENCE_PROBLEMS)
    everything = candidates(REFERENCE_PROBLEMS)

    def pairs(of: list[Case]) -> set[object]:
        return {pair for case in of for pair in itertools.combinations(enumerate(case_factors(case)), 2)}

    assert pairs(cases) == pairs(everything)
    assert len(cases) < 60
    assert len(everything) > 2000
    assert cases == matrix(REFERENCE_PROBLEMS)


def test_pairwise_of_two_factors_is_their_product() -> None:
    product = list(itertools.product(range(3), range(5)))
    assert pairwise(product, lambda item: item) == product


def test_layouts_are_what_they_say() -> None:
    problem = Problem.of(NORM_ADD, SIZES)
    strides = {}
    for layout in LAYOUTS:
        x, residual, weight, epsilon, rounding = make_args(Case(problem, 3, "bfloat16", layout, special=False), CPU)
        strides[layout] = (x.stride(0), residual.stride(0))
        assert (epsilon, rounding) == (1e-6, "none")
        aligned = [tensor.data_ptr() % 4 == 0 for tensor in (x, residual, weight)]
        assert aligned == [layout != "offset"] * 3
    assert strides == {"contiguous": (1024, 1024), "strided": (1088, 1152), "offset": (1057, 1059)}


def test_special_rows_hold_what_kernels_get_wrong() -> None:
    case = case_of(NORM_ADD, special=True, tokens=33)
    x, residual, weight, *_ = make_args(case, CPU)
    total = x.float() + residual.float()
    assert torch.isnan(x).any()
    assert torch.isinf(x).any()
    assert torch.isinf(total.bfloat16()).any()
    assert (total == 0).all(dim=1).any()
    assert (torch.signbit(x) & (x == 0)).all(dim=1).any()
    assert ((x != 0) & (x.float().abs() < 2.0**-126)).any()
    assert ((weight == 0) & torch.signbit(weight)).any()
    assert (weight < 0).any()
    # Zero blocks, and blocks that just are none, beside ordinary ones of the same row.
    scales = OPS[NORM_ADD].reference(*make_args(case, CPU))[1].int()
    assert ((scales == 0).any(dim=1) & ((scales >= 61) & (scales <= 63)).any(dim=1)).any()
