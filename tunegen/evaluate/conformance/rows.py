"""Calls of the ops that take and return rows, and the judgement of what they write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunegen.evaluate.conformance._buffers import POISONS, Guarded, bytes_of_storage, difference
from tunegen.evaluate.conformance._call import Arguments, Launch, Outputs
from tunegen.evaluate.conformance._pairwise import pairwise
from tunegen.evaluate.truth import rmsnorm_mxfp4
from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.families.recipe import RECIPES
from tunegen.runtime.reference.mxfp4 import BLOCK

Dtype = Literal["bfloat16", "float16", "float32"]
Layout = Literal["contiguous", "strided", "offset", "wide"]

DTYPES: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "offset")
TOKENS = (0, 1, 3, 17, 33, 256)
# What judges the outputs of each op: problem, arguments, outputs and fewest lanes a row -> what is wrong.
Truth = Callable[[Problem, Sequence[Any], Sequence[torch.Tensor], int], list[str]]
TRUTHS: dict[str, Truth] = dict.fromkeys(RECIPES, rmsnorm_mxfp4.failures)
# Elements between the rows of the "wide" layout: the third row lies past 2^31 elements.
WIDE_STRIDE = 2**30 + 64


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        problem: Op, shape and rounding.
        num_tokens: Rows.
        dtype: Activation dtype.
        layout: ``"contiguous"``; ``"strided"``: gaps between rows, which stay on 16-byte boundaries;
            ``"offset"``: odd strides and a first element off its boundary, so that rows are aligned to an element
            and no more; ``"wide"``: strides that take the third row past 2^31 elements.
        special: Rows and blocks with zeros, signed zeros, NaN, Inf, tiny and huge values among the random ones.
        seed: Of the random values, and of which special values come first.
        fp8: Dtype of codes that are the target's e4m3; empty for other ops.
    """

    problem: Problem
    num_tokens: int
    dtype: Dtype
    layout: Layout
    special: bool
    seed: int = 0
    fp8: str = ""

    def __str__(self) -> str:
        values = "special" if self.special else "plain"
        return f"{self.problem}, {self.num_tokens} tokens, {self.dtype}, {self.layout}, {values}, seed {self.seed}"


# --- Inputs ---


def make_args(case: Case, device: torch.device) -> Arguments:
    """The op's arguments; the same values on every device."""
    op = OPS[case.problem.op]
    recipe = RECIPES.get(case.problem.op)
    generator = torch.Generator().manual_seed(case.seed)
    cpu = torch.device("cpu")
    sizes, dtype = case.problem.sizes, DTYPES[case.dtype]
    args = list(op.inputs(sizes, case.num_tokens, dtype, cpu, generator, case.problem.rounding))
    if recipe and case.fp8:
        if len(recipe.layouts) > 1 and "," not in case.problem.rounding:
            args.append(recipe.layouts[0])
        args.append(getattr(torch, case.fp8))
    rows = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.dim() == 2]
    vectors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.dim() == 1]
    weights = [i for i in vectors if args[i].numel() > 1]
    if case.special:
        for i in weights:
            _make_weight_special(args[i], generator)
        first = rows[:-1] if recipe and recipe.second else rows
        _make_rows_special([args[i] for i in first], case.seed)
        for i in rows[len(first) :]:
            _make_rows_special([args[i]], case.seed + 1)
    # Each tensor has a stride of its own: a kernel that takes one for the other is found out.
    for order, i in enumerate(rows):
        args[i] = _lay_out(args[i], case.layout, order, device)
    for i in vectors:
        args[i] = _lay_out(args[i].unsqueeze(0), case.layout if i in weights else "contiguous", 0, device)[0]
    return tuple(args)


def _lay_out(values: torch.Tensor, layout: Layout, order: int, device: torch.device) -> torch.Tensor:
    """The values on the device in a layout; what lies between the rows is NaN, to be seen if it is read."""
    tokens, columns = values.shape
    if layout == "contiguous":
        return values.to(device)
    stride, offset = {
        "strided": (columns + 64 * (order + 1), 0),
        "offset": (columns + 33 + 2 * order, 1),
        "wide": (WIDE_STRIDE + 64 * order, 0),
    }[layout]
    size = offset + max(tokens - 1, 0) * stride + columns
    # The gaps of "wide" are never touched: on a CPU they then take no memory.
    wide = layout == "wide"
    storage = torch.empty(size, dtype=values.dtype, device=device) if wide else _nan(size, values.dtype, device)
    view = storage.as_strided((tokens, columns), (stride, 1), offset)
    view.copy_(values)
    return view


