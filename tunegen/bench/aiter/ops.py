"""This project's ops as AITER does them: arguments in the op's schema order, outputs in the op's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunegen.bench.aiter import Aiter


def mxfp4_quant(aiter: Aiter, args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """dynamic_mxfp4_quant, rmsnorm_mxfp4_quant or rmsnorm_add_mxfp4_quant by the number of arguments.

    AITER rounds as ``rounding="none"`` does.
    """
    x, *rest = args
    if not rest:
        return aiter.dynamic_mxfp4_quant(x)
    *residual, weight, epsilon, _ = rest
    if not residual:
        return aiter.fused_rms_mxfp4_quant(x, weight, epsilon)[:2]
    out = aiter.fused_rms_mxfp4_quant(x, weight, epsilon, res1=residual[0])
    if out.residual_out is None:
        raise TypeError("AITER returned no residual though it was given one.")
    return out.q, out.scales, out.residual_out


def mla_rope_cache(
    aiter: Aiter, args: Sequence[Any], outputs: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """mla_rope_cache with kv_c first and q_out in the activation dtype: (q_out [B, H, R + D], k_pe_out [S, D]),
    into ``outputs`` if they are given.

    AITER rotates in the activation dtype, with as many roundings as the compiler makes of it, and takes a cache
    without gaps between its slots.
    """
    q_nope, q_pe, kv_c, k_pe, positions, table, kv_cache, slots, k_scale, *_, is_neox, pe_first, _ = args
    if pe_first:
        raise ValueError("AITER writes cache rows with kv_c first; got pe_first.")
    tokens, rope_dim = kv_c.shape[0], q_pe.shape[2]
    cos, sin = table.chunk(2, -1)
    into: dict[str, Any] = {} if outputs is None else {"q_out": outputs[0], "k_pe_out": outputs[1].unsqueeze(1)}
    out = aiter.fused_qk_rope_cat_and_cache_mla(
        *(q_nope, q_pe, kv_c.unsqueeze(1), k_pe.reshape(tokens, 1, rope_dim)),
        *(kv_cache.view(-1, 1, kv_cache.shape[-1]), slots, positions, cos, sin, k_scale, is_neox),
        **into,
    )
    return out.q_out, out.k_pe_out.view(tokens, rope_dim)
