"""Edges between token buckets."""

from __future__ import annotations

import math

import pytest

from tunegen.search.buckets import crossing, edges_from_times


@pytest.mark.parametrize(
    ("leads", "edge"),
    [
        ((1.1, 1.1), 32),  # as far ahead at one end as at the other: the geometric midpoint
        ((1.2, 1.0), 63),  # the second is no better where it won: the first serves up to it
        ((1.0, 1.2), 16),
        ((1.0, 1.0), 32),
        ((0.99, 0.98), 32),  # noise: each was taken for the winner where the other is faster
    ],
)
def test_crossing(leads: tuple[float, float], edge: int) -> None:
    assert crossing(16, 64, *leads) == edge


@pytest.mark.parametrize("at", [20.0, 40.0, 60.0])
def test_straight_lines_cross_where_they_do(at: float) -> None:
    """Times t^0.3 and a t^0.1 with equal values at the count ``at``."""
    scale = at**0.2

    def first(tokens: float) -> float:
        return tokens**0.3

    def second(tokens: float) -> float:
        return scale * tokens**0.1

    edge = crossing(16, 64, second(16) / first(16), first(64) / second(64))
    assert edge == math.floor(at) or math.isclose(edge, at, abs_tol=1)


def test_edges() -> None:
    times = [{1: 1.0, 4: 3.0}, {1: 2.0, 4: 2.0, 16: 6.0}, {4: 2.2, 16: 5.0}]
    edges = edges_from_times([1, 4, 16], times)
    assert edges[-1] is None
    # By a factor of 2 at 1 and of 1.5 at 4; by 1.1 at 4 and 1.2 at 16.
    assert edges == [crossing(1, 4, 2.0, 1.5), crossing(4, 16, 1.1, 1.2), None] == [2, 6, None]
