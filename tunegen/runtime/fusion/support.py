"""Whether a pack has kernels for what a rewrite would call."""

from __future__ import annotations

import torch

from ..device import DeviceKey, device_key
from ..table import Table, shape_text
from .nodes import NoMatchError


class Support:
    """What a pack's kernels serve. On the CPU every op is its reference, fused or not, and all is served.

    Args:
        table: The pack's.
        allow_reference: Everything is served, by the reference in PyTorch where there is no kernel.
    """

    def __init__(self, table: Table, allow_reference: bool = False) -> None:
        self._table, self._allow_reference = table, allow_reference

    def check(self, op: str, variant: str, device: torch.device, **shape: int) -> None:
        """Raises NoMatchError unless a kernel serves the op there: the reference would be slower than before."""
        if device.type == "cpu" or self._allow_reference:
            return
        if device.type != "cuda":
            raise NoMatchError(f"the pack has no kernels for devices of type {device.type}")
        index = torch.cuda.current_device() if device.index is None else device.index
        self.check_key(op, variant, device_key(index), **shape)

    def check_key(self, op: str, variant: str, key: DeviceKey, **shape: int) -> None:
        """The same for a device by its key."""
        if self._table.match(op, shape, variant, key).entry is None:
            raise NoMatchError(f"the pack has no kernels of {op}, {shape_text(shape)}, variant {variant}, for {key}")
