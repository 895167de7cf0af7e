"""Gated activations in plain PyTorch: f(x[:, :N]) * x[:, N:]."""

from __future__ import annotations

import torch

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
ACTIVATION_ROUNDINGS = ("none", "output", "act_output")


def activate(values: torch.Tensor, activation: str) -> torch.Tensor:
    """silu, gelu by erf, or gelu by tanh."""
    if activation == "silu":
        return torch.nn.functional.silu(values)
    return torch.nn.functional.gelu(values, approximate="tanh" if activation == "gelu_tanh" else "none")


def gated(x: torch.Tensor, activation: str, rounding: str) -> torch.Tensor:
    """What is quantised of x [T, 2N]: fp32 [T, N].

    Rounding ``none`` is fp32 throughout; ``output`` rounds the product to the dtype of x; ``act_output`` the activation
    and then the product, as vLLM's ``_C::silu_and_mul`` does.
    """
    gate, up = x.to(torch.float32).chunk(2, dim=-1)
    value = activate(gate, activation)
    if rounding == "act_output":
        value = value.to(x.dtype).to(torch.float32)
    value = value * up
    return value if rounding == "none" else value.to(x.dtype).to(torch.float32)
