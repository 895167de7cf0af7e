"""A small pack: every op of one family at one size, with the default config."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedBucket, TunedEntry
from tunegen.oppack import emit_pack
from tunegen.ops import Problem, get_family
from tunegen.targets import get_target

OPS = ("dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant")


def emit_for_tests(out: Path, name: str, hidden_size: int = 96, **knobs: int) -> Path:
    """Writes the pack, with some knobs set; returns the folder to import it from."""
    target = get_target("sm90")
    entries = []
    for op in OPS:
        family = get_family(op)
        shape = {"hidden_size": hidden_size}
        config = {**family.default(Problem.of(op, shape), target), **knobs}
        entries.append(
            TunedEntry(
                op=op,
                target=target.name,
                device=target.device,
                shape=shape,
                variant="none",
                dtype="bfloat16",
                evidence="predicted",
                template_hash=template_hash(family.template),
                environment={},
                trials=1,
                buckets=[TunedBucket(1, None, config, {})],
            )
        )
    return emit_pack(entries, out, name=name).path


def ask_for_h100(name: str, patch: pytest.MonkeyPatch) -> None:
    """Has a pack's passes be answered what it has for an H100, though the graphs are on the CPU."""
    support = importlib.import_module(f"{name}.runtime.fusion.support").Support
    key = importlib.import_module(f"{name}.runtime.device").DeviceKey("sm90", 132, 79)

    def check(self: Any, op: str, variant: str, device: torch.device, **shape: int) -> None:
        assert device.type == "cpu"
        if not self._allow_reference:
            self.check_key(op, variant, key, **shape)

    patch.setattr(support, "check", check)
