"""The GPU's part of a trial, in a worker process of its own: is a kernel right, what does it take, which is fastest.

What the process keeps between tasks (inputs, times to beat) is made anew by the process that replaces it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import triton

from tunegen.errors import ConformanceError, TunegenError
from tunegen.evaluate.conformance import first_case, run_case
from tunegen.evaluate.isolated import WorkerUnusableError
from tunegen.evaluate.measure import Replay, Timing, Workload, empty_kernel_replay, time_captured, time_interleaved
from tunegen.ops import Problem
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import get_target

P = ParamSpec("P")
Result = TypeVar("Result")

# A first look is a graph of few calls; who is this much slower than the best so far gets no second one.
SHORT_CALLS = 8
SHORT_ROUNDS = 2
OUT_OF_REACH = 1.25
LONG_ROUNDS = 3
# Twins that are looked at again, with the whole graph, to take the best of.
TWINS_AGAIN = 3
FINAL_ROUNDS = 13
# Of a race: few rounds where calls are long, and where they are short as many as take so long in all.
RACE_ROUNDS = (7, 31)
RACE_MICROSECONDS = 30_000.0
# Where the fastest call is shorter than this, one graph of a kernel differs from another of it by more than its samples
# do: a kernel that is decided upon is then captured several times, and its samples, about as many in all, are put
# together.
SHORT_MICROSECONDS = 20.0
CAPTURES = 3
# Who is so much slower than the fastest at a look at one graph is out of a race, where calls are short and where not.
OUT_OF_RACE = (1.1, 1.05)
# More of the GPU's memory than this is not left to a kernel that has run.
LEAK_BYTES = 64 << 20
# So much of it the allocator may keep of inputs that are dropped; what it does not allocate itself needs some too.
KEPT_BYTES = 4 << 30


class OutOfResourcesError(TunegenError):
    """A kernel that asks for more registers, threads or shared memory than the GPU has."""


@dataclass(frozen=True)
class Looks:
    """The best times so far of a problem at one token count, by the short look and by the long one."""

    short: float
    long: float


@dataclass(frozen=True)
class Contest:
    """Timings of one bucket's finalists, all interleaved.

    Attributes:
        empty: A kernel that does nothing.
        twin: The best of the traffic twins.
        kernels: Each finalist, in the order given.
    """

    empty: Timing
    twin: Timing
    kernels: tuple[Timing, ...]


class _State:
    """What a process keeps."""

    def __init__(self) -> None:
        self.workloads: dict[tuple[Problem, int], Workload] = {}
        self.best: dict[tuple[Problem, int], Looks] = {}

    def workload(self, problem: Problem, tokens: int) -> Workload:
        key = (problem, tokens)
        if key not in self.workloads:
            try:
                self.workloads[key] = Workload(problem, tokens)
            except torch.OutOfMemoryError:  # the other problems' inputs can be made again
                self.workloads = {kept: value for kept, value in self.workloads.items() if kept[0] == problem}
                torch.cuda.empty_cache()
                self.workloads[key] = Workload(problem, tokens)
        return self.workloads[key]

    def forget(self, problem: Problem) -> None:
        self.workloads = {key: value for key, value in self.workloads.items() if key[0] != problem}
        self.best = {key: value for key, value in self.best.items() if key[0] != problem}
        torch.cuda.empty_cache()


_state = _State()


def start(index: int) -> None:
    """Sets a worker process up on a GPU."""
    # The judge's small tensors are on the CPU, whose cores compile: threads would wait for each other there.
    torch.set_num_threads(1)
    torch.cuda.set_device(index)
    torch.empty(1, device="cuda")
    torch.cuda.synchronize()


def _leaving_on_faults(function: Callable[P, Result]) -> Callable[P, Result]:
    """Has the process replaced after whatever may have left the GPU's context or memory in disorder."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except triton.runtime.errors.OutOfResources as error:
            # Triton finds this out before it launches anything.
            raise OutOfResourcesError(f"out of resources: {error}") from error
        except ConformanceError as error:
            raise WorkerUnusableError(str(error)) from error
        except Exception as error:
            # The lines after the first are advice on debugging, the same for every fault.
            first = (str(error).splitlines() or [""])[0]
            raise WorkerUnusableError(f"{type(error).__name__}: {first}") from error

    return guarded


def _replay(problem: Problem, tokens: int, source: Path, calls: int | None = None) -> Replay:
    workload = _state.workload(problem, tokens)
    sets = len(workload.inputs)
    return Replay(workload.launch(load_kernel(source)), sets, calls)


@contextmanager
def _passing(problem: Problem, tokens: int) -> Iterator[None]:
    """Inputs at a token count that is not tuned are dropped again: there are many such counts."""
    kept = (problem, tokens) in _state.workloads
    try:
        yield
    finally:
        if not kept:
            _state.workloads.pop((problem, tokens), None)
            if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > KEPT_BYTES:
                torch.cuda.empty_cache()


def _median(replay: Replay, rounds: int) -> float:
    return time_interleaved([replay], rounds, warmup=1)[0].median


