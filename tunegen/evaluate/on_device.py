"""Runs rendered kernels on the GPU here, in child processes, so that they compile side by side."""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import TracebackType

import torch

from tunegen.evaluate.conformance import Arguments, Case, Outputs, run_case
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel


class OnDevice:
    """A pool of processes that run kernels on one GPU; a context manager, with the calls of `Interpreter`.

    Args:
        workers: Number of processes; each has a context of its own on the GPU.
        device: Index of the GPU.
    """

    def __init__(self, workers: int, device: int = 0) -> None:
        self._device = device
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> OnDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; cases that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, source_path: Path, case: Case, lanes_per_row: int) -> Future[list[str]]:
        """Queues `tunegen.evaluate.conformance.run_case` of a rendered kernel file."""
        return self._pool.submit(_run_case, self._device, source_path, case, lanes_per_row)


@functools.cache
def _units(device: int) -> int:
    torch.cuda.set_device(device)
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _run_case(device: int, source_path: Path, case: Case, lanes_per_row: int) -> list[str]:
    units = _units(device)
    kernel = load_kernel(source_path)
    op = OPS[case.problem.op]

    def launch(outputs: Outputs, args: Arguments) -> None:
        op.launch(kernel, units, outputs, *args)

    return run_case(launch, case, torch.device("cuda", device), lanes_per_row)