def _nan(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((size,), float("nan"), dtype=dtype, device=device)


def _make_weight_special(weight: torch.Tensor, generator: torch.Generator) -> None:
    columns = weight.shape[0]
    scattered = torch.randperm(columns, generator=generator)
    few = max(columns // 16, 1)
    weight[scattered[:few]] *= -1
    weight[scattered[few : 2 * few]] = 0.0
    weight[scattered[2 * few : 3 * few]] = -0.0
    weight[scattered[3 * few]] = 100.0
    blocks = columns // BLOCK
    if blocks >= 4:
        weight[-BLOCK:] = 0.0
    if blocks >= 16:
        weight[-2 * BLOCK + 5] = float("inf")


def _make_rows_special(tensors: list[torch.Tensor], seed: int) -> None:
    """Each row gets one kind of special values, in turn from the one that the seed says; some stay as they are."""
    x = tensors[0]
    kinds = (_blocks, _zero, _nan_element, _negative_zero, _infinite, _huge, _opposite_infinities, _tiny, None)
    for row in range(x.shape[0]):
        edit = kinds[(row + seed) % len(kinds)]
        if edit is not None:
            edit(tensors, row)


def _zero(tensors: list[torch.Tensor], row: int) -> None:
    for tensor in tensors:
        tensor[row] = 0.0


def _negative_zero(tensors: list[torch.Tensor], row: int) -> None:
    for tensor in tensors:
        tensor[row] = -0.0


def _nan_element(tensors: list[torch.Tensor], row: int) -> None:
    columns = tensors[0].shape[1]
    # Alternately of either sign: as an integer, a negative NaN is negative.
    sign = -1.0 if row % 2 else 1.0
    tensors[row % len(tensors)][row, (37 * row + 5) % columns] = torch.copysign(
        torch.tensor(float("nan")), torch.tensor(sign)
    )


def _infinite(tensors: list[torch.Tensor], row: int) -> None:
    columns = tensors[0].shape[1]
    tensors[row % len(tensors)][row, (11 * row + 31) % columns] = float("-inf" if row % 2 else "inf")


def _opposite_infinities(tensors: list[torch.Tensor], row: int) -> None:
    tensors[0][row, -1] = float("inf")
    tensors[-1][row, -1] = float("-inf")


def _huge(tensors: list[torch.Tensor], row: int) -> None:
    """The largest finite values: the sum of squares, or x + residual in the activation dtype, overflows."""
    for tensor in tensors:
        tensor[row] = torch.copysign(torch.full_like(tensor[row], torch.finfo(tensor.dtype).max), tensor[row])


def _tiny(tensors: list[torch.Tensor], row: int) -> None:
    """Subnormals and the smallest normal numbers of the dtype."""
    for tensor in tensors:
        tensor[row] *= 4 * torch.finfo(tensor.dtype).tiny


def _blocks(tensors: list[torch.Tensor], row: int) -> None:
    """Blocks of zeros, of tiny and of large values, of ties, and of what is a zero block by a factor of two."""
    blocks = tensors[0].shape[1] // BLOCK
    rows = [tensor[row].view(blocks, BLOCK) for tensor in tensors]
    for values in rows:
        signs = torch.copysign(torch.ones_like(values), values)
        if blocks >= 3:
            values[0] = 0.0 * signs[0]
            values[1] *= 2.0**-40
        if blocks >= 8:
            values[2, :-1] = 0.0 * signs[2, :-1]
            values[3] *= 2.0**-100
            values[6] *= 512.0
            values[7] = _ties(values.dtype) * signs[7]
    if blocks >= 8:
        rms = torch.stack(rows).to(torch.float32).sum(dim=0).square().mean().sqrt()
        # Normed and weighted by about 1, maxima of 1.4 and 0.7 times the limit of a zero block.
        for block, factor in ((4, 1.25), (5, 0.625)):
            rows[0][block] = torch.copysign(rms * factor * 2.0**-64, rows[0][block])
            for values in rows[1:]:
                values[block] = 0.0


def _ties(dtype: torch.dtype) -> torch.Tensor:
    """The values between two E2M1 values, their neighbours in the dtype, and what makes their scale 1."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    step = torch.finfo(dtype).eps
    return torch.cat([ties, ties * (1 + step), ties * (1 - step / 2), ties / 2]).to(dtype)


# --- One case ---


def run_case(launch: Launch, case: Case, device: torch.device, lanes_per_row: int) -> list[str]:
    """What is wrong with a kernel on one case; empty if nothing is.

    The kernel runs twice, on outputs poisoned with different bytes and surrounded by guard zones: an element that
    still differs was not written (or is not always the same), a guard that has changed was.

    Args:
        launch: Runs the kernel on outputs and arguments. It is not called for 0 tokens, as `Op.launch` is not.
        case: The call.
        device: Where the tensors are made.
        lanes_per_row: See `tunegen.evaluate.truth.rmsnorm_mxfp4.failures`.
    """
    op = OPS[case.problem.op]
    args = make_args(case, device)
    op.check(*args)
    allocated = op.allocate(*args)
    if case.num_tokens == 0:
        return [f"output {i} is not empty" for i, output in enumerate(allocated) if output.numel()]
    tensors = [(i, arg) for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    before = [bytes_of_storage(tensor).clone() for _, tensor in tensors]
    runs: list[Outputs] = []
    found: list[str] = []
    for poison in POISONS:
        buffers = [Guarded(output, poison) for output in allocated]
        launch(tuple(buffer.output for buffer in buffers), args)
        runs.append(tuple(buffer.output for buffer in buffers))
        found += [
            f"output {i}: {problem}"
            for i, buffer in enumerate(buffers)
            if (problem := buffer.overwritten()) is not None
        ]
    for i, (first, second) in enumerate(zip(*runs, strict=True)):
        found += difference(f"output {i}", first, second)
    for (i, tensor), content in zip(tensors, before, strict=True):
        if not torch.equal(bytes_of_storage(tensor), content):
            found.append(f"argument {i} was modified")
    found += TRUTHS[case.problem.op](case.problem, args, runs[0], lanes_per_row)
    return list(dict.fromkeys(found))


# --- Which cases ---


def candidates(
    problems: Sequence[Problem],
    tokens: Sequence[int] = TOKENS,
    dtypes: Sequence[Dtype] | None = None,
    layouts: Sequence[Layout] = LAYOUTS,
    seed: int = 0,
    fp8: str = "float8_e4m3fn",
) -> list[Case]:
    """All cases of some problems, those left out that can be no other than one that is there.

    Left out: dtypes that the op does not take; roundings that are another name of one that is there (the kernel is
    the same); special values and layouts of no tokens.

    Args:
        problems: Ops at shapes and roundings; others of the same family may be repeated.
        tokens: Token counts.
        dtypes: Activation dtypes; default: bfloat16 and float16, and float32 where the op takes it.
        layouts: Memory layouts of the inputs.
        seed: Of the first case; every case has its own.
        fp8: The target's e4m3.
    """
    cases: list[Case] = []
    unique = dict.fromkeys(get_family(problem.op).canonical_problem(problem) for problem in problems)
    for problem, num_tokens, layout, special in itertools.product(unique, tokens, layouts, (False, True)):
        for dtype in dtypes or _dtypes(problem):
            if num_tokens or (layout == layouts[0] and not special):
                codes = _codes(problem, fp8)
                cases.append(Case(problem, num_tokens, dtype, layout, special, seed + len(cases), codes))
    return cases


def case_factors(case: Case) -> tuple[Hashable, ...]:
    """What of a case is paired: op, sizes, rounding, layout of the scales, token count, dtype, layout of the inputs,
    special or plain values."""
    problem = case.problem
    recipe = RECIPES.get(problem.op)
    variant = recipe.parse(problem.rounding) if recipe else None
    resolved = (variant.rounding, variant.layout) if variant else (problem.rounding, "")
    return (problem.op, problem.shape, *resolved, case.num_tokens, case.dtype, case.layout, case.special)


def _codes(problem: Problem, fp8: str) -> str:
    """The e4m3 of a problem's codes; empty where it is not the target's."""
    recipe = RECIPES.get(problem.op)
    quant = recipe.quant if recipe else None
    return fp8 if quant and quant.native else ""


def matrix(
    problems: Sequence[Problem],
    tokens: Sequence[int] = TOKENS,
    dtypes: Sequence[Dtype] | None = None,
    layouts: Sequence[Layout] = LAYOUTS,
    seed: int = 0,
) -> list[Case]:
    """The cases that a kernel of each problem has to pass; arguments as of `candidates`.

    The rule: any two values of two different factors (op, sizes, rounding, token count, dtype, layout, special or
    plain values) that can meet do so in at least one case. For the nine distinct op and rounding pairs of one
    hidden size that is about 30 cases instead of 600.
    """
    return pairwise(candidates(problems, tokens, dtypes, layouts, seed), case_factors, seed)


def _dtypes(problem: Problem) -> tuple[Dtype, ...]:
    op = OPS[problem.op]
    accepted: list[Dtype] = []
    for name, dtype in DTYPES.items():
        generator = torch.Generator().manual_seed(0)
        try:
            op.check(*op.inputs(problem.sizes, 1, dtype, torch.device("cpu"), generator))
        except ValueError:
            continue
        accepted.append(name)
    return tuple(accepted)


def first_case(problem: Problem, fp8: str = "float8_e4m3fn") -> Case:
    """What a config is tried on before anything else: few tokens, rows of every kind of odd values, and a plain one."""
    return Case(problem, 11, "bfloat16", "contiguous", special=True, fp8=_codes(problem, fp8))


def large_cases(problem: Problem, fp8: str = "float8_e4m3fn") -> list[Case]:
    """Calls whose offsets pass 2^31 elements."""
    return [Case(problem, 3, "bfloat16", "wide", special=True, fp8=_codes(problem, fp8))]
