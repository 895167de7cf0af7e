"""Compiles every kernel that calls on a device could ask for, before the first of them comes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..device import device_key
from .compilers import CompileOnly, Compiler, Task
from .jobs import Job
from .wanted import Wanted

# Of however many cores: each process takes a third of a GiB of the host's memory, and several ranks may start at once.
MOST_THREADS = 16
# Threads that compile in this process beside others that do: more of them would wait for Python's lock.
OWN_THREADS = 2
# After so many seconds it is known how fast threads are. If the rest would take them so much longer, processes start,
# which need 5 to 10 to import torch; but not where so many jobs a second say that kernels come from Triton's cache.
LOOK_SECONDS = 2.0
WORTH_SECONDS = 12.0
CACHED_RATE = 25.0


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did.

    Attributes:
        kernels: Compiled kernels that are now loaded, from the compiler or from Triton's cache.
        seconds: What it took.
    """

    kernels: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kernels} kernels ready after {self.seconds:.1f} s"


def worth_processes(elapsed: float, done: int, left: int) -> bool:
    """True if threads that did so many jobs in so many seconds should be helped with those that are left."""
    if elapsed < LOOK_SECONDS or done > CACHED_RATE * elapsed:
        return False
    return left * elapsed > WORTH_SECONDS * done


def order_of(jobs: int, index: int, devices: int) -> list[int]:
    """The order in which one of several devices goes through the jobs.

    Ranks of a server start at the same time. Each begins elsewhere, and finds in Triton's cache what others did before.
    """
    first = index * jobs // devices
    return [*range(first, jobs), *range(first)]


class Schedule:
    """Has threads compile jobs, most of them by a process each once that is worth while.

    Args:
        order: The jobs' numbers.
        compile_here: Compiles one in this process, or finds it in Triton's cache.
        start: Starts a process.
    """

    def __init__(
        self, order: Sequence[int], compile_here: Callable[[int], None], start: Callable[[], Compiler]
    ) -> None:
        self._left = deque(order)
        self._compile_here, self._start = compile_here, start
        self._done = 0
        self._begin = time.monotonic()
        self._lock = threading.Lock()

    def run(self, threads: int) -> None:
        """Returns when all are compiled; raises what compiling one raises."""
        own = min(OWN_THREADS, threads)
        with ThreadPoolExecutor(threads, thread_name_prefix="tunegen-warmup") as pool:
            working = [pool.submit(self._work, rank >= own) for rank in range(threads)]
            with self._ended():
                for each in working:
                    each.result()

    @contextlib.contextmanager
    def _ended(self) -> Iterator[None]:
        """Where this ends, an error or Ctrl-C included, no further job is begun."""
        try:
            yield
        finally:
            self._left.clear()

    def _work(self, may_start: bool) -> None:
        with self._ended(), contextlib.ExitStack() as stack:
            compiler: Compiler | None = None
            while (number := self._next()) is not None:
                why = ""
                if may_start and compiler is None and self._is_slow():
                    try:
                        compiler = stack.enter_context(self._start())
                    except OSError as error:
                        why = f"it cannot be started: {error}"
                if compiler is not None:
                    why = compiler.compile(number)
                self._compile_here(number)  # raises if it is the kernel that is at fault
                if why:
                    message = f"A process that compiles kernels is done without: {why}. The warm-up takes longer."
                    warnings.warn(message, stacklevel=2)
                    compiler, may_start = None, False
                with self._lock:
                    self._done += 1

    def _next(self) -> int | None:
        with contextlib.suppress(IndexError):
            return self._left.popleft()
        return None

    def _is_slow(self) -> bool:
        return worth_processes(time.monotonic() - self._begin, self._done, len(self._left))


def warm_up(
    root: Path,
    index: int,
    dtypes: tuple[torch.dtype, ...] | None,
    wanted: Wanted,
    verbose: bool,
) -> WarmUp:
    """Compiles in parallel, then launches each kernel once, which loads it.

    Args:
        root: The package's folder.
        index: The CUDA or ROCm device.
        dtypes: Activation dtypes that calls will have; None: the one that each entry was tuned with.
        wanted: Which kernels.
        verbose: Print what is done.
    """
    import triton

    start = time.perf_counter()
    compiled: dict[int, Any] = {}
    task = Task(root, device_key(index), dtypes, wanted)
    units = task.key.units
    with torch.cuda.device(index):
        target = triton.runtime.driver.active.get_current_target()
        jobs: Sequence[Job] = task.jobs(torch.device("cuda", index))
        for job in jobs:
            job.examples.check()

    def compile_here(number: int) -> None:
        job = jobs[number]
        with torch.cuda.device(index):
            begin = time.perf_counter()
            job.run(lambda function: CompileOnly(function, lambda kernel: compiled.update({id(kernel): kernel})), units)
        if verbose:
            form = "aligned" if job.aligned else "general"
            print(f"{job.path.relative_to(root)} ({form}): compiled or found in {time.perf_counter() - begin:.2f} s")

    order = order_of(len(jobs), index, torch.cuda.device_count())
    gpu = (target.backend, target.arch, target.warp_size)
    schedule = Schedule(order, compile_here, lambda: Compiler(task, gpu))
    schedule.run(min(len(os.sched_getaffinity(0)), MOST_THREADS))
    with torch.cuda.device(index):
        for job in jobs:
            job.run(lambda function: function, units)
        torch.cuda.synchronize(index)
    result = WarmUp(len(compiled), time.perf_counter() - start)
    if verbose:
        print(result)
    return result
