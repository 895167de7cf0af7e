"""Times kernels on the GPU by replaying CUDA graphs.

Device time only: a graph of many launches is replayed between two events. Inputs rotate. Below the L2 size
they are two sets and stay hot, as in a model whose producer has just run; above it a set is cold when it
returns. Kernels that are compared are timed interleaved, and all their graphs are queued before the first has ended:
the GPU never waits for the host between an event and its graph, however busy the host's cores are with compiling.
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

POLICY = "cuda-graph-replay/2"
GRAPH_CALLS = 40
# A graph of large calls needs no 40 of them to be long beside an event's resolution of half a microsecond.
GRAPH_MICROSECONDS = 1000.0
# A GPU that has had nothing to do for so long (seconds) may have lowered its clock, to a sixth on an H100.
IDLE_SECONDS = 0.05
# It is up again once a graph is replayed no faster, by this much, than before for so many batches of so long.
SETTLED = 0.01
SETTLED_BATCHES = 4
BATCH_MICROSECONDS = 5000.0
SPIN_UP_SECONDS = 1.0


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
        with torch.cuda.graph(self._graph, stream=stream):
            for index in range(self.calls):
                run(index)

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


class _Clock:
    """The GPU's clock, which falls when there is nothing to do and takes a while to rise."""

    def __init__(self) -> None:
        self._busy_until = float("-inf")

    def busy(self) -> None:
        """Says that the GPU was at work until now."""
        self._busy_until = time.monotonic()

    def spin_up(self, replay: Replay) -> None:
        """Replays a graph until it gets no faster, if the GPU may have been idle."""
        start = time.monotonic()
        if start - self._busy_until < IDLE_SECONDS:
            return
        fastest, settled, count = float("inf"), 0, 1
        while settled < SETTLED_BATCHES and time.monotonic() - start < SPIN_UP_SECONDS:
            queued = [replay.queue() for _ in range(count)]
            torch.cuda.synchronize()
            us = statistics.median(sample() for sample in queued)
            settled = settled + 1 if us > (1 - SETTLED) * fastest else 0
            fastest = min(fastest, us)
            count = max(1, int(BATCH_MICROSECONDS / (us * replay.calls)))


_clock = _Clock()


def time_interleaved(replays: Sequence[Replay], rounds: int, warmup: int = 2) -> list[Timing]:
    """Times graphs in turn, ``rounds`` times each, so that a drift of the clock meets all alike."""
    _clock.spin_up(replays[0])
    for replay in replays:
        for _ in range(warmup):
            replay.warm_up()
    queued = [[replay.queue() for replay in replays] for _ in range(rounds)]
    torch.cuda.synchronize()
    _clock.busy()
    return [Timing.of([sample() for sample in samples]) for samples in zip(*queued, strict=True)]


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
