"""MXFP4 quantisation in plain PyTorch, bit for bit.

OCP Microscaling Formats (MX) v1.0: E2M1 elements, one E8M0 scale for 32 consecutive elements. The scale's
rounding is the "even" rounding of AMD Quark and AITER.
"""

from __future__ import annotations

import torch

BLOCK = 32
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_NAN = 0xFF
ZERO_BLOCK_BELOW = 2.0**-64


def e8m0_scale(amax: torch.Tensor) -> torch.Tensor:
    """E8M0 exponent of a block whose largest magnitude is ``amax``.

    Args:
        amax: fp32, finite, not negative.

    Returns:
        int32 of the same shape, 0 to 253: ``max(((bits(amax) + 0x200000) >> 23) - 2, 0)``.
    """
    return (((amax.view(torch.int32) + 0x200000) >> 23) - 2).clamp_min(0)


def e2m1_magnitude(magnitude: torch.Tensor) -> torch.Tensor:
    """Nearest-even E2M1 code (0 to 7) of non-negative magnitudes.

    Written as the seven boundaries between neighbours; at a boundary the even code wins, so that they
    alternate between "beyond" and "at or beyond".
    """
    a = magnitude
    code = (a > 0.25).int() + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5.0)
    return code.to(torch.int32)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2**exponent as fp32, exactly, for int32 exponents from -126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Packs int codes [..., N] (0 to 15) to uint8 [..., N/2], the even element in the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)


def unpack_codes(q: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_codes`: uint8 [..., N/2] to int32 [..., N]."""
    pairs = torch.stack((q & 0xF, q >> 4), dim=-1)
    return pairs.flatten(-2).to(torch.int32)


def quantize_mxfp4(y: torch.Tensor, zero_blocks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises the last dimension in blocks of 32.

    Args:
        y: fp32 [..., N], N a multiple of 32.
        zero_blocks: A block with amax < 2**-64 becomes scale 0, codes 0 (the rule of the ops that
            normalise). Without it tiny blocks are exact and an all-zero block keeps its signs.

    Returns:
        Codes, uint8 [..., N/2], and scales, uint8 [..., N/32]. A block with a NaN or an Inf has scale
        0xFF and all codes 0.
    """
    blocks = y.unflatten(-1, (-1, BLOCK))
    amax = (blocks.view(torch.int32) & 0x7FFFFFFF).amax(dim=-1).view(torch.float32)
    finite = torch.isfinite(amax)
    e8 = e8m0_scale(torch.where(finite, amax, 0.0))
    keep = finite & (amax >= ZERO_BLOCK_BELOW) if zero_blocks else finite
    scaled = blocks * power_of_two(127 - e8).unsqueeze(-1)
    codes = e2m1_magnitude(scaled.abs()) | (torch.signbit(blocks).to(torch.int32) << 3)
    codes = torch.where(keep.unsqueeze(-1), codes, 0)
    scales = torch.where(keep, e8, torch.where(finite, 0, E8M0_NAN))
    return pack_codes(codes.flatten(-2)), scales.to(torch.uint8)


def dequantize_mxfp4(q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values of MXFP4 codes and scales: fp32 [..., N]; blocks of scale 0xFF are NaN."""
    codes = unpack_codes(q).unflatten(-1, (-1, BLOCK))
    table = torch.tensor(E2M1_VALUES + tuple(-v for v in E2M1_VALUES), dtype=torch.float32, device=q.device)
    exponent = scales.to(torch.int32)
    # 2**(e - 127) in two factors: e = 0 is a subnormal fp32.
    half = exponent // 2
    scale = power_of_two(half - 63) * power_of_two(exponent - half - 64)
    scale = torch.where(exponent == E8M0_NAN, float("nan"), scale)
    return (table[codes.long()] * scale.unsqueeze(-1)).flatten(-2)
