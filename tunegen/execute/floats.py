"""Floating-point arithmetic as the VALU does it, on NumPy arrays.

Rounding is to nearest even, subnormals are kept (descriptor fields ``float_round_mode`` 0 and ``float_denorm_mode``
3, the only ones executed). NaN: an operation that has no value gives 0x7FC00000; one with a NaN operand gives the
first such, quieted. The ISA documents leave payloads open; no kernel may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]

QUIET = np.uint32(0x00400000)
DEFAULT_NAN = np.uint32(0x7FC00000)
SIGN = np.uint32(0x80000000)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)


def bits(values: F32) -> U32:
    """The bits of fp32 values."""
    return values.view(np.uint32)


def with_nans(result: Any, *sources: Any) -> F32:
    """The result with the NaNs that the hardware gives in place of NumPy's."""
    given: F32 = np.asarray(result)
    bad = np.isnan(given)
    if not bad.any():
        return given
    nans = np.full(given.shape, DEFAULT_NAN)
    for source in reversed(sources):
        if source.dtype == np.float32:
            nans = np.where(np.isnan(source), bits(source) | QUIET, nans)
    replaced: F32 = np.where(bad, nans, bits(given)).view(np.float32)
    return replaced


def add(a: F32, b: F32) -> F32:
    """a + b."""
    return with_nans(a + b, a, b)


def subtract(a: F32, b: F32) -> F32:
    """a - b."""
    return with_nans(a - b, a, b)


def multiply(a: F32, b: F32) -> F32:
    """a * b."""
    return with_nans(a * b, a, b)


def round_to_odd_sum(a: F64, b: F64) -> F64:
    """a + b with the last bit set where it is not exact: rounding it further is as rounding the exact sum.

    Boldo, Melquiond: "Emulation of a FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd", 2008.
    """
    total = a + b
    # Knuth's two-sum: the error of the sum, exactly.
    other = total - a
    error = (a - (total - other)) + (b - other)
    patterns = np.asarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((patterns & 1) == 0)
    # One step towards the exact sum: away from zero if the error has the sum's sign.
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, patterns + step, patterns).view(np.float64)


def fma(a: F32, b: F32, c: F32) -> F32:
    """a * b + c, rounded once."""
    # A product of two fp32 values is exact in fp64.
    product = a.astype(np.float64) * b
    total = product + c
    patterns = total.view(np.int64)
    # Rounding the fp64 sum again is wrong only where it lies half way between two fp32 values, or next to them in the
    # subnormal range, where half way is another bit.
    half_way = (patterns & 0x1FFFFFFF) == 0x10000000
    if half_way.any() or (np.abs(total) < 2.0**-125).any():
        total = round_to_odd_sum(product, c.astype(np.float64))
    return with_nans(total.astype(np.float32), a, b, c)


def _quieted(a: F32) -> F32:
    return np.where(np.isnan(a), bits(a) | QUIET, bits(a)).view(np.float32)


def _extreme(a: F32, b: F32, pick: Any, zeros: Any) -> F32:
    # Equal values have equal bits but for zeros of either sign: -0 counts as less than +0.
    result = np.where(a == b, zeros(bits(a), bits(b)), bits(pick(a, b))).view(np.float32)
    a_nan, b_nan = np.isnan(a), np.isnan(b)
    if a_nan.any() or b_nan.any():
        signalling = (a_nan & ((bits(a) & QUIET) == 0), b_nan & ((bits(b) & QUIET) == 0))
        result = np.where(a_nan, _quieted(b), np.where(b_nan, a, result))
        # IEEE mode: a signalling NaN comes through, quieted.
        result = np.where(signalling[0], _quieted(a), np.where(signalling[1], _quieted(b), result))
    return result


def maximum(a: F32, b: F32) -> F32:
    """v_max: of a NaN and a number the number, in IEEE mode (maxNum)."""
    return _extreme(a, b, np.maximum, np.bitwise_and)


def minimum(a: F32, b: F32) -> F32:
    """v_min: of a NaN and a number the number, in IEEE mode (minNum)."""
    return _extreme(a, b, np.minimum, np.bitwise_or)


def maximum3(a: F32, b: F32, c: F32) -> F32:
    """v_maximum3: a NaN if one of them is (IEEE 754-2019 maximum); +0 is larger than -0."""
    any_nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return with_nans(np.where(any_nan, np.float32(np.nan), maximum(maximum(a, b), c)), a, b, c)


def median(a: F32, b: F32, c: F32) -> F32:
    """v_med3: with a NaN among them the least of the others (the ISA documents: v_min3)."""
    result = maximum(minimum(a, b), minimum(maximum(a, b), c))
    any_nan = (np.isnan(a)) | (np.isnan(b)) | (np.isnan(c))
    if any_nan.any():
        result = np.where(any_nan, minimum(minimum(a, b), c), result)
    return result


def clamp_to_one(a: F32) -> F32:
    """The clamp modifier: to 0..1, NaN to 0 (DX10_CLAMP, which descriptors have set)."""
    return np.where(a > 0, np.minimum(a, np.float32(1)), np.float32(0))


