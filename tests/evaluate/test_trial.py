"""How kernels are timed against each other: who is captured how often, and whose samples are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tunegen.evaluate import measure, trial
from tunegen.evaluate.measure import Timing
from tunegen.evaluate.trial import CAPTURES, FINAL_ROUNDS, KEPT_BYTES, LONG_ROUNDS, RACE_ROUNDS, SHORT_MICROSECONDS
from tunegen.ops import Problem

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168})
SLOW, TWIN, A, B, FAR = map(Path, ("slow", "twin", "a", "b", "far"))


@dataclass
class Graph:
    """What is needed of a `Replay`: its samples are those of its kernel, each capture of it a little off."""

    source: Path
    us: float
    calls: int = 40


class Gpu:
    """Kernels that take given times; what was captured, and what was timed for how many rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[Path, float], kept: bool) -> None:
        self.times, self.captured, self.kept = times, Counter[Path](), kept
        self.timed: list[tuple[int, Counter[Path]]] = []
        state = trial._State()
        state.workloads = {(PROBLEM, 16): None} if kept else {}  # type: ignore[dict-item]  # nothing is launched here
        monkeypatch.setattr(trial, "_state", state)
        monkeypatch.setattr(trial, "_replay", self.replay)
        monkeypatch.setattr(trial, "empty_kernel_replay", lambda: Graph(Path("empty"), 1.0))
        for module in (trial, measure):
            monkeypatch.setattr(module, "time_interleaved", self.time_interleaved)
        self.state = state

    def replay(self, problem: Problem, tokens: int, source: Path, calls: int | None = None) -> Graph:
        self.state.workloads[problem, tokens] = None  # type: ignore[assignment]  # nothing is launched here
        self.captured[source] += 1
        # The first capture is 5 % too slow, of B too fast; the second the other way round; the third is right.
        off = {0: 0.0, 1: 0.05, 2: -0.05}[self.captured[source] % 3]
        return Graph(source, self.times[source] * (1 - off if source == B else 1 + off))

    def time_interleaved(self, graphs: Sequence[Graph], rounds: int, warmup: int = 2) -> list[Timing]:
        self.timed.append((rounds, Counter(graph.source for graph in graphs)))
        return [Timing.of([graph.us] * rounds) for graph in graphs]


@pytest.mark.parametrize("kept", [True, False])
def test_a_race_of_short_calls(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    gpu = Gpu(monkeypatch, {A: 2.0, B: 2.05, FAR: 2.1, SLOW: 3.0}, kept)
    a, b, far, slow = trial.race(PROBLEM, 16, [A, B, FAR, SLOW], SLOW)
    first, second = gpu.timed
    assert first == (LONG_ROUNDS, Counter({A: 1, B: 1, FAR: 1, SLOW: 1}))
    # One that is far off is looked at alone, unless it stays; the others' samples are of all of their graphs, and an
    # unlucky first one, beside another's lucky one, does not put the best out.
    rounds = -(-RACE_ROUNDS[1] // CAPTURES)
    assert second == (rounds, Counter({A: CAPTURES, B: CAPTURES, SLOW: CAPTURES}))
    assert gpu.captured == Counter({A: CAPTURES, B: CAPTURES, SLOW: CAPTURES, FAR: 1})
    assert [len(t.samples) for t in (a, b, slow, far)] == [*[CAPTURES * rounds] * 3, LONG_ROUNDS]
    assert (a.median, b.median, slow.median) == (2.0, 2.05, 3.0)
    assert min(a.samples) == pytest.approx(1.9) and a.spread > 0
    # Inputs of a count that is not tuned are not kept.
    assert list(gpu.state.workloads) == ([(PROBLEM, 16)] if kept else [])


def test_a_race_of_long_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, {A: 1.06 * SHORT_MICROSECONDS, B: 1.08 * SHORT_MICROSECONDS}, False)
    a, b = trial.race(PROBLEM, 16384, [A, B])
    rounds, graphs = gpu.timed[1]
    assert graphs == Counter({A: 1, B: 1})
    assert RACE_ROUNDS[0] <= rounds < RACE_ROUNDS[1]
    assert len(a.samples) == len(b.samples) == rounds


@pytest.mark.parametrize(("reserved", "emptied"), [(KEPT_BYTES, 0), (KEPT_BYTES + 1, 1)])
def test_much_memory_of_dropped_inputs_is_given_back(
    monkeypatch: pytest.MonkeyPatch, reserved: int, emptied: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    Gpu(monkeypatch, {A: 2.0, B: 2.0}, False)
    trial.race(PROBLEM, 24, [A, B])
    assert len(calls) == emptied


def test_of_two_both_are_timed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they differ by is a regret that is told."""
    gpu = Gpu(monkeypatch, {A: 2.0, FAR: 4.0}, False)
    trial.race(PROBLEM, 24, [FAR, A])
    assert gpu.captured == Counter({A: CAPTURES, FAR: CAPTURES})


def test_inputs_are_dropped_after_a_fault_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, {A: 2.0}, False)
    with pytest.raises(Exception, match="slow"):
        trial.race(PROBLEM, 17, [A, SLOW])
    assert not gpu.state.workloads


def test_finalists_are_captured_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, {TWIN: 1.5, A: 2.0, B: 2.5}, True)
    contest = trial.contest(PROBLEM, 16, [TWIN], [A, A, B])
    rounds, graphs = gpu.timed[-1]
    assert rounds == -(-FINAL_ROUNDS // CAPTURES)
    assert graphs == Counter({Path("empty"): CAPTURES, TWIN: CAPTURES, A: 2 * CAPTURES, B: CAPTURES})
    assert [len(t.samples) for t in (contest.empty, contest.twin)] == [CAPTURES * rounds] * 2
    assert [t.median for t in contest.kernels] == [2.0, 2.0, 2.5]
