"""Do a baseline's outputs agree with what the op computes? Checked before its time is quoted beside ours.

A baseline need not follow the numerics contract, and its kernels round elsewhere: AITER rotates in the activation
dtype, and of two neighbours at the same distance some of its releases take the larger, not the even one. So outputs
are not compared with ours but with the truth in float64, in bounds that are derived from the number of roundings:

    rotated   x cos - y sin with each product and the sum rounded to the activation dtype, unit roundoff u: off by at
              most u (|x cos| + |y sin|) for the products and u (1 + u) of the same for the sum, (2 u + u^2) in all.
              Fewer roundings (fused multiply-adds, fp32) stay within it.
    quotient  value / scale in fp32, or the product with a rounded reciprocal: 2 units of 2^-24.
    norm      as in `tunegen.evaluate.truth.rmsnorm_mxfp4`, for a row on a warp of 32 lanes; then two products.

What a value is rounded to afterwards (the activation dtype, fp8, E2M1) is monotonic: it must lie between what the ends
of the interval become. Copies are compared bit for bit. All on the device where the tensors are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunegen.evaluate.truth.rmsnorm_mxfp4 import RSQRT_UNITS, UNIT, mean_square_units
from tunegen.runtime.reference.mxfp4 import BLOCK, unpack_codes
from tunegen.runtime.reference.rmsnorm_mxfp4 import rounds_norm, rounds_sum

LANES_PER_ROW = 32
# Of two neighbours at the same distance either is right here: an interval reaches this far past its ends.
TIE = 2.0**-40
# Magnitudes at which E2M1 codes 0 to 7 begin and end, the largest taken as what saturates.
E2M1_BEGINS = (0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
E2M1_ENDS = (*E2M1_BEGINS[1:], 8.0)
E8M0_ONE = 127


@dataclass(frozen=True)
class Mxfp4Agreement:
    """How MXFP4 outputs compare with the truth.

    Attributes:
        failures: What is wrong, a line each; empty if nothing is.
        blocks: Number of scales.
        undefined_scales: Scales below 1 (E8M0 < 127) that are wrong. AITER converts a negative float to an unsigned
            integer there, which is undefined and on NVIDIA gives 0. Counted apart from the failures if allowed.
    """

    failures: list[str]
    blocks: int
    undefined_scales: int


def mxfp4_agreement(
    args: Sequence[Any], rounding: str, outputs: Sequence[torch.Tensor], undefined_scales_allowed: bool = False
) -> Mxfp4Agreement:
    """Judges (q, scales) or (q, scales, residual_out) as outputs of the F2 ops.

    Args:
        args: The op's arguments in schema order: (x), (x, weight, epsilon, ...) or (x, residual, weight, epsilon, ...).
        rounding: What is rounded before the quantisation.
        outputs: The baseline's; scales in any layout.
        undefined_scales_allowed: Scales below 1 may be anything; the codes are judged by the right ones.
    """
    q, scales, *residual_out = outputs
    low, high, negative, found = _norm(args, rounding, residual_out)
    low, high = low.unflatten(-1, (-1, BLOCK)), high.unflatten(-1, (-1, BLOCK))
    e8_low, e8_high = _e8(low.amax(dim=-1)), _e8(high.amax(dim=-1))
    got = scales.to(torch.int64)
    wrong = (got < e8_low) | (got > e8_high)
    # What is stored for such a block says nothing of the scale that its codes were made with, be it right by chance.
    undefined = (e8_low < E8M0_ONE) & undefined_scales_allowed
    found += _counted("scales", wrong & ~undefined)
    codes = unpack_codes(q).unflatten(-1, (-1, BLOCK))
    given = torch.where(undefined, e8_low, got)
    right = _codes_right(codes, low, high, given)
    right |= undefined & _codes_right(codes, low, high, e8_high)
    found += _counted("blocks of codes", ~right & ~(wrong & ~undefined))
    found += _counted("code signs", (codes >> 3 == 1) != negative.unflatten(-1, (-1, BLOCK)))
    return Mxfp4Agreement(found, wrong.numel(), int((wrong & undefined).sum()))


def _norm(
    args: Sequence[Any], rounding: str, residual_out: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Ends of the magnitude that is quantised, float64, its sign, and what is wrong with residual_out."""
    x = args[0]
    if len(args) == 1:
        exact = x.to(torch.float64).abs()
        return exact, exact, torch.signbit(x), []
    found = []
    total = x.to(torch.float32)
    weight, epsilon = args[1], args[2]
    if residual_out:
        residual, weight, epsilon = args[1:4]
        total = total + residual.to(torch.float32)
        found = _counted("residual_out", total.to(x.dtype) != residual_out[0])
        if rounds_sum(rounding):
            total = total.to(x.dtype).to(torch.float32)
    if rounds_norm(rounding):
        raise ValueError(f"No baseline rounds the norm before the weight; got rounding {rounding!r}.")
    s, w = total.to(torch.float64).abs(), weight.to(torch.float64).abs()
    hidden_size = s.shape[-1]
    norm = torch.rsqrt((s * s).sum(dim=-1, keepdim=True) / hidden_size + epsilon)
    # Half of the mean's relative error, the rsqrt's, and two products.
    error = UNIT * (mean_square_units(hidden_size, LANES_PER_ROW) / 2 + RSQRT_UNITS + 2) * 1.001
    low, high = s * w * norm * (1 - error), s * w * norm * (1 + error)
    if rounding != "none":
        low, high = (end.to(torch.float32).to(x.dtype).to(torch.float64) for end in (low, high))
    return low, high, torch.signbit(total) ^ torch.signbit(weight), found


