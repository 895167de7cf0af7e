"""Searches on what was recorded on an H100: a change of the search is judged here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunegen.search.proposals import DEFAULT_SAMPLER
from tunegen.search.replay import Recorded, budget, load, search

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "h100_space.json.xz"
SEEDS = 4


@pytest.fixture(scope="module")
def recorded() -> list[Recorded]:
    return load(DATA)


def regrets(recorded: list[Recorded], sampler: str) -> np.ndarray:
    """Of the winners, [problem, seed, token count]."""
    budgets = [budget(len(one.configs)) for one in recorded]
    return np.array(
        [
            [search(one, sampler, most, seed, under_way=6)[most] for seed in range(SEEDS)]
            for one, most in zip(recorded, budgets, strict=True)
        ]
    )


def test_six_problems_with_noise(recorded: list[Recorded]) -> None:
    assert len(recorded) == len({one.problem for one in recorded}) == 6
    for one in recorded:
        assert len(one.configs) >= 300
        visits = (~np.isnan(one.looks[:, 0, :, 0])).sum(axis=1)
        assert set(visits) == {1, 2}
        assert (visits == 2).mean() > 0.5
        assert set(one.recordings) == {0}
        assert len(one.deviations) == (visits[1:] == 2).sum()
        assert len(one.finals) >= 20
        # Estimates, and medians on their level, of what was timed most often.
        row = one.final_tokens.index(16384)
        medians = {config: np.nanmedian(samples[row]) for config, samples in one.finals.items()}
        assert np.median([abs(median / one.truth[config, -1] - 1) for config, median in medians.items()]) < 0.005
        assert set(one.tokens) < set(one.final_tokens)


def test_the_default_sampler_finds_good_configs(recorded: list[Recorded]) -> None:
    found, drawn = regrets(recorded, DEFAULT_SAMPLER), regrets(recorded, "random")
    assert found.mean() < 0.015
    # A run's mean over its token counts.
    assert found.mean(axis=2).max() < 0.04
    assert found.mean() < drawn.mean() / 1.5
    assert (found.mean(axis=(1, 2)) < drawn.mean(axis=(1, 2)) + 0.006).all()
