"""Tuned entries made up for tests: default configs, a few buckets."""

from __future__ import annotations

from pathlib import Path

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedBucket, TunedEntry
from tunegen.ops import Config, Problem, get_family
from tunegen.ops.mla_rope import MLA_ROPE
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4
from tunegen.runtime.device import DeviceKey
from tunegen.runtime.families.recipe import RECIPES
from tunegen.targets import Target, get_target

HIDDEN_SIZES = (512, 96)
SECOND_SIZE = 160
# Token counts tuned at, and the last that each serves.
BUCKETS = ((1, 2), (8, 16), (64, None))
ROPE_SIZES = {"num_heads": 4, "kv_lora_rank": 64, "rope_dim": 16}
# What the buckets of an mla_rope entry have in place of the default.
ROPE_CHANGES: tuple[Config, ...] = ({}, {"split": "together"}, {"store_policy": "streaming"})


def make_entry(
    op: str, hidden_size: int, target: Target, device: DeviceKey | None = None, evidence: str = "measured"
) -> TunedEntry:
    """An entry whose buckets have different configs, so that they have different kernel files."""
    family, recipe = get_family(op), RECIPES[op]
    shape = {recipe.width_name: hidden_size, **({"second_size": SECOND_SIZE} if recipe.second else {})}
    default = family.default(Problem.of(op, shape), target)
    return TunedEntry(
        op=op,
        target=target.name,
        device=device or target.device,
        shape=shape,
        variant="none",
        dtype="bfloat16",
        evidence=evidence,
        template_hash=template_hash(family.template),
        environment={"device_name": target.device_name},
        trials=3,
        buckets=[
            TunedBucket(tokens, last, {**default, "programs_per_unit": programs}, {"median_us": 1.0 + programs})
            for programs, (tokens, last) in zip((0, 1, 4), BUCKETS, strict=True)
        ],
    )


def make_entries(
    targets: tuple[str, ...] = ("gfx950", "sm90"), device: DeviceKey | None = None, evidence: str = "measured"
) -> list[TunedEntry]:
    """An entry for every op, hidden size and target."""
    return [
        make_entry(op, hidden_size, get_target(target), device, evidence)
        for op in RMSNORM_MXFP4.ops
        for hidden_size in HIDDEN_SIZES
        for target in targets
    ]


def make_rope_entry(
    op: str, variant: str, target: Target, device: DeviceKey | None = None, evidence: str = "measured", buckets: int = 3
) -> TunedEntry:
    """An entry of an mla_rope op, tuned with a variant; the buckets' configs differ, and those of fp8 from others."""
    problem = Problem.of(op, ROPE_SIZES, variant)
    config = {**MLA_ROPE.default(problem, target), "load_policy": "l2" if "fp8" in variant else "default"}
    edges = [*(last for _, last in BUCKETS[: buckets - 1]), None]
    return TunedEntry(
        op=op,
        target=target.name,
        device=device or target.device,
        shape=ROPE_SIZES,
        variant=variant,
        dtype="bfloat16",
        evidence=evidence,
        template_hash=template_hash(MLA_ROPE.template),
        environment={"device_name": target.device_name},
        trials=3,
        buckets=[
            TunedBucket(tokens, last, {**config, **change}, {"median_us": 2.0, "default_us": 2.5, "twin_us": 1.5})
            for (tokens, _), last, change in zip(BUCKETS, edges, ROPE_CHANGES, strict=False)
        ],
    )


def make_rope_entries(
    targets: tuple[str, ...] = ("gfx950", "sm90"), device: DeviceKey | None = None, buckets: int = 3
) -> list[TunedEntry]:
    """An entry for every mla_rope op, tuned variant and target."""
    return [
        make_rope_entry(op, variant, get_target(target), device, buckets=buckets)
        for op in MLA_ROPE.ops
        for variant in MLA_ROPE.tuned_variants(op)
        for target in targets
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """All files under a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
