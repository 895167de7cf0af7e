"""A recording by a formula, for tests of what replays recordings."""

from __future__ import annotations

import math

import numpy as np

from tunegen.ops import Config, Problem, get_family
from tunegen.search.replay import Recorded
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TARGET = get_target("sm90")
TOKENS = (1, 256, 4096)
VISITS, SAMPLES = 2, 4


def formula(config: Config, tokens: int) -> float:
    """Microseconds: what knobs do alone, two that act together, and an optimum that moves with the token count."""
    warps = math.log2(int(config["num_warps"])) - (2 if tokens > 64 else 0)
    rows = math.log2(int(config["rows"])) - (1 if tokens > 64 else 0)
    time = 0.1 * abs(warps) + 0.08 * abs(rows) + 0.05 * abs(warps - rows)
    time += 0.03 * (config["load_policy"] == "evict_first") + 0.02 * len(str(config["cover"]))
    time += 0.1 * math.log2(int(config["splits"])) * (1 if tokens > 64 else -0.2)
    time += 0.04 * bool(config["programs_per_unit"]) + 0.01 * int(config["num_stages"])
    return tokens**0.5 * math.exp(time)


def recording(noise: float, size: int = 300, failing: tuple[int, ...] = ()) -> Recorded:
    """A part of the space of `PROBLEM`, the default config first.

    Args:
        noise: Relative standard deviation of a sample, and of a visit.
        size: Number of configs.
        failing: Configs that have no times, by index.
    """
    generator = np.random.default_rng(5)
    family = get_family(PROBLEM.op)
    default, space = family.default(PROBLEM, TARGET), list(family.space(PROBLEM, TARGET))
    chosen = [space[i] for i in generator.permutation(len(space))[:size]]
    configs = (default, *[config for config in chosen if config != default][: size - 1])
    times = np.array([[formula(config, count) for count in TOKENS] for config in configs])[:, :, None, None]
    shape = (size, len(TOKENS), VISITS, SAMPLES)
    visits = generator.normal(0, noise, (*shape[:-1], 1))
    looks = times * np.exp(visits + generator.normal(0, noise, shape))
    looks[list(failing)] = np.nan
    resources = tuple({"registers": 32 + i % 7, "binary": f"b{i % 5}"} for i in range(size))
    return Recorded(
        problem=PROBLEM,
        target=TARGET,
        tokens=TOKENS,
        knobs=family.knobs(PROBLEM, TARGET),
        configs=configs,
        looks=looks,
        failures=dict.fromkeys(failing, "planted"),
        final_tokens=(1, 24),
        finals={3: looks[3, :2, 0] / 1.05},
        resources=resources,
        truth=np.where(np.isin(np.arange(size), failing)[:, None], np.inf, times[:, :, 0, 0]),
        recordings=(0,) * size,
    )
