"""Runs rendered kernels and ops of packs on the GPU here, in child processes, so that they compile side by side."""

from __future__ import annotations

import functools
import importlib
from concurrent.futures import Future
from pathlib import Path

import torch

from tunegen.evaluate._pool import Pool
from tunegen.evaluate.conformance import Arguments, Case, Outputs, make_args, run_case
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel


class OnDevice(Pool):
    """A pool of processes that run kernels on one GPU; a context manager, with the calls of `Interpreter`.

    Args:
        workers: Number of processes; each has a context of its own on the GPU.
        device: Index of the GPU.
    """

    def __init__(self, workers: int, device: int = 0) -> None:
        self._device = device
        # Inputs are made on the CPU: each process with all the cores' threads would have them wait for one another.
        super().__init__(workers, torch.set_num_threads, 1)

    def submit_call(self, pack: str, case: Case) -> Future[list[str]]:
        """Queues `call_failures` of an importable pack's op."""
        return self._pool.submit(_call, self._device, pack, case)

    def submit(self, source_path: Path, case: Case, lanes_per_row: int) -> Future[list[str]]:
        """Queues `tunegen.evaluate.conformance.run_case` of a rendered kernel file."""
        return self._pool.submit(_run_case, self._device, source_path, case, lanes_per_row)


@functools.cache
def _units(device: int) -> int:
    torch.cuda.set_device(device)
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def call_failures(pack: str, case: Case, place: torch.device) -> list[str]:
    """Calls an op of a pack as a user would; returns what is wrong with its outputs."""
    importlib.import_module(pack)
    function = getattr(getattr(torch.ops, pack), case.problem.op)

    def launch(outputs: Outputs, args: Arguments) -> None:
        for output, result in zip(outputs, _outputs(function(*args)), strict=True):
            _bytes(output).copy_(_bytes(result))

    if not case.num_tokens:
        returned = _outputs(function(*make_args(case, place)))
        return ["an output is not empty" for output in returned if output.numel()]
    # A lane alone is the longest sum there is: the bound holds for any kernel, and for the reference.
    return run_case(launch, case, place, 32)


def _outputs(returned: Outputs | torch.Tensor | None) -> Outputs:
    """What an op returned, as a tuple: torch gives a single output as it is, and None for none."""
    if isinstance(returned, torch.Tensor):
        return (returned,)
    return returned or ()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers: whatever they are, they are copied as they are, and scales may be transposed."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _call(device: int, pack: str, case: Case) -> list[str]:
    torch.cuda.set_device(device)
    return call_failures(pack, case, torch.device("cuda", device))


def _run_case(device: int, source_path: Path, case: Case, lanes_per_row: int) -> list[str]:
    units = _units(device)
    kernel = load_kernel(source_path)
    op = OPS[case.problem.op]

    def launch(outputs: Outputs, args: Arguments) -> None:
        op.launch(kernel, units, outputs, *args)

    return run_case(launch, case, torch.device("cuda", device), lanes_per_row)
