"""What a call costs on the host, paid once: calls that look alike are launched from a plan.

Of a call with aligned tensors everything but the addresses follows from its description: whether the op accepts it,
which kernel serves it, the grid, the strides, and what Triton compiles for it. The first call of a description finds
all that out and leaves a plan. The next ones allocate the outputs and hand Triton's compiled kernel the addresses,
which is less than Triton itself does to find that kernel again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch

from .families import Op
from .forms import ALIGNMENT, LARGE
from .kernel import Kernel

# Plans that an op keeps: a description has the number of tokens in it, so that there is no end of them.
MOST_PLANS = 4096

_TELLS_LARGE = torch.version.hip is not None

Described = tuple[tuple[Any, ...], list[int], bool]


def describe(args: tuple[Any, ...]) -> Described:
    """What there is to know of a call, hashable; the addresses of its tensors, in order; whether all are aligned."""
    about: list[Any] = []
    pointers: list[int] = []
    bits = 0
    for arg in args:
        if isinstance(arg, torch.Tensor):
            pointer = arg.data_ptr()
            bits |= pointer
            pointers.append(pointer)
            about += (arg.shape, arg.stride(), arg.dtype, arg.get_device())
            if _TELLS_LARGE:
                about.append(arg.untyped_storage().nbytes() >= LARGE)
        else:
            about.append(arg)
    return tuple(about), pointers, not bits % ALIGNMENT


@dataclass(frozen=True)
class Plan:
    """How calls of one description are launched.

    Attributes:
        outputs: Shape, strides and dtype of each.
        device: Where they go.
        index: Index of that device.
        launch: Triton's compiled kernel with its grid; takes all parameters of the kernel, tensors as addresses.
        pick: Puts them together from the addresses of arguments and outputs and ``constants``.
        constants: All other parameters.
        stream: The current stream of a device.
    """

    outputs: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    device: torch.device
    index: int
    launch: Callable[..., None]
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    constants: tuple[Any, ...]
    stream: Callable[[int], int]

    def allocate(self) -> tuple[torch.Tensor, ...]:
        """Uninitialised outputs."""
        device = self.device
        return tuple([torch.empty_strided(*form, dtype=dtype, device=device) for *form, dtype in self.outputs])

    def run(self, pointers: list[int]) -> tuple[torch.Tensor, ...] | None:
        """Launches the kernel on the current stream of the device, which must be the current one.

        Args:
            pointers: Addresses of the call's tensors, as `describe` gives them.

        Returns:
            The outputs. None, and nothing was launched, if they are not aligned: allocators other than PyTorch's own
            may give such.
        """
        outputs = self.allocate()
        for output in outputs:
            place = output.data_ptr()
            if place % ALIGNMENT:
                return None
            pointers.append(place)
        self.launch(*self.pick((*pointers, *self.constants)), stream=self.stream(self.index))
        return outputs


class _Recorder:
    """In the place of a kernel's function: takes up with what it would be launched."""

    def __init__(self) -> None:
        self.grid: tuple[int] = (0,)
        self.args: tuple[Any, ...] = ()

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def record(*args: Any, **_: Any) -> None:
            self.grid, self.args = grid, args

        return record


def make_plan(
    op: Op,
    kernel: Kernel,
    compiled: Any,
    units: int,
    outputs: tuple[torch.Tensor, ...],
    args: tuple[Any, ...],
    index: int,
) -> Plan | None:
    """The plan for calls like one that has just been launched.

    Args:
        op: The op.
        kernel: The kernel that it was launched with.
        compiled: What the launch of ``kernel.function`` returned.
        units: Compute units of the device.
        outputs: The call's.
        args: The call's, defaults filled in; all aligned.
        index: Its device.

    Returns:
        None if what was launched is not a compiled kernel of Triton, such as in its interpreter.
    """
    from triton.compiler import CompiledKernel
    from triton.runtime.driver import driver

    if not isinstance(compiled, CompiledKernel):
        return None
    # Tensors without data, each with a storage of its own: two arguments of the call may be one tensor, those of the
    # next call need not.
    sources = tuple(_without_data(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)
    results = tuple(_without_data(output) for output in outputs)
    tensors = [*(source for source in sources if isinstance(source, torch.Tensor)), *results]
    places = {_storage(tensor): place for place, tensor in enumerate(tensors)}
    recorder = _Recorder()
    op.launch(replace(kernel, function=recorder), units, results, *sources)
    indices: list[int] = []
    constants: list[Any] = []
    for arg in recorder.args:
        if isinstance(arg, torch.Tensor):
            indices.append(places[_storage(arg)])  # fp8 is passed as a view of its bytes
        else:
            indices.append(len(tensors) + len(constants))
            constants.append(arg)
    return Plan(
        outputs=tuple((output.shape, output.stride(), output.dtype) for output in outputs),
        device=torch.device(args[0].device),
        index=index,
        launch=compiled[(*recorder.grid, 1, 1)],
        pick=itemgetter(*indices),
        constants=tuple(constants),
        stream=driver.active.get_current_stream,
    )


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _storage(tensor: torch.Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity
