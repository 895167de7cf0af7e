"""Instructions that move values between lanes, and between lanes and scalar registers (ISA documents,
"V_READLANE_B32", "V_READFIRSTLANE_B32", "V_WRITELANE_B32", "V_PERMLANE32_SWAP_B32").
"""

from __future__ import annotations

import numpy as np

from tunegen.execute.isa.vector_decode import allow, vector_step
from tunegen.execute.isa.vector_operands import raw_reader
from tunegen.execute.listing import Instruction
from tunegen.execute.operands import EXEC, Operand
from tunegen.execute.step import Reader, Step, registers_of, scalar_id, scalar_reader
from tunegen.execute.waits import VALU_SCALAR, VALU_VECTOR
from tunegen.execute.waves import LANES, Waves


def decode(instruction: Instruction, arch: str) -> Step | None:  # noqa: PLR0911 - one a form
    """The step of such an instruction; None if it is another."""
    name = instruction.name
    if name == "v_readfirstlane_b32":
        return _read_lane(instruction, None)
    if name == "v_readlane_b32":
        return _read_lane(instruction, instruction.operands[2])
    if name == "v_writelane_b32":
        return _write_lane(instruction)
    if name in ("v_permlane32_swap_b32", "v_permlane16_swap_b32") and arch == "gfx950":
        return _swap(instruction, 32 if name.startswith("v_permlane32") else 16)
    if name == "v_swap_b32":
        return _swap_registers(instruction)
    if name == "v_nop":
        return vector_step(instruction, lambda waves: None, [], [])
    return None


_EXEC = [(VALU_SCALAR, scalar_id(EXEC + i), "exec of lane") for i in (0, 1)]


def _lane_reader(operand: Operand) -> Reader:
    read = scalar_reader(operand, 32)
    return lambda waves: np.broadcast_to(read(waves) & np.uint32(63), (waves.n,)).astype(np.int64)


def _read_lane(instruction: Instruction, select: Operand | None) -> Step:
    allow(instruction)
    destination, source = instruction.operands[:2]
    if source.kind != "v":
        raise ValueError("the source must be a vector register")
    lane = _lane_reader(select) if select is not None else None
    index, out = source.index, destination.index

    def run(waves: Waves) -> None:
        # The first active lane; with none, lane 0.
        chosen = lane(waves) if lane is not None else np.argmax(waves.mask, axis=1)
        waves.set_s(out, waves.v[index][np.arange(waves.n), chosen])

    extra = [(VALU_VECTOR, index, "readlane"), *_EXEC]
    sources = [source]
    if select is not None:
        extra += [(VALU_SCALAR, register, "lane select") for register in registers_of(select)]
        sources.append(select)
    return vector_step(instruction, run, sources, [destination], extra=extra)


def _write_lane(instruction: Instruction) -> Step:
    allow(instruction)
    destination, source, select = instruction.operands
    read, lane = scalar_reader(source, 32), _lane_reader(select)
    index = destination.index

    def run(waves: Waves) -> None:
        # Whatever EXEC is.
        values = np.array(waves.v[index])
        values[np.arange(waves.n), lane(waves)] = read(waves)
        waves.v[index] = values

    extra = [(VALU_SCALAR, register, "lane select") for register in registers_of(select)]
    return vector_step(
        instruction,
        run,
        [source, select],
        [destination],
        implicit_reads=registers_of(destination),
        extra=[*extra, *_EXEC],
    )


def _swap(instruction: Instruction, width: int) -> Step:
    """Exchanges odd rows of ``width`` lanes of the first register with even ones of the second."""
    allow(instruction)
    first, second = instruction.operands
    a, b = first.index, second.index
    lanes = np.arange(LANES)
    odd = lanes // width % 2 == 1
    up, down = (lanes + width) % LANES, (lanes - width) % LANES

    def run(waves: Waves) -> None:
        one, two = waves.v[a], waves.v[b]
        new_one = np.where(odd, np.take(two, down, axis=1), one)
        new_two = np.where(odd, two, np.take(one, up, axis=1))
        waves.set_v(a, new_one)
        waves.set_v(b, new_two)

    extra = [(VALU_VECTOR, index, "permlane") for index in (a, b)]
    return vector_step(instruction, run, [first, second], [first, second], extra=extra)


def _swap_registers(instruction: Instruction) -> Step:
    allow(instruction)
    first, second = instruction.operands
    read_a, read_b = raw_reader(first), raw_reader(second)

    def run(waves: Waves) -> None:
        one, two = read_a(waves), read_b(waves)
        waves.set_v(first.index, two)
        waves.set_v(second.index, one)

    return vector_step(instruction, run, [first, second], [first, second])