def _judge(problem: Problem, target: str, source: Path, lanes: int) -> None:
    """Runs a kernel on the first case of the contract; raises ConformanceError."""
    kernel, op = load_kernel(source), OPS[problem.op]
    units = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count

    def launch(outputs: tuple[torch.Tensor, ...], args: tuple[Any, ...]) -> None:
        op.launch(kernel, units, outputs, *args)

    found = run_case(launch, first_case(problem, get_target(target)), torch.device("cuda"), lanes)
    if found:
        raise ConformanceError(f"computes wrong results: {'; '.join(found)}")


@_leaving_on_faults
def look(problem: Problem, target: str, source: Path, lanes: int, tokens: Sequence[int]) -> dict[int, float]:
    """Judges a kernel and times it at every token count: shortly, and longer where it may still win.

    Args:
        problem: What it computes.
        target: Name of the GPU's target.
        source: Its file.
        lanes: The fewest lanes that a row is spread over.
        tokens: Token counts.

    Returns:
        Microseconds a call by token count.

    Raises:
        OutOfResourcesError: The GPU cannot launch it.
        WorkerUnusableError: It faults, computes wrong results and so may have written anywhere, or keeps memory.
    """
    for count in tokens:
        _state.workload(problem, count)
    held = torch.cuda.memory_allocated()
    _judge(problem, target, source, lanes)
    times = {count: _look(problem, count, source) for count in tokens}
    kept = torch.cuda.memory_allocated() - held
    if kept > LEAK_BYTES:
        raise WorkerUnusableError(f"keeps {kept / 2**30:.1f} GiB of the GPU's memory")
    return times


def _look(problem: Problem, tokens: int, source: Path) -> float:
    key = (problem, tokens)
    short = _median(_replay(problem, tokens, source, SHORT_CALLS), SHORT_ROUNDS)
    best = _state.best.get(key)
    if best is not None and short > OUT_OF_REACH * best.short:
        # What starting a graph takes weighs more on a few calls: as much for this kernel as for the best one.
        return max(short - max(best.short - best.long, 0.0), best.long)
    long = _median(_replay(problem, tokens, source), LONG_ROUNDS)
    if best is None or long < best.long:
        _state.best[key] = Looks(short, long)
    return long


@_leaving_on_faults
def probe(problem: Problem, tokens: int, source: Path) -> float:
    """Microseconds a call of one kernel, by a short look."""
    return _median(_replay(problem, tokens, source, SHORT_CALLS), SHORT_ROUNDS)


@_leaving_on_faults
def contest(problem: Problem, tokens: int, twins: Sequence[Path], kernels: Sequence[Path]) -> Contest:
    """Times finalists in turn, beside the empty kernel and the best of the twins.

    Args:
        problem: What they compute.
        tokens: Token count.
        twins: Files of the traffic twins.
        kernels: Files of the finalists; one that is named twice is timed twice.
    """
    looks = sorted(
        (_median(_replay(problem, tokens, twin, SHORT_CALLS), SHORT_ROUNDS), at) for at, twin in enumerate(twins)
    )
    again = [twins[at] for _, at in looks[:TWINS_AGAIN]]
    replays = [_replay(problem, tokens, twin) for twin in again]
    timings = time_interleaved(replays, LONG_ROUNDS, 1)
    best = min(range(len(again)), key=lambda at: timings[at].median)
    captures = range(CAPTURES if timings[best].median < SHORT_MICROSECONDS else 1)
    empties = [empty_kernel_replay() for _ in captures]
    finalists = [[_replay(problem, tokens, source) for _ in captures] for source in (again[best], *kernels)]
    empty, twin, *rest = time_captured([empties, *finalists], FINAL_ROUNDS)
    return Contest(empty, twin, tuple(rest))


@_leaving_on_faults
def race(problem: Problem, tokens: int, kernels: Sequence[Path], stays: Path | None = None) -> tuple[Timing, ...]:
    """Times kernels in turn; of more than two those far from the fastest by a short look alone.

    Args:
        problem: What they compute.
        tokens: Token count.
        kernels: Their files.
        stays: One that is timed in full however far off it is.
    """
    with _passing(problem, tokens):
        replays = [_replay(problem, tokens, source) for source in kernels]
        timings = time_interleaved(replays, LONG_ROUNDS, warmup=1)
        fastest = min(timing.median for timing in timings)
        short = fastest < SHORT_MICROSECONDS
        reach = fastest * OUT_OF_RACE[0 if short else 1] if len(kernels) > 2 else float("inf")
        near = [at for at, timing in enumerate(timings) if timing.median <= reach or kernels[at] == stays]
        more = range(CAPTURES - 1 if short else 0)
        captured = [[replays[at], *(_replay(problem, tokens, kernels[at]) for _ in more)] for at in near]
        round_us = sum(timings[at].median * replays[at].calls for at in near)
        least, most = RACE_ROUNDS
        rounds = max(least, min(most, int(RACE_MICROSECONDS / round_us)))
        for at, timing in zip(near, time_captured(captured, rounds), strict=True):
            timings[at] = timing
        return tuple(timings)


@_leaving_on_faults
def forget(problem: Problem) -> None:
    """Drops what is kept for a problem."""
    _state.forget(problem)
