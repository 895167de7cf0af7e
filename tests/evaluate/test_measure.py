"""The order in which graphs that are compared are replayed and read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tunegen.evaluate.measure import time_interleaved


def test_all_is_queued_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is late between an event and its graph would add its own time to the GPU's."""
    log: list[str] = []

    class Logged:
        def __init__(self, name: str, times: list[float]) -> None:
            self.name, self.times = name, times

        def warm_up(self) -> None:
            log.append(f"warm {self.name}")

        def queue(self) -> Callable[[], float]:
            at = sum(line == f"queue {self.name}" for line in log)
            log.append(f"queue {self.name}")

            def read() -> float:
                log.append(f"read {self.name}")
                return self.times[at]

            return read

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    a, b = time_interleaved([Logged("a", [3.0, 1.0, 2.0]), Logged("b", [9.0, 8.0, 4.0])], 3, warmup=1)  # type: ignore[list-item]  # what is needed of a Replay
    assert log[:9] == ["warm a", "warm b", *["queue a", "queue b"] * 3, "wait"]
    assert sorted(log[9:]) == ["read a"] * 3 + ["read b"] * 3
    assert (a.samples, a.median) == ((3.0, 1.0, 2.0), 2.0)
    assert (b.samples, b.median) == ((9.0, 8.0, 4.0), 8.0)
