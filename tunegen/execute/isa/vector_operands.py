"""Operands of vector instructions: reads them as the types of the tables, with modifiers, SDWA selects and DPP."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunegen.execute.floats import MAGNITUDE, SIGN
from tunegen.execute.lanes import Dpp
from tunegen.execute.operands import Operand
from tunegen.execute.small_floats import from_half
from tunegen.execute.step import Reader, constant_bits
from tunegen.execute.waves import Mask, Waves

WIDTHS = {"u64": 64, "i64": 64, "f64": 64}
HALVES = ("f16", "u16", "i16", "b16")
FLOATS = ("f32", "f16", "m32")
SELECTS = {
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "DWORD": (0, 32),
}


def raw_reader(operand: Operand, offset: int = 0, bits: int = 32) -> Reader:
    """Reads 32 bits of an operand, uint32 [n, 64] or what broadcasts to it: its register ``offset``.

    ``bits`` is the width of the type, which decides the bits of an inline constant.
    """
    if operand.kind in ("int", "float"):
        pattern = constant_bits(operand, bits) >> (32 * offset)
        constant = np.full((1, 1), pattern & 0xFFFFFFFF, np.uint32)
        return lambda waves: constant
    index = operand.index + offset
    if operand.kind == "v":
        return lambda waves: waves.v[index]
    if operand.kind == "s":
        return lambda waves: waves.s[index][:, None]
    if operand.kind == "scc":
        return lambda waves: waves.scc.astype(np.uint32)[:, None]
    raise ValueError(f"an operand {operand.kind!r} cannot stand here")


def reader(operand: Operand, kind: str, select: str = "DWORD", dpp: Dpp | None = None) -> Reader:
    """Reads an operand as a type.

    Raises:
        ValueError: Wrong number of registers, or a modifier that the type does not have.
    """
    bits = WIDTHS.get(kind, 16 if kind in HALVES else 32)
    due = 2 if bits == 64 else 1
    if operand.kind in ("v", "s") and operand.count != due:
        raise ValueError(f"an operand has {operand.count} registers where {due} are due")
    if (operand.negated or operand.absolute) and kind not in FLOATS:
        raise ValueError(f"negation is not modelled for an operand of type {kind}")
    if operand.sext and not select.startswith(("BYTE", "WORD")):
        raise ValueError("sext goes with a byte or a word")
    if bits == 64:
        return _wide(operand, kind)
    read = raw_reader(operand, 0, bits)
    if dpp is not None:
        read = dpp_reader(read, dpp)
    if select != "DWORD":
        read = _selected(read, select, operand.sext)
    return _modified(_typed(read, kind), kind, operand.absolute, operand.negated)


def dpp_reader(read: Reader, dpp: Dpp) -> Reader:
    """Reads the lane that DPP says; lanes without a source read 0 (they are not written unless BOUND_CTRL is set)."""
    source, inside = dpp.source, dpp.inside
    everywhere = bool(inside.all())

    def run(waves: Waves) -> Any:
        values = np.take(read(waves), source, axis=-1)
        if waves.full and everywhere:
            return values
        return np.where(dpp_present(dpp, waves), values, np.uint32(0))

    return run


def dpp_present(dpp: Dpp, waves: Waves) -> Mask:
    """Lanes whose source lane is there and active."""
    if waves.full:
        return dpp.inside
    return dpp.inside & np.take(waves.mask, dpp.source, axis=-1)


def dpp_mask(dpp: Dpp) -> Reader | None:
    """Lanes that DPP lets be written; None (also as what it reads) for all."""
    enabled = dpp.enabled
    if dpp.zero:
        return None if enabled.all() else lambda waves: enabled
    always = bool((dpp.inside & enabled).all())

    def run(waves: Waves) -> Any:
        return None if always and waves.full else enabled & dpp_present(dpp, waves)

    return run


def _wide(operand: Operand, kind: str) -> Reader:
    low, high = raw_reader(operand, 0, 64), raw_reader(operand, 1, 64)
    dtype = {"u64": np.uint64, "i64": np.int64, "f64": np.float64}[kind]

    def run(waves: Waves) -> Any:
        value = low(waves).astype(np.uint64) | (high(waves).astype(np.uint64) << np.uint64(32))
        return value.view(dtype)

    return run


def _selected(read: Reader, select: str, sext: bool) -> Reader:
    shift, width = SELECTS[select]
    mask = np.uint32((1 << width) - 1)
    amount = np.uint32(shift)
    if not sext:
        return lambda waves: (read(waves) >> amount) & mask
    left = 32 - width

    def run(waves: Waves) -> Any:
        value = (read(waves) >> amount) << np.uint32(left)
        return (value.view(np.int32) >> left).view(np.uint32)

    return run


def _typed(read: Reader, kind: str) -> Reader:
    if kind in ("u32", "m32"):
        return read
    if kind == "i32":
        return lambda waves: read(waves).view(np.int32)
    if kind == "f32":
        return lambda waves: read(waves).view(np.float32)
    if kind in ("u16", "b16"):
        return lambda waves: read(waves) & np.uint32(0xFFFF)
    if kind == "i16":
        return lambda waves: (read(waves) << np.uint32(16)).view(np.int32) >> 16
    if kind == "f16":
        return lambda waves: from_half(read(waves))
    raise ValueError(f"the type {kind} is not known")


def _modified(read: Reader, kind: str, absolute: bool, negated: bool) -> Reader:
    if not absolute and not negated:
        return read
    floating = kind in ("f32", "f16")

    def run(waves: Waves) -> Any:
        value = read(waves)
        pattern = value.view(np.uint32) if floating else value
        if absolute:
            pattern = pattern & MAGNITUDE
        if negated:
            pattern = pattern ^ SIGN
        return pattern.view(np.float32) if floating else pattern

    return run
