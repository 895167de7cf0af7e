"""Which codes and scales values may become that are known to lie in an interval; a function a quantiser.

Every step from a value to a scale or a code is monotonic: a kernel's result lies between what the ends become.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tunegen.runtime.reference.fp8 import LEAST_AMAX
from tunegen.runtime.reference.mxfp4 import BLOCK, E8M0_NAN, unpack_codes
from tunegen.runtime.reference.nvfp4 import E2M1_MAX, E4M3_MAX, E4M3_NAN, NV_BLOCK

UNIT = 2.0**-24
ZERO_BLOCK_BELOW = 2.0**-64
FLOAT32_MAX = torch.finfo(torch.float32).max


def mxfp4_failures(
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    q: torch.Tensor,
    scales: torch.Tensor,
    zero_blocks: bool = True,
) -> list[str]:
    """MXFP4 of values whose magnitudes lie in an interval (infinite: NaN or Inf), and whose signs are known.

    Args:
        low, high: float64 [T, N].
        negative: bool [T, N].
        q, scales: The outputs, scales in rows.
        zero_blocks: Blocks below 2^-64 have scale 0 and all codes 0.
    """
    right, kept, factor, found = _e8m0_failures(low, high, scales, 2, zero_blocks)
    # With a scale that is wrong the codes have no meaning; it is reported, and they are not.
    codes = unpack_codes(q)
    judged, kept = (mask.repeat_interleave(BLOCK, dim=-1) for mask in (right, kept))
    return found + _e2m1_failures(codes, _scaled(low, factor), _scaled(high, factor), negative, judged, kept)


def mxfp8_failures(
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    q: torch.Tensor,
    scales: torch.Tensor,
    zero_blocks: bool = True,
) -> list[str]:
    """The same for MXFP8."""
    right, kept, factor, found = _e8m0_failures(low, high, scales, 8, zero_blocks)
    judged, kept = (mask.repeat_interleave(BLOCK, dim=-1) for mask in (right, kept))
    return found + _e4m3_failures(q, _scaled(low, factor), _scaled(high, factor), negative, judged, kept)


def fp8_failures(
    low: torch.Tensor, high: torch.Tensor, negative: torch.Tensor, q: torch.Tensor, scales: torch.Tensor, group: int
) -> list[str]:
    """The same for E4M3 with an fp32 scale for ``group`` values.

    The scale is one division; its reciprocal another, and the product with it the third rounding.
    """
    largest = torch.finfo(q.dtype).max
    groups = [end.unflatten(-1, (-1, group)) for end in (low, high)]
    amax_low, amax_high = (end.amax(dim=-1) for end in groups)
    bad, maybe_bad = torch.isinf(amax_low), torch.isinf(amax_high)
    # Through fp32, as kernels are.
    s_low = (amax_low.clamp(LEAST_AMAX, FLOAT32_MAX) / largest * (1 - 2 * UNIT)).to(torch.float32)
    s_high = (amax_high.clamp(LEAST_AMAX, FLOAT32_MAX) / largest * (1 + 2 * UNIT)).to(torch.float32)
    is_nan = torch.isnan(scales)
    right = torch.where(is_nan, maybe_bad, ~bad & (scales >= s_low) & (scales <= s_high))
    found = report("scales", ~right, scales, lambda at: f"{float(s_low[at])!r} to {float(s_high[at])!r}")
    scale = torch.where(is_nan, 1.0, scales).to(torch.float64).unsqueeze(-1)
    least, most = (
        (end.clamp_max(FLOAT32_MAX) / scale * (1 + sign * 3 * UNIT)).clamp_max(largest).flatten(-2)
        for end, sign in zip(groups, (-1, 1), strict=True)
    )
    judged, kept = (mask.repeat_interleave(group, dim=-1) for mask in (right, ~is_nan))
    return found + _e4m3_failures(q, least, most, negative, judged, kept)


def nvfp4_failures(
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    q: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None,
) -> list[str]:
    """The same for NVFP4. Before it is rounded, the scale is a division and a product; so is a value before it is."""
    g = 1.0 if global_scale is None else float(global_scale)
    ends = [end.unflatten(-1, (-1, NV_BLOCK)) for end in (low, high)]
    amax_low, amax_high = (end.amax(dim=-1) for end in ends)
    bad, maybe_bad = torch.isinf(amax_low), torch.isinf(amax_high)
    wanted = [
        (amax.clamp_max(FLOAT32_MAX) / E2M1_MAX * g * (1 + sign * 2 * UNIT)).clamp(0.0, E4M3_MAX).to(torch.float32)
        for amax, sign in ((amax_low, -1), (amax_high, 1))
    ]
    s_low, s_high = (value.to(torch.float8_e4m3fn).to(torch.float32) for value in wanted)
    is_nan = (scales.view(torch.uint8) & 0x7F) == E4M3_NAN
    got = scales.to(torch.float32)
    right = torch.where(
        is_nan, maybe_bad & (scales.view(torch.uint8) == E4M3_NAN), ~bad & (got >= s_low) & (got <= s_high)
    )
    found = report("scales", ~right, got, lambda at: f"{float(s_low[at])!r} to {float(s_high[at])!r}")
    kept = ~is_nan & (got > 0)
    factor = torch.where(kept, g / torch.where(kept, got, 1.0).to(torch.float64), 0.0).unsqueeze(-1)
    least, most = (
        (end.clamp_max(FLOAT32_MAX) * factor * (1 + sign * 2 * UNIT)).clamp_max(E2M1_MAX).flatten(-2)
        for end, sign in zip(ends, (-1, 1), strict=True)
    )
    judged, kept = (mask.repeat_interleave(NV_BLOCK, dim=-1) for mask in (right, kept))
    return found + _e2m1_failures(unpack_codes(q), least, most, negative, judged, kept)


# --- Scales and codes ---


def _scaled(end: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    scaled: torch.Tensor = end.unflatten(-1, (-1, BLOCK)).clamp_max(FLOAT32_MAX) * factor
    return scaled.flatten(-2)


def _e8m0_failures(
    low: torch.Tensor, high: torch.Tensor, scales: torch.Tensor, exponent: int, zero_blocks: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Which E8M0 scales are right, which blocks are quantised, by which factor [T, B, 1], and what is wrong.

    Args:
        low, high: Ends of the magnitudes.
        scales: The scales, in rows.
        exponent: Of the largest power of two among the format's values.
        zero_blocks: See `mxfp4_failures`.
    """
    amax_low, amax_high = (end.unflatten(-1, (-1, BLOCK)).amax(dim=-1) for end in (low, high))
    bad, maybe_bad = torch.isinf(amax_low), torch.isinf(amax_high)
    least = ZERO_BLOCK_BELOW if zero_blocks else 0.0
    maybe_zero = ~bad & (amax_low < least)
    maybe_kept = ~bad & (amax_high >= least)
    e8_low = _e8(amax_low.clamp(least, FLOAT32_MAX), exponent)
    e8_high = _e8(amax_high.clamp(least, FLOAT32_MAX), exponent)

    got = scales.to(torch.int64)
    kept = got != E8M0_NAN
    right = maybe_kept & (got >= e8_low) & (got <= e8_high)
    if zero_blocks:
        # 0 is the scale of zero blocks alone: that of the smallest kept block is larger.
        kept &= got != 0
        right = torch.where(kept, right, (got == 0) & maybe_zero)
    else:
        right &= kept
    right = right | ((got == E8M0_NAN) & maybe_bad)

    def allowed_scale(at: tuple[int, ...]) -> str:
        options = [str(E8M0_NAN)] if maybe_bad[at] else []
        options += ["0"] if maybe_zero[at] else []
        options += [_range_text(int(e8_low[at]), int(e8_high[at]))] if maybe_kept[at] else []
        return " or ".join(options)

    found = report("scales", ~right, scales, allowed_scale)
    factor = _power_of_two(torch.where(got == E8M0_NAN, 0, 127 - got)).unsqueeze(-1)
    return right, kept, factor, found


