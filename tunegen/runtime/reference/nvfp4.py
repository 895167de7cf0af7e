"""NVFP4 quantisation in plain PyTorch: E2M1 elements, one E4M3 scale for 16 of them, one fp32 scale for the tensor."""

from __future__ import annotations

import torch

from .mxfp4 import e2m1_magnitude, pack_codes

NV_BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_NAN = 0x7F


def quantize_nvfp4(y: torch.Tensor, global_scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the last dimension in blocks of 16.

    Args:
        y: fp32 [..., N], N a multiple of 16.
        global_scale: fp32, one element, G: what scales are multiplied by before they are rounded, such as
            448 * 6 / the largest magnitude that activations have. None: 1.

    Returns:
        Codes, uint8 [..., N/2], of y G / scale, saturated at 6, and scales, float8_e4m3fn [..., N/16], of amax / 6 G,
        saturated at 448. The value of a code is code * scale / G. A block with a NaN or an Inf has the scale NaN (0x7F)
        and all codes 0; one whose scale rounds to 0 has all codes 0.
    """
    blocks = y.unflatten(-1, (-1, NV_BLOCK))
    amax = (blocks.view(torch.int32) & 0x7FFFFFFF).amax(dim=-1).view(torch.float32)
    finite = torch.isfinite(amax)
    g = torch.ones((), device=y.device) if global_scale is None else global_scale.reshape(())
    # By a tensor: see quantize_fp8.
    target = (torch.where(finite, amax, 0.0) / torch.full_like(amax, E2M1_MAX) * g).clamp_max(E4M3_MAX)
    scale = target.to(torch.float8_e4m3fn)
    decoded = scale.to(torch.float32)
    keep = finite & (decoded > 0)
    factor = torch.where(keep, g / torch.where(keep, decoded, 1.0), 0.0)
    scaled = (blocks * factor.unsqueeze(-1)).clamp(-E2M1_MAX, E2M1_MAX)
    codes = e2m1_magnitude(scaled.abs()) | (torch.signbit(blocks).to(torch.int32) << 3)
    codes = torch.where(keep.unsqueeze(-1), codes, 0)
    bits = torch.where(finite, scale.view(torch.uint8), E4M3_NAN).to(torch.uint8)
    return pack_codes(codes.flatten(-2)), bits.view(torch.float8_e4m3fn)
