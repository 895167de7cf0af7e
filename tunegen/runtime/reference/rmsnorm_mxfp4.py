"""(Residual add +) RMSNorm + MXFP4 quantisation in plain PyTorch."""

from __future__ import annotations

import torch

from .mxfp4 import quantize_mxfp4

ROUNDINGS = ("none", "output", "sum_output", "norm_output", "sum_norm_output")


def rounds_sum(rounding: str) -> bool:
    """True if x + residual is rounded to the activation dtype before it is normalised."""
    return rounding in ("sum_output", "sum_norm_output")


def rounds_norm(rounding: str) -> bool:
    """True if the norm is rounded to the activation dtype before the weight is applied."""
    return rounding in ("norm_output", "sum_norm_output")


def dynamic_mxfp4_quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x[T, N] -> (q uint8 [T, N/2], scales uint8 [T, N/32])."""
    return quantize_mxfp4(x.to(torch.float32), zero_blocks=False)


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rounding: str, act: torch.dtype) -> torch.Tensor:
    """RMSNorm of fp32 [T, N], as fp32: with rounding ``none`` still to be rounded."""
    sum_of_squares = (x * x).sum(dim=-1, keepdim=True)
    factor = torch.rsqrt(sum_of_squares / x.shape[-1] + epsilon)
    factor = torch.where(torch.isfinite(sum_of_squares), factor, float("nan"))
    w = weight.to(torch.float32)
    if rounding == "none":
        return (x * w) * factor
    y = x * factor
    if rounds_norm(rounding):
        y = y.to(act).to(torch.float32)
    return (y * w).to(act).to(torch.float32)


def rmsnorm_mxfp4_quant(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, rounding: str = "none"
) -> tuple[torch.Tensor, torch.Tensor]:
    """x[T, N] -> (q uint8 [T, N/2], scales uint8 [T, N/32]) of RMSNorm(x) * weight."""
    return quantize_mxfp4(norm(x.to(torch.float32), weight, epsilon, rounding, x.dtype), zero_blocks=True)


def rmsnorm_add_mxfp4_quant(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, rounding: str = "none"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of x + residual; also returns the sum rounded to the activation dtype, [T, N]."""
    total = x.to(torch.float32) + residual.to(torch.float32)
    residual_out = total.to(x.dtype)
    if rounds_sum(rounding):
        total = residual_out.to(torch.float32)
    q, scales = quantize_mxfp4(norm(total, weight, epsilon, rounding, x.dtype), zero_blocks=True)
    return q, scales, residual_out
