"""The tables of the F2 kernels at hidden size 7168, with a hand-written kernel beside the baselines of `tunegen bench`.

Usage: python benchmarks/f2_table.py [--aiter-root FOLDER] [--configs tuned_configs] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from handwritten_f2 import HIDDEN_SIZE, run
from tables import Lines, command

from tunegen.bench.baselines import ADD, NORM, QUANT, Baseline
from tunegen.ops import Problem

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


def lines() -> Lines:
    """Every op at every token count."""
    return [(Problem.of(op, {"hidden_size": HIDDEN_SIZE}), tokens) for op in (NORM, ADD, QUANT) for tokens in TOKENS]


def handwritten(problem: Problem) -> list[Baseline]:
    """The hand-written kernel, for the ops that normalise; its architecture's alone."""
    if problem.op == QUANT or torch.version.hip is not None:
        return []

    def call(args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, *residual, weight, _, _ = args
        run(x, residual[0] if residual else None, weight, tuple(outputs))
        return tuple(outputs)

    return [Baseline("handwritten", call)]


main = command("f2_table", lines, handwritten)

if __name__ == "__main__":
    main()
