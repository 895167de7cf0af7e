"""The outputs that dynamic_mxfp4_quant, rmsnorm_mxfp4_quant and rmsnorm_add_mxfp4_quant may have.

What follows from the inputs alone without a choice of order is compared bit for bit: the quantiser given its
fp32 input, the rounded sum, signs, zero codes. The rest is an interval. Every step from a value to a scale or
a code is monotonic, so that a kernel's result lies between what the ends of the interval become.

The interval, in units of u = 2^-24, half an ulp of fp32 in relative terms (one rounding to nearest):

    s    x + residual, one fp32 addition (then rounded to the activation dtype, where the rounding says so): exact.
    S    sum of s^2 over N elements on L lanes. All terms are positive, so that its relative error is at most the
         number of roundings that one term passes: ceil(N / L) products and additions in its lane (with fused
         multiply-adds; the first product counts as one), log2(L) between lanes, and up to 12 for the additions
         that join the sums of the different segment widths.
    v    S * (1 / N) + epsilon: the constant 1 / N, its product and the addition, 3. Epsilon is positive too and
         its fp32 value is exact. One more unit stands for the float64 sum of the truth and for second-order terms.
    norm rsqrt(v): half of v's, plus 3 for the instruction (rsqrt.approx.f32: 2^-22.9 = 2.2 u; v_rsq_f32: 1 ulp = 2 u).
    y    two products, 2; before an intermediate rounding one product, 1. A product of two values of the activation
         dtype is exact in fp32: 0. Powers of two are exact.

Where a product or v may lie among the subnormals of fp32, up to 2^-126 may be flushed or rounded away; that is
carried along as an absolute error, and matters for tiny rows with epsilon 0 and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tunegen.ops import Problem
from tunegen.runtime.reference.mxfp4 import BLOCK, E8M0_NAN, quantize_mxfp4, unpack_codes
from tunegen.runtime.reference.rmsnorm_mxfp4 import rounds_norm, rounds_sum

UNIT = 2.0**-24
SUBNORMAL = 2.0**-126
ZERO_BLOCK_BELOW = 2.0**-64
FLOAT32_MAX = torch.finfo(torch.float32).max
SEGMENT_WIDTHS = 12
RSQRT_UNITS = 3

Interval = tuple[torch.Tensor, torch.Tensor]


def mean_square_units(hidden_size: int, lanes_per_row: int) -> int:
    """Relative error of v = mean(s^2) + epsilon, in units of 2^-24; derived in the module's docstring."""
    in_sum = -(-hidden_size // lanes_per_row) + math.ceil(math.log2(lanes_per_row)) + SEGMENT_WIDTHS
    return in_sum + 3 + 1


def failures(problem: Problem, args: Sequence[Any], outputs: Sequence[torch.Tensor], lanes_per_row: int) -> list[str]:
    """What is wrong with the outputs of one call; empty if nothing is.

    Args:
        problem: The op, and the rounding that was rendered.
        args: The op's arguments in schema order.
        outputs: The op's outputs, on any device.
        lanes_per_row: The fewest lanes that a row may be spread over: it bounds the error of a row reduction.
    """
    if len(args) == 1:
        return _dynamic_failures(args[0], *outputs)
    x, *residual, weight, epsilon, _ = args
    total = x.to(torch.float32)
    found: list[str] = []
    q, scales, *residual_out = outputs
    if residual:
        total = total + residual[0].to(torch.float32)
        found += _residual_failures(total.to(x.dtype), residual_out[0])
    if rounds_sum(problem.rounding):
        total = total.to(x.dtype).to(torch.float32)
    low, high = _magnitudes(total, weight, float(epsilon), problem.rounding, x.dtype, lanes_per_row)
    negative = torch.signbit(total) ^ torch.signbit(weight)
    return found + _mxfp4_failures(low, high, negative, q, scales)


def _dynamic_failures(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> list[str]:
    q_right, scales_right = quantize_mxfp4(x.to(torch.float32), zero_blocks=False)
    found = _report("scales", scales != scales_right, scales, lambda at: str(int(scales_right[at])))
    codes, right = unpack_codes(q), unpack_codes(q_right)
    return found + _report("codes", codes != right, codes, lambda at: str(int(right[at])))


def _residual_failures(right: torch.Tensor, got: torch.Tensor) -> list[str]:
    bits_differ = got.view(torch.int16) != right.view(torch.int16)
    wrong = bits_differ & ~(torch.isnan(got) & torch.isnan(right))
    return _report("residual_out", wrong, got, lambda at: repr(float(right[at])))


def _magnitudes(
    s: torch.Tensor, weight: torch.Tensor, epsilon: float, rounding: str, act: torch.dtype, lanes_per_row: int
) -> Interval:
    """The interval of |y|, the value that is quantised; infinite where it is NaN or too large for its type.

    Magnitudes suffice: rounding to nearest even is symmetric, and signs are known exactly.
    """
    hidden_size = s.shape[-1]
    a, w = s.to(torch.float64).abs(), weight.to(torch.float64).abs()
    sum_of_squares = (a * a).sum(dim=-1, keepdim=True)
    error = UNIT * mean_square_units(hidden_size, lanes_per_row)
    v = sum_of_squares / hidden_size + float(torch.tensor(epsilon, dtype=torch.float32))
    # Products of the sum, and then the mean: each may have lost SUBNORMAL.
    v_low = (v * (1 - error) - 4 * SUBNORMAL).clamp_min(0.0)
    v_high = v * (1 + error) + 4 * SUBNORMAL
    norm_low = torch.rsqrt(v_high) * (1 - RSQRT_UNITS * UNIT)
    norm_high = torch.rsqrt(torch.where(v_low < SUBNORMAL, 0.0, v_low)) * (1 + RSQRT_UNITS * UNIT)

    if rounds_norm(rounding):
        lost = SUBNORMAL * (norm_high + 1)
        low = _to_act((a * norm_low * (1 - UNIT) - lost).clamp_min(0.0), act) * w - SUBNORMAL
        high = _to_act(a * norm_high * (1 + UNIT) + lost, act) * w + SUBNORMAL
    else:
        lost = SUBNORMAL * (norm_high + w + 1)
        low = a * w * norm_low * (1 - 2 * UNIT) - lost
        high = a * w * norm_high * (1 + 2 * UNIT) + lost
        # The products may be taken in either order: one of them may overflow although the result would not.
        high = torch.where(a * w > FLOAT32_MAX, torch.inf, high)
    low = low.clamp_min(0.0)
    if rounding != "none":
        low, high = _to_act(low, act), _to_act(high, act)
    # A row whose fp32 sum of squares is not finite is bad as a whole; NaN compares as neither.
    low = torch.where(sum_of_squares * (1 - error) <= FLOAT32_MAX, low, torch.inf)
    high = torch.where(sum_of_squares * (1 + error) <= FLOAT32_MAX, high, torch.inf)
    # Past the largest fp32 value, the value itself is infinite.
    low = torch.where(low.to(torch.float32) <= FLOAT32_MAX, low, torch.inf)
    high = torch.where(high.to(torch.float32) <= FLOAT32_MAX, high, torch.inf)
    return low, high


def _to_act(value: torch.Tensor, act: torch.dtype) -> torch.Tensor:
    """An end of an interval of fp32 values after they are rounded to the activation dtype.

    Through fp32: a kernel rounds fp32 values, and those within the interval lie between its ends' roundings.
    """
    return value.to(torch.float32).to(act).to(torch.float64)


def _mxfp4_failures(
    low: torch.Tensor, high: torch.Tensor, negative: torch.Tensor, q: torch.Tensor, scales: torch.Tensor
) -> list[str]:
    low, high = low.unflatten(-1, (-1, BLOCK)), high.unflatten(-1, (-1, BLOCK))
    amax_low, amax_high = low.amax(dim=-1), high.amax(dim=-1)
    bad, maybe_bad = torch.isinf(amax_low), torch.isinf(amax_high)
    maybe_zero = ~bad & (amax_low < ZERO_BLOCK_BELOW)
    maybe_kept = ~bad & (amax_high >= ZERO_BLOCK_BELOW)
    e8_low = _e8(amax_low.clamp(ZERO_BLOCK_BELOW, FLOAT32_MAX))
    e8_high = _e8(amax_high.clamp(ZERO_BLOCK_BELOW, FLOAT32_MAX))

    got = scales.to(torch.int64)
    # 0 is the scale of zero blocks alone: that of the smallest kept block is 61.
    kept = (got != E8M0_NAN) & (got != 0)
    right = torch.where(kept, maybe_kept & (got >= e8_low) & (got <= e8_high), (got == 0) & maybe_zero)
    right = right | ((got == E8M0_NAN) & maybe_bad)

    def allowed_scale(at: tuple[int, ...]) -> str:
        options = [str(E8M0_NAN)] if maybe_bad[at] else []
        options += ["0"] if maybe_zero[at] else []
        options += [_range_text(int(e8_low[at]), int(e8_high[at]))] if maybe_kept[at] else []
        return " or ".join(options)

    found = _report("scales", ~right, scales, allowed_scale)

    # With a scale that is wrong the codes have no meaning; it is reported, and they are not.
    codes = unpack_codes(q)
    judged, kept = (mask.repeat_interleave(BLOCK, dim=-1) for mask in (right, kept))
    factor = _power_of_two(torch.where(got == E8M0_NAN, 0, 127 - got)).unsqueeze(-1)
    code_low, code_high = ((end.clamp_max(FLOAT32_MAX) * factor).flatten(-2) for end in (low, high))
    code_low, code_high = _e2m1(code_low), _e2m1(code_high)
    magnitude = codes & 7
    wrong = torch.where(kept, (magnitude < code_low) | (magnitude > code_high), magnitude != 0)

    def allowed_magnitude(at: tuple[int, ...]) -> str:
        return _range_text(int(code_low[at]), int(code_high[at])) if kept[at] else "0"

    found += _report("code magnitudes", judged & wrong, magnitude, allowed_magnitude)
    sign, sign_right = codes >> 3, (negative & kept).to(torch.int32)
    return found + _report("code signs", judged & (sign != sign_right), sign, lambda at: str(int(sign_right[at])))


def _e8(amax: torch.Tensor) -> torch.Tensor:
    """The scale of a positive finite amax: its fp32 exponent field less 2, and 1 more from a significand of 1.75."""
    fraction, exponent = torch.frexp(amax)  # amax = fraction * 2^exponent, fraction from 0.5
    return (exponent.to(torch.int64) + 126 + (fraction >= 0.875) - 2).clamp_min(0)


def _e2m1(magnitude: torch.Tensor) -> torch.Tensor:
    """Nearest-even code: E2M1 has steps of 1/2 up to 2, of 1 up to 4, and of 2."""
    steps = torch.minimum(torch.minimum(2 * magnitude, magnitude + 2), magnitude / 2 + 4)
    return steps.round().clamp_max(7).to(torch.int32)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in float64, exact on every device, which pow need not be."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _range_text(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _report(name: str, wrong: torch.Tensor, got: torch.Tensor, allowed: Callable[[tuple[int, ...]], str]) -> list[str]:
    """One line on the elements that are wrong: how many, and the first with what it may be."""
    count = int(wrong.sum())
    if not count:
        return []
    at = tuple(int(i) for i in wrong.nonzero()[0])
    value = got[at].item()
    return [f"{name}: {count} of {wrong.numel()} wrong, first at {list(at)}: got {value}, allowed {allowed(at)}"]
