"""A reporter that remembers and says nothing."""

from __future__ import annotations

from tunegen.configs import TunedEntry
from tunegen.ops import Problem
from tunegen.search.record import Outcome
from tunegen.search.tune import Reporter


class Quiet(Reporter):
    """What it heard, in attributes."""

    def __init__(self) -> None:
        self.known = 0
        self.evaluations: list[Outcome] = []
        self.rejections: list[str] = []
        self.idle: dict[str, int] = {}

    @property
    def failures(self) -> list[str]:
        """Reasons of the configs that failed."""
        return [outcome.failure for outcome in self.evaluations if outcome.failure]

    def started(self, problem: Problem, known: int, trials: int) -> None:
        self.known = known

    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        self.evaluations.append(outcome)

    def rejected(self, problem: Problem, outcome: Outcome) -> None:
        self.rejections.append(outcome.failure)

    def decided(self, entry: TunedEntry, idle: dict[str, int]) -> None:
        self.idle = idle
