"""What was good elsewhere, to be tried first."""

from __future__ import annotations

import math

from tunegen.configs import TunedEntry
from tunegen.ops import Config, Problem, config_key
from tunegen.runtime.device import DeviceKey


def _distance(one: dict[str, int], other: dict[str, int]) -> float:
    """How far two shapes are apart: the ratios of their sizes, as logarithms."""
    return sum(abs(math.log2(one[name] / other[name])) for name in one) if set(one) == set(other) else math.inf


def warm_start(problem: Problem, entries: list[TunedEntry], device: DeviceKey) -> list[Config]:
    """Winners of the same op, the nearest first: this shape before others, this variant, this GPU, measured ones.

    Args:
        problem: What is to be tuned.
        entries: Tuned entries for GPUs of the same architecture.
        device: The GPU to tune for.
    """
    related = [entry for entry in entries if entry.op == problem.op]

    def rank(entry: TunedEntry) -> tuple[float, bool, bool, bool]:
        return (
            _distance(problem.sizes, entry.shape),
            entry.variant != problem.rounding,
            not entry.device.matches(device),
            entry.evidence != "measured",
        )

    configs: dict[str, Config] = {}
    for entry in sorted(related, key=rank):
        for bucket in entry.buckets:
            configs.setdefault(config_key(bucket.config), bucket.config)
    return list(configs.values())
