"""Tunes problems: asks for configs, has them evaluated, and makes tuned entries of the winners."""

from __future__ import annotations

import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedEntry, bucket_edges
from tunegen.errors import CompileError, TunegenError
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.effects import idle_knobs
from tunegen.search.evaluators import Evaluator
from tunegen.search.proposals import Proposer, objectives, token_groups
from tunegen.search.record import Heart, Outcome, Record, Winners
from tunegen.search.warm import warm_start

DEFAULT_TOKENS = tuple(1 << exponent for exponent in range(15))
DTYPE = "bfloat16"
# Configs of a problem under way at a time: they compile while others are timed. More of them keep more compilers busy,
# and are proposed knowing less: docs/search.md has what that costs.
UNDER_WAY = 6
# Problems that are under way at once on each GPU, for the same reason.
PROBLEMS_AHEAD = 4
# An objective that falls by less has not improved.
IMPROVEMENT = 0.002
# How often the storage is asked whether another tuner has finished what it claimed.
OTHERS_SECONDS = 1.0


class Reporter(ABC):
    """Hears how tuning goes."""

    @abstractmethod
    def started(self, problem: Problem, known: int, trials: int) -> None:
        """A problem begins, with ``known`` of ``trials`` configs recorded by an earlier run."""

    @abstractmethod
    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        """A config was evaluated; ``best`` is the lowest objective so far: time over the default's."""

    @abstractmethod
    def rejected(self, problem: Problem, outcome: Outcome) -> None:
        """A config that had been timed turned out to be unusable when it was about to win."""

    @abstractmethod
    def decided(self, entry: TunedEntry, idle: dict[str, int]) -> None:
        """A problem has its winners. ``idle``: knobs that changed nothing, with the pairs that show it."""


@dataclass(frozen=True)
class Plan:
    """How to tune.

    Attributes:
        tokens: Token counts, ascending.
        trials: Distinct valid configs to evaluate a problem, the default among them.
        seed: Of the search.
        patience: Configs without improvement after which a problem is done; None: never.
        deadline: When no new config is begun, by `time.monotonic`; None: never.
    """

    tokens: tuple[int, ...]
    trials: int
    seed: int
    patience: int | None = None
    deadline: float | None = None