def _e8(amax: torch.Tensor) -> torch.Tensor:
    """The "even" scale: fp32's exponent field less 2, and 1 more from a significand of 1.75; 0 of a block of zeros."""
    fraction, exponent = torch.frexp(amax)  # amax = fraction * 2^exponent, fraction from 0.5
    return ((exponent.to(torch.int64) + 126 + (fraction >= 0.875) - 2) * (amax > 0)).clamp_min(0)


def _codes_right(codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor, e8: torch.Tensor) -> torch.Tensor:
    """For each block, whether all its codes are nearest to a value in their interval."""
    factor = torch.ldexp(torch.ones_like(low[..., :1]), (E8M0_ONE - e8).unsqueeze(-1))
    magnitude = (codes & 7).long()
    begins, ends = (torch.tensor(edges, dtype=torch.float64, device=low.device) for edges in (E2M1_BEGINS, E2M1_ENDS))
    inside = (low * factor * (1 - TIE) <= ends[magnitude]) & (high * factor * (1 + TIE) >= begins[magnitude])
    return inside.all(dim=-1)


@dataclass(frozen=True)
class RopeOutputs:
    """What a call of mla_rope_cache left.

    Attributes:
        q_out: [B, H, R + D].
        k_pe_out: [S, D]; the rows of tokens without a slot are not looked at.
        kv_cache: [slots, R + D] after the call.
    """

    q_out: torch.Tensor
    k_pe_out: torch.Tensor
    kv_cache: torch.Tensor


