"""Poisoned outputs with guard zones, and what has become of bytes."""

from __future__ import annotations

import torch

POISONS = (0xA5, 0x5A)
GUARD_BYTES = 256
GUARD_ROWS = 8
# What torch.empty gives at least, on every device.
ALIGNMENT = 16
# Storages above this size (those of the "wide" layouts) are not compared whole.
SNAPSHOT_BYTES = 2**28


class Guarded:
    """An output inside a larger poisoned buffer.

    The guard zones hold a few rows of the output: that is what a kernel that forgets a mask writes past its end.
    """

    def __init__(self, like: torch.Tensor, poison: int) -> None:
        size = like.numel() * like.element_size()
        row = size // max(like.shape[0], 1)
        self._poison = poison
        self._start = -(-(GUARD_BYTES + GUARD_ROWS * row) // ALIGNMENT) * ALIGNMENT
        self._end = self._start + size
        total = self._end + GUARD_BYTES + GUARD_ROWS * row
        self._buffer = torch.full((total,), poison, dtype=torch.uint8, device=like.device)
        # With the strides of the output: it may be the transpose of what lies in memory.
        self.output = self._buffer[self._start : self._end].view(like.dtype).as_strided(like.shape, like.stride())

    def overwritten(self) -> str | None:
        """What has been written outside the output, if anything."""
        for name, first, zone in (
            ("before", -self._start, self._buffer[: self._start]),
            ("after", 0, self._buffer[self._end :]),
        ):
            changed = (zone != self._poison).nonzero()
            if len(changed):
                at = int(changed[0]) + first
                distance = f"{-at} bytes before its start" if name == "before" else f"{at} bytes past its end"
                return f"{len(changed)} guard bytes {name} it overwritten, the first {distance}"
        return None


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as bytes."""
    return tensor.contiguous().view(torch.uint8)


def bytes_of_storage(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage, gaps between rows too, or its own if that is very large."""
    storage = tensor.untyped_storage()
    if storage.nbytes() > SNAPSHOT_BYTES:
        return bytes_of(tensor)
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)


def difference(name: str, first: torch.Tensor, second: torch.Tensor) -> list[str]:
    """Bytes that differ between two runs that found different poisons."""
    a, b = bytes_of(first), bytes_of(second)
    differ = a != b
    if not bool(differ.any()):
        return []
    unwritten = (a == POISONS[0]) & (b == POISONS[1])
    found = []
    for what, mask in (("not written", unwritten), ("different from run to run", differ & ~unwritten)):
        count = int(mask.sum())
        if count:
            found.append(f"{name}: {count} of {mask.numel()} bytes {what}, first at {mask.nonzero()[0].tolist()}")
    return found
