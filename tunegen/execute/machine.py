"""Runs the workgroups of a launch: who runs when, where waves part and come together, and barriers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.decode import Program
from tunegen.execute.errors import ExecutionError
from tunegen.execute.lds import LocalMemory
from tunegen.execute.memory import GlobalMemory
from tunegen.execute.waves import LANES, Waves

# More waves than these at once and their registers no longer fit a core's cache.
WAVES_AT_ONCE = 192
# Blocks that a batch of workgroups may take: what takes more does not end.
MOST_BLOCKS = 100_000


@dataclass(frozen=True)
class Options:
    """How a launch is executed.

    Attributes:
        seed: Of the poison.
        shuffle: Run the waves of a workgroup one after another, pre-empted at random, instead of together; the
            outcome of a correct kernel is the same.
        ulps: Added to every inexact result of an approximating instruction (v_rcp, v_rsq, v_sqrt, v_exp, v_log),
            whose documented error is 1 ulp either way: -1, 0 or 1.
        preload: Arguments are preloaded into SGPRs where the kernel has that; otherwise its prologue loads them, as
            on older firmware.
    """

    seed: int = 0
    shuffle: bool = False
    ulps: int = 0
    preload: bool = True


@dataclass(frozen=True)
class Dispatch:
    """A launch.

    Attributes:
        grid: Workgroups in x, y and z.
        waves: Waves a workgroup.
        lds_size: Bytes of LDS a workgroup.
        kernarg_address: Where the arguments are in memory.
        preloaded: Their first dwords, which go into SGPRs.
    """

    grid: tuple[int, int, int]
    waves: int
    lds_size: int
    kernarg_address: int
    preloaded: NDArray[np.uint32]


class Machine:
    """Executes one launch.

    Attributes:
        memory: Global memory.
        lds: LDS of the workgroups at hand.
        first: Number of the first of them.
        ulps: As in `Options`.
    """

    def __init__(self, program: Program, memory: GlobalMemory, dispatch: Dispatch, options: Options) -> None:
        self.memory = memory
        self.ulps = options.ulps
        self.first = 0
        self.num_vectors = program.num_vectors
        descriptor = program.listing.descriptor
        self.scratch_size = descriptor["private_segment_fixed_size"]
        self.fp16_overflow = bool(descriptor["fp16_overflow"])
        self._program = program
        self._dispatch = dispatch
        self._options = options
        self._random = np.random.default_rng(options.seed)
        # Poison is cut from one random array: a random number each would take longer than the kernel.
        self._poison = self._random.integers(0, 2**32, 1 << 18, np.uint32)

    def poison(self, shape: tuple[int, ...]) -> NDArray[np.uint32]:
        """What registers and memory hold that nobody has written: bits that mean nothing, others each time."""
        size = int(np.prod(shape))
        if size > len(self._poison) // 2:
            return self._random.integers(0, 2**32, shape, np.uint32)
        start = int(self._random.integers(0, len(self._poison) - size))
        return self._poison[start : start + size].reshape(shape)

    def run(self) -> None:
        """Executes all workgroups.

        Raises:
            ExecutionError: The kernel does what no correct kernel does.
        """
        x, y, z = self._dispatch.grid
        total = x * y * z
        at_once = max(WAVES_AT_ONCE // self._dispatch.waves, 1)
        with np.errstate(all="ignore"):
            for first in range(0, total, at_once):
                self._run_batch(first, min(at_once, total - first))
        self.memory.check_races()

    def _run_batch(self, first: int, count: int) -> None:
        self.first = first
        size = self._dispatch.lds_size
        dtype: Any = np.uint32 if self._program.lds_unit == 4 else np.uint8
        self.lds = LocalMemory(self.poison((count, -(-size // 4))).view(dtype).copy(), size)
        waves = np.arange(self._dispatch.waves)
        if self._options.shuffle:
            groups = [self._start(np.arange(count), np.full(count, wave)) for wave in waves]
        else:
            groups = [self._start(np.repeat(np.arange(count), len(waves)), np.tile(waves, count))]
        self._schedule(groups)

    def _start(self, workgroup: NDArray[np.int64], wave: NDArray[np.int64]) -> Waves:
        """Waves as the hardware starts them (LLVM's guide, "Initial Kernel Execution State")."""
        waves = Waves(self, workgroup, wave)
        listing = self._program.listing
        descriptor = listing.descriptor
        if not descriptor["user_sgpr_kernarg_segment_ptr"]:
            raise ExecutionError("A kernel without a kernarg segment pointer is not modelled.")
        waves.set_s64(0, np.full(waves.n, self._dispatch.kernarg_address, np.uint64))
        if self._options.preload:
            waves.pc = listing.preloaded_entry
            for i in range(descriptor.get("user_sgpr_kernarg_preload_length", 0)):
                waves.set_s(2 + i, np.full(waves.n, self._dispatch.preloaded[i]))
        x, y, _ = self._dispatch.grid
        number = (self.first + workgroup).astype(np.uint32)
        ids = {"x": number % np.uint32(x), "y": number // np.uint32(x) % np.uint32(y), "z": number // np.uint32(x * y)}
        index = descriptor["user_sgpr_count"]
        for dimension, value in ids.items():
            if descriptor[f"system_sgpr_workgroup_id_{dimension}"]:
                waves.set_s(index, value.astype(np.uint32))
                index += 1
        # The ids of a lane are packed, ten bits each; a workgroup has one dimension here.
        waves.v[0] = (wave[:, None] * LANES + np.arange(LANES)).astype(np.uint32)
        return waves

    def _schedule(self, running: list[Waves]) -> None:
        """Runs groups of waves until all have ended."""
        waiting: list[Waves] = []
        blocks = 0
        while running:
            waves = self._next(running)
            blocks += 1
            if blocks > MOST_BLOCKS:
                raise ExecutionError(f"The kernel has not ended after {MOST_BLOCKS} blocks of instructions.")
            outcome, parted = self._run_block(waves)
            if parted is not None:
                running.append(parted)
            if outcome:
                running.remove(waves)
                if outcome == "barrier":
                    waiting.append(waves)
            if not running and waiting:
                for group in waiting:
                    group.epoch = group.epoch + 1
                    self.lds.barrier(group)
                running, waiting = waiting, []

    def _next(self, running: list[Waves]) -> Waves:
        if self._options.shuffle:
            return running[int(self._random.integers(len(running)))]
        # The one that is furthest back: those ahead of it wait where it can join them.
        waves = min(running, key=lambda group: group.pc)
        for other in [group for group in running if group is not waves and group.pc == waves.pc]:
            if other.fp16_overflow == waves.fp16_overflow:
                waves.join(other)
                running.remove(other)
        return waves

    def _run_block(self, waves: Waves) -> tuple[str, Waves | None]:
        """Runs to the end of a block (or, shuffled, less far); says if the waves ended or wait, and who parted."""
        steps = self._program.steps
        end = self._program.ends[waves.pc]
        if self._options.shuffle:
            end = min(end, waves.pc + int(self._random.integers(1, 64)))
        board = waves.board
        step: Any = None
        try:
            for pc in range(waves.pc, end):
                step = steps[pc]
                if board.pending and not board.pending.keys().isdisjoint(step.registers):
                    board.check_pending(step)
                if step.needs:
                    board.check_hazards(step)
                step.run(waves)
                if step.counter is not None:
                    board.issue(step.counter, step.writes)
                if step.produces:
                    board.stamp(step)
                board.clock += step.states
        except ExecutionError as error:
            if error.line:
                raise
            raise ExecutionError(error.what, step.line, step.text) from error
        waves.pc = end
        if not step.flow:
            return "", None
        if step.flow != "branch":
            return step.flow, None
        return "", self._branch(waves, step)

    @staticmethod
    def _branch(waves: Waves, step: Any) -> Waves | None:
        if step.condition is None:
            waves.pc = step.target
            return None
        taken = step.condition(waves)
        if taken.all():
            waves.pc = step.target
        elif taken.any():
            parted = waves.part(taken)
            parted.pc = step.target
            waves.keep(~taken)
            return parted
        return None
