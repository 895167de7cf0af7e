"""The state of waves that stand at the same instruction, executed together.

A register is one NumPy array over all of them: the Python work of an instruction is done once, however many waves
there are. Arrays are never changed in place, so that a move shares one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.operands import EXEC, NUM_SCALARS, NUM_VECTORS
from tunegen.execute.waits import Scoreboard

if TYPE_CHECKING:
    from tunegen.execute.machine import Machine

LANES = 64
Words = NDArray[np.uint32]
Mask = NDArray[np.bool_]

_LANE_BITS = np.uint64(1) << np.arange(LANES, dtype=np.uint64)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def bits_of(mask: Mask) -> NDArray[np.uint64]:
    """Lane masks [n, 64] as integers [n], lane 0 the lowest bit."""
    packed = np.packbits(mask, axis=-1, bitorder="little")
    return packed.view(np.uint64)[:, 0]


def lanes_of(bits: NDArray[np.uint64]) -> Mask:
    """The inverse of `bits_of`."""
    packed = np.ascontiguousarray(bits).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(packed, axis=-1, bitorder="little").view(np.bool_)


class Waves:
    """Waves at one instruction.

    Attributes:
        machine: What they run on.
        pc: Index of the instruction that is next.
        workgroup: Index of each wave's workgroup within the batch.
        wave: Index of each wave within its workgroup.
        v: Vector registers, uint32 [n, 64] each; accumulation registers from 256.
        s: Scalar registers, uint32 [n] each.
        scc: The scalar condition code, bool [n].
        mask: EXEC as lanes, bool [n, 64]; kept in step with ``s[126:128]``.
        full: All lanes of all waves are active.
        scratch: Private memory by dword offset, uint32 [n, 64] each.
        fp16_overflow: MODE.FP16_OVFL: conversions to small formats saturate.
        board: Results on their way, and hazards.
        epoch: Barriers passed, int64 [n].
    """

    def __init__(self, machine: Machine, workgroup: NDArray[np.int64], wave: NDArray[np.int64]) -> None:
        self.machine = machine
        self.pc = 0
        self.workgroup, self.wave = workgroup, wave
        n = len(workgroup)
        self.v: list[Words] = [machine.poison((n, LANES)) for _ in range(machine.num_vectors)]
        self.v += [self.v[0]] * (NUM_VECTORS - len(self.v))
        self.s: list[Words] = [machine.poison((n,)) for _ in range(NUM_SCALARS)]
        self.scc: Mask = np.zeros(n, np.bool_)
        self.scratch: dict[int, Words] = {}
        self.fp16_overflow = machine.fp16_overflow
        self.board = Scoreboard()
        self.epoch = np.zeros(n, np.int64)
        self.mask: Mask = np.ones((n, LANES), np.bool_)
        self.full = True
        self.cached: dict[int, Mask] = {}
        self.set_s64(EXEC, np.full(n, _ALL))

    @property
    def n(self) -> int:
        """Number of waves."""
        return len(self.workgroup)

    # --- Scalar registers ---

    def set_s(self, index: int, value: NDArray[Any]) -> None:
        """Writes one scalar register; ``value`` is uint32 [n] or broadcasts to it."""
        self.s[index] = value if value.shape == (self.n,) else np.broadcast_to(value, (self.n,))
        if self.cached:
            self.cached.pop(index, None)
            self.cached.pop(index - 1, None)
        if index >= EXEC:
            self._follow_exec()

    def get_s64(self, index: int) -> NDArray[np.uint64]:
        """Two scalar registers as one integer, uint64 [n]."""
        return self.s[index].astype(np.uint64) | (self.s[index + 1].astype(np.uint64) << _HALF)

    def set_s64(self, index: int, value: NDArray[np.uint64]) -> None:
        """Writes two scalar registers; ``value`` is uint64 [n]."""
        value = value if value.shape == (self.n,) else np.broadcast_to(value, (self.n,))
        self.s[index] = (value & _LOW).astype(np.uint32)
        self.s[index + 1] = (value >> _HALF).astype(np.uint32)
        if self.cached:
            for i in (index - 1, index, index + 1):
                self.cached.pop(i, None)
        if index == EXEC:
            self._follow_exec()

    def get_mask(self, index: int) -> Mask:
        """Two scalar registers as lanes, bool [n, 64]."""
        mask = self.cached.get(index)
        if mask is None:
            mask = self.cached[index] = self.mask if index == EXEC else lanes_of(self.get_s64(index))
        return mask

    def set_mask(self, index: int, mask: Mask) -> None:
        """Writes lanes to two scalar registers; lanes that are not active become 0, as comparisons have it."""
        mask = np.broadcast_to(mask, (self.n, LANES)) if self.full else mask & self.mask
        self.set_s64(index, bits_of(mask))
        if index != EXEC:
            self.cached[index] = mask

    def _follow_exec(self) -> None:
        bits = self.get_s64(EXEC)
        self.full = bool((bits == _ALL).all())
        self.mask = lanes_of(bits)
        self.cached.pop(EXEC, None)

    # --- Vector registers ---

    def set_v(self, index: int, value: Words, mask: Mask | None = None) -> None:
        """Writes the active lanes (of ``mask`` too, if given) of a vector register; ``value`` broadcasts."""
        if value.shape != (self.n, LANES):
            value = np.broadcast_to(value, (self.n, LANES))
        if self.full and mask is None:
            self.v[index] = value
            return
        where = self.mask if mask is None else mask if self.full else mask & self.mask
        self.v[index] = np.where(where, value, self.v[index])

    # --- Dividing and joining ---

    def part(self, chosen: Mask) -> Waves:
        """The chosen waves, bool [n], at the same instruction."""
        some = Waves.__new__(Waves)
        some.machine, some.pc = self.machine, self.pc
        some.workgroup, some.wave = self.workgroup[chosen], self.wave[chosen]
        taken: dict[int, Words] = {}

        def take(array: Words) -> Words:
            if id(array) not in taken:
                taken[id(array)] = array[chosen]
            return taken[id(array)]

        some.v = [take(register) for register in self.v]
        some.s = [take(register) for register in self.s]
        some.scc = self.scc[chosen]
        some.scratch = {offset: dword[chosen] for offset, dword in self.scratch.items()}
        some.fp16_overflow = self.fp16_overflow
        some.board = self.board.copy(chosen)
        some.epoch = self.epoch[chosen]
        some.cached = {}
        some._follow_exec()
        return some

    def keep(self, chosen: Mask) -> None:
        """Leaves the chosen waves alone."""
        vars(self).update(vars(self.part(chosen)))

    def join(self, other: Waves) -> None:
        """Takes in waves that stand at the same instruction."""
        n = self.n
        joined: dict[tuple[int, int], Words] = {}

        def concatenate(a: Words, b: Words) -> Words:
            key = (id(a), id(b))
            if key not in joined:
                joined[key] = np.concatenate((a, b))
            return joined[key]

        self.v = [concatenate(a, b) for a, b in zip(self.v, other.v, strict=True)]
        self.s = [concatenate(a, b) for a, b in zip(self.s, other.s, strict=True)]
        self.scc = np.concatenate((self.scc, other.scc))
        scratch: dict[int, Words] = {}
        for offset in self.scratch.keys() | other.scratch.keys():
            mine, theirs = self.scratch.get(offset), other.scratch.get(offset)
            mine = self.machine.poison((n, LANES)) if mine is None else mine
            theirs = self.machine.poison((other.n, LANES)) if theirs is None else theirs
            scratch[offset] = np.concatenate((mine, theirs))
        self.scratch = scratch
        self.board.join(other.board, n)
        self.workgroup = np.concatenate((self.workgroup, other.workgroup))
        self.wave = np.concatenate((self.wave, other.wave))
        self.epoch = np.concatenate((self.epoch, other.epoch))
        self.cached = {}
        self._follow_exec()
