"""VOP3P: two operations at once, mixed precision; and v_bitop3 (ISA documents, "VOP3P", "V_BITOP3").

op_sel picks the half (or register) of each source that the low result is made of, op_sel_hi of the high one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tunegen.execute import floats
from tunegen.execute.floats import MAGNITUDE, SIGN
from tunegen.execute.isa.vector import bitop3, half_fma, half_result
from tunegen.execute.isa.vector_decode import allow, bits_modifier, vector_step
from tunegen.execute.isa.vector_operands import raw_reader, reader
from tunegen.execute.listing import Instruction
from tunegen.execute.operands import Operand
from tunegen.execute.small_floats import from_half, to_half
from tunegen.execute.step import Reader, Step, registers_of
from tunegen.execute.waves import Waves

PACKED_F32: dict[str, tuple[int, Callable[..., Any]]] = {
    "v_pk_add_f32": (2, floats.add),
    "v_pk_mul_f32": (2, floats.multiply),
    "v_pk_fma_f32": (3, floats.fma),
}
PACKED_F16: dict[str, tuple[int, Callable[..., Any]]] = {
    "v_pk_add_f16": (2, floats.add),
    "v_pk_mul_f16": (2, floats.multiply),
    "v_pk_fma_f16": (3, half_fma),
    "v_pk_min_f16": (2, floats.minimum),
    "v_pk_max_f16": (2, floats.maximum),
}
PACKED_U16: dict[str, tuple[int, Callable[..., Any]]] = {
    "v_pk_add_u16": (2, lambda a, b: a + b),
    "v_pk_sub_u16": (2, lambda a, b: a - b),
    "v_pk_sub_i16": (2, lambda a, b: a - b),
    "v_pk_add_i16": (2, lambda a, b: a + b),
    "v_pk_mul_lo_u16": (2, lambda a, b: a * b),
    "v_pk_mad_u16": (3, lambda a, b, c: a * b + c),
    "v_pk_lshlrev_b16": (2, lambda a, b: b << (a & np.uint32(15))),
    "v_pk_lshrrev_b16": (2, lambda a, b: b >> (a & np.uint32(15))),
    "v_pk_min_u16": (2, np.minimum),
    "v_pk_max_u16": (2, np.maximum),
}
MIXED = ("v_fma_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16")


def decode(instruction: Instruction, arch: str) -> Step | None:  # noqa: PLR0911 - one a form
    """The step of a packed instruction; None if it is of another family."""
    name = instruction.name
    if name in PACKED_F32:
        return _packed_f32(instruction, *PACKED_F32[name])
    if name in PACKED_F16:
        return _packed_halves(instruction, *PACKED_F16[name], floating=True)
    if name in PACKED_U16:
        return _packed_halves(instruction, *PACKED_U16[name], floating=False)
    if name == "v_pk_mov_b32":
        return _packed_move(instruction)
    if name in MIXED:
        return _mixed(instruction)
    if name in ("v_bitop3_b32", "v_bitop3_b16") and arch == "gfx950":
        return _bitop3(instruction)
    return None


def _selectable(operand: Operand, halves: set[int]) -> None:
    """Raises ValueError where the document leaves open what the second half of a constant is; of zero it is zero."""
    zero = operand.kind == "int" and operand.value == 0
    if operand.kind not in ("v", "s") and not zero and halves != {0}:
        raise ValueError("the high half of a constant is not modelled")


def _packed_f32(instruction: Instruction, count: int, function: Callable[..., Any]) -> Step:
    allow(instruction, "op_sel", "op_sel_hi", "neg_lo", "neg_hi")
    destination, *sources = instruction.operands
    if len(sources) != count or destination.kind != "v" or destination.count != 2:
        raise ValueError(f"a pair of registers and {count} sources are due")
    results = []
    for select, negate, default in (("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1)):
        chosen = bits_modifier(instruction, select, count, default)
        signs = bits_modifier(instruction, negate, count)
        for operand, register in zip(sources, chosen, strict=True):
            _selectable(operand, {register})
        results.append(
            [
                _f32(operand, register, bool(sign))
                for operand, register, sign in zip(sources, chosen, signs, strict=True)
            ]
        )
    low, high = results
    index = destination.index

    def run(waves: Waves) -> None:
        a = function(*[read(waves) for read in low]).view(np.uint32)
        b = function(*[read(waves) for read in high]).view(np.uint32)
        waves.set_v(index, a)
        waves.set_v(index + 1, b)

    return vector_step(instruction, run, sources, [destination])


def _f32(operand: Operand, register: int, negate: bool) -> Reader:
    # A scalar of one register has no second one to pick.
    if operand.kind in ("v", "s") and register >= operand.count:
        raise ValueError("op_sel picks a register that the operand does not have")
    read = raw_reader(operand, register if operand.kind in ("v", "s") else 0)
    if negate:
        return lambda waves: (read(waves) ^ SIGN).view(np.float32)
    return lambda waves: read(waves).view(np.float32)


def _packed_move(instruction: Instruction) -> Step:
    allow(instruction, "op_sel", "op_sel_hi")
    destination, a, b = instruction.operands
    # The low result comes from the first source, the high one from the second; op_sel_hi has no part in it.
    first, second = bits_modifier(instruction, "op_sel", 2)
    _selectable(a, {first})
    _selectable(b, {second})
    read_a, read_b = raw_reader(a, first), raw_reader(b, second)
    index = destination.index

    def run(waves: Waves) -> None:
        low, high = read_a(waves), read_b(waves)
        waves.set_v(index, low)
        waves.set_v(index + 1, high)

    return vector_step(instruction, run, [a, b], [destination])


def _half(operand: Operand, half: int, negate: bool, floating: bool) -> Reader:
    if operand.kind != "int":
        # An integer is sign-extended to 32 bits, of which both halves are there.
        _selectable(operand, {half})
    read = raw_reader(operand, 0, 16 if operand.kind == "float" else 32)
    shift = np.uint32(16 * half)

    def run(waves: Waves) -> Any:
        bits = (read(waves) >> shift) & np.uint32(0xFFFF)
        if negate:
            bits = bits ^ np.uint32(0x8000)
        return from_half(bits) if floating else bits

    return run


def _packed_halves(instruction: Instruction, count: int, function: Callable[..., Any], floating: bool) -> Step:
    allow(instruction, "op_sel", "op_sel_hi", *(("neg_lo", "neg_hi") if floating else ()))
    destination, *sources = instruction.operands
    if len(sources) != count:
        raise ValueError(f"{count} sources are due, {len(sources)} are there")
    results = []
    for select, negate, default in (("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1)):
        chosen = bits_modifier(instruction, select, count, default)
        signs = bits_modifier(instruction, negate, count)
        results.append(
            [_half(o, half, bool(sign), floating) for o, half, sign in zip(sources, chosen, signs, strict=True)]
        )
    index = destination.index

    def result(waves: Waves, readers: list[Reader]) -> Any:
        values = [read(waves) for read in readers]
        value = function(*values)
        return half_result(value, values, waves.fp16_overflow) if floating else value & np.uint32(0xFFFF)

    def run(waves: Waves) -> None:
        waves.set_v(index, result(waves, results[0]) | (result(waves, results[1]) << np.uint32(16)))

    return vector_step(instruction, run, sources, [destination])


def _mixed(instruction: Instruction) -> Step:
    """v_fma_mix: each source is fp32, or with its bit of op_sel_hi the fp16 half that op_sel says."""
    allow(instruction, "op_sel", "op_sel_hi", "clamp")
    destination, *sources = instruction.operands
    if len(sources) != 3 or destination.kind != "v" or destination.count != 1:
        raise ValueError("one register and three sources are due")
    is_half = bits_modifier(instruction, "op_sel_hi", 3)
    which = bits_modifier(instruction, "op_sel", 3)
    readers = [_mix_source(*each) for each in zip(sources, is_half, which, strict=True)]
    clamp = "clamp" in instruction.modifiers
    index, name = destination.index, instruction.name

    def run(waves: Waves) -> None:
        a, b, c = (read(waves) for read in readers)
        if name == "v_fma_mix_f32":
            value = floats.fma(a, b, c)
            waves.set_v(index, (floats.clamp_to_one(value) if clamp else value).view(np.uint32))
            return
        # Rounded once, to fp16.
        product = a.astype(np.float64) * b
        wide = floats.round_to_odd_sum(product, np.asarray(c, np.float64))
        if clamp:
            wide = np.where(wide > 0, np.minimum(wide, 1), 0)
        infinite = np.isinf(a) | np.isinf(b) | np.isinf(c)
        half = to_half(wide, waves.fp16_overflow, infinite)
        old = waves.v[index]
        if name == "v_fma_mixlo_f16":
            waves.set_v(index, half | (old & np.uint32(0xFFFF0000)))
        else:
            waves.set_v(index, (half << np.uint32(16)) | (old & np.uint32(0xFFFF)))

    kept = registers_of(destination) if name != "v_fma_mix_f32" else ()
    return vector_step(instruction, run, sources, [destination], implicit_reads=kept)


def _mix_source(operand: Operand, is_half: int, which: int) -> Reader:
    if is_half:
        return _with_signs(_half(operand, which, False, True), operand)
    if which:
        raise ValueError("op_sel without op_sel_hi picks nothing")
    return reader(operand, "f32")


def _with_signs(read: Reader, operand: Operand) -> Reader:
    def run(waves: Waves) -> Any:
        bits = read(waves).view(np.uint32)
        if operand.absolute:
            bits = bits & MAGNITUDE
        if operand.negated:
            bits = bits ^ SIGN
        return bits.view(np.float32)

    return run


def _bitop3(instruction: Instruction) -> Step:
    allow(instruction, "bitop3")
    destination, *sources = instruction.operands
    table = int(str(instruction.modifiers.get("bitop3", "0")), 0)
    read_a, read_b, read_c = (reader(operand, "u32") for operand in sources)
    index = destination.index
    halves = instruction.name == "v_bitop3_b16"

    def run(waves: Waves) -> None:
        value = bitop3(read_a(waves), read_b(waves), read_c(waves), table)
        if halves:
            # What the high half becomes is not documented.
            open_bits = waves.machine.poison(value.shape) & np.uint32(0xFFFF0000)
            value = (value & np.uint32(0xFFFF)) | open_bits
        waves.set_v(index, value)

    return vector_step(instruction, run, sources, [destination])