def _e2m1_failures(
    codes: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    judged: torch.Tensor,
    kept: torch.Tensor,
) -> list[str]:
    """What is wrong with codes of scaled magnitudes; those of blocks that are not kept are 0."""
    code_low, code_high = _e2m1(low), _e2m1(high)
    magnitude = codes & 7
    wrong = torch.where(kept, (magnitude < code_low) | (magnitude > code_high), magnitude != 0)

    def allowed_magnitude(at: tuple[int, ...]) -> str:
        return _range_text(int(code_low[at]), int(code_high[at])) if kept[at] else "0"

    found = report("code magnitudes", judged & wrong, magnitude, allowed_magnitude)
    sign, sign_right = codes >> 3, (negative & kept).to(torch.int32)
    return found + report("code signs", judged & (sign != sign_right), sign, lambda at: str(int(sign_right[at])))


def _e4m3_failures(
    q: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    negative: torch.Tensor,
    judged: torch.Tensor,
    kept: torch.Tensor,
) -> list[str]:
    """The same of e4m3; the one of gfx942 has no negative zero."""
    # Through fp32: the scaled values that a kernel rounds are fp32.
    least, most = (end.to(torch.float32).to(q.dtype).to(torch.float32) for end in (low, high))
    value = q.to(torch.float32)
    magnitude = value.abs()
    wrong = torch.where(kept, ~((magnitude >= least) & (magnitude <= most)), magnitude != 0)

    def allowed(at: tuple[int, ...]) -> str:
        return f"{float(least[at])} to {float(most[at])}" if kept[at] else "0"

    found = report("code magnitudes", judged & wrong, magnitude, allowed)
    sign, sign_right = torch.signbit(value), negative & kept
    if q.dtype == torch.float8_e4m3fnuz:
        sign_right = sign_right & (magnitude != 0)
    return found + report("code signs", judged & (sign != sign_right), sign, lambda at: str(bool(sign_right[at])))


def _e8(amax: torch.Tensor, exponent: int) -> torch.Tensor:
    """The scale of a finite amax: its fp32 exponent field less the format's, and 1 more from a significand of 1.75."""
    fraction, power = torch.frexp(amax)  # amax = fraction * 2^power, fraction from 0.5
    # Of a subnormal the field is not that, but the scale is 0 either way.
    return ((power.to(torch.int64) + 126 + (fraction >= 0.875) - exponent) * (amax > 0)).clamp_min(0)


def _e2m1(magnitude: torch.Tensor) -> torch.Tensor:
    """Nearest-even code: E2M1 has steps of 1/2 up to 2, of 1 up to 4, and of 2."""
    steps = torch.minimum(torch.minimum(2 * magnitude, magnitude + 2), magnitude / 2 + 4)
    return steps.round().clamp_max(7).to(torch.int32)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in float64, exactly on every device, which pow need not be."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _range_text(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def report(name: str, wrong: torch.Tensor, got: torch.Tensor, allowed: Callable[[tuple[int, ...]], str]) -> list[str]:
    """One line on the elements that are wrong: how many, and the first with what it may be."""
    count = int(wrong.sum())
    if not count:
        return []
    at = tuple(int(i) for i in wrong.nonzero()[0])
    value = got[at].item()
    return [f"{name}: {count} of {wrong.numel()} wrong, first at {list(at)}: got {value}, allowed {allowed(at)}"]
