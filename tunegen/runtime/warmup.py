"""Compiles every kernel that calls on a device could ask for, before the first of them comes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .device import DeviceKey, device_key
from .families import OPS, Op
from .forms import ALIGNMENT, LARGE, load_form
from .manifest import Entry
from .table import Table, has_sizes

# Bytes that an example's cache may take: two pages of the widest rows.
LARGEST_EXAMPLE = 2**26


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did.

    Attributes:
        kernels: Compiled kernels that are now loaded, from the compiler or from Triton's cache.
        seconds: What it took.
    """

    kernels: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kernels} kernels ready after {self.seconds:.1f} s"


@dataclass(frozen=True)
class Wanted:
    """Which kernels to warm up.

    Attributes:
        ops: Of these ops; empty: of all.
        variants: Of these variants; empty: of those that calls mostly have, or of all if everything is asked for.
        sizes: Of shapes with these sizes, as in `tunegen.runtime.table.has_sizes`.
    """

    ops: Collection[str] = ()
    variants: Collection[str] = ()
    sizes: Mapping[str, Collection[int]] = field(default_factory=dict)

    def of(self, entry: Entry, everything: bool) -> list[str]:
        """The variants of an entry that are meant; none if it is not."""
        if (self.ops and entry.op not in self.ops) or not has_sizes(entry.shape, self.sizes):
            return []
        if self.variants:
            return [variant for variant in entry.variants if variant in self.variants]
        return [variant for variant in entry.variants if everything or _usual(entry, variant)]


@dataclass(frozen=True)
class _Job:
    """One form of one kernel file, which one thread compiles for all arguments.

    Attributes:
        path: The kernel file.
        aligned: Which form.
        op: Its op.
        calls: Arguments of calls that between them ask for every specialisation.
    """

    path: Path
    aligned: bool
    op: Op
    calls: list[tuple[Any, ...]]

    def run(self, function: Callable[[Any], Any], units: int) -> None:
        """Makes the calls with ``function`` of the kernel's function in its place."""
        kernel = load_form(self.path, self.aligned)
        kernel = replace(kernel, function=function(kernel.function))
        for args in self.calls:
            self.op.launch(kernel, units, self.op.allocate(*args), *args)


class _CompileOnly:
    """A kernel function that ``function[grid](...)`` compiles as a launch would, without launching it.

    Args:
        function: The ``@triton.jit`` function.
        compiled: Takes up the compiled kernels, by identity.
    """

    def __init__(self, function: Any, compiled: dict[int, Any]) -> None:
        self._function = function
        self._compiled = compiled

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def compile_kernel(*args: Any, **options: Any) -> None:
            kernel = self._function.warmup(*args, grid=grid, **options)
            self._compiled[id(kernel)] = kernel

        return compile_kernel


def _shifted(tensor: torch.Tensor, elements: int) -> torch.Tensor:
    """A copy with the same strides that begins ``elements`` after a boundary of 16 bytes.

    Of a part of a large storage a later part: a copy would not be large.
    """
    if tensor.untyped_storage().nbytes() >= LARGE:
        return tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + elements)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.empty(last + 1 + ALIGNMENT, dtype=tensor.dtype, device=tensor.device)
    return flat.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)


def _misaligned(args: tuple[Any, ...], num_bytes: int) -> tuple[Any, ...]:
    """The arguments with every tensor ``num_bytes``, or else one element, past a boundary of 16 bytes."""
    return tuple(
        _shifted(arg, max(1, num_bytes // arg.element_size())) if isinstance(arg, torch.Tensor) else arg for arg in args
    )


def _usual(entry: Entry, variant: str) -> bool:
    """True for the variants that differ from the tuned one in the rounding alone, which comes first in their names."""
    return variant.split(",")[1:] == entry.variant.split(",")[1:]


def _jobs(
    root: Path,
    table: Table,
    key: DeviceKey,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] | None,
    everything: bool,
    wanted: Wanted,
    large: torch.Tensor | None,
) -> Iterator[_Job]:
    """What to compile for the device of a key, with arguments on ``device``; ``large`` as of `Op.specialisations`."""
    generator = torch.Generator(device).manual_seed(0)
    for op in OPS.values():
        for entry in table.entries(op.name, key):
            for variant in wanted.of(entry, everything):
                calls: list[tuple[Any, ...]] = []
                for dtype in dtypes or (getattr(torch, entry.dtype),):
                    args = op.inputs(entry.shape, 1, dtype, device, generator, variant)
                    op.check(*args)  # a dtype that the op does not take is refused here
                    calls += op.specialisations(args, everything, large)
                # Four bytes on, bfloat16 is still loaded two values a word; two bytes on, no longer.
                others = [_misaligned(args, num_bytes) for args in calls for num_bytes in (4, 2)]
                for path in dict.fromkeys(bucket.kernels[variant] for bucket in entry.buckets):
                    yield _Job(root / path, True, op, calls)
                yield _Job(root / entry.buckets[-1].kernels[variant], False, op, others)


def warm_up(
    root: Path,
    table: Table,
    index: int,
    dtypes: tuple[torch.dtype, ...] | None = None,
    everything: bool = False,
    verbose: bool = False,
    wanted: Wanted = Wanted(),
) -> WarmUp:
    """Compiles in parallel, then launches each kernel once, which loads it.

    Args:
        root: The package's folder.
        table: The pack's.
        index: The CUDA or ROCm device.
        dtypes: Activation dtypes that calls will have. Default: the one that each entry was tuned with.
        everything: All variants and `Op.specialisations`; else those that `Pack.warmup` lists.
        verbose: Print what is done.
        wanted: Which kernels.
    """
    start = time.perf_counter()
    compiled: dict[int, Any] = {}
    key, device = device_key(index), torch.device("cuda", index)
    with torch.cuda.device(index):
        large = torch.empty(LARGE + LARGEST_EXAMPLE, dtype=torch.uint8, device=device) if torch.version.hip else None
        jobs = list(_jobs(root, table, key, device, dtypes, everything, wanted, large))

    def compile_job(job: _Job) -> None:
        with torch.cuda.device(index):
            begin = time.perf_counter()
            job.run(lambda function: _CompileOnly(function, compiled), key.units)
        if verbose:
            form = "aligned" if job.aligned else "general"
            print(f"{job.path.relative_to(root)} ({form}): {time.perf_counter() - begin:.2f} s")

    with ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="tunegen-warmup") as threads:
        list(threads.map(compile_job, jobs))
    with torch.cuda.device(index):
        for job in jobs:
            job.run(lambda function: function, key.units)
        torch.cuda.synchronize(index)
    result = WarmUp(len(compiled), time.perf_counter() - start)
    if verbose:
        print(result)
    return result
