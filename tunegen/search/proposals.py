"""Proposes configs with optuna: only valid ones, none twice."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable

import optuna

from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.targets import Target

# Token counts are judged in groups that want different kernels: decode, mixed batches, prefill.
GROUP_EDGES = (64, 1024)
# How many proposals in a row may be invalid or known before an unseen config is drawn at random instead.
PATIENCE = 8


@functools.cache
def valid_configs(problem: Problem, target: Target) -> tuple[Config, ...]:
    """The whole space of a problem on a target."""
    return tuple(get_family(problem.op).space(problem, target))


def token_groups(tokens: Iterable[int]) -> list[list[int]]:
    """Token counts by group; empty groups are left out."""
    groups: list[list[int]] = [[] for _ in range(len(GROUP_EDGES) + 1)]
    for count in sorted(tokens):
        groups[sum(count > edge for edge in GROUP_EDGES)].append(count)
    return [group for group in groups if group]


def objectives(times: dict[int, float], default: dict[int, float]) -> list[float]:
    """Geometric mean of time over the default's time, for each group of token counts."""
    return [
        math.exp(sum(math.log(times[count] / default[count]) for count in group) / len(group))
        for group in token_groups(times)
    ]


class Proposer:
    """Asks an optuna sampler for configs of one problem.

    The study it holds is in memory: what is kept lies with the caller. A config that was recorded is never
    proposed again; a sampler that repeats itself is told the recorded result.

    Args:
        problem: What is tuned.
        target: For which GPU.
        num_objectives: Number of token groups.
        seed: Of the sampler.
    """

    def __init__(self, problem: Problem, target: Target, num_objectives: int, seed: int) -> None:
        self._family = get_family(problem.op)
        self._problem, self._target = problem, target
        self._knobs = self._family.knobs(problem, target)
        self._random = random.Random(seed)
        self._unseen = {config_key(config): config for config in valid_configs(problem, target)}
        self._waiting: dict[str, optuna.Trial | None] = {}
        self._results: dict[str, list[float] | None] = {}
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=12)
        self._study = optuna.create_study(directions=["minimize"] * num_objectives, sampler=sampler)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            knob.name: optuna.distributions.CategoricalDistribution(knob.choices) for knob in self._knobs
        }

    @property
    def exhausted(self) -> bool:
        """True if every valid config has been proposed or recorded."""
        return not self._unseen

    def propose(self) -> Config:
        """The next config; call `record` with what became of it."""
        for _ in range(PATIENCE):
            trial = self._study.ask()
            config: Config = {}
            for knob in self._knobs:
                choice = trial.suggest_categorical(knob.name, knob.choices)
                assert isinstance(choice, (int, str))  # optuna's type admits more than a knob's choices do
                config[knob.name] = choice
            config = self._family.canonical(config)
            key = config_key(config)
            if key in self._unseen:
                self._waiting[key] = trial
                return self._unseen.pop(key)
            values = self._results.get(key)
            if values is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, values)
        key = self._random.choice(sorted(self._unseen))
        self._waiting[key] = None
        return self._unseen.pop(key)

    def exclude(self, key: str) -> None:
        """Leaves a config, by its `config_key`, out of further proposals."""
        self._unseen.pop(key, None)

    def record(self, config: Config, values: list[float] | None) -> None:
        """Records objectives of a config, or None if it failed; it need not have been proposed."""
        key = config_key(config)
        self._unseen.pop(key, None)
        self._results[key] = values
        trial = self._waiting.pop(key, None)
        if trial is not None:
            if values is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, values)
        elif values is not None and all(config[knob.name] in knob.choices for knob in self._knobs):
            self._study.add_trial(
                optuna.trial.create_trial(values=values, params=dict(config), distributions=self._distributions)
            )
