"""What a warm-up compiles: kernel files, and calls that between them ask for every kernel that Triton makes of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..device import DeviceKey
from ..families import OPS, Op, Shape
from ..forms import ALIGNMENT, LARGE, load_form
from ..table import Table
from .wanted import Wanted

# Bytes that an example's cache may take: two pages of the widest rows.
LARGEST_EXAMPLE = 2**26


def shifted(tensor: torch.Tensor, elements: int) -> torch.Tensor:
    """A copy with the same strides that begins ``elements`` after a boundary of 16 bytes.

    Of a part of a large storage a later part: a copy would not be large.
    """
    if tensor.untyped_storage().nbytes() >= LARGE:
        return tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + elements)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.empty(last + 1 + ALIGNMENT, dtype=tensor.dtype, device=tensor.device)
    return flat.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)


def misaligned(args: tuple[Any, ...], num_bytes: int) -> tuple[Any, ...]:
    """The arguments with every tensor ``num_bytes``, or else one element, past a boundary of 16 bytes."""
    return tuple(
        shifted(arg, max(1, num_bytes // arg.element_size())) if isinstance(arg, torch.Tensor) else arg for arg in args
    )


@dataclass(frozen=True)
class Examples:
    """Calls of one variant at one shape, made when they are first asked for.

    Attributes:
        op: The op.
        shape: Its sizes.
        variant: Of the op.
        dtypes: Activation dtypes.
        everything: Also calls that are rare.
        device: Where the tensors are.
        large: As of `Op.specialisations`.
    """

    op: Op
    shape: Shape
    variant: str
    dtypes: tuple[torch.dtype, ...]
    everything: bool
    device: torch.device
    large: torch.Tensor | None

    @cached_property
    def aligned(self) -> list[tuple[Any, ...]]:
        """All specialisations in every dtype; raises OpInputError for one that the op does not take."""
        generator = torch.Generator(self.device).manual_seed(0)
        calls: list[tuple[Any, ...]] = []
        for dtype in self.dtypes:
            args = self.op.inputs(self.shape, 1, dtype, self.device, generator, self.variant)
            self.op.check(*args)
            calls += self.op.specialisations(args, self.everything, self.large)
        return calls

    @cached_property
    def misaligned(self) -> list[tuple[Any, ...]]:
        """The same where no tensor is aligned."""
        # Four bytes on, bfloat16 is still loaded two values a word; two bytes on, no longer.
        return [misaligned(args, num_bytes) for args in self.aligned for num_bytes in (4, 2)]

    def check(self) -> None:
        """Makes the calls now; raises OpInputError."""
        _ = self.aligned


@dataclass(frozen=True)
class Job:
    """One form of one kernel file, which is compiled for all arguments at once.

    Attributes:
        path: The kernel file.
        aligned: Which form.
        examples: Calls that between them ask for every specialisation.
    """

    path: Path
    aligned: bool
    examples: Examples

    def run(self, function: Callable[[Any], Any], units: int) -> None:
        """Makes the calls with ``function`` of the kernel's function in its place."""
        kernel = load_form(self.path, self.aligned)
        kernel = replace(kernel, function=function(kernel.function))
        op = self.examples.op
        for args in self.examples.aligned if self.aligned else self.examples.misaligned:
            op.launch(kernel, units, op.allocate(*args), *args)


def jobs_of(
    root: Path,
    table: Table,
    key: DeviceKey,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] | None,
    wanted: Wanted,
) -> Iterator[Job]:
    """What to compile for the device of a key, in an order that depends on nothing else.

    Args:
        root: The package's folder.
        table: The pack's.
        key: The GPU.
        device: Where the tensors of the examples are: it, or the CPU.
        dtypes: Activation dtypes; None: that of each entry.
        wanted: Which kernels.
    """
    # Triton tells storages of 2 GiB from others on AMD's GPUs. On the CPU what is never written takes no memory.
    hip = key.arch.startswith("gfx")
    large = torch.empty(LARGE + LARGEST_EXAMPLE, dtype=torch.uint8, device=device) if hip else None
    for op in OPS.values():
        for entry in table.entries(op.name, key):
            for variant in wanted.of(entry):
                own = dtypes or (getattr(torch, entry.dtype),)
                examples = Examples(op, entry.shape, variant, own, wanted.everything, device, large)
                for path in dict.fromkeys(bucket.kernels[variant] for bucket in entry.buckets):
                    yield Job(root / path, True, examples)
                yield Job(root / entry.buckets[-1].kernels[variant], False, examples)
