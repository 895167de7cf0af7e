"""The order in which graphs that are compared are replayed and read, and what is done about a GPU that was idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tunegen.evaluate import measure
from tunegen.evaluate.measure import SETTLED_BATCHES, time_interleaved


class Logged:
    """What is needed of a `Replay`: it takes the times that it is given, the last of them for ever."""

    calls = 40

    def __init__(self, log: list[str], name: str, times: list[float]) -> None:
        self.log, self.name, self.times = log, name, times
        self.queued = 0

    def warm_up(self) -> None:
        self.log.append(f"warm {self.name}")

    def queue(self) -> Callable[[], float]:
        at, self.queued = min(self.queued, len(self.times) - 1), self.queued + 1
        self.log.append(f"queue {self.name}")

        def read() -> float:
            self.log.append(f"read {self.name}")
            return self.times[at]

        return read


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A log of what is asked of graphs and GPU; the GPU was busy until now."""
    lines: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: lines.append("wait"))
    monkeypatch.setattr(measure, "_clock", measure._Clock())
    monkeypatch.setattr(measure.time, "monotonic", lambda: 100.0)
    measure._clock.busy()
    return lines


def test_all_is_queued_before_anything_is_read(log: list[str]) -> None:
    """A host that is late between an event and its graph would add its own time to the GPU's."""
    graphs = [Logged(log, "a", [3.0, 1.0, 2.0]), Logged(log, "b", [9.0, 8.0, 4.0])]
    a, b = time_interleaved(graphs, 3, warmup=1)  # type: ignore[arg-type]  # what is needed of a Replay
    assert log[:9] == ["warm a", "warm b", *["queue a", "queue b"] * 3, "wait"]
    assert sorted(log[9:]) == ["read a"] * 3 + ["read b"] * 3
    assert (a.samples, a.median) == ((3.0, 1.0, 2.0), 2.0)
    assert (b.samples, b.median) == ((9.0, 8.0, 4.0), 8.0)


def test_a_gpu_that_was_idle_is_brought_to_its_clock(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Times fall from 9000 us to 1500 us a call: none of the slow ones is among the samples."""
    monkeypatch.setattr(measure._clock, "_busy_until", 99.0)
    graph = Logged(log, "a", [9000.0, 8000.0, 4000.0, 2000.0, 1500.0])
    (timing,) = time_interleaved([graph], 3)  # type: ignore[list-item]  # what is needed of a Replay
    assert timing.samples == (1500.0,) * 3
    # One batch for each time, and as many more as it takes to see that they fall no more.
    assert log.index("warm a") == 3 * (5 + SETTLED_BATCHES)
    log.clear()
    time_interleaved([graph], 3)  # type: ignore[list-item]  # what is needed of a Replay
    assert log[0] == "warm a"


def test_times_that_never_settle_end(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter(x * 0.1 for x in range(1000, 10000))
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(measure._clock, "_busy_until", 0.0)
    time_interleaved([Logged(log, "a", [1e9 * 0.9**x for x in range(200)])], 1)  # type: ignore[list-item]  # ditto
    assert 5 < log.index("warm a") / 3 < 12
