"""LDS (shared memory) of the workgroups of a batch, with the check that waves which share it are kept apart by barriers.

Between two barriers waves of a workgroup run in any order. So a byte that one wave writes may, until the next barrier,
be neither read by another nor written by it with another value; nor may a wave write what another has read. An
operation that is still under way at a barrier (no s_waitcnt) counts for the time after it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.errors import ExecutionError

if TYPE_CHECKING:
    from tunegen.execute.waves import Mask, Waves

# Stamps are an epoch and, in the low bits, the waves of that epoch, one bit for each of the 16 a workgroup may have.
_WHO = 16
_ANYONE = (1 << _WHO) - 1


class LocalMemory:
    """LDS of some workgroups.

    Args:
        data: Its bytes, uint8 [workgroups, size]: poison.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.workgroups, self.size = data.shape
        self._data = data.reshape(-1)
        self._written = np.zeros(data.size, np.int64)
        self._read = np.zeros(data.size, np.int64)

    def indices(self, waves: Waves, addresses: NDArray[np.uint32], size: int, mask: Mask) -> NDArray[np.int64]:
        """Positions of the bytes that active lanes access, int64 [k, size]; raises ExecutionError outside of LDS."""
        at = addresses[mask].astype(np.int64)
        if len(at) and int(at.max()) + size > self.size:
            raise ExecutionError(
                f"It accesses {size} bytes at LDS address {int(at.max())}; the workgroup has {self.size} bytes of LDS."
            )
        workgroup = np.broadcast_to(waves.workgroup[:, None], mask.shape)[mask]
        return (workgroup * self.size + at)[:, None] + np.arange(size)

    def load(self, waves: Waves, indices: NDArray[np.int64], mask: Mask) -> NDArray[np.uint8]:
        """Bytes at `indices`, uint8 [k, size]."""
        now, who = self._stamps(waves, mask)
        # Of waves that wrote one value each reads what it wrote.
        written = self._written[indices]
        self._conflict(np.where(written & who, 0, written), now, who, "reads", "has written")
        self._note(self._read, indices, now, who)
        return self._data[indices]

    def store(self, waves: Waves, indices: NDArray[np.int64], values: NDArray[np.uint8], mask: Mask) -> None:
        """Writes bytes at `indices`."""
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
        # Wave by wave: several may access one byte in this very instruction.
        for wave in np.unique(who):
            chosen = who[:, 0] == wave
            at = indices[chosen]
            stamps[at] = np.maximum(stamps[at], now[chosen]) | wave
