"""RoPE as models write it: (positions, q [T, H, D], k [T, 1, D], table [P, D]) -> q and k, rotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def swap_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def swap_halves(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def to_halves(x: Tensor) -> Tensor:
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


def interleaved(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """As vLLM's DeepSeek layers do it."""
    cos, sin = (part.repeat_interleave(2, dim=-1).unsqueeze(-2) for part in table[positions].chunk(2, dim=-1))
    return q * cos + swap_pairs(q) * sin, k * cos + swap_pairs(k) * sin


def neox(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (torch.cat((part, part), dim=-1).unsqueeze(1) for part in table.index_select(0, positions).chunk(2, -1))
    return q * cos + swap_halves(q) * sin, k * cos + swap_halves(k) * sin


def by_parts(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = torch.nn.functional.embedding(positions, table).unsqueeze(-2).chunk(2, dim=-1)

    def rotated(x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    return rotated(q), rotated(k)


def halves_by_parts(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    half = table.shape[-1] // 2
    cos, sin = table[positions][:, None, :half], table[positions][:, None, half:]

    def rotated(x: Tensor) -> Tensor:
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    return rotated(q), rotated(k)


def in_fp32(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """A table in fp32: all in fp32, rounded once."""
    q_out, k_out = interleaved(positions, q.float(), k.float(), table)
    return q_out.to(q.dtype), k_out.to(k.dtype)


def wide_table_cast(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """A table in fp32, whose rows are rounded to the activation dtype."""
    cos, sin = (part.to(q.dtype).repeat_interleave(2, dim=-1).unsqueeze(-2) for part in table[positions].chunk(2, -1))
    return q * cos + swap_pairs(q) * sin, k * cos + swap_pairs(k) * sin


def rotary_op(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """vLLM's op in place."""
    q, k = q.clone(), k.clone()
    torch.ops._C.rotary_embedding(positions, q, k, q.shape[-1], table, False)
    return q, k


@dataclass(frozen=True)
class Spelling:
    """One way to write RoPE."""

    function: Function
    rounding: str = "act"
    is_neox: bool = False
    fp32_table: bool = False


ROPES = {
    "interleaved": Spelling(interleaved),
    "neox": Spelling(neox, is_neox=True),
    "by parts": Spelling(by_parts),
    "halves by parts": Spelling(halves_by_parts, is_neox=True),
    "fp32": Spelling(in_fp32, rounding="none", fp32_table=True),
    "fp32 table": Spelling(wide_table_cast, fp32_table=True),
    "_C": Spelling(rotary_op),
}
