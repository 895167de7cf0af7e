"""Two sets of tuned configs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegen.configs import TunedBucket, TunedEntry
from tunegen.ops import Config, Problem


@dataclass(frozen=True)
class Change:
    """One token count at which two entries serve otherwise.

    Attributes:
        tokens: Token count that either was tuned at.
        first, second: The buckets that serve it.
        changed: Config keys of other values, with both; None where a config has no such key. Keys that the targets do
            not share are left out.
    """

    tokens: int
    first: TunedBucket
    second: TunedBucket
    changed: dict[str, tuple[int | str | None, int | str | None]]


@dataclass(frozen=True)
class Difference:
    """A problem in two sets.

    Attributes:
        problem: The problem.
        first, second: Its entries; None where a set has none.
        changes: Where both have one: token counts that are served otherwise.
    """

    problem: Problem
    first: TunedEntry | None
    second: TunedEntry | None
    changes: list[Change]


def _changed(first: Config, second: Config, shared_alone: bool) -> dict[str, tuple[int | str | None, int | str | None]]:
    names = [
        name for name in dict.fromkeys([*first, *second]) if not shared_alone or (name in first and name in second)
    ]
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def differences(first: Sequence[TunedEntry], second: Sequence[TunedEntry], across_targets: bool) -> list[Difference]:
    """Every problem of either set, in the order of the first.

    Args:
        first, second: The sets.
        across_targets: Compare by problem alone; otherwise entries of one target, dtype and device.
    """

    def match(entry: TunedEntry, others: Sequence[TunedEntry]) -> TunedEntry | None:
        for other in others:
            alike = (entry.problem, entry.dtype) == (other.problem, other.dtype) if across_targets else None
            if alike or (alike is None and entry.replaces(other)):
                return other
        return None

    found = []
    for entry in first:
        other = match(entry, second)
        changes = []
        if other is not None:
            for tokens in sorted({bucket.tokens for bucket in [*entry.buckets, *other.buckets]}):
                one, two = entry.bucket(tokens), other.bucket(tokens)
                changed = _changed(one.config, two.config, across_targets)
                if changed:
                    changes.append(Change(tokens, one, two, changed))
        found.append(Difference(entry.problem, entry, other, changes))
    found += [Difference(entry.problem, None, entry, []) for entry in second if match(entry, first) is None]
    return found
