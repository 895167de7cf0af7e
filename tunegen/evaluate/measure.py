"""Times kernels on the GPU by replaying CUDA graphs.

Device time only: a graph of many launches is replayed between two events. Inputs rotate. Below the L2 size
they are two sets and stay hot, as in a model whose producer has just run; above it a set is cold when it
returns. Kernels that are compared are timed interleaved, and their graphs are queued while the GPU is held back: it
never waits for the host between an event and its graph, however busy the host's cores are with compiling.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import Kernel

POLICY = "cuda-graph-replay/3"
GRAPH_CALLS = 40
# A graph of large calls needs no 40 of them to be long beside an event's resolution of half a microsecond.
GRAPH_MICROSECONDS = 1000.0
# Graphs that are queued at a time, behind a kernel that holds the GPU back meanwhile; it is tried so often to hold it
# for long enough, and never for more than so many milliseconds.
MOST_QUEUED = 64
LEAST_QUEUED = 8
ATTEMPTS = 3
MOST_HELD = 20.0


@triton.jit
def _empty_kernel() -> None:
    tl.program_id(0)


def _launch_empty(index: int) -> None:
    _empty_kernel[(1,)](num_warps=1)


@dataclass(frozen=True)
class Timing:
    """Microseconds a call.

    Attributes:
        median: Median over the samples.
        spread: Interquartile range of the samples.
        samples: One per replay.
    """

    median: float
    spread: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """The summary of some samples."""
        ordered = sorted(samples)
        quarter = len(ordered) // 4
        return cls(statistics.median(ordered), ordered[-1 - quarter] - ordered[quarter], tuple(samples))


class Workload:
    """Input sets and outputs of one problem at one token count, on the current GPU.

    Args:
        problem: What is timed.
        num_tokens: Rows.
        dtype: Activation dtype.
        seed: Of the random inputs.
    """

    def __init__(self, problem: Problem, num_tokens: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        self.problem = problem
        self.num_tokens = num_tokens
        self.op = OPS[problem.op]
        device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(device)
        self.units = properties.multi_processor_count
        self.bytes = get_family(problem.op).bytes_moved(problem, num_tokens)
        sets = 2 if self.bytes < properties.L2_cache_size else 1 + -(-2 * properties.L2_cache_size // self.bytes)
        generator = torch.Generator(device).manual_seed(seed)
        self.inputs: list[tuple[Any, ...]] = []
        self.outputs: list[tuple[torch.Tensor, ...]] = []
        for _ in range(max(sets, 2)):
            args = self.op.inputs(problem.sizes, num_tokens, dtype, device, generator, problem.rounding)
            self.inputs.append(args)
            self.outputs.append(self.op.allocate(*args))

    def launch(self, kernel: Kernel) -> Callable[[int], None]:
        """A function that launches the kernel on the input set that call ``index`` rotates to."""

        def run(index: int) -> None:
            at = index % len(self.inputs)
            self.op.launch(kernel, self.units, self.outputs[at], *self.inputs[at])

        return run


class Replay:
    """A captured graph of calls, to be timed again and again.

    Args:
        run: Launches call ``index``; it must not synchronise.
        sets: Number of input sets that it rotates through.
        calls: Calls in the graph, at least; default: as many as a sample that is long beside an event needs.
    """

    def __init__(self, run: Callable[[int], None], sets: int = 2, calls: int | None = None) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for index in range(sets):
                run(index)
            if calls is None:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                for index in range(2 * sets):
                    run(index)
                end.record()
                end.synchronize()
                estimate = max(1000 * start.elapsed_time(end) / (2 * sets), 0.5)
                calls = min(GRAPH_CALLS, max(2 * sets, int(GRAPH_MICROSECONDS / estimate)))
        self.calls = -(-calls // sets) * sets
        self._graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would also empty the allocator's cache, which takes longer than the capture.
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            self._graph.capture_begin()
            try:
                for index in range(self.calls):
                    run(index)
            finally:
                self._graph.capture_end()

    def warm_up(self) -> None:
        """Queues a replay that is not timed."""
        self._graph.replay()

    def queue(self) -> Callable[[], float]:
        """Queues a timed replay; what is returned gives its microseconds a call once the GPU has done it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self._graph.replay()
        end.record()

        def microseconds() -> float:
            milliseconds: float = start.elapsed_time(end)
            return 1000.0 * milliseconds / self.calls

        return microseconds


