"""MXFP4 linear layers for models in tests: weights quantised once, rows at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunegen.runtime.reference.rmsnorm_mxfp4 import dynamic_mxfp4_quant


class Mxfp4Linear(nn.Module):
    """A linear layer with MXFP4 weights and rows.

    Args:
        linear: The layer that it stands for.
        apply: (x [T, K], weight [N, K/2], weight_scale [K/32, N]) -> [T, N].
    """

    def __init__(self, linear: nn.Linear, apply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        weight, scale = dynamic_mxfp4_quant(linear.weight.detach())
        self.weight = nn.Buffer(weight)
        self.weight_scale = nn.Buffer(scale.T.contiguous())
        self.apply_weight = apply

    def forward(self, x: Tensor) -> Tensor:
        y = self.apply_weight(x.reshape(-1, x.shape[-1]), self.weight, self.weight_scale)
        return y.view(*x.shape[:-1], -1)


def by_pack(pack: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Quantises with the pack's op, then multiplies."""

    def apply(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        q, scales = pack.dynamic_mxfp4_quant(x)
        gemm = getattr(torch.ops, pack.__name__).mxfp4_gemm.default
        result: Tensor = gemm(q, scales, weight, weight_scale, x.dtype)
        return result

    return apply


def by_vllm(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """vLLM's op, which quantises inside."""
    result: Tensor = torch.ops.vllm.gemm_with_dynamic_quant(x, weight, weight_scale, False, x.dtype)
    return result


def quantise_linears(module: nn.Module, apply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Puts an `Mxfp4Linear` in the place of every linear layer in a module."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Mxfp4Linear(child, apply))
        else:
            quantise_linears(child, apply)
