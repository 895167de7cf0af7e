"""Every sampler, asked through the proposer."""

from __future__ import annotations

import pytest
from made_up import PROBLEM, TARGET, TOKENS, formula, recording

from tunegen.ops import config_key
from tunegen.search.proposals import DEFAULT_SAMPLER, SAMPLERS, Proposer, objectives, token_groups

# These need scipy or cmaes, which only benchmarks/compare_samplers.py asks for.
EXTRA = {"gp", "gp-ordinal", "cmaes", "qmc"}


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - EXTRA))
def test_proposals_are_of_the_space_and_unseen(sampler: str) -> None:
    space = recording(noise=0.0, size=40).configs
    groups = len(token_groups(TOKENS, sampler))
    proposer = Proposer(PROBLEM, TARGET, groups, 0, sampler, space)
    default = {count: formula(space[0], count) for count in TOKENS}
    proposer.reserve(space[0])
    proposer.reserve(space[1])
    proposer.record(space[0], [1.0] * groups)
    proposer.record(space[5], None)  # neither proposed nor reserved
    seen = {config_key(space[i]) for i in (0, 1, 5)}
    for number in range(20):
        config = proposer.propose()
        assert config in space
        assert config_key(config) not in seen
        seen.add(config_key(config))
        times = {count: formula(config, count) for count in TOKENS}
        proposer.record(config, None if number % 9 == 0 else objectives(times, default, sampler))
    while not proposer.exhausted:
        seen.add(config_key(proposer.propose()))
    assert seen == {config_key(config) for config in space}


def test_a_sampler_that_judges_each_count_is_the_default() -> None:
    assert token_groups([4096, 1, 64]) == [[1], [64], [4096]]
    assert SAMPLERS[DEFAULT_SAMPLER].judged == "each"
    assert objectives({1: 2.0, 4: 8.0}, {1: 1.0, 4: 16.0}) == pytest.approx([2.0, 0.5])


def test_groups() -> None:
    assert token_groups([4096, 1, 64, 65, 1024], "tpe") == [[1, 64], [65, 1024], [4096]]
    assert token_groups([2], "tpe") == [[2]]
    assert token_groups([4, 2], "random") == [[2, 4]]
    assert objectives({1: 2.0, 4: 8.0, 2048: 3.0}, {1: 1.0, 4: 1.0, 2048: 6.0}, "tpe") == pytest.approx([4.0, 0.5])


def test_a_config_outside_the_choices_is_taken_in_silence() -> None:
    """A winner of another version may have a value that the search no longer offers: known, and no more than that."""
    proposer = Proposer(PROBLEM, TARGET, 1, 0, "random")
    odd = {**recording(noise=0.0, size=5).default, "cover": "16x32"}
    proposer.reserve(odd)
    proposer.record(odd, [0.9])
    assert config_key(proposer.propose()) != config_key(odd)
