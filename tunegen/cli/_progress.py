"""How `tunegen tune` shows where it is: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time as clock
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tunegen.configs import TunedEntry
from tunegen.ops import Problem
from tunegen.search.evaluators import Evaluator
from tunegen.search.record import Outcome
from tunegen.search.tune import Plan, Reporter


def _gains(entry: TunedEntry) -> str:
    name = "median_us" if entry.evidence == "measured" else "predicted_us"
    shown = [entry.buckets[0], entry.buckets[len(entry.buckets) // 2], entry.buckets[-1]]
    shown = list({bucket.tokens: bucket for bucket in shown}.values())
    parts = []
    for bucket in shown:
        time, default = bucket.fields[name], bucket.fields["default_us"]
        parts.append(f"{bucket.tokens} tokens {time:.2f} us ({default / time:.2f}x)")
    return ", ".join(parts)


class _Lines(Reporter):
    """A line when a problem begins, at every quarter of it, and when it is decided."""

    def __init__(self, console: Console, plan: Plan, problems: int) -> None:
        self._console, self._plan, self._problems = console, plan, problems
        self._decided = 0
        self._began = clock.monotonic()
        self._failures: dict[Problem, int] = {}

    def started(self, problem: Problem, known: int, trials: int) -> None:
        resumed = f", {known} of them known from an earlier run" if known else ""
        self._console.print(f"{problem}: up to {trials} configs{resumed}")

    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        if outcome.failure:
            self._failures[problem] = self._failures.get(problem, 0) + 1
            if self._failures[problem] == 1:
                self._console.print(f"{problem}: {outcome.config} failed: {outcome.failure[:500]}")
        if done % max(self._plan.trials // 4, 1) == 0:
            self._console.print(f"{problem}: {done} configs, best {best:.3f} of the default's time")

    def rejected(self, problem: Problem, outcome: Outcome) -> None:
        self._failures[problem] = self._failures.get(problem, 0) + 1
        self._console.print(f"{problem}: {outcome.config} was about to win and failed: {outcome.failure[:500]}")

    def decided(self, entry: TunedEntry, idle: dict[str, int]) -> None:
        self._decided += 1
        elapsed = clock.monotonic() - self._began
        left = elapsed / self._decided * (self._problems - self._decided)
        failed = self._failures.get(entry.problem, 0)
        self._console.print(
            f"[{self._decided}/{self._problems}] {entry.problem}: {entry.evidence} {_gains(entry)}"
            f"{f', {failed} failed' if failed else ''}; about {left:.0f} s left",
            highlight=False,
        )
        for knob, pairs in idle.items():
            self._console.print(
                f"{entry.problem}: {knob} changed nothing: the same machine code in all of {pairs} pairs of configs",
                highlight=False,
            )


class _Live(_Lines):
    """A bar for the whole run and one for each problem under way."""

    def __init__(self, console: Console, plan: Plan, problems: int, bars: Progress) -> None:
        super().__init__(console, plan, problems)
        self._bars = bars
        self._all = bars.add_task("all problems", total=problems * plan.trials, best="")
        self._tasks: dict[Problem, TaskID] = {}

    def started(self, problem: Problem, known: int, trials: int) -> None:
        self._tasks[problem] = self._bars.add_task(str(problem), total=trials, best="")

    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        if outcome.failure:
            self._failures[problem] = self._failures.get(problem, 0) + 1
        self._bars.update(self._tasks[problem], completed=done, best=f"best {best:.3f} of default")
        self._bars.advance(self._all)

    def decided(self, entry: TunedEntry, idle: dict[str, int]) -> None:
        task = self._tasks.pop(entry.problem)
        # A space smaller than the budget ends early.
        self._bars.advance(self._all, self._plan.trials - entry.trials - self._failures.get(entry.problem, 0))
        self._bars.remove_task(task)
        super().decided(entry, idle)


@contextlib.contextmanager
def progress(evaluator: Evaluator, plan: Plan, problems: int, out: Path) -> Iterator[Reporter]:
    """The reporter for standard output as it is."""
    console = Console(soft_wrap=True)
    console.print(
        f"Tuning {problems} problems for {evaluator.environment['device_name']} ({evaluator.device}):"
        f" {evaluator.evidence}, {plan.trials} configs each, {len(plan.tokens)} token counts; winners go to {out}",
        highlight=False,
    )
    if not console.is_terminal:
        yield _Lines(console, plan, problems)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield _Live(console, plan, problems, bars)
