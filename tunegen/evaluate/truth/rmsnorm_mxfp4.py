"""The outputs that the ops which take and return rows may have.

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
from collections.abc import Sequence
from typing import Any

import torch

from tunegen.evaluate.truth.activation import activated
from tunegen.evaluate.truth.quantised import (
    fp8_failures,
    mxfp4_failures,
    mxfp8_failures,
    nvfp4_failures,
    report,
)
from tunegen.ops import Problem
from tunegen.runtime.families import OPS
from tunegen.runtime.families.recipe import RECIPES
from tunegen.runtime.families.rows import RowsOp
from tunegen.runtime.reference.mxfp4 import unpack_codes
from tunegen.runtime.reference.rmsnorm_mxfp4 import rounds_norm, rounds_sum
from tunegen.runtime.reference.scale_layout import PADDING, unplace

UNIT = 2.0**-24
SUBNORMAL = 2.0**-126
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
    op, recipe = OPS[problem.op], RECIPES[problem.op]
    assert isinstance(op, RowsOp)
    variant = recipe.parse(problem.rounding)
    x = args[0]
    rest = list(outputs)
    q = scales = None
    found: list[str] = []
    if recipe.quant:
        q, placed, *rest = rest
        blocks = recipe.quant.blocks(recipe.width(problem.sizes))
        scales, padding = unplace(placed, variant.layout, x.shape[0], blocks)
        found += report("padding of the scales", padding != PADDING, padding, lambda at: str(PADDING))
    if recipe.source == "plain":
        assert q is not None and scales is not None
        return found + _plain_failures(op, args, q, scales)

    if recipe.activation:
        low, high, negative = _gated(x, recipe.activation, variant.rounding)
    else:
        total = x.to(torch.float32)
        if recipe.residual:
            total = total + args[1].to(torch.float32)
            found += _residual_failures(total.to(x.dtype), rest.pop(0))
        if rounds_sum(variant.rounding):
            total = total.to(x.dtype).to(torch.float32)
        weight, epsilon = op.argument(tuple(args), "weight"), op.argument(tuple(args), "epsilon")
        low, high = _magnitudes(total, weight, float(epsilon), variant.rounding, x.dtype, lanes_per_row)
        negative = torch.signbit(total) ^ torch.signbit(weight)
    if q is not None and scales is not None:
        found += _quantised_failures(op, args, low, high, negative, q, scales)
    if recipe.output_norm or not recipe.quant:
        found += _norm_failures("norm", low, high, negative, rest.pop(0))
    if recipe.second:
        names = ("x2", "weight2", "epsilon2")
        x2, weight2, epsilon2 = (op.argument(tuple(args), name) for name in names)
        # Of what is rounded on the way, a row that is not added to and not quantised has the norm.
        rounding = "norm_output" if rounds_norm(variant.rounding) else "none"
        ends = _magnitudes(x2.to(torch.float32), weight2, float(epsilon2), rounding, x2.dtype, lanes_per_row)
        found += _norm_failures("norm2", *ends, torch.signbit(x2) ^ torch.signbit(weight2), rest.pop(0))
    return found


def _plain_failures(op: RowsOp, args: Sequence[Any], q: torch.Tensor, scales: torch.Tensor) -> list[str]:
    """Bit for bit: the quantiser is given the values themselves."""
    quant = op.recipe.quant
    assert quant is not None
    x = args[0].to(torch.float32)
    given = op.argument(tuple(args), "global_scale")
    right_q, right_scales = quant.quantize(x, False, q.dtype if quant.native else None, given)
    scale_bits, right_bits = _bits(scales), _bits(right_scales)
    differ = scale_bits != right_bits
    if scales.is_floating_point():
        differ &= ~(torch.isnan(scales.to(torch.float32)) & torch.isnan(right_scales.to(torch.float32)))
    found = report("scales", differ, scale_bits, lambda at: str(int(right_bits[at])))
    codes, right = (unpack_codes(q), unpack_codes(right_q)) if quant.codes == 2 else (_bits(q), _bits(right_q))
    return found + report("codes", codes != right, codes, lambda at: str(int(right[at])))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _quantised_failures(
    op: RowsOp,
    args: Sequence[Any],
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    q: torch.Tensor,
    scales: torch.Tensor,
) -> list[str]:
    quantiser, values = op.recipe.quantiser, (low, high, negative, q, scales)
    if quantiser == "mxfp4":
        return mxfp4_failures(*values, zero_blocks=op.recipe.norm)
    if quantiser == "mxfp8":
        return mxfp8_failures(*values, zero_blocks=op.recipe.norm)
    if quantiser == "nvfp4":
        return nvfp4_failures(*values, op.argument(tuple(args), "global_scale"))
    block = op.recipe.quant.block if op.recipe.quant else 0
    return fp8_failures(*values, block or low.shape[-1])


def _norm_failures(
    name: str, low: torch.Tensor, high: torch.Tensor, negative: torch.Tensor, got: torch.Tensor
) -> list[str]:
    """What is wrong with values that are returned as they are, rounded to the activation dtype."""
    ends = [_to_act(end, got.dtype) for end in (low, high)]
    bad, maybe_bad = torch.isinf(low), torch.isinf(high)
    value = got.to(torch.float64)
    magnitude = value.abs()
    # What is not finite, or too large for the dtype, is either.
    unusual = ~torch.isfinite(value)
    inside = (magnitude >= ends[0]) & (magnitude <= ends[1]) & ~bad
    wrong = torch.where(unusual, ~(maybe_bad | torch.isinf(ends[1])), ~inside)
    found = report(name, wrong, got, lambda at: f"{float(ends[0][at])} to {float(ends[1][at])} in magnitude")
    sign = torch.signbit(got)
    return found + report(f"signs of {name}", ~unusual & (sign != negative), got, lambda at: str(bool(negative[at])))


def _gated(x: torch.Tensor, activation: str, rounding: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The interval of |f(gate) up|, and its sign."""
    gate, up = x.to(torch.float32).chunk(2, dim=-1)
    low, high = activated(gate, activation)
    if rounding == "act_output":
        low, high = _to_act(low, x.dtype), _to_act(high, x.dtype)
    a = up.to(torch.float64).abs()
    low, high = low * a * (1 - UNIT) - SUBNORMAL, high * a * (1 + UNIT) + SUBNORMAL
    low = low.clamp_min(0.0)
    if rounding != "none":
        low, high = _to_act(low, x.dtype), _to_act(high, x.dtype)
    # NaN, and what is past the largest fp32 value, make a block bad; 0 times infinity does too.
    finite = torch.isfinite(gate) & torch.isfinite(up)
    low, high = (torch.where(finite & (end <= FLOAT32_MAX), end, torch.inf) for end in (low, high))
    return low, high, torch.signbit(gate) ^ torch.signbit(up)


def _residual_failures(right: torch.Tensor, got: torch.Tensor) -> list[str]:
    bits_differ = got.view(torch.int16) != right.view(torch.int16)
    wrong = bits_differ & ~(torch.isnan(got) & torch.isnan(right))
    return report("residual_out", wrong, got, lambda at: repr(float(right[at])))


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
