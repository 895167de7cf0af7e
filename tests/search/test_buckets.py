"""Who serves token counts between those that were tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tunegen.configs import TunedBucket
from tunegen.ops import Config, config_key
from tunegen.search.buckets import (
    EDGE_RATIO,
    HELD_OUT,
    LONG_CALL,
    MOST_MARGIN,
    counts_between,
    fill_in,
    held_out_regret,
)

DEFAULT, A, B, C = ({"number": number} for number in range(4))
Times = Callable[[Config, int], float]


def racing(times: Times, log: list[int] | None = None) -> Callable[[int, Sequence[Config]], dict[str, float]]:
    def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
        if log is not None:
            log.append(count)
        return {config_key(config): times(config, count) for config in configs}

    return race


def none(count: int) -> list[Config]:
    """No rivals beside the winners."""
    return []


def buckets(*winners: tuple[int, Config], margin: float = 0.0) -> list[TunedBucket]:
    return [TunedBucket(count, None, config, {"median_us": 1.0, "margin": margin}) for count, config in winners]


def served(found: Sequence[TunedBucket], count: int) -> Config:
    return next(b.config for b in found if b.max_tokens is None or count <= b.max_tokens)


@pytest.mark.parametrize(
    ("low", "high", "us", "counts"),
    [
        (1, 2, 1.0, []),
        (2, 4, 1.0, [3]),
        (8, 16, 1.0, [10, 13]),
        (256, 512, 1.0, [287, 323, 362, 406, 456]),
        (256, 512, LONG_CALL, [323, 406]),
        (1, 8, 1.0, [2, 3, 4, 5, 6]),
        (16384, 16384, 1.0, []),
    ],
)
def test_counts_between(low: int, high: int, us: float, counts: list[int]) -> None:
    assert counts_between(low, high, us) == counts


def test_held_out_counts_are_never_raced_before() -> None:
    between = [count for low in range(1, 9000, 7) for count in counts_between(low, 3 * low, 1.0)]
    assert len(between) > 1000
    assert not set(between) & set(HELD_OUT)


def test_a_step_behind_a_tuned_count_is_found() -> None:
    """A is best up to 256, B from 257 on, though B won at 512 alone."""

    def times(config: Config, count: int) -> float:
        return {"A": 1.0 if count <= 256 else 2.0, "B": 1.5}.get("A" if config == A else "B", 3.0)

    found = fill_in(buckets((256, A), (512, B)), B, none, racing(times))
    edge = found[0].max_tokens
    assert [(b.tokens, b.max_tokens, b.config) for b in found] == [(256, edge, A), (512, None, B)]
    assert edge is not None and 256 <= edge <= 256 * EDGE_RATIO
    # What is known of the tuned counts stays.
    assert all(b.fields == {"median_us": 1.0, "margin": 0.0} for b in found)


def test_a_third_config_gets_a_bucket_of_its_own() -> None:
    def times(config: Config, count: int) -> float:
        if config in (A, B):
            return 2.0 if config == A or count > 400 else 2.5
        return 1.0 if config == C and 300 < count < 400 else 3.0

    found = fill_in(buckets((64, C), (256, A), (512, B)), DEFAULT, none, racing(times))
    assert [b.config for b in found] == [C, A, C, A, B]
    between = found[2]
    assert (between.tokens, between.fields) == (323, {"median_us": 1.0, "default_us": 3.0, "margin": 0.01})
    # A is faster from 65 on, C from 301 to 399.
    edges = [b.max_tokens or 0 for b in found[:-1]]
    assert all(
        last / EDGE_RATIO <= edge <= last * EDGE_RATIO for edge, last in zip(edges, (64, 300, 399), strict=False)
    )
    # Every count has one bucket, and the tuned ones their own winners.
    assert edges == sorted(set(edges))
    assert [served(found, count) for count in (64, 256, 512, 9999)] == [C, A, B, B]


def test_who_won_nowhere_may_serve_between() -> None:
    """What nearly won at a tuned count on one of the sides is raced too, and taken where no winner is as fast."""
    raced: dict[int, list[Config]] = {}

    def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
        raced[count] = list(configs)
        fast = A if count <= 128 else C if count < 200 else DEFAULT if count < 256 else B
        # B is as fast as the default at 203 tokens and above, but for noise.
        return {config_key(c): 1.0 if c == fast else 1.005 if c == B and count > 200 else 2.0 for c in configs}

    found = fill_in(buckets((64, A), (128, A), (256, B)), DEFAULT, lambda count: [C] if count > 128 else [A], race)
    assert [(b.tokens, b.config) for b in found] == [(64, A), (128, A), (144, C), (256, B)]
    assert raced[102] == [A, DEFAULT, B] and raced[203] == [A, B, DEFAULT, C]


def test_noise_makes_no_bucket() -> None:
    """Faster by half a per cent is not enough to leave the neighbour's winner."""

    def times(config: Config, count: int) -> float:
        return 1.0 if config == DEFAULT else 1.005

    found = fill_in(buckets((64, A), (256, B)), DEFAULT, none, racing(times))
    assert [(b.tokens, b.config) for b in found] == [(64, A), (256, B)]
    # Of two that are alike the lower count's winner stays.
    assert found[0].max_tokens == int((251 * 256) ** 0.5)


