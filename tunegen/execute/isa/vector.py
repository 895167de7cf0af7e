"""VOP1, VOP2 and VOP3: vector instructions (ISA documents, "Vector ALU operations").

Each entry says the types of its sources and its result; the decoder (`tunegen.execute.isa.vector_decode`) makes
operands of those types, with their modifiers, SDWA selects and DPP, and writes the result.

Types: u32 and i32; f32; f16 as its value in fp32; u16 zero-extended and i16 sign-extended in 32 bits; u64, i64, f64
in register pairs; b16: bits of the low half. A result of type f16 is given in fp32 or fp64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunegen.execute import floats
from tunegen.execute.floats import bits
from tunegen.execute.isa import scalar
from tunegen.execute.small_floats import to_bfloat16, to_half, to_half_toward_zero

_16 = np.uint32(16)
_31 = np.uint32(31)
_FFFF = np.uint32(0xFFFF)
_24 = np.uint32(0xFFFFFF)


@dataclass(frozen=True)
class Vector:
    """An opcode.

    Attributes:
        result: Type of the result.
        sources: Types of the sources.
        function: The result from the sources (and what the flags below add).
        accumulates: The destination comes as the last source.
        carry_in: A lane mask comes as the last source.
        carry_out: The function gives a lane mask beside the result.
        implicit_vcc: The lane mask is VCC and not among the operands.
        approximation: The function takes ulps as its last argument (see `tunegen.execute.floats.approximate`).
        high: What becomes of the high half of the register of a 16-bit result: ``"zero"``, ``"preserve"``, or
            ``"open"`` where the documents do not say.
        clamped: The function with the clamp modifier, of an integer result: it saturates.
        arch: The only architecture that has it.
    """

    result: str
    sources: tuple[str, ...]
    function: Callable[..., Any]
    accumulates: bool = False
    carry_in: bool = False
    carry_out: bool = False
    implicit_vcc: bool = False
    approximation: bool = False
    high: str = "zero"
    clamped: Callable[..., Any] | None = None
    arch: str = ""


def _u32(count: int, function: Callable[..., Any], **flags: Any) -> Vector:
    return Vector("u32", ("u32",) * count, function, **flags)


def _i32(count: int, function: Callable[..., Any]) -> Vector:
    return Vector("i32", ("i32",) * count, function)


def _f32(count: int, function: Callable[..., Any], **flags: Any) -> Vector:
    return Vector("f32", ("f32",) * count, function, **flags)


def _f16(count: int, function: Callable[..., Any], **flags: Any) -> Vector:
    return Vector("f16", ("f16",) * count, function, **flags)


def half_fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of fp16 values, to be rounded to fp16 from fp64."""
    # The product is exact in fp32, the sum rounded to odd in fp64.
    wide = floats.round_to_odd_sum(a.astype(np.float64) * b, np.asarray(c, np.float64))
    return np.where(np.isnan(wide), floats.fma(a, b, c).astype(np.float64), wide)


def _med3_integer(a: Any, b: Any, c: Any) -> Any:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _to_unsigned(a: Any) -> Any:
    clean = np.where(np.isnan(a), 0, a).astype(np.float64)
    return np.clip(np.trunc(clean), 0, 2**32 - 1).astype(np.uint32)


def _to_signed(a: Any) -> Any:
    clean = np.where(np.isnan(a), 0, a).astype(np.float64)
    return np.clip(np.trunc(clean), -(2**31), 2**31 - 1).astype(np.int32)


def perm(a: Any, b: Any, selector: Any) -> Any:
    """v_perm_b32: a byte of the selector picks one of a (4 to 7) and of b (0 to 3), a sign, or a constant."""
    both = (a.astype(np.uint64) << np.uint64(32)) | b
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        select = (selector >> np.uint32(8 * i)) & np.uint32(0xFF)
        byte = (both >> (np.uint64(8) * (select & np.uint32(7)).astype(np.uint64))) & np.uint64(0xFF)
        # 8 to 11: the sign of the 16-bit halves; 12: 0x00; 13 and above: 0xFF.
        sign_at = np.uint64(15) + np.uint64(16) * (select & np.uint32(3)).astype(np.uint64)
        sign = np.where((both >> sign_at) & np.uint64(1), 0xFF, 0)
        value = np.select([select <= 7, select <= 11, select == 12], [byte.astype(np.int64), sign, 0], 0xFF)
        result |= value.astype(np.uint32) << np.uint32(8 * i)
    return result


