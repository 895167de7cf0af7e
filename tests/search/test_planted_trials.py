"""The parent's half of measuring: worker processes that time by a formula, and break as kernels on a GPU do."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import planted_tasks as tasks
import pytest
from quiet import Quiet

from tunegen.codegen.render import Rendered
from tunegen.configs import TunedEntry
from tunegen.errors import CompileError, UsageError
from tunegen.evaluate.isolated import IsolatedPool, TaskFailedError
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.search.buckets import counts_between
from tunegen.search.evaluators import MeasuredEvaluator
from tunegen.search.evaluators._compilation import Compilation
from tunegen.search.record import read_studies
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, tune
from tunegen.targets import Device, get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TARGET = get_target("sm90")
TOKENS = [1, 256]
GPU = Device(0, "a formula", DeviceKey("sm90", 132, 79), TARGET)
LOOK_FAULTS = {
    "hangs": "ran longer than the limit of 5 s",
    "exits": "its process exited with status 5",
    "faults": "AcceleratorError: CUDA error: an illegal memory access was encountered",
    "wrong": "computes wrong results: q: 3 bytes not written",
    "exhausts memory": "took more than 1.0 GiB of memory",
    "does not compile": "does not compile: planted",
}


class Planted(MeasuredEvaluator):
    """Compiles nothing; the workers' tasks are those of planted_tasks.py."""

    run_seconds = (5.0, 5.0)
    memory = 1 << 30
    start, look, probe, contest, race, forget = map(
        staticmethod, (tasks.start, tasks.look, tasks.probe, tasks.contest, tasks.race, tasks.forget)
    )

    def __init__(self, look_faults: tuple[str, ...] = (), final_fault: str = "", gpus: int = 1) -> None:
        super().__init__([replace(GPU, index=index) for index in range(gpus)], TOKENS, workers=1)
        self.folder.mkdir(exist_ok=True)
        self.waiting, self.planted = list(look_faults), dict[str, str]()
        self.final_fault, self.log = final_fault, ""
        self.used: set[int] = set()

    def _gpu(self, problem: Problem) -> IsolatedPool:
        pool = super()._gpu(problem)
        self.used.add(self._gpus.index(pool))
        return pool

    def close(self) -> None:
        log = self.folder / tasks.LOG
        self.log = log.read_text() if log.exists() else self.log
        super().close()

    def compile(self, rendered: Rendered) -> Future[Compilation]:
        """The faults go to the first configs after the default one."""
        name = rendered.write(self.folder).name
        default = get_family(PROBLEM.op).default(PROBLEM, TARGET)
        if rendered.config != default and name not in self.planted and self.waiting:
            self.planted[name] = self.waiting.pop(0)
            (self.folder / "faults_look.txt").write_text(repr(self.planted))
        future: Future[Compilation] = Future()
        if self.planted.get(name) == "does not compile":
            future.set_exception(TaskFailedError("planted"))
        else:
            # As if the cache policies were no part of the machine code.
            code = {key: value for key, value in rendered.config.items() if key not in POLICIES}
            future.set_result(Compilation(RESOURCES, hashlib.sha256(config_key(code).encode()).hexdigest(), {}))
        return future


POLICIES = ("load_policy", "store_policy")
RESOURCES = {"registers": 32}


def run(evaluator: MeasuredEvaluator, url: str, trials: int, problems: int = 1) -> tuple[list[TunedEntry], Quiet]:
    reporter = Quiet()
    every = [PROBLEM, Problem.of("dynamic_mxfp4_quant", {"hidden_size": 512})][:problems]
    with evaluator:
        entries = list(tune(every, evaluator, Plan(tuple(TOKENS), trials, 0), open_storage(url), [], reporter))
    return entries, reporter


def best(url: str, tokens: int) -> float:
    (study,) = read_studies(open_storage(url))
    return min(outcome.times[tokens] for outcome in study.outcomes if not outcome.failure)


def test_trials_that_break_the_worker_cost_themselves_alone(
    tmp_path: Path, show_failures: Callable[[str], str]
) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    evaluator = Planted(tuple(LOOK_FAULTS))
    (entry,), _ = run(evaluator, url, 24)
    (study,) = read_studies(open_storage(url))
    reasons = sorted(outcome.failure for outcome in study.outcomes if outcome.failure)
    assert reasons == sorted(LOOK_FAULTS.values())
    assert entry.trials == 24 - len(LOOK_FAULTS)
    assert [bucket.fields["median_us"] for bucket in entry.buckets] == [best(url, 1), best(url, 256)]
    assert [bucket.fields["twin_us"] for bucket in entry.buckets] == [2.0, 2.0]
    assert [bucket.fields["empty_us"] for bucket in entry.buckets] == [1.0, 1.0]
    shown = show_failures(url)
    assert all(reason in shown for reason in reasons)


