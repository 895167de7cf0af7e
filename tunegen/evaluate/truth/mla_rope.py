"""What mla_rope_cache and mla_rope_cache_ may leave in their outputs, in q_pe and k_pe, and in the whole cache.

Copies are compared bit for bit, and so is all that must not be written. A rotated value, and whatever is divided
by a scale, is an interval; every step from there to an output (the product with 1 / scale, a rounding, saturation)
is monotonic, so that what a kernel stores lies between what the ends become. Values are compared as their bits in
order, in which -0 comes before +0.

The intervals, in units of u = 2^-24, half an ulp of fp32 in relative terms (one rounding to nearest):

    rotated   x cos - y sin: each product is off by 1 u of itself and the sum by 1 u of itself, which is at most the
              sum of the products' magnitudes. In all 2 u of |x cos| + |y sin|, and second-order terms. With rounding
              ``act`` there is none: products of two values of the activation dtype are exact in fp32, and a sum of
              two of them that fp32 rounds first rounds to the activation dtype as the exact one does (24 digits
              are at least 2 x 11 + 2).
    quotient  value / scale: 2 u, whichever of the usual ways is taken to it: a division (1 u), the product with a
              rounded reciprocal (2 u), that product with its remainder added (1 u and second-order terms; 2 u if its
              multiply-adds are not fused, as in Triton's interpreter).

Where fp32 is subnormal each of the three roundings may also be off by 2^-150.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunegen.ops import Problem
from tunegen.runtime.reference.mla_rope import native_fp8

UNIT = 2.0**-24
SECOND_ORDER = 1.001
ROTATED_UNITS = 2 * SECOND_ORDER
QUOTIENT_UNITS = 2 * SECOND_ORDER
SUBNORMAL = 3 * 2.0**-150
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of float64 values, both included; NaN in both where the value is NaN."""

    low: torch.Tensor
    high: torch.Tensor

    def of_token(self, kept: torch.Tensor) -> Interval:
        """Only the rows of some tokens."""
        return Interval(self.low[kept], self.high[kept])


def failures(
    problem: Problem, before: Sequence[Any], after: Sequence[Any], outputs: Sequence[torch.Tensor]
) -> list[str]:
    """What a call did wrong; empty if nothing.

    Args:
        problem: The op at its shape and variant.
        before: The arguments as they were, in schema order.
        after: The arguments after the call: the same objects but for those that the op writes.
        outputs: What it returned.
    """
    if problem.op == "mla_rope_cache":
        return _functional_failures(before, after, outputs)
    return _inplace_failures(before, after)


def _functional_failures(before: Sequence[Any], after: Sequence[Any], outputs: Sequence[torch.Tensor]) -> list[str]:
    q_nope, q_pe, kv_c, k_pe, positions, table, cache, slot_mapping, k_scale, q_scale, _, *flags = before
    is_neox, pe_first, rounding = flags
    q_out, k_pe_out = outputs
    tokens, rank = kv_c.shape
    slots = _slots(slot_mapping, cache, tokens)
    q_rotated, k_rotated = _rotated_pair(q_pe, k_pe, positions, table, is_neox, rounding)
    found = _stored_failures("q_out of q_nope", q_out[..., :rank], q_nope, q_scale)
    found += _stored_failures("q_out of q_pe", q_out[..., rank:], q_rotated, q_scale)
    found += _stored_failures("k_pe_out", k_pe_out, k_rotated, None)
    return found + _cache_failures(cache, after[6], slots, kv_c, k_rotated, k_scale, pe_first)


