"""Joins tuned entries with the searches that they came from and with baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tunegen.configs import TunedBucket, TunedEntry
from tunegen.ops import OP_NAMES, Config, Problem, config_key, get_family
from tunegen.report.baselines import Baselines
from tunegen.search.proposals import token_groups
from tunegen.search.record import Outcome, Study
from tunegen.targets import get_target

# Token counts that a search is judged on together, by what such batches are.
GROUP_NAMES = ("decode", "mixed", "prefill")


@dataclass(frozen=True)
class Search:
    """A search, its configs in the order in which they were tried.

    Attributes:
        outcomes: What became of each config.
        groups: Token counts by the kind of batch they are.
    """

    outcomes: list[Outcome]
    groups: dict[str, list[int]]

    @property
    def default(self) -> Outcome | None:
        """The default config's outcome: the first of a search."""
        return self.outcomes[0] if self.outcomes and not self.outcomes[0].failure else None

    def scores(self, tokens: list[int]) -> list[float | None]:
        """Of each config, the geometric mean of its time over the default's; None if it failed."""
        base = self.default
        if base is None:
            return [None] * len(self.outcomes)
        return [
            None
            if outcome.failure
            else math.exp(sum(math.log(outcome.times[n] / base.times[n]) for n in tokens) / len(tokens))
            for outcome in self.outcomes
        ]

    @property
    def tokens(self) -> list[int]:
        """All token counts."""
        return [count for group in self.groups.values() for count in group]

    def number(self, config: Config) -> int | None:
        """The place of a config in the search, from 1; None if it is not in it."""
        key = config_key(config)
        return next((i for i, o in enumerate(self.outcomes, 1) if config_key(o.config) == key), None)


@dataclass(frozen=True)
class Subject:
    """One section of the report: a problem on a device.

    Attributes:
        problem: What was tuned.
        target: Target name.
        device: The GPU's name.
        evidence: ``"measured"`` or ``"predicted"``.
        entry: The tuned entry; None if the search has not ended.
        search: The search it came from; None if the storage does not have it.
        baselines: Microseconds of other kernels, by kernel and token count.
    """

    problem: Problem
    target: str
    device: str
    evidence: str
    entry: TunedEntry | None
    search: Search | None
    baselines: dict[str, dict[int, float]]

    @property
    def default_config(self) -> Config:
        """The analytic default of the problem on the target."""
        return get_family(self.problem.op).default(self.problem, get_target(self.target))


def limit_of(bucket: TunedBucket) -> float | None:
    """The practical limit: the traffic twin's time, or of a prediction launch and memory alone."""
    limit = bucket.fields.get("twin_us", bucket.fields.get("limit_us"))
    return None if limit is None else float(limit)


def _groups(tokens: Iterable[int]) -> dict[str, list[int]]:
    groups = token_groups(tokens, "tpe")
    named = {}
    for group in groups:
        # Groups that have no token counts are left out of the list: tell them by the counts.
        index = next(i for i, edge in enumerate((64, 1024, math.inf)) if group[-1] <= edge)
        named[GROUP_NAMES[index]] = group
    return named


def _search_of(study: Study) -> Search | None:
    good = [outcome for outcome in study.outcomes if not outcome.failure]
    if not good:
        return Search(study.outcomes, {}) if study.outcomes else None
    tokens = set(good[0].times)
    complete = [o for o in study.outcomes if o.failure or tokens <= set(o.times)]
    return Search(complete, _groups(tokens))


def _environment(study: Study) -> dict[str, str]:
    """What a study says of device and versions: ``"torch 2.13.0"``."""
    return {name: value for name, _, value in (item.partition(" ") for item in study.circumstances[3:])}


def _matching(entry: TunedEntry, studies: list[Study]) -> Study | None:
    """The study that an entry came from: of its problem, device and environment, with all its winners; the latest."""
    winners = {config_key(bucket.config) for bucket in entry.buckets}
    environment = {key: str(value) for key, value in entry.environment.items()}
    for study in reversed(studies):
        if (
            (study.problem, study.target) == (entry.problem, entry.target)
            and study.circumstances[0] == entry.evidence
            and str(entry.device) in study.circumstances
            and all(environment.get(key) == value for key, value in _environment(study).items())
            and winners <= {config_key(outcome.config) for outcome in study.outcomes}
        ):
            return study
    return None


def gather(entries: list[TunedEntry], studies: list[Study], baselines: list[Baselines]) -> list[Subject]:
    """The sections of a report, by op and size; of each, what is tuned before searches that have not ended.

    Args:
        entries: Tuned entries.
        studies: What storages hold; those of other environments than the entries' are left out.
        baselines: Times of other kernels; those of other devices are left out.
    """
    subjects = []
    used = set()
    for entry in entries:
        study = _matching(entry, studies)
        used.add(id(study))
        device = str(entry.environment.get("device_name", entry.device))
        others: dict[str, dict[int, float]] = {}
        for group in baselines:
            if entry.evidence == "measured" and (group.problem, group.device) == (entry.problem, device):
                others.update(group.times)
        search = _search_of(study) if study else None
        subjects.append(Subject(entry.problem, entry.target, device, entry.evidence, entry, search, others))
    decided = {(subject.problem, subject.target, subject.evidence) for subject in subjects}
    for study in studies:
        evidence = study.circumstances[0]
        search = _search_of(study)
        if id(study) not in used and search and (study.problem, study.target, evidence) not in decided:
            device = _environment(study).get("device_name", study.target)
            subjects.append(Subject(study.problem, study.target, device, evidence, None, search, {}))
    return sorted(
        subjects,
        key=lambda s: (OP_NAMES.index(s.problem.op), s.problem.shape, s.problem.rounding, s.target, s.entry is None),
    )
