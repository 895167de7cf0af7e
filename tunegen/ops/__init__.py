"""The kernel families: what they compute, what can be tuned, and what they must move."""

from __future__ import annotations

from tunegen.errors import UnknownNameError
from tunegen.ops._family import Argument, Config, Family, Knob, Problem, config_key
from tunegen.ops.mla_rope import MLA_ROPE
from tunegen.ops.rmsnorm_mxfp4 import ROWS_FAMILIES

FAMILIES: tuple[Family, ...] = (*ROWS_FAMILIES, MLA_ROPE)
OP_NAMES: tuple[str, ...] = tuple(op for family in FAMILIES for op in family.ops)
# What a model's problems are of unless ops are named: those that its layers call, in the form that they mostly do.
PRESET_OPS: tuple[str, ...] = tuple(op for family in FAMILIES for op in family.preset)


def get_family(op: str) -> Family:
    """The family of an op; raises UnknownNameError."""
    for family in FAMILIES:
        if op in family.ops:
            return family
    raise UnknownNameError("op", op, OP_NAMES)


__all__ = [
    "FAMILIES",
    "OP_NAMES",
    "PRESET_OPS",
    "Argument",
    "Config",
    "Family",
    "Knob",
    "Problem",
    "config_key",
    "get_family",
]
