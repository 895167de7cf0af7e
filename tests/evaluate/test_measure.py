"""Graphs that are compared are replayed in turn, behind a kernel that holds the GPU back until all are queued."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tunegen.evaluate import measure
from tunegen.evaluate.measure import ATTEMPTS, MOST_HELD, MOST_QUEUED, time_interleaved


class Logged:
    """What is needed of a `Replay`: takes the times that it is given, in turn."""

    def __init__(self, log: list[str], name: str, times: list[float]) -> None:
        self.log, self.name, self.times = log, name, times
        self.queued = 0

    def warm_up(self) -> None:
        self.log.append(f"warm {self.name}")

    def queue(self) -> Callable[[], float]:
        at, self.queued = self.queued % len(self.times), self.queued + 1
        self.log.append(f"queue {self.name}")

        def read() -> float:
            self.log.append(f"read {self.name}")
            return self.times[at]

        return read


class Gpu:
    """A host that needs so many milliseconds for a batch, and a GPU that is held for a microsecond a turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, needed: list[float]) -> None:
        self.log: list[str] = []
        self.held: list[float] = []
        self.needed = needed
        self.clock, self.batches = 0.0, 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                gpu.log.append("event")

            def elapsed_time(self, end: Event) -> float:
                return gpu.held[-1]

        self.gate = measure._Gate()
        monkeypatch.setattr(self.gate, "hold", self.hold)
        monkeypatch.setattr(measure, "_gate", self.gate)
        monkeypatch.setattr(measure.time, "perf_counter", self.perf_counter)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))

    def hold(self) -> None:
        self.log.append("hold")
        self.held.append(self.gate._turns / 1000)

    def perf_counter(self) -> float:
        """Asked before and after a batch is queued."""
        self.batches += 1
        if self.batches % 2 == 0:
            self.clock += self.needed[min(self.batches // 2, len(self.needed)) - 1] / 1000
        return self.clock


def test_nothing_runs_before_all_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, [0.5])
    graphs = [Logged(gpu.log, "a", [3.0, 1.0, 2.0]), Logged(gpu.log, "b", [9.0, 8.0, 4.0])]
    a, b = time_interleaved(graphs, 3, warmup=1)  # type: ignore[arg-type]  # what is needed of a Replay
    assert gpu.log[:12] == ["warm a", "warm b", "event", "hold", "event", *["queue a", "queue b"] * 3, "wait"]
    assert sorted(gpu.log[12:]) == ["read a"] * 3 + ["read b"] * 3
    assert (a.samples, a.median) == ((3.0, 1.0, 2.0), 2.0)
    assert (b.samples, b.median) == ((9.0, 8.0, 4.0), 8.0)


def test_many_are_queued_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of a GPU has an end, at which a host would wait for a GPU that is held back."""
    gpu = Gpu(monkeypatch, [0.5])
    rounds = MOST_QUEUED + 3
    graphs = [Logged(gpu.log, name, [float(x) for x in range(rounds)]) for name in "ab"]
    timings = time_interleaved(graphs, rounds)  # type: ignore[arg-type]  # what is needed of a Replay
    assert [timing.samples for timing in timings] == [tuple(map(float, range(rounds)))] * 2
    assert len(gpu.held) == 3
    assert max(len(part) for part in " ".join(gpu.log).split("wait")) < 3 * MOST_QUEUED * len("queue a ")


def test_a_host_that_was_late_tries_again_with_a_longer_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, [4.0, 5.0, 2.0])
    graph = Logged(gpu.log, "a", [100.0, 1.0, 2.0])
    (timing,) = time_interleaved([graph], 1)  # type: ignore[list-item]  # what is needed of a Replay
    # Held 1 ms where 4 were needed; then 8, where 5 were.
    assert timing.samples == (1.0,)
    assert gpu.held == [1.0, 8.0]
    # The next time as long is expected as the last took, and twice that is held.
    time_interleaved([graph], 1)  # type: ignore[list-item]  # what is needed of a Replay
    assert gpu.held == [1.0, 8.0, 10.0]


def test_a_host_that_is_always_late_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, [1000.0])
    graph = Logged(gpu.log, "a", [float(x) for x in range(ATTEMPTS)])
    (timing,) = time_interleaved([graph], 1)  # type: ignore[list-item]  # what is needed of a Replay
    assert timing.samples == (ATTEMPTS - 1.0,)
    assert gpu.held == [1.0, *[MOST_HELD] * (ATTEMPTS - 1)]


def test_where_the_queue_is_shorter_less_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost and nothing is taken twice, however few graphs can wait."""
    gpu = Gpu(monkeypatch, [1000.0])
    rounds = 3 * MOST_QUEUED
    graph = Logged(gpu.log, "a", [1.0])
    (timing,) = time_interleaved([graph], rounds)  # type: ignore[list-item]  # what is needed of a Replay
    assert len(timing.samples) == rounds
    sizes = [part.count("queue a") for part in " ".join(gpu.log).split("event hold event")[1:]]
    tried = [size for size in (64, 32, 16, *[8] * 10) for _ in range(ATTEMPTS)]
    assert sizes == tried
