"""LDS (shared memory) of the workgroups of a batch, with the check that barriers keep apart the waves that share it.

Between two barriers waves of a workgroup run in any order. So a byte that one wave writes may, until the next barrier,
be neither read by another nor written by it with another value; nor may a wave write what another has read. An
operation that is still under way at a barrier (no s_waitcnt) counts for the time after it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.errors import ExecutionError

if TYPE_CHECKING:
    from tunegen.execute.waves import Mask, Waves

Units: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint32]"

# Stamps are an epoch and, in the low bits, the waves of that epoch, one bit for each of the 16 a workgroup may have.
_WHO = 16
_ANYONE = (1 << _WHO) - 1


class LocalMemory:
    """LDS of some workgroups.

    Args:
        data: What it holds, unsigned integers of ``unit`` bytes [workgroups, units]: poison.
        size: Bytes a workgroup.
        unit: 4 where the program accesses whole dwords alone, otherwise 1.
    """

    def __init__(self, data: Units, size: int) -> None:
        self._size = size
        self.unit = data.itemsize
        self._units = data.shape[1]
        self._data = data.reshape(-1)
        self._written = np.zeros(data.size, np.int64)
        self._read = np.zeros(data.size, np.int64)

    def indices(self, waves: Waves, addresses: NDArray[np.uint32], size: int, mask: Mask) -> NDArray[np.int64]:
        """Positions of the units that active lanes access, int64 [k, size / unit].

        Raises:
            ExecutionError: Some are outside of LDS.
        """
        at = addresses[mask].astype(np.int64)
        if len(at) and int(at.max()) + size > self._size:
            raise ExecutionError(
                f"It accesses {size} bytes at LDS address {int(at.max())}; the workgroup has {self._size} bytes of LDS."
            )
        if self.unit > 1:
            if (at % self.unit).any():
                raise ExecutionError("An LDS access of dwords that is not aligned to them is not modelled.")
            at //= self.unit
        start = waves.workgroup[np.nonzero(mask)[0]] * self._units + at
        return np.asarray(start[:, None] + np.arange(size // self.unit))

    def load(self, waves: Waves, indices: NDArray[np.int64], mask: Mask) -> Units:
        """What is at `indices`."""
        now, who = self._stamps(waves, mask)
        # Of waves that wrote one value each reads what it wrote.
        written = self._written[indices]
        self._conflict(np.where(written & who, 0, written), now, who, "reads", "has written")
        self._note(self._read, indices, now, who)
        return self._data[indices]

    def store(self, waves: Waves, indices: NDArray[np.int64], values: Units, mask: Mask) -> None:
        """Writes at `indices`."""
        now, who = self._stamps(waves, mask)
        self._conflict(self._read[indices], now, who, "writes", "has read")
        changed = self._data[indices] != values
        self._conflict(np.where(changed, self._written[indices], 0), now, who, "writes", "has written")
        self._data[indices] = values
        self._note(self._written, indices, now, who)
        if (self._data[indices] != values).any():
            raise ExecutionError("Lanes write other values to one LDS address: which of them stays is not defined.")

    def barrier(self, waves: Waves) -> None:
        """The waves have passed a barrier; what they have under way is dated after it."""
        for _, write, of, indices in waves.board.lds_ops:
            now, who = self._dated(waves, of)
            self._note(self._written if write else self._read, indices, now, who)

    def _stamps(self, waves: Waves, mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._dated(waves, np.nonzero(mask)[0])

    @staticmethod
    def _dated(waves: Waves, of: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and wave bit, [k, 1] each, of accesses by the waves at positions ``of``."""
        return (waves.epoch[of] << _WHO)[:, None], (np.int64(1) << waves.wave[of])[:, None]

    @staticmethod
    def _conflict(
        stamps: NDArray[np.int64], now: NDArray[np.int64], who: NDArray[np.int64], does: str, did: str
    ) -> None:
        others = stamps & _ANYONE & ~who
        bad = (stamps >= now) & (others != 0)
        if bad.any():
            other = int(others[bad][0]).bit_length() - 1
            wave = int(np.broadcast_to(who, bad.shape)[bad][0]).bit_length() - 1
            raise ExecutionError(
                f"Wave {wave} {does} LDS that wave {other} {did}, and no s_barrier (with an s_waitcnt lgkmcnt(0) before"
                " it) stands between them: they may run in the other order."
            )

    @staticmethod
    def _note(
        stamps: NDArray[np.int64], indices: NDArray[np.int64], now: NDArray[np.int64], who: NDArray[np.int64]
    ) -> None:
        marked = np.maximum(stamps[indices], now) | who
        stamps[indices] = marked
        # Several waves may access one byte in this very instruction: those that were overwritten come again.
        lost = (stamps[indices] & who) == 0
        while lost.any():
            at, bits = indices[lost], np.broadcast_to(who, lost.shape)[lost]
            stamps[at] |= bits
            lost &= (stamps[indices] & who) == 0
