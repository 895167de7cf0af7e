"""What of the model presets is tuned for which target, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegen.configs import TunedEntry
from tunegen.errors import ShapeError
from tunegen.models import Model, problems_of
from tunegen.ops import Problem


@dataclass(frozen=True)
class Covered:
    """One problem of a preset on one target.

    Attributes:
        problem: The problem.
        evidence: ``"measured"``, ``"predicted"``, or empty if nothing is tuned.
        stale: The entry was made from another version of its template.
        missing: Token counts asked about that no bucket was tuned at, all of them if nothing is tuned.
    """

    problem: Problem
    evidence: str
    stale: bool
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Tuned:
    """A tuned entry, and whether it is stale, which takes rendering to tell: once for all presets."""

    entry: TunedEntry
    stale: bool


def coverage(
    tuned: Sequence[Tuned], model: Model, target: str, tokens: Sequence[int], ops: list[str], ranks: int = 1
) -> list[Covered] | None:
    """What is tuned of each problem of a preset; None if its heads cannot be split among so many ranks.

    Args:
        tuned: Tuned entries; of several of one problem one that is not stale counts, and a measured one.
        model: The preset.
        target: Target name.
        tokens: Token counts that shall have been tuned.
        ops: The ops asked about.
        ranks: Ranks that the heads are divided among.
    """
    try:
        problems = problems_of(model, ops, ranks)
    except ShapeError:
        return None
    found = []
    for problem in problems:
        mine = [one for one in tuned if one.entry.target == target and one.entry.problem == problem]
        best = min(mine, key=lambda one: (one.stale, one.entry.evidence), default=None)
        if best is None:
            found.append(Covered(problem, "", False, tuple(tokens)))
        else:
            counts = {bucket.tokens for bucket in best.entry.buckets}
            missing = tuple(count for count in tokens if count not in counts)
            found.append(Covered(problem, best.entry.evidence, best.stale, missing))
    return found
