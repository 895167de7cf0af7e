"""Replayed searches, on a recording by a formula and on what was recorded on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up import PROBLEM, SAMPLES, TARGET, TOKENS, formula, recording

from tunegen.errors import TunegenError
from tunegen.ops import config_key, get_family
from tunegen.search.replay import budget, load, save, search


def test_a_saved_recording_is_read_back(tmp_path: Path) -> None:
    made = recording(noise=0.01, size=20, failing=(4,))
    save([made], {"device_name": "a formula"}, tmp_path / "r.json.xz")
    (found,) = load(tmp_path / "r.json.xz")
    for name in ("problem", "target", "tokens", "configs", "failures", "final_tokens", "resources", "recordings"):
        assert getattr(found, name) == getattr(made, name)
    assert [(k.name, k.choices) for k in found.knobs] == [(k.name, k.choices) for k in made.knobs]
    # Whole nanoseconds.
    np.testing.assert_allclose(found.looks, made.looks, atol=0.0005, rtol=0)
    np.testing.assert_allclose(found.truth, made.truth, atol=0.0005, rtol=0)
    assert np.isinf(found.truth[4]).all()
    np.testing.assert_allclose(found.finals[3], made.finals[3], atol=0.0005, rtol=0)
    assert list(found.finals) == [3]


def test_rows_of_different_lengths_are_read_back(tmp_path: Path) -> None:
    """As of a config that two recordings timed again, beside those of one."""
    made = recording(noise=0.01, size=20)
    made.finals[3][0, 2:] = np.nan
    made.finals[3][1] = np.nan
    save([made], {}, tmp_path / "r.json.xz")
    (found,) = load(tmp_path / "r.json.xz")
    np.testing.assert_allclose(found.finals[3], made.finals[3], atol=0.0005, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no compressed file"])
def test_not_a_recording(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.xz").write_bytes(content)
    with pytest.raises(TunegenError, match="must be a recording made with"):
        load(tmp_path / "r.xz")


def test_undisturbed_samples() -> None:
    """The final timing where there is one; elsewhere the looks, less what they took more than the final timing."""
    made = recording(noise=0.02, size=10, failing=(2,))
    assert made.samples(3, 0).tolist() == made.finals[3][0].tolist()
    excess = np.median(made.looks[3, 0]) - np.median(made.finals[3][0])
    assert made.excess.tolist() == [excess, 0.0, 0.0]
    assert excess > 0
    np.testing.assert_allclose(made.samples(5, 0), made.looks[5, 0].ravel() - excess)
    assert made.samples(5, 1).tolist() == made.looks[5, 1].ravel().tolist()


def test_regrets_are_over_the_best_of_the_space() -> None:
    made = recording(noise=0.02, size=10, failing=(2,))
    best = made.truth.argmin(axis=0)
    assert [made.regrets(config)[at] for at, config in enumerate(best)] == [0.0] * len(TOKENS)
    assert made.regrets(5).tolist() == [made.truth[5, at] / made.truth[best[at], at] - 1 for at in range(len(TOKENS))]
    assert np.isinf(made.regrets(2)).all()


def test_a_look_is_of_one_visit() -> None:
    made = recording(noise=0.05, size=6)
    generator = np.random.default_rng(0)
    visits = set()
    for _ in range(60):
        look = made.first_look(4, generator)
        assert look is not None
        for visit in (0, 1):
            samples = made.looks[4, 1, visit]
            possible = [np.median(np.delete(samples, dropped)) for dropped in range(SAMPLES)]
            if any(np.isclose(look[256], p, rtol=1e-12) for p in possible):
                visits.add(visit)
    assert visits == {0, 1}


def test_a_config_visited_once_is_seen_with_the_noise_of_others() -> None:
    """Otherwise what a search sees of it would be the very times that it is judged by."""
    made = recording(noise=0.05, size=6)
    made.looks[4, :, 1] = np.nan
    assert made.visits_of(4) == [0]
    # Those of the default, of configs visited once and of the ones that failed are no pairs.
    middles = np.median(made.looks[[1, 2, 3, 5]], axis=3)
    np.testing.assert_allclose(made.deviations, np.sqrt(middles[:, :, 0] / middles[:, :, 1]))
    generator = np.random.default_rng(0)
    seen = [made.first_look(4, generator) for _ in range(200)]
    plain = np.median(made.looks[4, 1, 0])
    apart = {round(float(np.log(look[256] / plain)), 3) for look in seen if look}
    assert min(apart) < 0 < max(apart)
    largest = np.abs(np.log(made.deviations[:, 1])).max()
    within = [np.abs(np.log(np.median(np.delete(made.looks[4, 1, 0], d)) / plain)) for d in range(SAMPLES)]
    assert largest / 2 < max(map(abs, apart)) <= largest + max(within) + 0.001
    # What was timed again is judged by that, which has noise of its own.
    made.looks[3, :, 1] = np.nan
    looks = [made.first_look(3, generator) for _ in range(50)]
    assert len({look[256] for look in looks if look}) <= SAMPLES


def test_decided_without_noise_is_the_best() -> None:
    made = recording(noise=0.0)
    seen = {i: {t: formula(config, t) for t in TOKENS} for i, config in enumerate(made.configs)}
    winners = made.decided(seen, np.random.default_rng(0))
    # Ties within half a per cent go to the simpler config.
    assert max(made.regrets(winner)[at] for at, winner in enumerate(winners)) < 0.005


def test_only_what_was_seen_is_decided() -> None:
    made = recording(noise=0.01)
    seen = {i: {t: formula(made.configs[i], t) for t in TOKENS} for i in (0, 7, 9)}
    assert set(made.decided(seen, np.random.default_rng(0))) <= {0, 7, 9}


@pytest.mark.parametrize("sampler", ["surrogate", "tpe", "random"])
def test_a_search_evaluates_each_config_once(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recording(noise=0.01, size=60, failing=(5, 6, 7))
    looked: list[int] = []
    original = type(made).first_look

    def first_look(self: object, config: int, generator: np.random.Generator) -> object:
        looked.append(config)
        return original(made, config, generator)

    monkeypatch.setattr(type(made), "first_look", first_look)
    judged = search(made, sampler, 60, seed=0, under_way=6, warm=[made.configs[9], made.default])
    assert looked[:2] == [0, 9]
    assert sorted(looked) == list(range(60))
    # Everything was seen: what is left is noise.
    assert list(judged) == [60]
    assert judged[60].mean() < 0.03


def test_the_same_seed_gives_the_same_search() -> None:
    made = recording(noise=0.02)
    one, two, *others = (
        search(made, "surrogate", 24, seed, under_way=6, judged_at=(4, 8, 24)) for seed in (1, 1, 2, 3)
    )
    regrets = [np.array(list(judged.values())).tolist() for judged in (one, two, *others)]
    assert regrets[0] == regrets[1] not in regrets[2:]


def test_the_default_sampler_beats_random_draws() -> None:
    made = recording(noise=0.01)
    regrets = {
        sampler: np.mean([search(made, sampler, budget(300), seed, under_way=6)[budget(300)] for seed in range(6)])
        for sampler in ("surrogate", "random")
    }
    assert regrets["surrogate"] < 0.015
    assert regrets["surrogate"] < regrets["random"] / 2


def test_budget() -> None:
    assert [budget(300), budget(640), budget(641), budget(2000)] == [32, 32, 33, 100]


def test_the_formula_is_of_the_searched_space() -> None:
    family = get_family(PROBLEM.op)
    made = recording(noise=0.0)
    assert len(made.index) == len({config_key(config) for config in made.configs}) == 300
    assert all(family.valid(PROBLEM, TARGET, config) for config in made.configs)
