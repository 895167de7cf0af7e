"""Conversions to 8 and 4 bits, two values an instruction, into a part of a register (ISA documents of CDNA3,
"V_CVT_PK_FP8_F32", and CDNA4, "V_CVT_SCALEF32_PK_FP4_F32" and the like).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tunegen.execute.isa.vector_decode import allow, bits_modifier, vector_step
from tunegen.execute.isa.vector_operands import raw_reader, reader
from tunegen.execute.listing import Instruction
from tunegen.execute.small_floats import (
    E4M3,
    E4M3_FNUZ,
    E5M2,
    E5M2_FNUZ,
    from_bfloat16,
    from_half,
    negative,
    scale_of,
    to_e2m1,
    to_format8,
    to_half,
)
from tunegen.execute.step import Reader, Step, registers_of
from tunegen.execute.waves import Waves

FORMATS = {
    "gfx950": {"fp8": E4M3, "bf8": E5M2},
    "gfx942": {"fp8": E4M3_FNUZ, "bf8": E5M2_FNUZ},
}
UNPACK = {"f16": from_half, "bf16": from_bfloat16}


def decode(instruction: Instruction, arch: str) -> Step | None:
    """The step of such a conversion; None if it is another instruction."""
    parts = instruction.name.split("_")
    if instruction.name in ("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32"):
        return _packed_8(instruction, arch, parts[3])
    if instruction.name == "v_cvt_pk_f16_f32" and arch == "gfx950":
        return _packed_half(instruction)
    scaled = instruction.name.startswith("v_cvt_scalef32_pk_") and arch == "gfx950" and len(parts) == 6
    if scaled and parts[5] in ("f32", "f16", "bf16"):
        if parts[4] == "fp4":
            return _scaled_4(instruction, parts[5])
        if parts[4] in ("fp8", "bf8"):
            return _scaled_8(instruction, arch, parts[4], parts[5])
    return None


def _packed_half(instruction: Instruction) -> Step:
    allow(instruction)
    destination, a, b = instruction.operands
    read_a, read_b = reader(a, "f32"), reader(b, "f32")
    index = destination.index

    def run(waves: Waves) -> None:
        saturate = waves.fp16_overflow
        low, high = (to_half(read(waves), saturate) for read in (read_a, read_b))
        waves.set_v(index, low | (high << np.uint32(16)))

    return vector_step(instruction, run, [a, b], [destination])


def _insert(waves: Waves, index: int, value: Any, shift: int, mask: int) -> None:
    keep = np.uint32(~(mask << shift) & 0xFFFFFFFF)
    waves.set_v(index, (waves.v[index] & keep) | (value << np.uint32(shift)))


def _packed_8(instruction: Instruction, arch: str, form: str) -> Step:
    """Two values of fp32 to the half of the destination that the third bit of op_sel says; the other half stays."""
    allow(instruction, "op_sel")
    destination, a, b = instruction.operands
    *source_selects, high = bits_modifier(instruction, "op_sel", 3)
    if any(source_selects):
        raise ValueError("op_sel of fp32 sources is not modelled")
    format8 = FORMATS[arch][form]
    readers = [reader(a, "f32"), reader(b, "f32")]
    index, shift = destination.index, 16 * high

    def run(waves: Waves) -> None:
        codes = [to_format8(read(waves).astype(np.float64), format8, waves.fp16_overflow) for read in readers]
        _insert(waves, index, codes[0] | (codes[1] << np.uint32(8)), shift, 0xFFFF)

    partial = registers_of(destination)
    return _conversion(instruction, run, [a, b], bool(high), partial)


def _conversion(instruction: Instruction, run: Any, sources: Any, moved: bool, partial: list[int]) -> Step:
    """The low part is written where it is computed; only what has to be moved up is late for its reader."""
    destination = instruction.operands[0]
    if moved:
        return vector_step(instruction, run, sources, [destination], partial=partial)
    return vector_step(instruction, run, sources, [destination], implicit_reads=partial)


def _pair(instruction: Instruction, kind: str) -> tuple[Callable[[Waves], list[Any]], list[Any], Any]:
    """Reads the two values to convert; also the operands they are in, and the scale's."""
    operands = instruction.operands[1:]
    if kind == "f32":
        a, b, scale = operands
        read_a, read_b = reader(a, "f32"), reader(b, "f32")
        return (lambda waves: [read_a(waves), read_b(waves)]), [a, b], scale
    packed, scale = operands
    read, unpack = raw_reader(packed), UNPACK[kind]
    return (
        lambda waves: [unpack(read(waves) & np.uint32(0xFFFF)), unpack(read(waves) >> np.uint32(16))],
        [packed],
        scale,
    )


def _scale(operand: Any) -> Reader:
    if operand.kind == "int" and operand.value not in range(-16, 65):
        raise ValueError("the scale may not be a literal")
    read = reader(operand, "f32")
    return lambda waves: scale_of(read(waves))


def _scaled_4(instruction: Instruction, kind: str) -> Step:
    """Two codes of E2M1 to the byte of the destination that the last two bits of op_sel say; the others stay.

    The values are divided by the scale's power of two, rounded to nearest even and saturated at 6.
    """
    allow(instruction, "op_sel")
    read_pair, sources, scale = _pair(instruction, kind)
    destination = instruction.operands[0]
    selects = bits_modifier(instruction, "op_sel", 4)
    # op_sel has the bits of the byte in the places of the third source and of the destination.
    low_bit, high_bit = selects[2], selects[3]
    if any(selects[:2]):
        raise ValueError("op_sel of the sources is not modelled")
    byte = low_bit + 2 * high_bit
    read_scale = _scale(scale)
    index = destination.index

    def run(waves: Waves) -> None:
        divisor = read_scale(waves)
        low, high = (to_e2m1(value / divisor, negative(value)) for value in read_pair(waves))
        _insert(waves, index, low | (high << np.uint32(4)), 8 * byte, 0xFF)

    return _conversion(instruction, run, [*sources, scale], byte > 0, registers_of(destination))


def _scaled_8(instruction: Instruction, arch: str, form: str, kind: str) -> Step:
    """Two codes of 8 bits to the half of the destination that the last bit of op_sel says; the other half stays."""
    allow(instruction, "op_sel")
    read_pair, sources, scale = _pair(instruction, kind)
    destination = instruction.operands[0]
    *source_selects, high = bits_modifier(instruction, "op_sel", 4)
    if any(source_selects):
        raise ValueError("op_sel of the sources is not modelled")
    format8 = FORMATS[arch][form]
    read_scale = _scale(scale)
    index = destination.index

    def run(waves: Waves) -> None:
        divisor = read_scale(waves)
        codes = [to_format8(value / divisor, format8, waves.fp16_overflow) for value in read_pair(waves)]
        _insert(waves, index, codes[0] | (codes[1] << np.uint32(8)), 16 * high, 0xFFFF)

    return _conversion(instruction, run, [*sources, scale], bool(high), registers_of(destination))
