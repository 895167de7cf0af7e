"""The ops that take and return rows in plain PyTorch: a source of rows, and what becomes of them."""

from __future__ import annotations

import torch

from .activation import gated
from .quantisers import Quantiser
from .rmsnorm_mxfp4 import norm, rounds_sum
from .scale_layout import place


def rows(
    source: str,
    quant: Quantiser | None,
    output: bool,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    epsilon: float = 0.0,
    x2: torch.Tensor | None = None,
    weight2: torch.Tensor | None = None,
    epsilon2: float = 0.0,
    global_scale: torch.Tensor | None = None,
    rounding: str = "none",
    scale_layout: str = "rows",
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """The outputs of an op, in its order: q and scales, residual_out, the rows themselves, the norm of x2.

    Args:
        source: ``"plain"``, ``"norm"`` or an activation.
        quant: The quantiser, if any.
        output: Return the rows in the activation dtype too.
        x, residual, weight, epsilon, x2, weight2, epsilon2, global_scale: As the op is given them.
        rounding, scale_layout, dtype: Likewise; ``dtype`` is not None if the quantiser's codes are the device's e4m3.
    """
    act, total = x.dtype, x.to(torch.float32)
    outputs: list[torch.Tensor] = []
    residual_out = []
    if residual is not None:
        total = total + residual.to(torch.float32)
        residual_out = [total.to(act)]
        if rounds_sum(rounding):
            total = residual_out[0].to(torch.float32)
    if source == "norm":
        assert weight is not None
        total = norm(total, weight, epsilon, rounding, act)
    elif source != "plain":
        total = gated(x, source, rounding)
    if quant is not None:
        q, scales = quant.quantize(total, source == "norm", dtype, global_scale)
        outputs = [q, place(scales, scale_layout)]
    outputs += residual_out
    if output:
        outputs.append(total.to(act))
    if x2 is not None:
        assert weight2 is not None
        outputs.append(norm(x2.to(torch.float32), weight2, epsilon2, rounding, act).to(act))
    return tuple(outputs)
