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


def coverage(
    entries: Sequence[TunedEntry], model: Model, target: str, tokens: Sequence[int], ops: list[str], ranks: int = 1
) -> list[Covered] | None:
    """What is tuned of each problem of a preset; None if its heads cannot be split among so many ranks.

    Args:
        entries: Tuned entries; of several of one problem a measured one counts.
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
        mine = [entry for entry in entries if entry.target == target and entry.problem == problem]
        entry = min(mine, key=lambda entry: (entry.stale, entry.evidence), default=None)
        if entry is None:
            found.append(Covered(problem, "", False, tuple(tokens)))
        else:
            tuned = {bucket.tokens for bucket in entry.buckets}
            missing = tuple(count for count in tokens if count not in tuned)
            found.append(Covered(problem, entry.evidence, entry.stale, missing))
    return found
