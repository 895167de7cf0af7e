"""The search with an evaluator whose times are a formula: no compiler, no GPU."""

from __future__ import annotations

import random
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from quiet import Quiet

from tunegen.configs import TunedBucket, TunedEntry
from tunegen.errors import CompileError, UsageError
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.search.decide import decide
from tunegen.search.evaluators import Choice, Evaluator
from tunegen.search.proposals import Proposer, valid_configs
from tunegen.search.record import Outcome
from tunegen.search.storage import open_storage
from tunegen.search.tune import UNDER_WAY, Plan, Reporter, tune
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TARGET = get_target("sm90")
TOKENS = (1, 256, 4096)


def formula(config: Config, tokens: int) -> float:
    """A time with one optimum, which differs by token count."""
    warps = 4 if tokens > 64 else 1
    time = 1.0 + abs(int(config["num_warps"]) - warps) / 8 + (0 if config["rows"] == 2 else 0.2)
    return time * tokens**0.5


class Formula(Evaluator):
    evidence = "predicted"

    def __init__(self, failing: str = "") -> None:
        super().__init__(TARGET, DeviceKey("sm90", 132, 79), list(TOKENS), workers=1)
        self.evaluated: list[str] = []
        self.failing = failing

    @property
    def environment(self) -> dict[str, str]:
        return {"device_name": "a formula"}

    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        done: Future[Outcome] = Future()
        done.set_result(self.evaluate(problem, config))
        return done

    def evaluate(self, problem: Problem, config: Config) -> Outcome:
        assert get_family(problem.op).valid(problem, TARGET, config)
        key = config_key(config)
        assert key not in self.evaluated, "a config was evaluated twice"
        self.evaluated.append(key)
        if self.failing and f'"{self.failing}"' in key:
            return Outcome(config, {}, "planted", {})
        return Outcome(config, {tokens: formula(config, tokens) for tokens in TOKENS}, "", {})

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> Choice:
        family = get_family(problem.op)
        default = family.default(problem, TARGET)
        buckets = []
        for tokens, edge in zip(TOKENS, edges, strict=True):
            times = [(outcome.config, outcome.times[tokens]) for outcome in outcomes]
            decision = decide(times, default, 0.01, lambda c: family.complexity(problem, TARGET, c))
            fields = {"predicted_us": decision.time, "default_us": formula(default, tokens)}
            buckets.append(TunedBucket(tokens, edge, decision.config, fields))
        return Choice(buckets, [])


def run(evaluator: Formula, storage: str, trials: int, seed: int = 0, reporter: Reporter | None = None) -> TunedEntry:
    with evaluator:
        plan = Plan(TOKENS, trials, seed)
        (entry,) = tune([PROBLEM], evaluator, plan, open_storage(storage), [], reporter or Quiet())
    return entry


def test_finds_the_optimum_of_every_bucket(tmp_path: Path) -> None:
    evaluator = Formula()
    entry = run(evaluator, f"sqlite:///{tmp_path}/s.sqlite3", 60)
    assert entry.trials == len(evaluator.evaluated) == 60
    assert [bucket.config["rows"] for bucket in entry.buckets] == [2, 2, 2]
    assert [bucket.config["num_warps"] for bucket in entry.buckets] == [1, 4, 4]
    assert entry.evidence == "predicted"
    assert not entry.stale


def test_a_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.sqlite3"
    first = Formula()
    run(first, storage, 40)
    second, reporter = Formula(), Quiet()
    entry = run(second, storage, 60, reporter=reporter)
    assert reporter.known == 40
    assert len(second.evaluated) == 20
    assert not set(first.evaluated) & set(second.evaluated)
    assert entry.trials == 60


def test_the_same_seed_gives_the_same_entry(tmp_path: Path) -> None:
    one = run(Formula(), f"sqlite:///{tmp_path}/a.sqlite3", 48, seed=3)
    two = run(Formula(), f"sqlite:///{tmp_path}/b.sqlite3", 48, seed=3)
    assert one == two


class Shuffled(Formula):
    """Answers one of the configs under way at a time, drawn at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.answered: list[str] = []
        self.waiting: list[tuple[Future[Outcome], Outcome]] = []

    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.waiting.append((future, self.evaluate(problem, config)))
        return future

    def answer(self) -> SimpleNamespace:
        """In the place of waiting for a future."""
        assert len(self.waiting) <= UNDER_WAY
        future, outcome = self.waiting.pop(self.random.randrange(len(self.waiting)))
        self.answered.append(config_key(outcome.config))
        future.set_result(outcome)
        return SimpleNamespace(done={future})


def test_results_in_any_order_give_the_same_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for seed in (1, 2):
        evaluator = Shuffled(seed)

        def waiting(futures: list[Any], *given: Any, evaluator: Shuffled = evaluator) -> Any:
            return evaluator.answer() if evaluator.waiting else wait(futures, *given)

        monkeypatch.setattr("tunegen.search.tune.wait", waiting)
        run(evaluator, f"sqlite:///{tmp_path}/{seed}.sqlite3", 40)
        runs.append(evaluator)
    one, two = runs
    assert len(one.evaluated) == 40
    assert one.answered != one.evaluated != two.answered != one.answered
    assert one.evaluated == two.evaluated


def test_failures_cost_their_trial_alone(tmp_path: Path) -> None:
    reporter = Quiet()
    entry = run(Formula(failing="evict_first"), f"sqlite:///{tmp_path}/s.sqlite3", 60, reporter=reporter)
    assert reporter.failures
    assert entry.trials == 60 - len(reporter.failures)
    assert all(bucket.config["load_policy"] == "default" for bucket in entry.buckets)


def test_an_unusable_default_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"default config of rmsnorm_mxfp4_quant \(hidden_size 512\) is unusable"):
        run(Formula(failing="default"), f"sqlite:///{tmp_path}/s.sqlite3", 8)


def test_a_small_space_is_searched_whole() -> None:
    """More trials than configs: every config is evaluated once, and the search ends."""
    tiny = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 32})
    space = valid_configs(tiny, TARGET)[::7]
    assert len(space) > 30
    proposer = Proposer(tiny, TARGET, 1, seed=0, space=space)
    seen = set()
    while not proposer.exhausted:
        config = proposer.propose()
        assert config_key(config) not in seen
        seen.add(config_key(config))
        proposer.record(config, [1.0])
    assert seen == {config_key(config) for config in space}


def test_proposals_are_valid_and_unseen() -> None:
    family = get_family(PROBLEM.op)
    proposer = Proposer(PROBLEM, TARGET, 2, seed=1)
    default = family.default(PROBLEM, TARGET)
    proposer.record(default, [1.0, 1.0])
    seen = {config_key(default)}
    for number in range(50):
        config = proposer.propose()
        assert family.valid(PROBLEM, TARGET, config)
        assert config_key(config) not in seen
        seen.add(config_key(config))
        proposer.record(config, None if number % 7 == 0 else [1.0 + number, 2.0])


@pytest.mark.parametrize("url", ["", "not a url", "mysql://nobody@nowhere/none"])
def test_bad_storage(url: str) -> None:
    with pytest.raises(UsageError, match="--storage must be a database URL"):
        open_storage(url)
