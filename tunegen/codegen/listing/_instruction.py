"""One instruction of a listing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "vector",  # arithmetic of a lane each, at full or half rate
    "transcendental",  # reciprocal, square root, exponential and their like
    "shuffle",  # between lanes, through the shared-memory unit
    "scalar",  # once a warp: the uniform or scalar unit's, and its loads
    "global load",
    "global store",
    "async copy",  # global to shared memory without registers
    "shared load",
    "shared store",
    "scratch",  # spilled registers: local memory, AMD's private segment
    "barrier",
    "wait",  # for counted memory operations
    "branch",
    "exit",
    "nop",
]
MEMORY_KINDS = ("global load", "global store", "async copy", "shared load", "shared store", "scratch")
# Arithmetic of a lane each, of whichever unit.
LANE_KINDS = ("vector", "transcendental")
# Units that all schedulers of a compute unit share; the others are each scheduler's own.
SHARED_UNITS = ("memory", "shared", "global")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing.

    Attributes:
        line: Its line in the listing, from 1.
        text: As it stands there, without encoding and comments.
        opcode: Its name with modifiers.
        kind: What it does.
        unit: What executes it; see `SHARED_UNITS`.
        width: Bytes a lane of a memory access; 0 otherwise.
        cycles: Clocks that it occupies its unit, for one warp: the scheduler's unit of arithmetic, or the compute
            unit's one of memory.
        latency: Clocks until a result of a fixed delay can be used.
        writes: Registers it writes.
        reads: Registers it reads, predicates and addresses included.
        predicated: It may do nothing: a predicate stands before it.
        target: Line it may branch to; 0 if it is no branch.
        count: Of a wait: memory operations (AMD) or groups of copies (NVIDIA) that may still be under way; -1: any.
        shared_count: Of a wait on AMD: operations of LDS and scalar loads that may still be under way; -1: any.
    """

    line: int
    text: str
    opcode: str
    kind: Kind
    unit: str = ""
    width: int = 0
    cycles: float = 1.0
    latency: float = 0.0
    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    predicated: bool = False
    target: int = 0
    count: int = -1
    shared_count: int = -1
