"""Proposes configs with optuna: only valid ones, none twice."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna

from tunegen.ops import Config, Knob, Problem, config_key, get_family
from tunegen.search.surrogate import SurrogateSampler, ordered_choices
from tunegen.targets import Target

# Samplers that cannot judge every token count alone judge them in groups: decode, mixed batches, prefill.
GROUP_EDGES = (64, 1024)
# How many proposals in a row may be invalid or known before an unseen config is drawn at random instead.
PATIENCE = 8

Space = Sequence[Config]


@dataclass(frozen=True)
class Sampler:
    """A way to search that optuna has or takes.

    Attributes:
        make: Makes it of the knobs, the space and a seed.
        judged: What it lowers: one geometric mean over all token counts, one a group of them, or each time.
        ordinal: Knobs are given to it as numbers, for samplers that need neighbours, not as categories.
    """

    make: Callable[[Sequence[Knob], Space, int], optuna.samplers.BaseSampler]
    judged: Literal["one", "groups", "each"]
    ordinal: bool = False


def _tpe(together: bool) -> Callable[[Sequence[Knob], Space, int], optuna.samplers.BaseSampler]:
    return lambda _knobs, _space, seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=12, multivariate=together, group=together
    )


SAMPLERS: dict[str, Sampler] = {
    "surrogate": Sampler(SurrogateSampler, "each"),
    "tpe": Sampler(_tpe(together=True), "groups"),
    "tpe-one": Sampler(_tpe(together=True), "one"),
    "tpe-ordinal": Sampler(_tpe(together=True), "groups", ordinal=True),
    "tpe-independent": Sampler(_tpe(together=False), "groups"),
    "gp": Sampler(lambda _k, _s, seed: optuna.samplers.GPSampler(seed=seed), "one"),
    "gp-ordinal": Sampler(lambda _k, _s, seed: optuna.samplers.GPSampler(seed=seed), "one", ordinal=True),
    "nsga2": Sampler(lambda _k, _s, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16), "groups"),
    "cmaes": Sampler(
        lambda _k, _s, seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "one",
        ordinal=True,
    ),
    "qmc": Sampler(
        lambda _k, _s, seed: optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_asynchronous_seeding=False),
        "one",
        ordinal=True,
    ),
    "brute-force": Sampler(lambda _k, _s, seed: optuna.samplers.BruteForceSampler(seed=seed), "one"),
    "random": Sampler(lambda _k, _s, seed: optuna.samplers.RandomSampler(seed=seed), "one"),
}
DEFAULT_SAMPLER = "surrogate"


@functools.cache
def valid_configs(problem: Problem, target: Target) -> tuple[Config, ...]:
    """The whole space of a problem on a target."""
    return tuple(get_family(problem.op).space(problem, target))


def token_groups(tokens: Iterable[int], sampler: str = DEFAULT_SAMPLER) -> list[list[int]]:
    """Token counts by what a sampler judges together; empty groups are left out."""
    judged = SAMPLERS[sampler].judged
    ordered = sorted(tokens)
    if judged == "each":
        return [[count] for count in ordered]
    if judged == "one":
        return [ordered]
    groups: list[list[int]] = [[] for _ in range(len(GROUP_EDGES) + 1)]
    for count in ordered:
        groups[sum(count > edge for edge in GROUP_EDGES)].append(count)
    return [group for group in groups if group]


def objectives(times: dict[int, float], default: dict[int, float], sampler: str = DEFAULT_SAMPLER) -> list[float]:
    """Geometric mean of time over the default's time, for each group of token counts."""
    return [
        math.exp(sum(math.log(times[count] / default[count]) for count in group) / len(group))
        for group in token_groups(times, sampler)
    ]


class Proposer:
    """Asks an optuna sampler for configs of one problem.

    The study it holds is in memory: what is kept lies with the caller. A config that was recorded is never
    proposed again; a sampler that repeats itself is told the recorded result.

    Args:
        problem: What is tuned.
        target: For which GPU.
        num_objectives: Number of token groups of the sampler.
        seed: Of the sampler.
        sampler: Name of one of `SAMPLERS`.
        space: The configs to search; default: all valid ones.
        knobs: What they choose from; default: what the family has now.
    """

    def __init__(
        self,
        problem: Problem,
        target: Target,
        num_objectives: int,
        seed: int,
        sampler: str = DEFAULT_SAMPLER,
        space: Space | None = None,
        knobs: tuple[Knob, ...] | None = None,
    ) -> None:
        self._family = get_family(problem.op)
        self._knobs = knobs or self._family.knobs(problem, target)
        self._random = random.Random(seed)
        space = valid_configs(problem, target) if space is None else space
        self._unseen = {config_key(config): config for config in space}
        self._waiting: dict[str, optuna.Trial | None] = {}
        self._results: dict[str, list[float] | None] = {}
        kind = SAMPLERS[sampler]
        self._study = optuna.create_study(
            directions=["minimize"] * num_objectives, sampler=kind.make(self._knobs, space, seed)
        )
        self._orders = {knob.name: ordered_choices(knob) for knob in self._knobs} if kind.ordinal else {}
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            knob.name: optuna.distributions.IntDistribution(0, len(knob.choices) - 1)
            if kind.ordinal
            else optuna.distributions.CategoricalDistribution(knob.choices)
            for knob in self._knobs
        }

    @property
    def exhausted(self) -> bool:
        """True if every valid config has been proposed or recorded."""
        return not self._unseen

    @property
    def spent(self) -> bool:
        """True if the sampler expects next to nothing of going on; one that does not know never says so."""
        sampler = self._study.sampler
        return isinstance(sampler, SurrogateSampler) and sampler.spent

    def _suggest(self) -> tuple[optuna.Trial, Config]:
        trial = self._study.ask(self._distributions)
        orders = self._orders
        given = {name: orders[name][value] if orders else value for name, value in trial.params.items()}
        return trial, self._family.canonical({knob.name: given[knob.name] for knob in self._knobs})

    def _params(self, config: Config) -> dict[str, int | str] | None:
        """What optuna knows a config by; None for one with a value that the search does not have."""
        if any(config[knob.name] not in knob.choices for knob in self._knobs):
            return None
        return {name: self._orders[name].index(value) if self._orders else value for name, value in config.items()}

    def propose(self) -> Config:
        """The next config; call `record` with what became of it."""
        for _ in range(PATIENCE):
            trial, config = self._suggest()
            key = config_key(config)
            if key in self._unseen:
                self._waiting[key] = trial
                return self._unseen.pop(key)
            self._tell(trial, self._results.get(key))
        config = self._unseen[self._random.choice(sorted(self._unseen))]
        self.reserve(config)
        return config

    def reserve(self, config: Config) -> None:
        """Says that a config is under way without having been proposed: it will not be, and `record` follows."""
        key = config_key(config)
        self._unseen.pop(key, None)
        params = self._params(config)
        if key in self._waiting or params is None:
            return
        self._study.enqueue_trial(params)
        self._waiting[key] = self._study.ask(self._distributions)

    def exclude(self, key: str) -> None:
        """Leaves a config, by its `config_key`, out of further proposals."""
        self._unseen.pop(key, None)

    def record(self, config: Config, values: list[float] | None) -> None:
        """Records objectives of a config, or None if it failed; it need not have been proposed."""
        key = config_key(config)
        if key not in self._waiting:
            self.reserve(config)
        self._results[key] = values
        trial = self._waiting.pop(key, None)
        if trial is not None:
            self._tell(trial, values)

    def _tell(self, trial: optuna.Trial, values: list[float] | None) -> None:
        if values is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, values)
