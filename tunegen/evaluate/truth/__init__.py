"""What outputs the numerics contract allows, computed in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunegen.errors import UnknownNameError
from tunegen.evaluate.truth import rmsnorm_mxfp4
from tunegen.ops import Problem
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4

_FAILURES = dict.fromkeys(RMSNORM_MXFP4.ops, rmsnorm_mxfp4.failures)


def failures(problem: Problem, args: Sequence[Any], outputs: Sequence[torch.Tensor], lanes_per_row: int) -> list[str]:
    """What is wrong with the outputs of one call; empty if nothing is.

    Args:
        problem: The op, and the rounding that was rendered.
        args: The op's arguments in schema order.
        outputs: The op's outputs, on any device.
        lanes_per_row: The fewest lanes that a row may be spread over: it bounds the error of a row reduction.
    """
    if problem.op not in _FAILURES:
        raise UnknownNameError("truth of op", problem.op, _FAILURES)
    return _FAILURES[problem.op](problem, args, outputs, lanes_per_row)


__all__ = ["failures"]
