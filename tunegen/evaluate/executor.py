"""Runs kernels of gfx942 and gfx950 without such a GPU: compiled for it and executed on the CPU, in child processes.

See `tunegen.execute`: functional, not timed.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from tunegen.evaluate._pool import Pool
from tunegen.evaluate.conformance import Arguments, Case, Outputs, run_case
from tunegen.evaluate.interpreter import UNITS
from tunegen.execute.driver import Executed
from tunegen.execute.errors import ExecutionError, ListingError
from tunegen.execute.launch import DEFAULTS
from tunegen.execute.listing import ARCHITECTURES
from tunegen.execute.machine import Options
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import Target, get_target

WHERE = "executed (functional), not timed"


def executable(target: Target) -> bool:
    """True if kernels for the target can be executed."""
    return target.arch in ARCHITECTURES


class Executor(Pool):
    """A pool of processes that execute kernels; a context manager, with the calls of `OnDevice` and a target.

    Args:
        workers: Number of processes.
    """

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers, _start_worker)

    def submit(
        self, source_path: Path, case: Case, lanes_per_row: int, target: Target, options: Options | None = None
    ) -> Future[list[str]]:
        """Queues `tunegen.evaluate.conformance.run_case` of a rendered kernel file; `execute_case` has the rest."""
        return self._pool.submit(execute_case, source_path, case, lanes_per_row, target.name, options or DEFAULTS)


def _start_worker() -> None:
    torch.set_num_threads(1)


def execute_case(
    source_path: Path, case: Case, lanes_per_row: int, target_name: str, options: Options = DEFAULTS
) -> list[str]:
    """What is wrong with a kernel, executed on a case; empty if nothing is.

    The two launches of a case get different poison: an output that depends on it differs from run to run.

    Args:
        source_path: The rendered kernel.
        case: The call.
        lanes_per_row: See `tunegen.evaluate.conformance.run_case`.
        target_name: ``"gfx950"`` or ``"gfx942"``.
        options: How it is executed; ``seed`` is that of the first launch.
    """
    kernel = load_kernel(source_path)
    function = _function(source_path, target_name)
    op = OPS[case.problem.op]
    seeds = itertools.count(options.seed)

    def launch(outputs: Outputs, args: Arguments) -> None:
        function.options = replace(options, seed=next(seeds))
        op.launch(replace(kernel, function=function), UNITS, outputs, *args)

    try:
        return run_case(launch, case, torch.device("cpu"), lanes_per_row)
    except (ExecutionError, ListingError) as error:
        return [f"{type(error).__name__}: {error}"]


@functools.cache
def _function(source_path: Path, target_name: str) -> Executed:
    return Executed(load_kernel(source_path).function, get_target(target_name))