def _inplace_failures(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    positions, q_pe, k_pe, kv_c, table, is_neox, slot_mapping, cache, cache_dtype, scale, rounding = before
    tokens, queries = kv_c.shape[0], q_pe.shape[0]
    slots = _slots(slot_mapping, cache, tokens)
    kept = torch.tensor([slot is not None for slot in slots], dtype=torch.bool)
    q_rotated, k_rotated = _rotated_pair(q_pe, k_pe, positions, table, is_neox, rounding)
    found = []
    for name, old, new, rotated, rows in (
        ("q_pe", q_pe.cpu(), after[1].cpu(), q_rotated, kept[:queries]),
        ("k_pe", k_pe.reshape(tokens, -1).cpu(), after[2].reshape(tokens, -1).cpu(), k_rotated, kept),
    ):
        found += _stored_failures(f"{name} of tokens with a slot", new[rows], rotated.of_token(rows), None)
        found += _stored_failures(f"{name} of tokens without", new[~rows], old[~rows], None)
    return found + _cache_failures(
        cache, after[7], slots, kv_c, k_rotated, None if cache_dtype == "auto" else scale, False
    )


def _slots(slot_mapping: torch.Tensor, cache: torch.Tensor, tokens: int) -> list[int | None]:
    """The slot of each token, None where it has none."""
    end = cache.shape[:-1].numel()
    given = [slot if 0 <= slot < end else None for slot in slot_mapping.tolist()]
    return given + [None] * (tokens - len(given))


def _rotated_pair(
    q_pe: torch.Tensor, k_pe: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, is_neox: bool, rounding: str
) -> tuple[Interval, Interval]:
    at = positions[: k_pe.shape[0]].cpu().to(torch.int64)
    known = (at >= 0) & (at < table.shape[0])
    angles = table.cpu()[at * known]
    angles[~known] = float("nan")
    if rounding == "act":
        angles = angles.to(q_pe.dtype)
    angles = angles.to(torch.float64)
    q_rotated = _rotated(q_pe.cpu(), angles[: q_pe.shape[0], None], is_neox, rounding)
    return q_rotated, _rotated(k_pe.reshape(k_pe.shape[0], -1).cpu(), angles, is_neox, rounding)


def _rotated(values: torch.Tensor, angles: torch.Tensor, is_neox: bool, rounding: str) -> Interval:
    half = values.shape[-1] // 2
    cos, sin = angles[..., :half], angles[..., half:]
    first = torch.arange(half) if is_neox else torch.arange(0, 2 * half, 2)
    second = first + (half if is_neox else 1)
    x, y = values[..., first].to(torch.float64), values[..., second].to(torch.float64)
    low, high = torch.empty(values.shape, dtype=torch.float64), torch.empty(values.shape, dtype=torch.float64)
    for at, plus, minus in ((first, x * cos, y * sin), (second, y * cos, -(x * sin))):
        if rounding == "act":
            exact = _to_act(_to_act(plus, values.dtype) - _to_act(minus, values.dtype), values.dtype)
            low[..., at] = high[..., at] = exact
        else:
            error = ROTATED_UNITS * UNIT * (plus.abs() + minus.abs()) + SUBNORMAL
            exact = plus - minus
            error = torch.where(torch.isfinite(exact), error, 0.0)
            low[..., at], high[..., at] = exact - error, exact + error
    return Interval(low, high)


def _to_act(values: torch.Tensor, act: torch.dtype) -> torch.Tensor:
    return values.to(torch.float32).to(act).to(torch.float64)


def _stored_failures(
    name: str, got: torch.Tensor, value: torch.Tensor | Interval, scale: torch.Tensor | None
) -> list[str]:
    """What is wrong with values as they were stored: a copy of a tensor, or roundings of an interval."""
    got = got.cpu()
    if isinstance(value, torch.Tensor):
        value = value.cpu()
        if got.dtype == value.dtype:
            return _report(name, _bits(got) != _bits(value), got, value, value)
        value = Interval(value.to(torch.float64), value.to(torch.float64))
    low, high = (_stored(end, got.dtype, scale, up) for end, up in ((value.low, False), (value.high, True)))
    is_nan = torch.isnan(value.low)
    inside = (_ordered(got) >= _ordered(low)) & (_ordered(got) <= _ordered(high))
    # Compared as fp32, since fp8 has no isnan; a NaN is in no order.
    got_nan = torch.isnan(got.to(torch.float32))
    return _report(name, torch.where(is_nan, ~got_nan, got_nan | ~inside), got, low, high)


def _stored(end: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None, up: bool) -> torch.Tensor:
    """What an end of an interval becomes in an output."""
    if dtype not in FP8_DTYPES:
        return end.to(torch.float32).to(dtype)
    if scale is not None:
        quotient = end / scale.cpu().reshape(()).to(torch.float64)
        error = torch.where(torch.isfinite(quotient), QUOTIENT_UNITS * UNIT * quotient.abs() + SUBNORMAL, 0.0)
        # A zero is divided exactly; an error would let it change its sign.
        error = torch.where(quotient == 0, 0.0, error)
        end = quotient + error if up else quotient - error
    largest = torch.finfo(dtype).max
    return end.to(torch.float32).clamp(-largest, largest).to(dtype)


def _cache_failures(
    before: torch.Tensor,
    after: torch.Tensor,
    slots: Sequence[int | None],
    kv_c: torch.Tensor,
    k_rotated: Interval,
    scale: torch.Tensor | None,
    pe_first: bool,
) -> list[str]:
    rank, width = kv_c.shape[1], before.shape[-1]
    kept = torch.tensor([slot is not None for slot in slots], dtype=torch.bool)
    written = torch.tensor([slot for slot in slots if slot is not None], dtype=torch.int64)
    if len(written.unique()) < len(written):
        raise ValueError("Rows of a slot that several tokens have are not defined: they cannot be judged.")
    dtype = native_fp8(before.device) if before.dtype == torch.uint8 else before.dtype
    old, new = (_bits(cache.cpu()).reshape(-1, width) for cache in (before, after))
    rows = new[written].view(dtype)
    parts = rows.split([width - rank, rank] if pe_first else [rank, width - rank], dim=-1)
    pe_rows, kv_c_rows = parts if pe_first else parts[::-1]
    found = _stored_failures("kv_cache of kv_c", kv_c_rows, kv_c.cpu()[kept], scale)
    found += _stored_failures("kv_cache of k_pe", pe_rows, k_rotated.of_token(kept), scale)
    others = torch.ones(old.shape[0], dtype=torch.bool)
    others[written] = False
    old, new = old[others], new[others]
    return found + _report("kv_cache of other slots (bits)", new != old, new, old, old)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8 if tensor.element_size() == 1 else torch.int16)


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the values; -0 before +0."""
    bits = _bits(tensor).to(torch.int32)
    if tensor.element_size() == 1:
        negative, magnitude = bits >= 0x80, bits & 0x7F
    else:
        negative, magnitude = bits < 0, bits & 0x7FFF
    return torch.where(negative, -1 - magnitude, magnitude)


def _report(name: str, wrong: torch.Tensor, got: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> list[str]:
    """One line on the elements that are wrong: how many, and the first with what it may be."""
    count = int(wrong.sum())
    if not count:
        return []
    at = tuple(int(i) for i in wrong.nonzero()[0])
    value, least, most = (float(tensor[at].to(torch.float32)) for tensor in (got, low, high))
    allowed = repr(least) if least == most or math.isnan(least) else f"{least!r} to {most!r}"
    return [f"{name}: {count} of {wrong.numel()} wrong, first at {list(at)}: got {value!r}, allowed {allowed}"]
