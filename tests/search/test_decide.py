"""The winner's rule."""

from __future__ import annotations

import pytest

from tunegen.ops import Config
from tunegen.search.decide import decide


def config(number: int) -> Config:
    return {"number": number}


DEFAULT = config(0)


def winner(times: dict[int, float], margin: float = 0.01) -> int:
    decision = decide([(config(n), t) for n, t in times.items()], DEFAULT, margin, lambda c: c["number"])
    return int(decision.config["number"])


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({0: 10.0}, 0),
        ({0: 10.0, 1: 9.95}, 0),  # within the margin of the default
        ({0: 10.0, 1: 9.8}, 1),
        ({0: 10.0, 3: 9.0, 2: 9.05}, 2),  # tied: the simpler one
        ({0: 10.0, 3: 9.0, 2: 9.2}, 3),
        ({0: 10.0, 1: 12.0}, 0),
    ],
)
def test_rule(times: dict[int, float], expected: int) -> None:
    assert winner(times) == expected


def test_order_does_not_matter() -> None:
    times = {0: 10.0, 5: 9.0, 4: 9.01, 6: 8.99}
    assert winner(times) == winner(dict(reversed(times.items()))) == 4


def test_runner_up() -> None:
    decision = decide([(config(0), 10.0), (config(1), 8.0), (config(2), 9.0)], DEFAULT, 0.01, lambda c: c["number"])
    assert (decision.time, decision.runner_up, decision.runner_up_time) == (8.0, config(2), 9.0)
    alone = decide([(DEFAULT, 10.0)], DEFAULT, 0.01, lambda c: c["number"])
    assert alone.runner_up is None