def test_the_same_machine_code_is_measured_once_and_an_idle_knob_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    evaluator = Planted()
    _, reporter = run(evaluator, url, 60)
    (study,) = read_studies(open_storage(url))
    fingerprints = [outcome.details["fingerprint"] for outcome in study.outcomes]
    looks = [line for line in evaluator.log.splitlines() if line.startswith("look")]
    assert len(looks) == len(set(fingerprints)) < len(fingerprints)
    assert set(reporter.idle) <= set(POLICIES)
    assert reporter.idle


class LateFault(Planted):
    """The best kernel of all faults only when it is timed in the final, or beside other winners."""

    late = "final"
    culprit: Config | None = None

    def choose(self, problem, outcomes, edges):
        if self.culprit:  # chosen anew, without it
            return super().choose(problem, outcomes, edges)
        winner = min(outcomes, key=lambda outcome: (outcome.times[256], config_key(outcome.config)))
        self.culprit = min(
            (o for o in outcomes if o.details["fingerprint"] == winner.details["fingerprint"]),
            key=lambda o: get_family(problem.op).complexity(problem, TARGET, o.config),
        ).config
        name = self.render(problem, self.culprit).write(self.folder).name
        (self.folder / f"faults_{self.late}.txt").write_text(repr({name: self.final_fault}))
        return super().choose(problem, outcomes, edges)


@pytest.mark.parametrize("fault", ["exits", "hangs"])
def test_a_finalist_that_breaks_the_worker_is_found_and_left_out(tmp_path: Path, fault: str) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    evaluator = LateFault(final_fault=fault)
    (entry,), reporter = run(evaluator, url, 16)
    assert reporter.rejections == [LOOK_FAULTS[fault]]
    assert entry.trials == 15
    assert evaluator.culprit not in [bucket.config for bucket in entry.buckets]
    assert entry.buckets[1].fields["median_us"] == best(url, 256)
    # The rejection is remembered: a second run does not fall for it again.
    again = Planted()
    (second,), reporter = run(again, url, 16)
    assert (second, reporter.rejections, again.log) == (entry, [], "")


class BetweenFault(LateFault):
    late = "race"


def test_a_winner_that_breaks_between_tuned_counts_is_none(tmp_path: Path) -> None:
    evaluator = BetweenFault(final_fault="exits")
    (entry,), reporter = run(evaluator, f"sqlite:///{tmp_path}/s.sqlite3", 16)
    assert reporter.rejections == [LOOK_FAULTS["exits"]]
    assert evaluator.culprit not in [bucket.config for bucket in entry.buckets]
    assert entry.trials == 15


def test_counts_between_and_held_out_ones_are_timed_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    evaluator = Planted()
    (entry,), _ = run(evaluator, url, 24)
    # By the formula warps are bad up to 64 tokens and good above: the edge between the winners lies there.
    assert [bucket.tokens for bucket in entry.buckets] == [1, 256]
    assert entry.buckets[0].max_tokens == 64
    assert entry.held_out_regret == {"24": 0.0, "100": 0.0}
    races = [line for line in evaluator.log.splitlines() if line.startswith("race")]
    assert len(races) > len(counts_between(1, 256, 1.0))
    # Not only winners and the default are raced at counts between: that is more often than at the two held out.
    often = [kernel for kernel, times in Counter(races).items() if times > 2 * len(entry.held_out_regret)]
    assert len(often) > len({config_key(bucket.config) for bucket in entry.buckets}) + 1
    again = Planted()
    (second,), _ = run(again, url, 24)
    assert (second, again.log) == (entry, "")


def test_a_default_that_breaks_the_worker_ends_the_run(tmp_path: Path) -> None:
    default = get_family(PROBLEM.op).default(PROBLEM, TARGET)
    evaluator = Planted()
    name = evaluator.render(PROBLEM, default).write(evaluator.folder).name
    (evaluator.folder / "faults_look.txt").write_text(repr({name: "exits"}))
    with pytest.raises(CompileError, match=r"default config .* is unusable: its process exited with status 5"):
        run(evaluator, f"sqlite:///{tmp_path}/s.sqlite3", 16)


def test_problems_go_to_the_gpus_in_turn(tmp_path: Path) -> None:
    evaluator = Planted(gpus=2)
    entries, _ = run(evaluator, f"sqlite:///{tmp_path}/s.sqlite3", 8, problems=2)
    assert len(entries) == 2
    assert evaluator.used == {0, 1}


def test_gpus_must_be_alike() -> None:
    other = Device(1, "another", DeviceKey("sm90", 114, 79), TARGET)
    with pytest.raises(UsageError, match="The GPUs of --devices must be alike"):
        MeasuredEvaluator([GPU, other], TOKENS)
