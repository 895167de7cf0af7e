"""Conversions between fp32 and the formats of 16 bits and fewer.

Formats: OCP "Microscaling Formats (MX) v1.0" (E2M1, E8M0) and "OCP 8-bit Floating Point Specification (OFP8) v1.0"
(e4m3, e5m2) for gfx950; the "fnuz" forms of them, in AMD's CDNA3 ISA document, for gfx942. All rounding is to nearest
even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.floats import F32, F64, MAGNITUDE, SIGN, U32, bits

U16 = NDArray[np.uint32]


def to_bfloat16(a: F32) -> U16:
    """Bits of bf16, in the low half."""
    pattern = bits(a)
    rounded = (pattern + np.uint32(0x7FFF) + ((pattern >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (pattern & MAGNITUDE) > np.uint32(0x7F800000)
    return np.where(nan, (pattern >> np.uint32(16)) | np.uint32(0x40), rounded)


def from_bfloat16(a: U16) -> F32:
    """fp32 of the bf16 in the low half."""
    return (a << np.uint32(16)).view(np.float32)


def from_half(a: U16) -> F32:
    """fp32 of the fp16 in the low half; a signalling NaN comes out quiet."""
    return (a & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16).astype(np.float32)


def to_half(a: F32 | F64, saturate: bool = False, exact: NDArray[np.bool_] | None = None) -> U16:
    """Bits of fp16, in the low half; subnormals are kept.

    Args:
        a: Values.
        saturate: MODE.FP16_OVFL: what overflows becomes the largest finite value.
        exact: With ``saturate``: where an infinity is a true one and stays; default: where ``a`` is infinite.
    """
    half = np.asarray(a).astype(np.float16)
    result = half.view(np.uint16).astype(np.uint32)
    nan = np.isnan(a)
    if nan.any():
        # NumPy may give either sign and payload.
        wide = bits(np.asarray(a, np.float32))
        quiet = ((wide >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7E00) | ((wide >> np.uint32(13)) & 0x1FF)
        result = np.where(nan, quiet.astype(np.uint32), result)
    if saturate:
        true = np.isinf(a) if exact is None else exact
        result = np.where(np.isinf(half) & ~true, (result & np.uint32(0x8000)) | np.uint32(0x7BFF), result)
    return result


def to_half_toward_zero(a: F32) -> U16:
    """Bits of fp16, rounded toward zero (v_cvt_pkrtz_f16_f32)."""
    nearest = to_half(a)
    back = from_half(nearest)
    too_large = (np.abs(back) > np.abs(a)) & ~np.isnan(a)
    return np.where(too_large, nearest - np.uint32(1), nearest)


@dataclass(frozen=True)
class Format8:
    """A format of 8 bits.

    Attributes:
        mantissa: Its bits.
        bias: Of the exponent.
        largest: Code of the largest finite value.
        nan: Code of NaN; with the sign of the value above it if ``signed_nan``.
        signed_nan: False in the fnuz forms, which have one NaN and one zero.
        infinity: Code of infinity, or None.
    """

    mantissa: int
    bias: int
    largest: int
    nan: int
    signed_nan: bool = True
    infinity: int | None = None


E4M3 = Format8(3, 7, 0x7E, 0x7F)
E5M2 = Format8(2, 15, 0x7B, 0x7F, infinity=0x7C)
E4M3_FNUZ = Format8(3, 8, 0x7F, 0x80, signed_nan=False)
E5M2_FNUZ = Format8(2, 16, 0x7F, 0x80, signed_nan=False)


def to_format8(a: F64, form: Format8, saturate: bool) -> U32:
    """Codes of 8 bits; what is too large becomes the largest value if ``saturate``, else infinity or NaN."""
    magnitude = np.abs(a)
    lowest = 1 - form.bias
    _, exponent = np.frexp(magnitude)
    # Steps between neighbours: of the value's binade, or of the subnormals.
    scale = np.where(magnitude == 0, lowest, np.maximum(exponent - 1, lowest)) - form.mantissa
    finite = np.isfinite(magnitude)
    steps = np.rint(np.ldexp(np.where(finite, magnitude, 0.0), -scale))
    code = ((scale + form.mantissa - lowest) << form.mantissa) + steps.astype(np.int64)
    beyond = (code > form.largest) | np.isinf(a)
    overflow = form.largest if saturate else form.nan if form.infinity is None else form.infinity
    code = np.where(beyond, overflow, code)
    sign = np.where(np.signbit(a), 0x80, 0)
    if form.signed_nan:
        code = np.where(np.isnan(a), form.nan, code) | sign
    else:
        code = np.where((code == 0) | (code == form.nan), code, code | sign)
        code = np.where(np.isnan(a), form.nan, code)
    return np.asarray(code, np.uint32)


def scale_of(scale: F32) -> F64:
    """What the v_cvt_scalef32 instructions divide by: the power of two of the exponent field, all else ignored."""
    exponent = ((bits(scale) >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int64)
    return np.where(exponent == 255, np.nan, np.ldexp(1.0, exponent - 127))


_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_E2M1_TIES = (_E2M1[1:] + _E2M1[:-1]) / 2


def to_e2m1(a: F64, negative: NDArray[np.bool_]) -> U32:
    """Codes of 4 bits of values already scaled, saturating at 6; NaN and infinities give 7, sign above it."""
    magnitude = np.abs(a)
    above = np.searchsorted(_E2M1_TIES, magnitude, side="right")
    at_least = np.searchsorted(_E2M1_TIES, magnitude, side="left")
    # On a tie the two differ by one: the even code is the one.
    code = np.where(above & 1, at_least, above)
    code = np.where(np.isfinite(magnitude), code, 7)
    return (code | np.where(negative, 8, 0)).astype(np.uint32)


def negative(a: F32) -> NDArray[np.bool_]:
    """True where the sign bit is set."""
    return np.asarray((bits(a) & SIGN) != 0)
