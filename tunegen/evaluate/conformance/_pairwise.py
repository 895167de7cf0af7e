"""A small subset of all combinations that still shows every pair."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def pairwise(candidates: Sequence[Item], factors: Callable[[Item], Sequence[Hashable]], seed: int = 0) -> list[Item]:
    """A small subset of the candidates that shows every pair of factor values which the candidates show.

    Faults of kernels sit in one value of one factor (a dtype) or where two meet (a layout and a dtype); all pairs
    take about as many cases as the two largest factors have values, multiplied, however many factors there are.

    Args:
        candidates: All combinations that make sense.
        factors: The factor values of a candidate, always the same number of them.
        seed: Decides which of the many such subsets it is.
    """
    order = list(range(len(candidates)))
    random.Random(seed).shuffle(order)
    pairs = [set(itertools.combinations(enumerate(factors(candidate)), 2)) for candidate in candidates]
    uncovered: set[Any] = set().union(*pairs)
    chosen: list[int] = []
    # Candidates that show many new pairs first: fewer are needed.
    at_least = max(map(len, pairs), default=0)
    while uncovered:
        left = []
        for index in order:
            new = pairs[index] & uncovered
            if len(new) >= at_least:
                chosen.append(index)
                uncovered -= new
            elif new:
                left.append(index)
        order = left
        at_least = max(1, at_least * 3 // 4)
    return [candidates[index] for index in sorted(chosen)]