def rope_failures(args: Sequence[Any], cache_before: torch.Tensor, outputs: RopeOutputs) -> list[str]:
    """What is wrong with outputs of mla_rope_cache, whichever way the rotation was rounded; empty if nothing is.

    Args:
        args: The op's arguments in schema order.
        cache_before: The cache as it was, [slots, R + D].
        outputs: The baseline's, or ours.
    """
    q_nope, q_pe, kv_c, k_pe, positions, table, _, slots, k_scale, q_scale, _, is_neox, pe_first, _ = args
    rank, (queries, tokens) = kv_c.shape[1], (q_pe.shape[0], kv_c.shape[0])
    angles = table[positions[:tokens].long()].to(torch.float64)
    q_rotated = _rotated(q_pe, angles[:queries, None], is_neox)
    k_rotated = _rotated(k_pe.reshape(tokens, -1), angles, is_neox)
    kept = torch.zeros(tokens, dtype=torch.bool, device=slots.device)
    kept[: len(slots)] = slots >= 0
    rows = slots[slots >= 0]
    found = _copied("q_out of q_nope", outputs.q_out[..., :rank], q_nope, q_scale)
    found += _outside("q_out of q_pe", outputs.q_out[..., rank:], *q_rotated, q_scale)
    k_rotated = (k_rotated[0][kept], k_rotated[1][kept])
    found += _outside("k_pe_out", outputs.k_pe_out[kept], *k_rotated, None)
    # Rows are picked as bits: not every version of torch indexes fp8.
    written = _bits(outputs.kv_cache)[rows].view(cache_before.dtype)
    rope_dim = written.shape[1] - rank
    k_written, c_written = (written[:, :rope_dim], written[:, rope_dim:]) if pe_first else (
        written[:, rank:], written[:, :rank])  # fmt: skip
    found += _copied("kv_cache of kv_c", c_written, kv_c[kept], k_scale)
    found += _outside("kv_cache of k_pe", k_written, *k_rotated, k_scale)
    others = torch.ones(cache_before.shape[0], dtype=torch.bool, device=rows.device)
    others[rows] = False
    return found + _counted("kv_cache of other slots", (_bits(outputs.kv_cache) != _bits(cache_before))[others])


def _copied(name: str, got: torch.Tensor, source: torch.Tensor, scale: torch.Tensor | None) -> list[str]:
    """Values that are not the source's: to the bit, or in fp8 by the scale."""
    if got.dtype == source.dtype:
        return _counted(name, _bits(got) != _bits(source))
    exact = source.to(torch.float64)
    return _outside(name, got, exact, exact, scale)


def _rotated(values: torch.Tensor, angles: torch.Tensor, is_neox: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of the rotated values; see the module's docstring."""
    unit = torch.finfo(values.dtype).eps / 2
    half = values.shape[-1] // 2
    cos, sin = angles[..., :half], angles[..., half:]
    first = slice(0, half) if is_neox else slice(0, None, 2)
    second = slice(half, None) if is_neox else slice(1, None, 2)
    x, y = values[..., first].to(torch.float64), values[..., second].to(torch.float64)
    low, high = (torch.empty(values.shape, dtype=torch.float64, device=values.device) for _ in range(2))
    for at, plus, minus in ((first, x * cos, y * sin), (second, y * cos, -(x * sin))):
        # Below its normal numbers an activation dtype is off by an absolute amount, once for each rounding.
        error = (2 * unit + unit**2) * (plus.abs() + minus.abs()) + 3 * torch.finfo(values.dtype).tiny * unit
        low[..., at], high[..., at] = plus - minus - error, plus - minus + error
    return low, high


def _outside(
    name: str, got: torch.Tensor, low: torch.Tensor, high: torch.Tensor, scale: torch.Tensor | None
) -> list[str]:
    """Values that are not between what the ends become in the output's dtype; a scale is for fp8 alone."""
    if got.element_size() == 1:
        divisor = 1.0 if scale is None else scale.to(torch.float64)
        low, high = low / divisor, high / divisor
        low, high = low - 2 * UNIT * low.abs(), high + 2 * UNIT * high.abs()
    value = got.to(torch.float32)
    inside = (value >= _stored(low, got.dtype)) & (value <= _stored(high, got.dtype))
    return _counted(name, ~inside)


def _stored(end: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype.itemsize == 1:
        end = end.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return end.to(torch.float32).to(dtype).to(torch.float32)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8 if tensor.element_size() == 1 else torch.int16)


def _counted(name: str, wrong: torch.Tensor) -> list[str]:
    count = int(wrong.sum())
    if not count:
        return []
    return [f"{name}: {count} of {wrong.numel()} wrong, first at {wrong.nonzero()[0].tolist()}"]
