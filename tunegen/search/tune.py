"""Tunes problems: asks for configs, has them evaluated, and makes tuned entries of the winners."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import optuna

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedBucket, TunedEntry, bucket_edges
from tunegen.errors import CompileError, TunegenError
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.evaluators import Evaluator
from tunegen.search.proposals import Proposer, objectives, token_groups
from tunegen.search.record import Outcome, Record

DEFAULT_TOKENS = tuple(1 << exponent for exponent in range(15))
DTYPE = "bfloat16"
# Configs proposed at a time: they compile while those of other problems are timed.
BATCH = 16
# Problems that are under way at once, for the same reason.
PROBLEMS_AHEAD = 3


class Reporter(ABC):
    """Hears how tuning goes."""

    @abstractmethod
    def started(self, problem: Problem, known: int, trials: int) -> None:
        """A problem begins, with ``known`` of ``trials`` configs recorded by an earlier run."""

    @abstractmethod
    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        """A config was evaluated; ``best`` is the lowest objective so far: time over the default's."""

    @abstractmethod
    def decided(self, entry: TunedEntry) -> None:
        """A problem has its winners."""


@dataclass(frozen=True)
class Plan:
    """How to tune.

    Attributes:
        tokens: Token counts, ascending.
        trials: Distinct valid configs to evaluate a problem, the default among them.
        seed: Of the search.
    """

    tokens: tuple[int, ...]
    trials: int
    seed: int


class _Search:
    """The search on one problem, a batch at a time."""

    def __init__(
        self,
        problem: Problem,
        evaluator: Evaluator,
        plan: Plan,
        storage: optuna.storages.BaseStorage,
        warm: list[Config],
        reporter: Reporter,
    ) -> None:
        family = get_family(problem.op)
        self.problem, self.evaluator, self.plan, self.reporter = problem, evaluator, plan, reporter
        self.default = family.default(problem, evaluator.target)
        groups = len(token_groups(plan.tokens))
        circumstances = [evaluator.evidence, template_hash(family.template), *evaluator.circumstances]
        self.record = Record(storage, problem, evaluator.target, list(plan.tokens), circumstances, groups)
        # The same problem searches alike whatever else is tuned beside it.
        seed = zlib.crc32(f"{plan.seed} {problem}".encode())
        self.proposer = Proposer(problem, evaluator.target, groups, seed)
        self.outcomes: dict[str, Outcome] = {}
        self.best = float("inf")
        recorded = self.record.load()
        self.queue: deque[Config] = deque()
        reporter.started(problem, len(recorded), plan.trials)
        for outcome in recorded:
            self._take(outcome, keep=False)
        names = {knob.name for knob in family.knobs(problem, evaluator.target)}
        usable = [c for c in warm if set(c) == names and family.valid(problem, evaluator.target, c)]
        for config in [self.default, *usable]:
            if config_key(config) not in self.outcomes and config not in self.queue:
                self.queue.append(config)
        self.asked = len(self.outcomes)

    def _take(self, outcome: Outcome, keep: bool) -> None:
        self.outcomes[config_key(outcome.config)] = outcome
        default = self.outcomes.get(config_key(self.default))
        if default is None or default.failure:
            detail = default.failure if default else "it was not evaluated first"
            raise CompileError(f"The default config of {self.problem} is unusable: {detail}")
        values = None if outcome.failure else objectives(outcome.times, default.times)
        if values:
            self.best = min(self.best, *values)
        self.proposer.record(outcome.config, values)
        if keep:
            self.record.append(outcome, values)
        self.reporter.evaluated(self.problem, outcome, len(self.outcomes), self.best)

    def next_batch(self) -> list[Config]:
        """Configs to evaluate next, already being compiled; empty when the search is over."""
        batch: list[Config] = []
        while len(batch) < BATCH and self.asked < self.plan.trials:
            if self.queue:
                config = self.queue.popleft()
            elif self.proposer.exhausted:
                break
            else:
                config = self.proposer.propose()
            self.evaluator.prepare(self.problem, config)
            batch.append(config)
            self.asked += 1
        return batch

    def evaluate(self, batch: list[Config]) -> None:
        """Evaluates a batch and records it."""
        for config in batch:
            self._take(self.evaluator.evaluate(self.problem, config), keep=True)

    def entry(self) -> TunedEntry:
        """The winners."""
        evaluator = self.evaluator
        tokens = list(self.plan.tokens)
        good = [outcome for outcome in self.outcomes.values() if not outcome.failure]
        buckets: list[TunedBucket] = evaluator.choose(self.problem, good, bucket_edges(tokens))
        return TunedEntry(
            op=self.problem.op,
            target=evaluator.target.name,
            device=evaluator.device,
            shape=self.problem.sizes,
            variant=self.problem.rounding,
            dtype=DTYPE,
            evidence=evaluator.evidence,
            template_hash=template_hash(get_family(self.problem.op).template),
            environment=evaluator.environment,
            trials=len(good),
            buckets=buckets,
        )


def warm_start(problem: Problem, entries: list[TunedEntry]) -> list[Config]:
    """Winners of the same op, those of this shape and variant first, to be tried before any others."""
    configs: dict[str, Config] = {}
    related = [entry for entry in entries if entry.op == problem.op]
    for entry in sorted(related, key=lambda entry: (entry.shape != problem.sizes, entry.variant != problem.rounding)):
        for bucket in entry.buckets:
            configs.setdefault(config_key(bucket.config), bucket.config)
    return list(configs.values())


def tune(
    problems: list[Problem],
    evaluator: Evaluator,
    plan: Plan,
    storage: optuna.storages.BaseStorage,
    known: list[TunedEntry],
    reporter: Reporter,
) -> Iterator[TunedEntry]:
    """Tunes every problem; yields the entry of each as soon as it is decided.

    Configs recorded in ``storage`` under the same circumstances are not evaluated again.

    Args:
        problems: What to tune.
        evaluator: Says what a config takes.
        plan: Token counts and budget.
        storage: Keeps every outcome as it comes.
        known: Tuned entries for the same target whose winners are tried first, stale ones too.
        reporter: Hears of progress.
    """
    if not plan.tokens:
        raise TunegenError("There are no token counts to tune for.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waiting = deque(problems)
    running: deque[tuple[_Search, list[Config]]] = deque()
    while waiting or running:
        while waiting and len(running) < PROBLEMS_AHEAD:
            problem = waiting.popleft()
            search = _Search(problem, evaluator, plan, storage, warm_start(problem, known), reporter)
            running.append((search, search.next_batch()))
        search, batch = running.popleft()
        if batch:
            search.evaluate(batch)
            running.append((search, search.next_batch()))
        else:
            entry = search.entry()
            evaluator.finish(search.problem)
            reporter.decided(entry)
            yield entry