# --- Approximations ---


def approximate(function: Callable[[F64], F64]) -> Callable[[F32, int], F32]:
    """A transcendental instruction: within 1 ulp by the ISA documents, here the nearest value.

    Its second argument shifts a result that is not exact by so many ulps, to show that what holds for the nearest
    value holds at the ends of the documented error too. Subnormal operands and results count as zero: v_rcp_f32,
    v_rsq_f32, v_sqrt_f32, v_exp_f32 and v_log_f32 do not support them whatever the mode is.
    """

    def run(a: F32, ulps: int) -> F32:
        source = _flush(a)
        wide = function(source.astype(np.float64))
        result = np.asarray(wide.astype(np.float32))
        if ulps:
            inexact = np.isfinite(result) & (result != 0) & (result.astype(np.float64) != wide)
            result = np.where(inexact, bits(result) + np.uint32(ulps % 2**32), bits(result)).view(np.float32)
        return with_nans(_flush(result), a)

    return run


def _flush(a: F32) -> F32:
    small = np.abs(a) < np.float32(2.0**-126)
    return np.where(small, bits(a) & SIGN, bits(a)).view(np.float32)


reciprocal = approximate(lambda x: 1.0 / x)
reciprocal_root = approximate(lambda x: np.where(x == 0, np.copysign(np.inf, x), 1.0 / np.sqrt(x)))
root = approximate(np.sqrt)
exp2 = approximate(np.exp2)
log2 = approximate(np.log2)


# --- Division: v_div_scale, v_div_fmas, v_div_fixup ---


def _exponent(a: F32) -> NDArray[np.int32]:
    return ((bits(a) >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int32)


def div_scale(source: F32, denominator: F32, numerator: F32) -> tuple[F32, NDArray[np.bool_]]:
    """v_div_scale_f32: numerator or denominator, scaled so that the quotient is a normal number; and if so scaled that
    v_div_fmas has to scale back.

    Where both the reciprocal and the quotient are subnormal, the denominator is scaled down: the documents have it
    scaled up, to infinity, with which no division could be right.
    """
    wide = numerator.astype(np.float64) / denominator
    tiny = 2.0**-126
    quotient_small = (np.abs(wide) < tiny) & (wide != 0)
    reciprocal_small = np.abs(1.0 / denominator.astype(np.float64)) < tiny
    scales_denominator = bits(source) == bits(denominator)
    scales_numerator = bits(source) == bits(numerator)
    up, down = source.astype(np.float64) * 2.0**64, source.astype(np.float64) * 2.0**-64
    invalid = (numerator == 0) | (denominator == 0)
    difference = _exponent(numerator) - _exponent(denominator)
    subnormal = (_exponent(denominator) == 0) & (denominator != 0)
    conditions = [
        invalid,
        difference >= 96,
        subnormal,
        reciprocal_small & quotient_small,
        reciprocal_small,
        quotient_small,
        _exponent(numerator) <= 23,
    ]
    value = source.astype(np.float64)
    scaled = np.select(
        conditions,
        [
            np.full_like(value, np.nan),
            np.where(scales_denominator, up, value),
            up,
            np.where(scales_denominator, down, value),
            down,
            np.where(scales_numerator, up, value),
            up,
        ],
        value,
    ).astype(np.float32)
    flags = np.select(conditions, [False, True, False, True, False, True, False], False)
    return scaled, flags


def div_fmas(a: F32, b: F32, c: F32, scale_back: NDArray[np.bool_]) -> F32:
    """v_div_fmas_f32: a * b + c, with the scaling of v_div_scale undone where it says so.

    A quotient that was scaled down is above 2, one that was scaled up far below: that tells which it was.
    """
    result = fma(a, b, c)
    if not scale_back.any():
        return result
    factor = np.where(_exponent(c) > 127, 2.0**64, 2.0**-64)
    return np.where(scale_back, (result.astype(np.float64) * factor).astype(np.float32), result)


def div_fixup(quotient: F32, denominator: F32, numerator: F32) -> F32:
    """v_div_fixup_f32: the quotient, with the special cases of a division put right.

    The documents name an overflow among them and leave out when it is; here, when no quotient of such exponents is
    finite.
    """
    sign = (bits(denominator) ^ bits(numerator)) & SIGN
    a, b = np.abs(denominator), np.abs(numerator)
    invalid = ((a == 0) & (b == 0)) | (np.isinf(a) & np.isinf(b))
    difference = _exponent(numerator) - _exponent(denominator)
    zero = np.isinf(a) | (b == 0)
    infinite = (a == 0) | np.isinf(b) | (~zero & (difference > 128) & (_exponent(denominator) > 0))
    underflow = difference < -150
    result = np.select(
        [np.isnan(numerator), np.isnan(denominator), invalid, infinite, zero | underflow],
        [bits(numerator) | QUIET, bits(denominator) | QUIET, np.uint32(0xFFC00000), sign | INFINITY, sign],
        sign | (bits(quotient) & MAGNITUDE),
    )
    return np.asarray(result, np.uint32).view(np.float32)