def bitop3(a: Any, b: Any, c: Any, table: int) -> Any:
    """v_bitop3: bit by bit, bit (a << 2 | b << 1 | c) of the truth table."""
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def _bfi(mask: Any, a: Any, b: Any) -> Any:
    return (mask & a) | (~mask & b)


def _bfe_u32(a: Any, offset: Any, width: Any) -> Any:
    return scalar._bfe_u32(a, (offset & _31) | ((width & _31) << _16))


def _bfe_i32(a: Any, offset: Any, width: Any) -> Any:
    offset, width = offset & _31, width & _31
    a, offset, width = np.broadcast_arrays(a, offset, width)
    return scalar._bfe_i32(a, offset | (width << _16))


def _shift_left(shift: Any, a: Any) -> Any:
    return a << (shift & _31)


def _mul_hi(a: Any, b: Any) -> Any:
    return ((a.astype(np.uint64) * b) >> np.uint64(32)).astype(np.uint32)


def _mul_hi_signed(a: Any, b: Any) -> Any:
    return ((a.astype(np.int64) * b) >> 32).astype(np.int32)


def _add_co(a: Any, b: Any, carry: Any = 0) -> Any:
    total = a.astype(np.uint64) + b + carry
    return total.astype(np.uint32), total > 0xFFFFFFFF


def _sub_co(a: Any, b: Any, borrow: Any = 0) -> Any:
    total = a.astype(np.int64) - b - borrow
    return (total & 0xFFFFFFFF).astype(np.uint32), total < 0


def _mad_u64_u32(a: Any, b: Any, c: Any) -> Any:
    product = a.astype(np.uint64) * b
    total = product + c
    return total, total < c


def _mad_i64_i32(a: Any, b: Any, c: Any) -> Any:
    """The carry is the sign of the sum in 65 bits."""
    product = a.astype(np.int64) * b
    total = product + c
    return total, np.where((product < 0) == (c < 0), c < 0, total < 0)


def _ldexp(a: Any, exponent: Any) -> Any:
    wide = np.ldexp(a.astype(np.float64), np.clip(exponent, -1000, 1000))
    return floats.with_nans(wide.astype(np.float32), a)


def _count_below(mask: Any, base: Any, high: bool) -> Any:
    """v_mbcnt: ones of a 32-lane half of the mask below this lane, added to base."""
    lane = np.arange(64)
    below = np.clip(lane - (32 if high else 0), 0, 32)
    bits_below = np.where(below == 32, 0xFFFFFFFF, (1 << np.minimum(below, 31)) - 1).astype(np.uint32)
    counted = np.bitwise_count(mask & bits_below) if hasattr(np, "bitwise_count") else _popcount(mask & bits_below)
    return base + counted.astype(np.uint32)


def _popcount(a: Any) -> Any:
    count = np.zeros(a.shape, np.uint32)
    for bit in range(32):
        count += (a >> np.uint32(bit)) & np.uint32(1)
    return count


def _frexp_exponent(a: Any) -> Any:
    exponent = np.frexp(a)[1].astype(np.int32)
    return np.where(np.isfinite(a), exponent, 0).astype(np.int32)


def _fract(a: Any) -> Any:
    return floats.minimum(
        floats.subtract(a, np.floor(a)), np.float32(np.nextafter(np.float32(1), np.float32(0))) + 0 * a
    )


def _pack_halves(a: Any, b: Any) -> Any:
    return (a & _FFFF) | (b << _16)


