"""What was evaluated, kept in optuna's storage so that a stopped run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from tunegen.errors import UsageError
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.targets import Target


@dataclass(frozen=True)
class Outcome:
    """What became of one config.

    Attributes:
        config: The config.
        times: Microseconds a call by token count; empty if it failed.
        failure: Why it failed; empty if it did not.
        details: What else is known: limiter, resources.
    """

    config: Config
    times: dict[int, float]
    failure: str
    details: dict[str, Any]


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Opens optuna storage; creates the folder of an SQLite file.

    Raises:
        UsageError: Not a URL that optuna or SQLAlchemy understands, or a place that cannot be written.
    """
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy has no common base for a bad URL, a missing driver, a locked file
        raise UsageError(
            f"--storage must be a database URL such as sqlite:///.tunegen/studies.sqlite3; {url!r} cannot be opened:"
            f" {error}"
        ) from error


class Record:
    """The persistent study of one problem.

    Args:
        storage: Where it is kept.
        problem: What is tuned.
        target: For which GPU.
        tokens: Token counts evaluated.
        circumstances: Whatever else a time depends on (device, template, versions, evidence): another value
            is another study.
        num_objectives: Number of token groups.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        problem: Problem,
        target: Target,
        tokens: list[int],
        circumstances: list[str],
        num_objectives: int,
    ) -> None:
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            knob.name: optuna.distributions.CategoricalDistribution(knob.choices)
            for knob in get_family(problem.op).knobs(problem, target)
        }
        name = " | ".join([str(problem), target.name, *circumstances, "tokens " + ",".join(map(str, tokens))])
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * num_objectives, load_if_exists=True
        )

    def load(self) -> list[Outcome]:
        """Everything recorded so far, in order."""
        outcomes: dict[str, Outcome] = {}
        for trial in self._study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            times = {int(tokens): float(value) for tokens, value in attributes["times"].items()}
            outcome = Outcome(attributes["config"], times, attributes["failure"], attributes["details"])
            outcomes.setdefault(config_key(outcome.config), outcome)
        return list(outcomes.values())

    def append(self, outcome: Outcome, values: list[float] | None) -> None:
        """Adds an outcome; ``values`` are its objectives, None if it failed."""
        known = all(
            isinstance(domain, optuna.distributions.CategoricalDistribution) and outcome.config[name] in domain.choices
            for name, domain in self._distributions.items()
        )
        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL if values is None else optuna.trial.TrialState.COMPLETE,
                values=values,
                params=dict(outcome.config) if known else {},
                distributions=self._distributions if known else {},
                user_attrs={
                    "config": outcome.config,
                    "times": {str(tokens): value for tokens, value in outcome.times.items()},
                    "failure": outcome.failure,
                    "details": outcome.details,
                },
            )
        )
