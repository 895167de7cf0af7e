"""The host side of each kernel family: schema, checks, allocation, launch, fake, reference, inputs."""

from __future__ import annotations

from ._op import Op, OpInputError, Shape
from .mla_rope import MlaRopeCache, MlaRopeCacheInplace
from .rows import ROWS_OPS

OPS: dict[str, Op] = {op.name: op for op in (*ROWS_OPS, MlaRopeCache(), MlaRopeCacheInplace())}

__all__ = ["OPS", "Op", "OpInputError", "Shape"]