def _table() -> dict[str, Vector]:
    table = {
        "v_mov_b32": _u32(1, lambda a: a),
        "v_accvgpr_read_b32": _u32(1, lambda a: a),
        "v_accvgpr_write_b32": _u32(1, lambda a: a),
        "v_accvgpr_mov_b32": _u32(1, lambda a: a),
        "v_mov_b64": Vector("u64", ("u64",), lambda a: a),
        "v_not_b32": _u32(1, lambda a: ~a),
        "v_bfrev_b32": _u32(1, lambda a: scalar._reverse(a).reshape(a.shape)),
        "v_ffbl_b32": _u32(1, scalar._lowest_one),
        "v_ffbh_u32": _u32(1, scalar._leading_zeros),
        "v_bcnt_u32_b32": _u32(2, lambda a, b: _popcount(a) + b),
        "v_mbcnt_lo_u32_b32": _u32(2, lambda a, b: _count_below(a, b, False)),
        "v_mbcnt_hi_u32_b32": _u32(2, lambda a, b: _count_below(a, b, True)),
        # Integers.
        "v_add_u32": _u32(2, lambda a, b: a + b, clamped=lambda a, b: np.where(~a < b, np.uint32(0xFFFFFFFF), a + b)),
        "v_sub_u32": _u32(2, lambda a, b: a - b, clamped=lambda a, b: np.where(a < b, np.uint32(0), a - b)),
        "v_subrev_u32": _u32(2, lambda a, b: b - a, clamped=lambda a, b: np.where(b < a, np.uint32(0), b - a)),
        "v_add3_u32": _u32(3, lambda a, b, c: a + b + c),
        "v_add_i32": _i32(2, lambda a, b: a + b),
        "v_sub_i32": _i32(2, lambda a, b: a - b),
        "v_add_co_u32": Vector("u32", ("u32",) * 2, _add_co, carry_out=True),
        "v_sub_co_u32": Vector("u32", ("u32",) * 2, _sub_co, carry_out=True),
        "v_subrev_co_u32": Vector("u32", ("u32",) * 2, lambda a, b: _sub_co(b, a), carry_out=True),
        "v_addc_co_u32": Vector("u32", ("u32",) * 2, _add_co, carry_in=True, carry_out=True),
        "v_subb_co_u32": Vector("u32", ("u32",) * 2, _sub_co, carry_in=True, carry_out=True),
        "v_subbrev_co_u32": Vector(
            "u32", ("u32",) * 2, lambda a, b, c: _sub_co(b, a, c), carry_in=True, carry_out=True
        ),
        "v_mul_lo_u32": _u32(2, lambda a, b: a * b),
        "v_mul_hi_u32": _u32(2, _mul_hi),
        "v_mul_hi_i32": _i32(2, _mul_hi_signed),
        "v_mul_u32_u24": _u32(2, lambda a, b: (a & _24) * (b & _24)),
        "v_mul_hi_u32_u24": _u32(2, lambda a, b: _mul_hi(a & _24, b & _24)),
        "v_mul_i32_i24": _i32(2, lambda a, b: ((a << 8) >> 8) * ((b << 8) >> 8)),
        "v_mad_u32_u24": _u32(3, lambda a, b, c: (a & _24) * (b & _24) + c),
        "v_mad_i32_i24": _i32(3, lambda a, b, c: ((a << 8) >> 8) * ((b << 8) >> 8) + c),
        "v_mad_u64_u32": Vector("u64", ("u32", "u32", "u64"), _mad_u64_u32, carry_out=True),
        "v_mad_i64_i32": Vector("i64", ("i32", "i32", "i64"), _mad_i64_i32, carry_out=True),
        "v_min_u32": _u32(2, np.minimum),
        "v_max_u32": _u32(2, np.maximum),
        "v_min_i32": _i32(2, np.minimum),
        "v_max_i32": _i32(2, np.maximum),
        "v_min3_u32": _u32(3, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        "v_max3_u32": _u32(3, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        "v_min3_i32": _i32(3, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        "v_max3_i32": _i32(3, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        "v_med3_u32": _u32(3, _med3_integer),
        "v_med3_i32": _i32(3, _med3_integer),
        "v_sad_u32": _u32(3, lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c),
        # Bits.
        "v_and_b32": _u32(2, lambda a, b: a & b),
        "v_or_b32": _u32(2, lambda a, b: a | b),
        "v_xor_b32": _u32(2, lambda a, b: a ^ b),
        "v_xnor_b32": _u32(2, lambda a, b: ~(a ^ b)),
        "v_or3_b32": _u32(3, lambda a, b, c: a | b | c),
        "v_and_or_b32": _u32(3, lambda a, b, c: (a & b) | c),
        "v_xad_u32": _u32(3, lambda a, b, c: (a ^ b) + c),
        "v_bfi_b32": _u32(3, _bfi),
        "v_bfe_u32": _u32(3, _bfe_u32),
        "v_bfe_i32": Vector("u32", ("u32",) * 3, _bfe_i32),
        "v_bfm_b32": _u32(2, lambda a, b: ((np.uint32(1) << (a & _31)) - np.uint32(1)) << (b & _31)),
        "v_lshlrev_b32": _u32(2, _shift_left),
        "v_lshrrev_b32": _u32(2, lambda a, b: b >> (a & _31)),
        "v_ashrrev_i32": _i32(2, lambda a, b: b >> (a & 31)),
        "v_lshl_add_u32": _u32(3, lambda a, b, c: (a << (b & _31)) + c),
        "v_add_lshl_u32": _u32(3, lambda a, b, c: (a + b) << (c & _31)),
        "v_lshl_or_b32": _u32(3, lambda a, b, c: (a << (b & _31)) | c),
        "v_alignbit_b32": _u32(
            3,
            lambda a, b, c: (((a.astype(np.uint64) << np.uint64(32)) | b) >> (c & _31).astype(np.uint64)).astype(
                np.uint32
            ),
        ),
        "v_alignbyte_b32": _u32(
            3,
            lambda a, b, c: (
                ((a.astype(np.uint64) << np.uint64(32)) | b) >> (np.uint64(8) * (c & np.uint32(3)).astype(np.uint64))
            ).astype(np.uint32),
        ),
        "v_perm_b32": _u32(3, perm),
        "v_lshlrev_b64": Vector("u64", ("u32", "u64"), lambda a, b: b << (a.astype(np.uint64) & np.uint64(63))),
        "v_lshrrev_b64": Vector("u64", ("u32", "u64"), lambda a, b: b >> (a.astype(np.uint64) & np.uint64(63))),
        "v_ashrrev_i64": Vector("i64", ("u32", "i64"), lambda a, b: b >> (a.astype(np.int64) & 63)),
        "v_lshl_add_u64": Vector(
            "u64", ("u64", "u32", "u64"), lambda a, b, c: (a << (b.astype(np.uint64) & np.uint64(7))) + c
        ),
        "v_cndmask_b32": Vector("u32", ("m32", "m32"), lambda a, b, mask: np.where(mask, b, a), carry_in=True),
        # 16-bit integers.
        "v_add_u16": Vector("b16", ("u16", "u16"), lambda a, b: a + b),
        "v_sub_u16": Vector("b16", ("u16", "u16"), lambda a, b: a - b),
        "v_subrev_u16": Vector("b16", ("u16", "u16"), lambda a, b: b - a),
        "v_mul_lo_u16": Vector("b16", ("u16", "u16"), lambda a, b: a * b),
        "v_mad_legacy_u16": Vector("b16", ("u16",) * 3, lambda a, b, c: a * b + c),
        "v_lshlrev_b16": Vector("b16", ("u16", "u16"), lambda a, b: b << (a & np.uint32(15))),
        "v_lshrrev_b16": Vector("b16", ("u16", "u16"), lambda a, b: b >> (a & np.uint32(15))),
        "v_ashrrev_i16": Vector("b16", ("u16", "i16"), lambda a, b: (b >> (a & 15).astype(np.int32)).view(np.uint32)),
        "v_min_u16": Vector("b16", ("u16", "u16"), np.minimum),
        "v_max_u16": Vector("b16", ("u16", "u16"), np.maximum),
        "v_min_i16": Vector("b16", ("i16", "i16"), lambda a, b: np.minimum(a, b).view(np.uint32)),
        "v_max_i16": Vector("b16", ("i16", "i16"), lambda a, b: np.maximum(a, b).view(np.uint32)),
        # fp32.
        "v_add_f32": _f32(2, floats.add),
        "v_sub_f32": _f32(2, floats.subtract),
        "v_subrev_f32": _f32(2, lambda a, b: floats.subtract(b, a)),
        "v_mul_f32": _f32(2, floats.multiply),
        "v_fma_f32": _f32(3, floats.fma),
        "v_fmac_f32": _f32(2, floats.fma, accumulates=True),
        "v_fmaak_f32": _f32(3, floats.fma),
        "v_fmamk_f32": _f32(3, floats.fma),
        "v_min_f32": _f32(2, floats.minimum),
        "v_max_f32": _f32(2, floats.maximum),
        "v_min3_f32": _f32(3, lambda a, b, c: floats.minimum(floats.minimum(a, b), c)),
        "v_max3_f32": _f32(3, lambda a, b, c: floats.maximum(floats.maximum(a, b), c)),
        "v_maximum3_f32": Vector("f32", ("f32",) * 3, floats.maximum3, arch="gfx950"),
        "v_med3_f32": _f32(3, floats.median),
        "v_floor_f32": _f32(1, lambda a: floats.with_nans(np.floor(a), a)),
        "v_ceil_f32": _f32(1, lambda a: floats.with_nans(np.ceil(a), a)),
        "v_trunc_f32": _f32(1, lambda a: floats.with_nans(np.trunc(a), a)),
        "v_rndne_f32": _f32(1, lambda a: floats.with_nans(np.rint(a), a)),
        "v_fract_f32": _f32(1, _fract),
        "v_ldexp_f32": Vector("f32", ("f32", "i32"), _ldexp),
        "v_frexp_exp_i32_f32": Vector("i32", ("f32",), _frexp_exponent),
        "v_frexp_mant_f32": _f32(
            1, lambda a: floats.with_nans(np.where(np.isfinite(a), np.asarray(np.frexp(a)[0]), a).astype(np.float32), a)
        ),
        "v_rcp_f32": _f32(1, floats.reciprocal, approximation=True),
        "v_rcp_iflag_f32": _f32(1, floats.reciprocal, approximation=True),
        "v_rsq_f32": _f32(1, floats.reciprocal_root, approximation=True),
        "v_sqrt_f32": _f32(1, floats.root, approximation=True),
        "v_exp_f32": _f32(1, floats.exp2, approximation=True),
        "v_log_f32": _f32(1, floats.log2, approximation=True),
        "v_div_scale_f32": _f32(3, floats.div_scale, carry_out=True),
        "v_div_fmas_f32": _f32(3, floats.div_fmas, carry_in=True, implicit_vcc=True),
        "v_div_fixup_f32": _f32(3, floats.div_fixup),
        # fp16: sums and products rounded from fp32, where they are exact or rounding twice is as once
        # (Figueroa, "When is double rounding innocuous?", 1995: 24 >= 2 * 11 + 2).
        "v_add_f16": _f16(2, floats.add),
        "v_sub_f16": _f16(2, floats.subtract),
        "v_subrev_f16": _f16(2, lambda a, b: floats.subtract(b, a)),
        "v_mul_f16": _f16(2, floats.multiply),
        "v_fma_f16": _f16(3, half_fma, high="open"),
        "v_fmac_f16": _f16(2, half_fma, accumulates=True),
        "v_min_f16": _f16(2, floats.minimum),
        "v_max_f16": _f16(2, floats.maximum),
        "v_min3_f16": _f16(3, lambda a, b, c: floats.minimum(floats.minimum(a, b), c), high="open"),
        "v_max3_f16": _f16(3, lambda a, b, c: floats.maximum(floats.maximum(a, b), c), high="open"),
        "v_med3_f16": _f16(3, floats.median, high="open"),
        # Conversions.
        "v_cvt_f32_f16": Vector("f32", ("f16",), lambda a: a),
        "v_cvt_f16_f32": Vector("f16", ("f32",), lambda a: a),
        "v_cvt_f32_u32": Vector("f32", ("u32",), lambda a: a.astype(np.float32)),
        "v_cvt_f32_i32": Vector("f32", ("i32",), lambda a: a.astype(np.float32)),
        "v_cvt_u32_f32": Vector("u32", ("f32",), _to_unsigned),
        "v_cvt_i32_f32": Vector("i32", ("f32",), _to_signed),
        "v_cvt_pkrtz_f16_f32": Vector(
            "u32", ("f32", "f32"), lambda a, b: _pack_halves(to_half_toward_zero(a), to_half_toward_zero(b))
        ),
        "v_cvt_pk_bf16_f32": Vector(
            "u32", ("f32", "f32"), lambda a, b: _pack_halves(to_bfloat16(a), to_bfloat16(b)), arch="gfx950"
        ),
        "v_pack_b32_f16": Vector("u32", ("b16", "b16"), _pack_halves),
    }
    for byte in range(4):
        table[f"v_cvt_f32_ubyte{byte}"] = Vector("f32", ("u32",), _unsigned_byte(byte))
    return table


def _unsigned_byte(byte: int) -> Callable[..., Any]:
    return lambda a: ((a >> np.uint32(8 * byte)) & np.uint32(0xFF)).astype(np.float32)


VECTOR = _table()
TRANSCENDENTAL = frozenset(name for name, entry in VECTOR.items() if entry.approximation)


def compare(name: str) -> Vector | None:
    """The entry of a v_cmp or v_cmpx, or None."""
    parts = name.split("_")
    if len(parts) != 4 or parts[:1] != ["v"] or parts[1] not in ("cmp", "cmpx"):
        return None
    condition, kind = parts[2], parts[3]
    if condition == "class" and kind == "f32":
        return Vector("mask", ("f32", "u32"), _class)
    if kind in ("f16", "f32"):
        function = FLOAT_CONDITIONS.get(condition)
    elif kind in ("u16", "i16", "u32", "i32", "u64", "i64"):
        function = INTEGER_CONDITIONS.get(condition)
    else:
        return None
    return Vector("mask", (kind, kind), function) if function else None


INTEGER_CONDITIONS: dict[str, Callable[..., Any]] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b,
    "ge": lambda a, b: a >= b,
}
FLOAT_CONDITIONS: dict[str, Callable[..., Any]] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "lg": lambda a, b: (a < b) | (a > b),
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": lambda a, b: a != b,
    "nlt": lambda a, b: ~(a < b),
}


def _class(a: Any, classes: Any) -> Any:
    """v_cmp_class: bits signalling NaN, quiet NaN, -inf, -normal, -subnormal, -0, +0, +subnormal, +normal, +inf."""
    negative = np.signbit(a)
    subnormal = (np.abs(a) < 2.0**-126) & (a != 0)
    normal = np.isfinite(a) & (a != 0) & ~subnormal
    quiet = (bits(a) & floats.QUIET) != 0
    kinds = [
        np.isnan(a) & ~quiet,
        np.isnan(a) & quiet,
        np.isinf(a) & negative,
        normal & negative,
        subnormal & negative,
        (a == 0) & negative,
        (a == 0) & ~negative,
        subnormal & ~negative,
        normal & ~negative,
        np.isinf(a) & ~negative,
    ]
    result = np.zeros(np.broadcast_shapes(a.shape, classes.shape), np.bool_)
    for bit, kind in enumerate(kinds):
        result |= kind & ((classes >> np.uint32(bit)) & np.uint32(1) == 1)
    return result


def half_result(values: Any, sources: list[Any], saturate: bool) -> Any:
    """Bits of a result of type f16."""
    if not saturate:
        return to_half(values)
    infinite = np.zeros(values.shape, np.bool_)
    for source in sources:
        if source.dtype == np.float32:
            infinite = infinite | np.isinf(source)
    return to_half(values, True, infinite)
