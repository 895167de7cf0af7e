"""Results on their way and the waits that a program must make for them, and hazards that want wait states.

Counters: "Manually Inserted Wait States" and "Data dependency resolution: S_WAITCNT" in AMD's Instinct MI300 (CDNA3)
and MI350 (CDNA4) ISA documents; LLVM's GCNHazardRecognizer for gfx940 and gfx950 has the numbers that the documents
leave out. All follow the instructions that waves really take, which are the same for all waves executed together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.errors import ExecutionError

# Which counter a memory instruction counts on. LDS operations of a wave complete in order; scalar loads complete in
# any order, also among LDS operations; vector memory operations complete in order.
Counter = Literal["vmcnt", "lds", "smem"]


@dataclass(frozen=True)
class Hazard:
    """Instructions that must stand between a producer and a consumer.

    Attributes:
        states: Wait states: instructions, or s_nop N for N + 1 of them.
        what: For people.
    """

    states: int
    what: str


# Producer kinds: what a register was written (or, for "store", read) by.
VALU_VECTOR = "VALU wrote a vector register"
VALU_SCALAR = "VALU wrote a scalar register"
TRANSCENDENTAL = "a transcendental instruction wrote a vector register"
PARTIAL = "VALU wrote a part of a vector register"
WIDE_STORE = "a store of more than 8 bytes reads a vector register"

HAZARDS: dict[tuple[str, str], Hazard] = {
    (VALU_VECTOR, "dpp"): Hazard(2, "DPP reads it"),
    (VALU_VECTOR, "readlane"): Hazard(1, "v_readlane or v_readfirstlane reads it"),
    (VALU_VECTOR, "permlane"): Hazard(2, "v_permlane reads it"),
    (VALU_SCALAR, "vmem"): Hazard(5, "a vector memory instruction reads it"),
    (VALU_SCALAR, "lane select"): Hazard(4, "v_readlane or v_writelane selects a lane by it"),
    (VALU_SCALAR, "valu"): Hazard(2, "VALU reads it"),
    (VALU_SCALAR, "div_fmas"): Hazard(4, "v_div_fmas reads it as VCC"),
    (VALU_SCALAR, "exec of dpp"): Hazard(5, "DPP executes under it as EXEC"),
    (VALU_SCALAR, "exec of lane"): Hazard(4, "v_readlane, v_readfirstlane or v_writelane executes under it as EXEC"),
    (TRANSCENDENTAL, "valu"): Hazard(1, "another VALU instruction reads it"),
    (PARTIAL, "valu"): Hazard(1, "VALU reads it or writes another part"),
    (WIDE_STORE, "valu write"): Hazard(2, "VALU overwrites it"),
}
# What the counters count up to: 6 bits of vmcnt, 4 of lgkmcnt.
MOST_UNDER_WAY: dict[str, int] = {"vmcnt": 63, "lds": 15}


@dataclass(frozen=True)
class Need:
    """A hazard of one instruction: it consumes ``register`` in the way that `HAZARDS` describes."""

    producer: str
    register: int
    hazard: Hazard


class Scoreboard:
    """What is on its way to the registers of waves that took the same path.

    Registers are numbered as `tunegen.execute.step.scalar_id` and `vector_id` have it.
    """

    def __init__(self) -> None:
        self.issued: dict[Counter, int] = {"vmcnt": 0, "lds": 0, "smem": 0}
        # Register -> which counter and which of its operations.
        self.pending: dict[int, tuple[Counter, int]] = {}
        # LDS operations that may still be under way: (number, is a write, byte indices).
        self.lds_ops: list[tuple[int, bool, NDArray[np.int64], NDArray[np.int64]]] = []
        self.clock = 0
        self.stamps: dict[str, dict[int, int]] = {}

    def issue(self, counter: Counter, registers: Iterable[int]) -> None:
        """A memory instruction goes out; its result comes to the registers."""
        number = self.issued[counter]
        self.issued[counter] = number + 1
        # A wave whose counter is full waits with its next memory instruction.
        if counter in MOST_UNDER_WAY and number >= MOST_UNDER_WAY[counter]:
            self._arrive(counter, number + 1 - MOST_UNDER_WAY[counter])
        for register in registers:
            self.pending[register] = (counter, number)

    def wait(self, vmcnt: int | None, lgkmcnt: int | None) -> None:
        """s_waitcnt: what it covers has come."""
        if vmcnt is not None:
            self._arrive("vmcnt", self.issued["vmcnt"] - vmcnt)
        if lgkmcnt is not None:
            # With scalar loads under way too, those may be the ones that have come: LDS operations are sure of no
            # more than without them, and scalar loads of nothing until all have come.
            self._arrive("lds", self.issued["lds"] - lgkmcnt)
            if lgkmcnt == 0:
                self._arrive("smem", self.issued["smem"])

    def _arrive(self, counter: Counter, end: int) -> None:
        if self.pending:
            self.pending = {
                register: entry for register, entry in self.pending.items() if entry[0] != counter or entry[1] >= end
            }
        if counter == "lds" and self.lds_ops:
            self.lds_ops = [operation for operation in self.lds_ops if operation[0] >= end]

    def check_pending(self, step: Any) -> None:
        """Raises ExecutionError if the step uses a register whose result is on its way."""
        for register in step.registers:
            entry = self.pending.get(register)
            if entry is None:
                continue
            if entry[0] == "vmcnt" and step.counter == "vmcnt" and register not in step.reads:
                continue  # vector memory operations complete in order: the later result is the one that stays
            counter = "vmcnt" if entry[0] == "vmcnt" else "lgkmcnt"
            behind = self.issued[entry[0]] - entry[1] - 1
            use = "reads" if register in step.reads else "overwrites"
            enough = 0 if entry[0] == "smem" else behind
            raise ExecutionError(
                f"It {use} {register_name(register)}, whose load may not have come: no s_waitcnt {counter}({enough})"
                " or less stands between them.",
                step.line,
                step.text,
            )

    def check_hazards(self, step: Any) -> None:
        """Raises ExecutionError if a wait state is missing in front of the step."""
        for need in step.needs:
            stamps = self.stamps.get(need.producer)
            if stamps is None:
                continue
            since = stamps.get(need.register)
            if since is not None and self.clock - since - 1 < need.hazard.states:
                raise ExecutionError(
                    f"{register_name(need.register)}: {need.producer}, {need.hazard.what}, with"
                    f" {self.clock - since - 1} instructions between; {need.hazard.states} wait states must stand there"
                    " (s_nop).",
                    step.line,
                    step.text,
                )

    def stamp(self, step: Any) -> None:
        """Notes when the step made its hazards."""
        for producer, registers in step.produces:
            stamps = self.stamps.setdefault(producer, {})
            for register in registers:
                stamps[register] = self.clock

    def copy(self, chosen: NDArray[np.bool_]) -> Scoreboard:
        """For a part of the waves."""
        other = Scoreboard()
        other.issued = dict(self.issued)
        other.pending = dict(self.pending)
        where = np.flatnonzero(chosen)
        for number, write, waves, indices in self.lds_ops:
            keep = np.isin(waves, where)
            other.lds_ops.append((number, write, np.searchsorted(where, waves[keep]), indices[keep]))
        other.clock = self.clock
        other.stamps = {producer: dict(stamps) for producer, stamps in self.stamps.items()}
        return other

    def join(self, other: Scoreboard, offset: int) -> None:
        """Takes in other waves, numbered from ``offset``: what may be under way for either is so for both."""
        for counter, issued in self.issued.items():
            # Operations are compared by how many were issued after them.
            shift = issued - other.issued[counter]
            for register, (theirs, number) in other.pending.items():
                if theirs == counter:
                    mine = self.pending.get(register)
                    if mine is None or mine[0] != counter or mine[1] < number + shift:
                        self.pending[register] = (counter, number + shift)
        shift = self.issued["lds"] - other.issued["lds"]
        self.lds_ops += [(number + shift, write, waves + offset, at) for number, write, waves, at in other.lds_ops]
        shift = self.clock - other.clock
        for producer, theirs_stamps in other.stamps.items():
            stamps = self.stamps.setdefault(producer, {})
            for register, clock in theirs_stamps.items():
                stamps[register] = max(stamps.get(register, clock + shift), clock + shift)


def register_name(register: int) -> str:
    """A register as in a listing."""
    if register >= 1000:
        index = register - 1000
        return {106: "vcc_lo", 107: "vcc_hi", 124: "m0", 126: "exec_lo", 127: "exec_hi"}.get(index, f"s{index}")
    return f"v{register}" if register < 256 else f"a{register - 256}"
