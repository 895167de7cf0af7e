"""Quantisation to E4M3 in plain PyTorch: MXFP8, one fp32 scale for a group of values, and one for a row."""

from __future__ import annotations

import torch

from .mxfp4 import BLOCK, E8M0_NAN, ZERO_BLOCK_BELOW, power_of_two

# The least magnitude that a scale is made from, as AITER and vLLM have it: no scale is 0.
LEAST_AMAX = 1e-10


def _magnitude(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest magnitude of the last dimension, and whether all of it is finite; a NaN wins."""
    amax = (blocks.view(torch.int32) & 0x7FFFFFFF).amax(dim=-1).view(torch.float32)
    return amax, torch.isfinite(amax)


def quantize_fp8(y: torch.Tensor, group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the last dimension in groups.

    Args:
        y: fp32 [..., N], N a multiple of the group.
        group: Values a scale.
        dtype: float8_e4m3fn, whose largest value L is 448, or float8_e4m3fnuz, 240.

    Returns:
        Values of ``dtype`` [..., N], y times the reciprocal of its scale, to nearest even, saturated; and scales, fp32
        [..., N/group]: max(amax, 1e-10) / L. A group with a NaN or an Inf has a NaN as its scale and zeros.
    """
    largest = torch.finfo(dtype).max
    groups = y.unflatten(-1, (-1, group))
    amax, finite = _magnitude(groups)
    # On a GPU PyTorch divides by a Python number as it multiplies with the rounded reciprocal; by a tensor it divides.
    scale = torch.where(finite, amax, 0.0).clamp_min(LEAST_AMAX) / torch.full_like(amax, largest)
    scaled = (groups * (1.0 / scale).unsqueeze(-1)).clamp(-largest, largest)
    codes = torch.where(finite.unsqueeze(-1), scaled, 0.0).to(dtype)
    return codes.flatten(-2), torch.where(finite, scale, float("nan"))


def quantize_mxfp8(y: torch.Tensor, zero_blocks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the last dimension in blocks of 32 to MXFP8 (OCP MX v1.0), with the "even" rounding of MXFP4's scales.

    Args:
        y: fp32 [..., N], N a multiple of 32.
        zero_blocks: As of `tunegen.runtime.reference.mxfp4.quantize_mxfp4`.

    Returns:
        float8_e4m3fn [..., N], and E8M0 scales, uint8 [..., N/32]: max(((bits(amax) + 0x200000) >> 23) - 8, 0), so
        that the largest magnitude is below 448. A block with a NaN or an Inf has scale 0xFF and zeros.
    """
    blocks = y.unflatten(-1, (-1, BLOCK))
    amax, finite = _magnitude(blocks)
    known = torch.where(finite, amax, 0.0)
    e8 = (((known.view(torch.int32) + 0x200000) >> 23) - 8).clamp_min(0)
    keep = finite & (known >= ZERO_BLOCK_BELOW) if zero_blocks else finite
    scaled = blocks * power_of_two(127 - e8).unsqueeze(-1)
    codes = torch.where(keep.unsqueeze(-1), scaled, 0.0).to(torch.float8_e4m3fn)
    scales = torch.where(keep, e8, torch.where(finite, 0, E8M0_NAN))
    return codes.flatten(-2), scales.to(torch.uint8)
