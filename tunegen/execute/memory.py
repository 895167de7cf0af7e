"""Global memory: the buffers that a kernel was given, and nothing else.

Addresses are the real ones of the tensors, so that a kernel sees their alignment. Every access is checked: bytes that
belong to no element of a tensor given (gaps between strided rows too) may be neither read nor written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.errors import ExecutionError

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """Bytes that a tensor's elements take.

    Attributes:
        name: For people.
        start: Address of its first element.
        dims: Size and stride in bytes of the dimensions that are not contiguous, the largest stride first.
        inner: Contiguous bytes within them.
        writable: False for the kernarg segment.
    """

    name: str
    start: int
    dims: tuple[tuple[int, int], ...]
    inner: int
    writable: bool = True

    @classmethod
    def of(cls, name: str, start: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Region:
        """A tensor's; strides in bytes."""
        if 0 in shape:
            return cls(name, start, (), 0)
        inner = itemsize
        outer: list[tuple[int, int]] = []
        for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
            if stride <= inner and not outer:
                # Contiguous with what is within it, or overlapping it.
                inner = stride * (size - 1) + inner
            else:
                outer.append((size, stride))
        return cls(name, start, tuple(reversed(outer)), inner)

    @property
    def end(self) -> int:
        """Address behind its last element."""
        return self.start + sum((size - 1) * stride for size, stride in self.dims) + self.inner

    def covers(self, addresses: Addresses, size: int) -> NDArray[np.bool_]:
        """True where all bytes of an access of ``size`` bytes belong to it."""
        rest = addresses - self.start
        good = rest >= 0
        for count, stride in self.dims:
            index = np.minimum(rest // stride, count - 1)
            rest = rest - index * stride
        return good & (rest + size <= self.inner)


@dataclass
class Storage:
    """Memory that regions lie in."""

    base: int
    data: Bytes
    regions: list[Region] = field(default_factory=list)
    views: dict[int, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for size, dtype in ((1, np.uint8), (2, np.uint16), (4, np.uint32)):
            self.views[size] = self.data[: len(self.data) // size * size].view(dtype)

    @property
    def end(self) -> int:
        """Address behind it."""
        return self.base + len(self.data)


class GlobalMemory:
    """The buffers of one launch."""

    def __init__(self) -> None:
        self._storages: list[Storage] = []
        # (storage, is a write, offsets, bytes, workgroups), for `check_races`.
        self._log: list[tuple[Storage, bool, NDArray[np.int64], int, NDArray[np.int64]]] = []

    def add(self, base: int, data: Bytes, region: Region) -> None:
        """Gives the kernel a region of some memory, whose bytes are ``data`` from address ``base``."""
        for storage in self._storages:
            if storage.base == base and len(storage.data) == len(data):
                storage.regions.append(region)
                return
        self._storages.append(Storage(base, data, [region]))
        self._storages.sort(key=lambda storage: storage.base)

    def load(self, addresses: Addresses, size: int, workgroups: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
        """Reads ``size`` bytes at each address.

        Args:
            addresses: int64 [k], of active lanes alone.
            size: 1, 2 or a multiple of 4.
            workgroups: Whose the accesses are, int64 [k].

        Returns:
            uint32 [k] for each dword; for 1 or 2 bytes one, zero-extended.
        """
        pieces = self._find(addresses, size, False)
        if len(pieces) == 1:
            return self._gather(pieces[0][0], addresses, size, workgroups)
        result = [np.zeros(len(addresses), np.uint32) for _ in range(max(size // 4, 1))]
        for storage, where in pieces:
            for dword, part in zip(
                result, self._gather(storage, addresses[where], size, workgroups[where]), strict=True
            ):
                dword[where] = part
        return result

    def store(
        self, addresses: Addresses, values: list[NDArray[np.uint32]], size: int, workgroups: NDArray[np.int64]
    ) -> None:
        """Writes ``size`` bytes at each address; arguments as of `load`, values one array a dword."""
        for storage, where in self._find(addresses, size, True):
            chosen = slice(None) if where is None else where
            offsets = addresses[chosen] - storage.base
            self._log.append((storage, True, offsets, size, workgroups[chosen]))
            self._scatter(storage, offsets, [value[chosen] for value in values], size)

    def _find(self, addresses: Addresses, size: int, write: bool) -> list[tuple[Storage, Any]]:
        """Storages that the addresses are in, each with the indices of those, None for all of them."""
        low, high = int(addresses.min()), int(addresses.max())
        for storage in self._storages:
            if storage.base <= low and high + size <= storage.end:
                self._check(storage, addresses, size, write)
                return [(storage, None)]
        found: list[tuple[Storage, Any]] = []
        left = np.ones(len(addresses), np.bool_)
        for storage in self._storages:
            inside = (addresses >= storage.base) & (addresses + size <= storage.end)
            if inside.any():
                where = np.flatnonzero(inside)
                self._check(storage, addresses[where], size, write)
                found.append((storage, where))
                left &= ~inside
        if left.any():
            self._refuse(int(addresses[left][0]), size, write, int(left.sum()))
        return found

    def _check(self, storage: Storage, addresses: Addresses, size: int, write: bool) -> None:
        left = addresses
        for region in storage.regions:
            if write and not region.writable:
                continue
            left = left[~region.covers(left, size)]
            if not len(left):
                return
        self._refuse(int(left[0]), size, write, len(left))

    def _refuse(self, address: int, size: int, write: bool, count: int) -> None:
        regions = [region for storage in self._storages for region in storage.regions]

        def distance(region: Region) -> int:
            return max(region.start - address, address + size - region.end, 0)

        nearest = min(regions, key=distance)
        offset = address - nearest.start
        raise ExecutionError(
            f"It {'writes' if write else 'reads'} {size} bytes outside the buffers given, in {count} lanes: the first"
            f" at byte {offset} of {nearest.name}, which has {nearest.end - nearest.start} bytes"
            f"{' with gaps' if nearest.dims else ''}{'' if nearest.writable else ' and is read-only'}."
        )

    def _gather(
        self, storage: Storage, addresses: Addresses, size: int, workgroups: NDArray[np.int64]
    ) -> list[NDArray[np.uint32]]:
        offsets = addresses - storage.base
        self._log.append((storage, False, offsets, size, workgroups))
        unit = min(size, 4)
        view = storage.views[unit]
        if not (offsets & (unit - 1)).any():
            index = offsets // unit
            return [view[index + i].astype(np.uint32, copy=False) for i in range(max(size // 4, 1))]
        bytes_ = storage.data
        result = []
        for first in range(0, size, unit):
            parts = [bytes_[offsets + first + i].astype(np.uint32) << np.uint32(8 * i) for i in range(unit)]
            result.append(np.bitwise_or.reduce(parts))
        return result

    def _scatter(
        self, storage: Storage, offsets: NDArray[np.int64], values: list[NDArray[np.uint32]], size: int
    ) -> None:
        unit = min(size, 4)
        view = storage.views[unit]
        aligned = not (offsets & (unit - 1)).any()
        index = offsets // unit
        for i, value in enumerate(values):
            if aligned:
                stored = value.astype(view.dtype)
                view[index + i] = stored
                same = view[index + i] == stored
            else:
                same = np.ones(len(offsets), np.bool_)
                pieces = [((value >> np.uint32(8 * b)) & np.uint32(0xFF)).astype(np.uint8) for b in range(unit)]
                for b, piece in enumerate(pieces):
                    storage.data[offsets + unit * i + b] = piece
                for b, piece in enumerate(pieces):
                    same &= storage.data[offsets + unit * i + b] == piece
            if not same.all():
                raise ExecutionError(
                    f"{int((~same).sum())} lanes write other values to addresses that further lanes write: which of"
                    " them stays is not defined."
                )

    def check_races(self) -> None:
        """Raises ExecutionError if workgroups, which run in any order, depend on each other through memory.

        A byte that one workgroup writes may be neither read by another nor written by it with another value.
        """
        written = {id(storage) for storage, write, *_ in self._log if write}
        for storage in self._storages:
            if id(storage) not in written:
                continue
            log = [entry for entry in self._log if entry[0] is storage]
            low = min(int(offsets.min()) for _, _, offsets, _, _ in log)
            high = max(int(offsets.max()) + size for _, _, offsets, size, _ in log)
            if high - low > 2**28:
                # Rows gigabytes apart: what is compared is where accesses begin.
                self._check_sparse(storage, log)
                continue
            owner = np.full(high - low, -1, np.int64)
            for _, write, offsets, size, workgroups in log:
                if write:
                    for i in range(size):
                        owner[offsets - low + i] = workgroups
            for _, write, offsets, size, workgroups in log:
                for i in range(size):
                    of = owner[offsets - low + i]
                    bad = (of >= 0) & (of != workgroups)
                    if bad.any():
                        self._race(storage, int(offsets[bad][0]) + i, write, int(workgroups[bad][0]), int(of[bad][0]))

    def _check_sparse(self, storage: Storage, log: list[Any]) -> None:
        owners: dict[int, int] = {}
        for _, write, offsets, _, workgroups in log:
            if write:
                owners.update(zip(offsets.tolist(), workgroups.tolist(), strict=True))
        for _, write, offsets, _, workgroups in log:
            for offset, workgroup in zip(offsets.tolist(), workgroups.tolist(), strict=True):
                if owners.get(offset, workgroup) != workgroup:
                    self._race(storage, offset, write, workgroup, owners[offset])

    def _race(self, storage: Storage, offset: int, write: bool, one: int, other: int) -> None:
        region = min(storage.regions, key=lambda r: abs(r.start - storage.base - offset))
        raise ExecutionError(
            f"Workgroup {one} {'writes' if write else 'reads'} byte {storage.base + offset - region.start} of"
            f" {region.name}, which workgroup {other} writes: they run in any order."
        )