class _Search:
    """The search on one problem.

    The proposer hears of results in the order of its proposals, and proposes another config after each: it knows the
    same at each proposal however long the configs took, and so proposes the same.
    """

    def __init__(
        self,
        problem: Problem,
        evaluator: Evaluator,
        plan: Plan,
        storage: optuna.storages.BaseStorage,
        heart: Heart,
        warm: list[Config],
        reporter: Reporter,
    ) -> None:
        family = get_family(problem.op)
        self.problem, self.evaluator, self.plan, self.reporter = problem, evaluator, plan, reporter
        self.default = family.default(problem, evaluator.target)
        groups = len(token_groups(plan.tokens))
        circumstances = [evaluator.evidence, template_hash(family.template), *evaluator.circumstances]
        self.record = Record(storage, heart, problem, evaluator.target, list(plan.tokens), circumstances, groups)
        # The same problem searches alike whatever else is tuned beside it.
        seed = zlib.crc32(f"{plan.seed} {problem}".encode())
        self.proposer = Proposer(problem, evaluator.target, groups, seed)
        self.outcomes: dict[str, Outcome] = {}
        # What the proposer was told, in that order: the objectives of each config.
        self.told: dict[str, list[float] | None] = {}
        # Proposed, claimed here and not told yet, in that order; and what is being evaluated.
        self.under_way: deque[Config] = deque()
        self.pending: dict[Future[tuple[Outcome, bool]], Config] = {}
        self.others: set[str] = set()
        self.resume_at = 0.0
        recorded = self.record.load()
        reporter.started(problem, len(recorded), plan.trials)
        self._learn(recorded)
        names = {knob.name for knob in family.knobs(problem, evaluator.target)}
        usable = [c for c in warm if set(c) == names and family.valid(problem, evaluator.target, c)]
        # A third of the budget for what was good elsewhere.
        self.queue = deque(usable[: max(plan.trials // 3, 1)])

    def _learn(self, outcomes: list[Outcome]) -> None:
        """Takes in what was recorded earlier or by another tuner; what is under way here comes in its turn."""
        mine = [*self.under_way, *self.pending.values()]
        foreign = [outcome for outcome in outcomes if outcome.config not in mine]
        for outcome in foreign:
            if config_key(outcome.config) not in self.outcomes:
                self._keep(outcome)
                self.evaluator.recall(self.problem, outcome)
        self._tell([outcome.config for outcome in foreign])

    def _keep(self, outcome: Outcome) -> None:
        self.outcomes[config_key(outcome.config)] = outcome
        default = self.outcomes.get(config_key(self.default))
        if default is not None and default.failure:
            raise CompileError(f"The default config of {self.problem} is unusable: {default.failure}")
        best = min((v for o in self.outcomes.values() for v in self._values(o) or []), default=float("inf"))
        self.reporter.evaluated(self.problem, outcome, len(self.outcomes), best)

    def _values(self, outcome: Outcome) -> list[float] | None:
        default = self.outcomes.get(config_key(self.default))
        return None if outcome.failure or default is None else objectives(outcome.times, default.times)

    def _tell(self, configs: list[Config]) -> None:
        """Tells the proposer, in the order of the configs: the same order gives the same proposals."""
        for config in configs:
            key = config_key(config)
            if key in self.outcomes and key not in self.told:
                self.told[key] = self._values(self.outcomes[key])
                self.proposer.record(config, self.told[key])

    @property
    def spent(self) -> bool:
        """True if no further config is to be begun."""
        if len(self.outcomes) + len(self.others) >= self.plan.trials:
            return True
        return self.late or (
            self.plan.patience is not None and _since_improvement(list(self.told.values())) >= self.plan.patience
        )

    @property
    def late(self) -> bool:
        """True if the time for new configs is over."""
        return self.plan.deadline is not None and time.monotonic() > self.plan.deadline

    def advance(self) -> bool:
        """Begins what there is room for; False if nothing is waited for any more, of this tuner or of others."""
        default = config_key(self.default)
        if default not in self.outcomes and not self.pending:
            # Whatever it is compared with, the default comes first.
            self._begin_default()
        if default in self.outcomes:
            while self._begin() or self._tell_oldest():
                pass
        if self.pending:
            return True
        waited_for = self.others
        self._learn_from_others()
        self.resume_at = time.monotonic() + OTHERS_SECONDS
        if default not in self.outcomes:
            return True
        # What others had under way at the last look is known now, or given up: there may be room again.
        return bool(self.others or waited_for) and not self.late

    def _begin_default(self) -> None:
        self._learn_from_others()
        key = config_key(self.default)
        if key not in self.outcomes and key not in self.others:
            self._submit(self.record.claim([self.default], self.plan.trials))

    def _learn_from_others(self) -> None:
        recorded, others = self.record.look()
        self._learn(recorded)
        self.others = others - set(self.outcomes)

    def _tell_oldest(self) -> bool:
        """Tells the proposer what became of the oldest config under way; False if that is not known yet."""
        if not self.under_way or config_key(self.under_way[0]) not in self.outcomes:
            return False
        self._tell([self.under_way.popleft()])
        return True

    def _begin(self) -> bool:
        """Proposes and claims as many configs as there is room for; False if none."""
        if len(self.under_way) >= UNDER_WAY or self.spent:
            return False
        self._learn_from_others()
        while not self.spent:
            for key in self.others:
                self.proposer.exclude(key)
            left = self.plan.trials - len(self.outcomes) - len(self.others) - len(self.pending)
            proposed: list[Config] = []
            while len(proposed) < min(UNDER_WAY - len(self.under_way), left):
                if not self.queue and self.proposer.exhausted:
                    break
                config = self.queue.popleft() if self.queue else self.proposer.propose()
                key = config_key(config)
                if key not in self.outcomes and key not in self.others and config not in [*proposed, *self.under_way]:
                    proposed.append(config)
                    self.proposer.reserve(config)
            if not proposed:
                return False
            won = self.record.claim(proposed, self.plan.trials)
            self.under_way.extend(won)
            self._submit(won)
            if won:
                return True
            # Another tuner was first to claim them.
            self._learn_from_others()
        return False

    def _submit(self, configs: list[Config]) -> None:
        for config in configs:
            recorded: Future[tuple[Outcome, bool]] = Future()
            self.pending[recorded] = config
            self.evaluator.submit(self.problem, config).add_done_callback(partial(self._record, recorded))

    def _record(self, recorded: Future[tuple[Outcome, bool]], evaluated: Future[Outcome]) -> None:
        """Records what became of a config, in the thread of the worker that has it: that begins nothing else before."""
        try:
            outcome = evaluated.result()
            values = self._values(outcome)
            if config_key(outcome.config) == config_key(self.default) and not outcome.failure:
                values = [1.0] * len(token_groups(self.plan.tokens))
            recorded.set_result((outcome, self.record.finish(outcome, values)))
        except BaseException as error:  # the main thread's to handle
            recorded.set_exception(error)

    def take(self, recorded: Future[tuple[Outcome, bool]]) -> None:
        """Takes in what became of a config; the proposer hears of it in its turn."""
        config = self.pending.pop(recorded)
        outcome, ours = recorded.result()
        if ours:
            self._keep(outcome)
        elif config in self.under_way:
            self.under_way.remove(config)  # it is another tuner's now
        if config == self.default:
            self._tell([config])

    def decide(self) -> TunedEntry:
        """The winners."""
        evaluator, tokens = self.evaluator, list(self.plan.tokens)
        good = [outcome for outcome in self.outcomes.values() if not outcome.failure]
        winners = self.record.decision(good)
        if winners is None:
            choice = evaluator.choose(self.problem, good, bucket_edges(tokens))
            for failed in choice.failures:
                self.record.condemn(failed)
                self.outcomes[config_key(failed.config)] = failed
                self.reporter.rejected(self.problem, failed)
            good = [outcome for outcome in self.outcomes.values() if not outcome.failure]
            winners = self.record.decide(good, Winners(choice.buckets, choice.held_out_regret))
        entry = TunedEntry(
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
            buckets=winners.buckets,
            held_out_regret=winners.held_out_regret,
        )
        return replace(entry, kernels_hash=entry.rendered_hash())


def _since_improvement(told: list[list[float] | None]) -> int:
    """Configs told since one was clearly better than all before it, in any group of token counts."""
    best: list[float] = []
    since = 0
    for values in told:
        since += 1
        if values is None:
            continue
        if not best or any(value < (1 - IMPROVEMENT) * old for value, old in zip(values, best, strict=True)):
            since = 0
        best = [min(pair) for pair in zip(values, best or values, strict=True)]
    return since


def tune(
    problems: list[Problem],
    evaluator: Evaluator,
    plan: Plan,
    storage: optuna.storages.BaseStorage,
    known: list[TunedEntry],
    reporter: Reporter,
) -> Iterator[TunedEntry]:
    """Tunes every problem; yields the entry of each as soon as it is decided.

    Configs recorded in ``storage`` under the same circumstances are not evaluated again; those that another tuner
    is evaluating are left to it. Whatever ends the run early, what was evaluated stays recorded.

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
    ahead = PROBLEMS_AHEAD * evaluator.lanes
    searches: list[_Search] = []
    deciding: dict[Future[TunedEntry], _Search] = {}
    with Heart(storage) as heart, ThreadPoolExecutor(ahead) as threads:
        try:
            while waiting or searches or deciding:
                while waiting and len(searches) < ahead:
                    problem = waiting.popleft()
                    warm = warm_start(problem, known, evaluator.device)
                    searches.append(_Search(problem, evaluator, plan, storage, heart, warm, reporter))
                for search in list(searches):
                    if time.monotonic() < search.resume_at or search.advance():
                        continue
                    searches.remove(search)
                    deciding[threads.submit(search.decide)] = search
                owners = {future: search for search in searches for future in search.pending}
                idle = any(not search.pending for search in searches)
                if not owners and not deciding:
                    time.sleep(OTHERS_SECONDS)
                    continue
                timeout = OTHERS_SECONDS if idle else None
                every: list[Future[Any]] = [*owners, *deciding]
                done = wait(every, timeout, FIRST_COMPLETED).done
                for future in [future for future in owners if future in done]:
                    owners[future].take(future)
                for decision in [future for future in deciding if future in done]:
                    search = deciding.pop(decision)
                    entry = decision.result()
                    evaluator.finish(search.problem)
                    reporter.decided(entry, idle_knobs(list(search.outcomes.values())))
                    yield entry
        finally:
            # A thread that waits for a worker ends when the workers do.
            evaluator.close()
            for search in searches:
                search.record.release_all()