@triton.jit(do_not_specialize=["turns"])
def _hold_kernel(zeros_ptr, turns):  # type: ignore[no-untyped-def]  # Triton reads annotations as types of its own
    # Each address follows from the value before it: the turns cannot overlap.
    place = tl.load(zeros_ptr, volatile=True)
    for _ in range(turns):
        place = tl.load(zeros_ptr + place, volatile=True)
    tl.store(zeros_ptr + 1 + place, place)


class _Gate:
    """Holds the GPU back until the host has queued what is timed.

    A host that comes late, such as one whose cores compile, else adds its own time between an event and its graph.
    """

    def __init__(self) -> None:
        self.most = MOST_QUEUED
        self._turns = 1000
        self._zeros: dict[int, torch.Tensor] = {}

    def hold(self) -> None:
        """Queues the kernel that holds the GPU back."""
        index = torch.cuda.current_device()
        if index not in self._zeros:
            self._zeros[index] = torch.zeros(2, dtype=torch.int32, device="cuda")
            _hold_kernel[(1,)](self._zeros[index], self._turns, num_warps=1)  # compiled before anything is timed
            torch.cuda.synchronize()
        _hold_kernel[(1,)](self._zeros[index], self._turns, num_warps=1)

    def time(self, replays: Sequence[Replay]) -> list[float]:
        """Microseconds a call of each of some graphs, replayed one after the other without the host."""
        for _ in range(ATTEMPTS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin = time.perf_counter()
            start.record()
            self.hold()
            end.record()
            queued = [replay.queue() for replay in replays]
            needed = 1000 * (time.perf_counter() - begin)
            torch.cuda.synchronize()
            held = max(start.elapsed_time(end), 1e-3)
            # The next time is likely to need as long; a turn takes as long as it took.
            self._turns = max(1, int(self._turns * min(2 * needed, MOST_HELD) / held))
            if held >= needed:
                break
        else:  # a queue that is full lets nothing more in until the GPU goes on
            self.most = max(LEAST_QUEUED, self.most // 2)
        return [microseconds() for microseconds in queued]


_gate = _Gate()


def time_interleaved(replays: Sequence[Replay], rounds: int, warmup: int = 2) -> list[Timing]:
    """Times graphs in turn, ``rounds`` times each, so that a drift of the clock meets all alike."""
    for replay in replays:
        for _ in range(warmup):
            replay.warm_up()
    turns = [replay for _ in range(rounds) for replay in replays]
    samples: list[float] = []
    while len(samples) < len(turns):
        samples += _gate.time(turns[len(samples) :][: _gate.most])
    return [Timing.of(samples[at :: len(replays)]) for at in range(len(replays))]


def time_captured(captured: Sequence[Sequence[Replay]], rounds: int) -> list[Timing]:
    """Times kernels in turn, each in all of its graphs, which have equally many; ``rounds`` samples a kernel, or more.

    Where calls are short one graph of a kernel differs from another of it by more than its samples do.
    """
    each_rounds = -(-rounds // max(len(replays) for replays in captured))
    timings = iter(time_interleaved([replay for replays in captured for replay in replays], each_rounds))
    return [Timing.of([sample for _ in replays for sample in next(timings).samples]) for replays in captured]


def empty_kernel_replay() -> Replay:
    """A kernel that does nothing: what a launch in a graph takes."""
    return Replay(_launch_empty)


def copy_bandwidth(gib: float = 2.0) -> float:
    """Bytes a second of a device-to-device copy, read + written, cold."""
    count = int(gib * 2**30 / 4)
    source = torch.randint(0, 2**31 - 1, (count,), dtype=torch.int32, device="cuda")
    destination = torch.empty_like(source)

    def run(_: int) -> None:
        destination.copy_(source)

    timing = time_interleaved([Replay(run, sets=1)], rounds=9)[0]
    return 2 * 4 * count / (timing.median * 1e-6)
