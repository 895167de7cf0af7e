"""An instruction made ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunegen.execute.listing import Instruction
from tunegen.execute.operands import Operand, float_bits
from tunegen.execute.waits import Counter, Need

if TYPE_CHECKING:
    from tunegen.execute.waves import Waves

FIRST_SCALAR = 1000
Run = Callable[["Waves"], None]
Reader = Callable[["Waves"], Any]
# Inline constants; other integers are literals.
INLINE = range(-16, 65)


@dataclass
class Step:
    """An instruction, decoded.

    Attributes:
        instruction: As it stands in the listing.
        run: Executes it on waves.
        reads, writes: Registers, as `vector_id` and `scalar_id` number them.
        flow: ``""``, or what the machine does: ``"branch"``, ``"barrier"``, ``"end"``.
        condition: Of a conditional branch: which waves take it.
        target: Index of the instruction that a branch goes to.
        counter: What it counts on until its result has come.
        states: Wait states that it is worth.
        needs: Hazards that it consumes.
        produces: Hazards that it makes: kind and registers.
    """

    instruction: Instruction
    run: Run
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    flow: str = ""
    condition: Reader | None = None
    target: int = -1
    counter: Counter | None = None
    states: int = 1
    needs: list[Need] = field(default_factory=list)
    produces: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registers = self.reads | self.writes
        self.line = self.instruction.line
        self.text = self.instruction.text


def vector_id(index: int) -> int:
    """Number of a vector register among all."""
    return index


def scalar_id(index: int) -> int:
    """Number of a scalar register among all."""
    return FIRST_SCALAR + index


def registers_of(operand: Operand) -> list[int]:
    """Registers that an operand names."""
    if operand.kind == "v":
        return list(range(operand.index, operand.index + operand.count))
    if operand.kind == "s":
        return [scalar_id(i) for i in range(operand.index, operand.index + operand.count)]
    return []


def constant_bits(operand: Operand, bits: int) -> int:
    """A constant as an operand of 16, 32 or 64 bits.

    Raises:
        ValueError: A literal whose extension to 64 bits the documents leave open.
    """
    if operand.kind == "float":
        return float_bits(operand.number, bits)
    if bits == 64 and operand.value not in INLINE and not 0 <= operand.value < 2**31:
        raise ValueError(f"how the literal {operand.value} is extended to 64 bits is not modelled")
    return int(operand.value % 2**bits)


def scalar_reader(operand: Operand, bits: int) -> Reader:
    """Reads a scalar operand: uint32 or uint64, [n] or [1]."""
    if operand.kind in ("int", "float"):
        dtype = np.uint32 if bits == 32 else np.uint64
        constant = np.array([constant_bits(operand, bits)], dtype)
        return lambda waves: constant
    index = operand.index
    if operand.kind == "scc" and bits == 32:
        return lambda waves: waves.scc.astype(np.uint32)
    if operand.kind != "s":
        raise ValueError("a scalar register or a constant must stand here")
    if operand.count != bits // 32:
        raise ValueError(f"the operand has {operand.count} registers where {bits // 32} are due")
    if bits == 32:
        return lambda waves: waves.s[index]
    return lambda waves: waves.get_s64(index)
