"""Runs a kernel on inputs made to break it, and judges every byte that it writes.

The kernel is any callable that fills outputs: a rendered kernel on a GPU or in the interpreter, an op of an
emitted pack, the reference itself. Each family has a module here that knows its calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from tunegen.errors import ConformanceError
from tunegen.evaluate.conformance import mla_rope, rows
from tunegen.evaluate.conformance._call import Arguments, Launch, Outputs
from tunegen.evaluate.conformance._pairwise import pairwise
from tunegen.ops import Config, Problem
from tunegen.targets import Target, get_target

Case = rows.Case | mla_rope.Case


def make_args(case: Case, device: torch.device) -> Arguments:
    """The arguments of a call; the same values on every device."""
    return rows.make_args(case, device) if isinstance(case, rows.Case) else mla_rope.make_args(case, device)


def run_case(launch: Launch, case: Case, device: torch.device, lanes_per_row: int) -> list[str]:
    """What is wrong with a kernel on one case; empty if nothing is.

    Args:
        launch: Runs the kernel on outputs and arguments. It is not called for 0 tokens, as `Op.launch` is not.
        case: The call.
        device: Where the tensors are made.
        lanes_per_row: The fewest lanes that a row may be spread over: it bounds the error of a row reduction.
    """
    if isinstance(case, rows.Case):
        return rows.run_case(launch, case, device, lanes_per_row)
    return mla_rope.run_case(launch, case, device)


def check(launch: Launch, case: Case, device: torch.device, lanes_per_row: int) -> None:
    """Raises ConformanceError, with all that is wrong, unless the kernel is right on the case."""
    found = run_case(launch, case, device, lanes_per_row)
    if found:
        raise ConformanceError("\n  ".join([f"{case}: the outputs are not those of the numerics contract.", *found]))


def _has_rows(problem: Problem) -> bool:
    return problem.op not in mla_rope.WRITTEN


def candidates(problems: Sequence[Problem], tokens: Sequence[int], target: Target) -> list[Case]:
    """All cases, or a large sample of them, that kernels of some problems may be given; for `pairwise`."""
    of_rows = [problem for problem in problems if _has_rows(problem)]
    others = [problem for problem in problems if not _has_rows(problem)]
    return [*rows.candidates(of_rows, tokens, fp8=target.fp8), *mla_rope.candidates(others, tokens, target.fp8)]


def case_factors(case: Case) -> tuple[Hashable, ...]:
    """What of a case is paired; the cases that are paired must be of one family."""
    return rows.case_factors(case) if isinstance(case, rows.Case) else mla_rope.case_factors(case)


def first_case(problem: Problem, target: Target) -> Case:
    """What a config is tried on before anything else."""
    return rows.first_case(problem, target.fp8) if _has_rows(problem) else mla_rope.first_case(problem, target.fp8)


def large_cases(problem: Problem, target: Target) -> list[Case]:
    """Calls whose offsets pass 2^31 elements; on a GPU they take up to 20 GiB."""
    return [
        *(rows.large_cases(problem, target.fp8) if _has_rows(problem) else mla_rope.large_cases(problem, target.fp8))
    ]


def fewest_lanes_per_row(target: Target | str, config: Config) -> int:
    """The fewest lanes a row of a program may be spread over: its lanes divided among its rows."""
    target = get_target(target) if isinstance(target, str) else target
    return max(1, int(config["num_warps"]) * target.warp_size // int(config.get("rows", 1)))


__all__ = [
    "Arguments",
    "Case",
    "Launch",
    "Outputs",
    "candidates",
    "case_factors",
    "check",
    "fewest_lanes_per_row",
    "first_case",
    "large_cases",
    "make_args",
    "pairwise",
    "run_case",
]
