"""One tuner beside another, whose moves the test makes."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from quiet import Quiet
from test_tune import PROBLEM, TARGET, TOKENS, Formula, formula, run

from tunegen.codegen.render import template_hash
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.proposals import token_groups, valid_configs
from tunegen.search.record import Heart, Outcome, Record
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, tune

FAMILY = get_family(PROBLEM.op)
DEFAULT = FAMILY.default(PROBLEM, TARGET)
TRIALS = 4


class Another:
    """A second tuner on the study: it claims a config and ends it when told."""

    def __init__(self, url: str, config: Config) -> None:
        storage, evaluator = open_storage(url), Formula()
        circumstances = [evaluator.evidence, template_hash(FAMILY.template), *evaluator.circumstances]
        groups = len(token_groups(TOKENS))
        self.config, self.groups = config, groups
        self.record = Record(storage, Heart(storage), PROBLEM, TARGET, list(TOKENS), circumstances, groups)
        assert self.record.claim([config], TRIALS) == [config]
        self.ended = False

    def finish(self, *_: object) -> None:
        if not self.ended:
            outcome = Outcome(self.config, {tokens: formula(self.config, tokens) for tokens in TOKENS}, "", {})
            self.record.finish(outcome, [1.0] * self.groups)
        self.ended = True

    def give_up(self, *_: object) -> None:
        if not self.ended:
            self.record.release(self.config)
        self.ended = True


@pytest.mark.parametrize(("end", "left"), [("finish", TRIALS - 1), ("give_up", TRIALS)])
def test_what_another_tuner_ends_last_is_known_before_the_winner_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, left: int
) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    another = Another(url, next(config for config in valid_configs(PROBLEM, TARGET) if config != DEFAULT))
    # It ends when there is nothing but to wait for it.
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=getattr(another, end))
    monkeypatch.setattr("tunegen.search.tune.time", clock)
    monkeypatch.setattr("tunegen.search.tune.OTHERS_SECONDS", 0.0)
    evaluator = Formula()
    entry = run(evaluator, url, TRIALS)
    assert another.ended
    assert len(evaluator.evaluated) == left
    assert entry.trials == TRIALS


def test_a_default_that_another_tuner_finishes_meanwhile_is_no_reason_to_decide(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    another = Another(url, DEFAULT)

    class Started(Quiet):
        def started(self, problem: Problem, known: int, trials: int) -> None:
            assert known == 0
            another.finish()

    evaluator = Formula()
    entry = run(evaluator, url, TRIALS, reporter=Started())
    assert len(evaluator.evaluated) == TRIALS - 1
    assert config_key(DEFAULT) not in evaluator.evaluated
    assert entry.trials == TRIALS


def test_a_search_whose_time_is_over_waits_for_nobody(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    Another(url, next(config for config in valid_configs(PROBLEM, TARGET) if config != DEFAULT))
    with Formula() as evaluator:
        plan = Plan(TOKENS, TRIALS, 0, deadline=time.monotonic())
        (entry,) = tune([PROBLEM], evaluator, plan, open_storage(url), [], Quiet())
    assert [bucket.config for bucket in entry.buckets] == [DEFAULT] * 3
