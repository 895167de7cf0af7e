"""The host side of each kernel family: schema, checks, allocation, launch, fake, reference, inputs."""

from __future__ import annotations

from ._op import Op, OpInputError, Shape
from .mla_rope import MlaRopeCache, MlaRopeCacheInplace
from .rmsnorm_mxfp4 import DynamicMxfp4Quant, RmsnormMxfp4Quant

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        DynamicMxfp4Quant(),
        RmsnormMxfp4Quant(residual=False),
        RmsnormMxfp4Quant(residual=True),
        MlaRopeCache(),
        MlaRopeCacheInplace(),
    )
}

__all__ = ["OPS", "Op", "OpInputError", "Shape"]
