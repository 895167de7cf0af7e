"""What a stretch of code asks of a compute unit: clocks by unit, bytes, and how long one warp alone would take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunegen.codegen.listing import SHARED_UNITS, Instruction, Path
from tunegen.limits import rates_of
from tunegen.targets import Target

# The time of a warp alone is a function of the memory's latency; it is taken at two of them.
LATENCIES = (200.0, 1000.0)


@dataclass(frozen=True)
class Work:
    """What one warp does in a stretch of code.

    Attributes:
        issued: Instructions.
        clocks: Clocks of each unit that they occupy.
        loaded: Bytes of global memory that it asks for, all lanes together.
        stored: Bytes that it writes there.
        barriers: Barriers.
        alone: Clocks that a warp alone takes, with nothing to wait for in memory.
        round_trips: How many latencies of the memory come on top of that.
    """

    issued: int = 0
    clocks: dict[str, float] = field(default_factory=dict)
    loaded: int = 0
    stored: int = 0
    barriers: int = 0
    alone: float = 0.0
    round_trips: float = 0.0

    @property
    def scheduler_clocks(self) -> float:
        """Clocks of a scheduler: of its busiest unit, or of issuing."""
        return max([float(self.issued), *(c for unit, c in self.clocks.items() if unit not in SHARED_UNITS)])

    @property
    def unit_clocks(self) -> float:
        """Clocks of the busiest of the units that the schedulers share."""
        return max([0.0, *(c for unit, c in self.clocks.items() if unit in SHARED_UNITS)])


class _Warp:
    """A warp that has a compute unit for itself: issues in order, waits for operands."""

    def __init__(self, target: Target, latency: float) -> None:
        self._amd = target.backend == "hip"
        self._latency = latency
        self._rates = rates_of(target.name)
        self.now = 0.0
        self._ready: dict[str, float] = {}
        self._free: dict[str, float] = {}
        # When what was asked for arrives: memory, and shared memory or scalar loads (AMD); groups of copies (NVIDIA).
        self._memory: list[float] = []
        self._shared: list[float] = []
        self._open_group: list[float] = []

    def run(self, instructions: Iterable[Instruction]) -> float:
        """Executes; returns the clock afterwards."""
        for instruction in instructions:
            if self._amd:
                self._run_amd(instruction)
            else:
                self._run_nvidia(instruction)
        return self.now

    def _start(self, instruction: Instruction) -> float:
        ready, start = self._ready, max(self.now, self._free.get(instruction.unit, 0.0))
        for name in instruction.reads:
            start = max(start, ready.get(name, 0.0))
        if instruction.unit:
            self._free[instruction.unit] = start + instruction.cycles
        return start

    def _run_nvidia(self, instruction: Instruction) -> None:
        start = self._start(instruction)
        kind = instruction.kind
        self.now = start + 1
        done = start + instruction.latency
        if kind == "global load":
            done = start + instruction.cycles + self._latency
        elif kind == "scratch":
            done = start + instruction.cycles + self._rates.scratch_latency
        elif kind == "async copy":
            self._open_group.append(start + instruction.cycles + self._latency)
        elif kind == "barrier":
            self.now = start + self._rates.barrier_latency
        elif instruction.opcode.startswith("LDGDEPBAR"):
            self._memory.append(max(self._open_group, default=0.0))
            self._open_group.clear()
        elif kind == "wait":
            self.now = max(self.now, self._arrived(self._memory, instruction.count))
        for name in instruction.writes:
            self._ready[name] = done

    def _run_amd(self, instruction: Instruction) -> None:
        kind = instruction.kind
        if kind == "wait":
            memory = self._arrived(self._memory, instruction.count)
            self.now = max(self.now + 1, memory, self._arrived(self._shared, instruction.shared_count))
            return
        start = self._start(instruction)
        # A wave's arithmetic follows its own: the next instruction waits for the passes of this one.
        self.now = start + (instruction.cycles if instruction.unit == "vector" else 4.0)
        if kind in ("global load", "scratch"):
            latency = self._rates.scratch_latency if kind == "scratch" else self._latency
            self._memory.append(start + instruction.cycles + latency)
        elif kind == "global store":
            self._memory.append(start + instruction.cycles)
        elif instruction.unit == "shared" or instruction.latency > 50:
            self._shared.append(start + instruction.latency)
        elif kind == "barrier":
            self.now = start + self._rates.barrier_latency
        elif kind == "nop":
            self.now = start + 4.0 * instruction.cycles

    @staticmethod
    def _arrived(pending: list[float], left: int) -> float:
        """When all but the last ``left`` have arrived; they are taken off the list."""
        if left < 0 or len(pending) <= left:
            return 0.0
        finished, pending[:] = pending[: len(pending) - left], pending[len(pending) - left :]
        return max(finished)


def _alone(
    target: Target, instructions: list[Instruction], loop: tuple[int, int] | None, latency: float, turns: int
) -> float:
    warp = _Warp(target, latency)
    if loop is None:
        return warp.run(instructions)
    first, last = loop
    warp.run(instructions[:first])
    for _ in range(turns):
        warp.run(instructions[first : last + 1])
    return warp.run(instructions[last + 1 :])


def _work(target: Target, instructions: list[Instruction], alone: float, round_trips: float) -> Work:
    clocks: dict[str, float] = {}
    loaded = stored = barriers = 0
    for instruction in instructions:
        if instruction.unit:
            clocks[instruction.unit] = clocks.get(instruction.unit, 0.0) + instruction.cycles
        if instruction.kind in ("global load", "async copy"):
            loaded += instruction.width * target.warp_size
        elif instruction.kind == "global store":
            stored += instruction.width * target.warp_size
        elif instruction.kind == "barrier":
            barriers += 1
    issued = sum(1 for instruction in instructions if instruction.kind not in ("wait", "nop"))
    return Work(issued, clocks, loaded, stored, barriers, alone, round_trips)


def work_of(target: Target, path: Path) -> tuple[Work, Work]:
    """What a warp does once, and in a turn of the path's longest loop (nothing if there is none)."""
    instructions = path.instructions
    loop = max(path.loops, key=lambda ends: ends[1] - ends[0]) if path.loops else None
    low, high = LATENCIES
    times = [[_alone(target, instructions, loop, latency, turns) for latency in LATENCIES] for turns in (1, 2)]

    def line(at_low: float, at_high: float) -> tuple[float, float]:
        slope = (at_high - at_low) / (high - low)
        return at_low - slope * low, slope

    alone, trips = line(*times[0])
    if loop is None:
        return _work(target, instructions, alone, trips), Work()
    turn_alone, turn_trips = line(times[1][0] - times[0][0], times[1][1] - times[0][1])
    first, last = loop
    once = instructions[:first] + instructions[last + 1 :]
    turn = instructions[first : last + 1]
    return (
        _work(target, once, alone - turn_alone, trips - turn_trips),
        _work(target, turn, turn_alone, turn_trips),
    )