@pytest.mark.parametrize(("slower", "edges"), [(1.02, (64, 65)), (1.009, (228, 228))])
def test_of_two_neighbours_within_the_noise_the_faster_serves(slower: float, edges: tuple[int, int]) -> None:
    """The higher count's winner is 2 % faster from 65 on, or so little that the lower one's may stay to 228."""
    race = racing(lambda config, _: slower if config == A else 1.0 if config == B else 2.0)
    first, second = fill_in(buckets((64, A), (256, B), margin=0.03), DEFAULT, none, race)
    assert (first.config, second.config) == (A, B)
    assert first.max_tokens is not None and edges[0] <= first.max_tokens <= edges[1]


def test_who_serves_is_within_the_noise_of_the_fastest_of_all() -> None:
    """The lower count's winner is near the higher one's, and that near the default, but the first not near the last."""
    race = racing(lambda config, _: {1: 1.016, 2: 1.008}.get(config.get("number", 0), 1.0))
    first, second = fill_in(buckets((64, A), (256, B)), DEFAULT, none, race)
    assert (first.config, second.config) == (A, B)
    assert first.max_tokens is not None and first.max_tokens <= 65


@pytest.mark.parametrize(("margin", "kept"), [(0.019, False), (0.021, True)])
def test_the_noise_of_the_finals_makes_no_bucket(margin: float, kept: bool) -> None:
    """Faster by two per cent, where a final could tell so much or not."""
    made = buckets((64, A), (256, B), margin=margin)
    made[1].fields["margin"] = 0.03
    found = fill_in(made, DEFAULT, none, racing(lambda config, count: 1.0 if config == DEFAULT else 1.02))
    assert ([b.config for b in found] == [A, B]) == kept
    assert all(b.fields["margin"] == margin for b in found if b.config == DEFAULT)


def test_noisy_finals_hide_no_more_than_so_much() -> None:
    made = buckets((64, A), (256, B), margin=0.2)
    found = fill_in(made, DEFAULT, none, racing(lambda config, count: 1.0 if config == DEFAULT else 1.04))
    assert [b.config for b in found] == [A, DEFAULT, B]
    assert found[1].fields["margin"] == MOST_MARGIN


@pytest.mark.parametrize("step", [97, 99, 100, 101, 103, 299, 300, 301, 697, 700, 703])
def test_an_edge_is_sought_where_nothing_is_held_out(step: int) -> None:
    """Two configs alone are timed on the way, from the counts between tuned ones to the step."""
    log: list[tuple[int, int]] = []

    def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
        log.append((count, len(configs)))
        best = A if count < step else B
        return {config_key(config): 1.0 if config == best else 1.5 for config in configs}

    found = fill_in(buckets((64, A), (1024, B)), DEFAULT, none, race)
    edge = found[0].max_tokens
    assert edge is not None and (step - 1) / EDGE_RATIO <= edge <= (step - 1) * EDGE_RATIO
    assert not {count for count, _ in log} & set(HELD_OUT)
    assert {configs for count, configs in log if count not in counts_between(64, 1024, 1.0)} == {2}


def test_one_count_needs_no_race() -> None:
    log: list[int] = []
    assert fill_in(buckets((64, A)), DEFAULT, none, racing(lambda *_: 1.0, log)) == buckets((64, A))
    assert log == []


def test_regret_is_that_of_the_config_that_serves() -> None:
    log: list[int] = []

    def times(config: Config, count: int) -> float:
        return 1.0 if config == C and count == 300 else 1.25

    made = fill_in(buckets((16, A), (256, A), (512, B)), DEFAULT, none, racing(lambda *_: 1.0))
    regrets = held_out_regret(made, lambda count: [C], racing(times, log))
    assert regrets == {"24": 0.0, "100": 0.0, "300": 0.25}
    assert log == [24, 100, 300, 300]


def test_a_serving_config_that_breaks_has_no_regret() -> None:
    made = buckets((16, A), (64, B))
    assert held_out_regret(made, lambda count: [C], lambda count, configs: {}) == {}
    assert held_out_regret(made, lambda count: [C], lambda count, configs: {config_key(C): 1.0}) == {}


def test_luck_is_no_regret() -> None:
    """The fastest of a race is timed once more beside the config that serves, and that is what counts."""
    raced: list[list[Config]] = []

    def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
        raced.append(list(configs))
        lucky = len(configs) > 2
        return {
            config_key(config): 0.8 if config == C and lucky else 1.01 if config == C else 1.0 for config in configs
        }

    made = buckets((16, A), (64, B))
    made[0] = TunedBucket(16, 32, A, made[0].fields)
    assert held_out_regret(made, lambda count: [C], race) == {"24": 0.0}
    assert raced == [[A, B, C], [A, C]]


def test_a_config_that_broke_serves_no_count() -> None:
    def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
        return {config_key(config): 2.0 for config in configs if config != A}

    found = fill_in(buckets((64, A), (128, B)), DEFAULT, none, race)
    assert served(found, 80) == B
