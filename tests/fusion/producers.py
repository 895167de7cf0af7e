"""RMSNorms as models write them, each with the rounding that it has: without and with a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

# x, weight, epsilon -> the norm
Spelling = Callable[[Tensor, Tensor, float], Tensor]
# x, residual, weight, epsilon -> the norm, the sum
AddSpelling = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def functional(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return rms_norm(x, (x.shape[-1],), weight, epsilon)


def hugging_face(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    act, y = x.dtype, x.to(torch.float32)
    variance = y.pow(2).mean(-1, keepdim=True)
    return weight * (y * torch.rsqrt(variance + epsilon)).to(act)


def llama(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon)).type_as(x) * weight


def multiplied_squares(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (weight * (epsilon + torch.mean(y * y, dim=-1, keepdim=True)).rsqrt() * y).to(x.dtype)


def divided(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (weight.float() * (y / torch.sqrt(y.square().mean(-1, True) + epsilon))).to(x.dtype)


def summed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    root = 1.0 / torch.sqrt((y**2).sum(-1) / x.shape[-1] + epsilon)
    return (y * root.unsqueeze(-1) * weight.float()).to(x.dtype)


def power(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (torch.pow(y.square().sum(-1, keepdim=True) * (1.0 / x.shape[-1]) + epsilon, -0.5) * x * weight).to(x.dtype)


def cast_twice(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return (y.float() * weight.float()).to(x.dtype)


def never_rounded(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()


def with_views(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return hugging_face(x.view(1, *x.shape), weight.view(1, 1, -1), epsilon).view(x.shape)


def vllm_ir(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    result: Tensor = torch.ops.vllm_ir.rms_norm(x, weight, epsilon)
    return result


def in_place(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    result = torch.empty_like(x)
    torch.ops._C.rms_norm(result, x, weight, epsilon)
    return result


def added(norm: Spelling) -> AddSpelling:
    """The sum in the activation dtype, then a norm."""

    def spelling(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        total = residual + x
        return norm(total, weight, epsilon), total

    return spelling


def added_in_fp32(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()
    y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + epsilon)
    return y.to(x.dtype) * weight, total.to(x.dtype)


def added_and_multiplied_in_fp32(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + residual
    return (total * torch.rsqrt(total.pow(2).mean(-1, True) + epsilon) * weight).to(x.dtype), total.to(x.dtype)


def added_never_rounded(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()
    return total * torch.rsqrt(total.pow(2).mean(-1, True) + epsilon) * weight, total.to(x.dtype)


def vllm_ir_added(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    norm, total = torch.ops.vllm_ir.fused_add_rms_norm(x, residual, weight, epsilon)
    return norm, total


def in_place_added(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    x, residual = x.clone(), residual.clone()
    torch.ops._C.fused_add_rms_norm(x, residual, weight, epsilon)
    return x, residual


@dataclass(frozen=True)
class Producer:
    """One way to write a norm: its function, its rounding and whose the report says it is.

    ``folded`` is the rounding that is left where Inductor has dropped a cast there and back before the pass runs.
    """

    function: Spelling
    rounding: str
    whose: str = "pytorch"
    folded: str = ""


@dataclass(frozen=True)
class AddProducer:
    """One way to write a sum and its norm."""

    function: AddSpelling
    rounding: str
    whose: str = "pytorch"


PRODUCERS = {
    "F.rms_norm": Producer(functional, "output"),
    "Hugging Face": Producer(hugging_face, "norm_output"),
    "Llama": Producer(llama, "norm_output"),
    "x * x": Producer(multiplied_squares, "output"),
    "x / sqrt": Producer(divided, "output"),
    "sum / N": Producer(summed, "output"),
    "pow -0.5": Producer(power, "output"),
    "cast twice": Producer(cast_twice, "norm_output", folded="output"),
    "never rounded": Producer(never_rounded, "none"),
    "views": Producer(with_views, "norm_output"),
    "vllm_ir": Producer(vllm_ir, "norm_output", "vllm_ir"),
    "_C": Producer(in_place, "output", "_C"),
}
ADD_PRODUCERS = {
    "F.rms_norm": AddProducer(added(functional), "sum_output"),
    "Hugging Face": AddProducer(added(hugging_face), "sum_norm_output"),
    "views": AddProducer(added(with_views), "sum_norm_output"),
    "fp32 sum": AddProducer(added_in_fp32, "norm_output"),
    "fp32 sum and weight": AddProducer(added_and_multiplied_in_fp32, "output"),
    "never rounded": AddProducer(added_never_rounded, "none"),
    "vllm_ir": AddProducer(vllm_ir_added, "norm_output", "vllm_ir"),
    "_C": AddProducer(in_place_added, "sum_output", "_C"),
}
