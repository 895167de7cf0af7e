"""Runs tasks in processes that may crash, hang or exhaust memory at the cost of that task alone.

Every worker process has a pipe and a thread of the parent to itself, and shares no lock or queue with the others: one
can be killed at any moment, even while it sends, and nothing but its task is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import queue
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tunegen.errors import TunegenError

Result = TypeVar("Result")

# A process imports torch and makes a context on the GPU before it takes a task.
START_SECONDS = 600.0
# How often a running task's memory is looked at.
TICK_SECONDS = 0.2
KILL_SECONDS = 10.0
SHOWN_OUTPUT = 600
PR_SET_PDEATHSIG = 1


class TaskFailedError(TunegenError):
    """A task that failed, whatever its process did; the message is the reason."""


class WorkerUnusableError(Exception):
    """Raised by a task whose process should not serve another one, such as after a fault on the GPU."""


class WorkerStartError(TunegenError):
    """A worker process that does not get as far as its first task: no task's fault."""


class TimeLimit:
    """How long a task may run: many times what the others took.

    Args:
        first: Seconds, until three tasks have finished.
        least: Seconds that a task always has.
        factor: Times the median of those that finished.
    """

    def __init__(self, first: float, least: float, factor: float = 20.0) -> None:
        self._first, self._least, self._factor = first, least, factor
        self._taken: list[float] = []

    @property
    def seconds(self) -> float:
        """The limit now."""
        taken = self._taken[:]
        if len(taken) < 3:
            return self._first
        return max(self._least, self._factor * statistics.median(taken))

    def took(self, seconds: float) -> None:
        """Counts a task that finished."""
        self._taken.append(seconds)


@dataclass(frozen=True)
class _Task:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    limit: TimeLimit
    future: Future[Any] = field(default_factory=Future)


class _EndedError(Exception):
    """The process is gone, or the pool is closing."""


class _DiedError(TaskFailedError):
    """The process ended by itself while it had the task."""


def _nothing() -> None:
    pass


class _Worker:
    """A process and the parent's end of its pipe."""

    def __init__(self, setup: Callable[[], None], output: Path, closing: threading.Event) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._output, self._closing = output, closing
        self._process = context.Process(
            target=_work, args=(theirs, setup, str(output), os.getpid()), name="tunegen-worker", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            kind, text = self._receive(START_SECONDS, None)
        except (_EndedError, TimeoutError) as error:
            self.kill()
            raise WorkerStartError(f"A worker process does not start: {self.ending(0)}") from error
        if kind != "ready":
            self.kill()
            raise WorkerStartError(f"A worker process cannot be set up: {text}")

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def _receive(self, seconds: float, memory: int | None) -> tuple[str, Any]:
        """The next message; raises TimeoutError, MemoryError or _EndedError."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer within {seconds:.0f} s")
            wait([self._connection, self._process.sentinel], min(left, TICK_SECONDS))
            try:
                if self._connection.poll():
                    message: tuple[str, Any] = self._connection.recv()
                    return message
            except (EOFError, OSError) as error:
                self._process.join(KILL_SECONDS)
                raise _EndedError from error
            if self._closing.is_set() or (not self._process.is_alive() and not self._connection.poll()):
                raise _EndedError
            if memory is not None and _resident_bytes(self._process.pid) > memory:
                raise MemoryError

    def run(self, task: _Task, limit: float, memory: int) -> tuple[str, Any]:
        """Sends a task and waits for what becomes of it: ``("done", value)``, ``("failed" or "unusable", reason)``.

        Raises:
            _EndedError: The process had ended before it took the task.
            TaskFailedError: It ended, or was killed for its time or memory, while it had the task.
        """
        written = self._output.stat().st_size
        try:
            self._connection.send((task.function, task.args))
        except OSError as error:
            raise _EndedError from error
        # It takes the task at once, unless it has ended.
        self._receive(START_SECONDS, None)
        try:
            return self._receive(limit, memory)
        except TimeoutError:
            self.kill()
            raise TaskFailedError(f"ran longer than the limit of {limit:.0f} s") from None
        except MemoryError:
            self.kill()
            raise TaskFailedError(f"took more than {memory / 2**30:.1f} GiB of memory") from None
        except _EndedError:
            raise _DiedError(self.ending(written)) from None

    @property
    def killed(self) -> bool:
        """True if a SIGKILL ended it."""
        return self._process.exitcode == -signal.SIGKILL

    def ending(self, written: int) -> str:
        """How the process ended, with what it printed last, from byte ``written`` of its output on."""
        code = self._process.exitcode
        if code is None:
            how = "its process does not answer"
        elif code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
        else:
            how = f"its process exited with status {code}"
        with self._output.open("rb") as file:
            file.seek(written)
            text = file.read().decode(errors="replace").strip()
        return f"{how}: {text[-SHOWN_OUTPUT:]}" if text else how

    def kill(self) -> None:
        """Ends the process and those that it started."""
        if self._process.pid is not None and self._process.is_alive():
            # It leads a group of its own as soon as it runs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        # One that the GPU's driver holds may stay a while; nothing waits for it.
        self._process.join(KILL_SECONDS)
        self._connection.close()


class IsolatedPool:
    """A pool of processes whose tasks fail alone; a context manager.

    Processes start with the first tasks, or with `start`, and are replaced when they end. A task whose process was
    killed from outside is run once more.

    Args:
        workers: Number of processes.
        limit: How long a task may run.
        setup: Run in a process before its first task; like the tasks it must be importable by name.
        memory: Resident bytes that a process may have; default: an equal share of this machine's.
    """

    def __init__(
        self, workers: int, limit: TimeLimit, setup: Callable[[], None] = _nothing, memory: int | None = None
    ) -> None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._workers, self._limit, self._setup = workers, limit, setup
        self._memory = memory or max(total // (workers + 1), 2 << 30)
        self._outputs = tempfile.TemporaryDirectory(prefix="tunegen-output-")
        # Urgent ones first, then in order.
        self._tasks: queue.PriorityQueue[tuple[bool, int, _Task | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        # Each thread has the entry under its own index.
        self._running: dict[int, _Worker] = {}
        self._unfinished = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> IsolatedPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the processes before the first task comes: they take seconds until they can take one."""
        starting = TimeLimit(START_SECONDS, START_SECONDS)
        for _ in range(self._workers - len(self._threads)):
            self.submit(_nothing, limit=starting)

    def submit(
        self, function: Callable[..., Result], *args: Any, limit: TimeLimit | None = None, urgent: bool = False
    ) -> Future[Result]:
        """Queues a call. Its future raises TaskFailedError for whatever goes wrong with it.

        Args:
            function: What to call; importable by name.
            args: Its arguments.
            limit: How long it may run; default: the pool's limit.
            urgent: It goes before all that are not and have not begun.

        The future raises WorkerStartError if no process can be started, and is cancelled when the pool closes.
        """
        task = _Task(function, args, limit or self._limit)
        with self._lock:
            if self._closing.is_set():
                task.future.cancel()
                return task.future
            self._unfinished += 1
            if len(self._threads) < min(self._workers, self._unfinished):
                thread = threading.Thread(target=self._serve, args=(len(self._threads),), daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put((not urgent, next(self._numbers), task))
        return task.future

    def close(self) -> None:
        """Kills the processes; tasks that have not finished are cancelled."""
        with self._lock:
            self._closing.set()
        for _ in self._threads:
            self._tasks.put((False, next(self._numbers), None))
        for thread in self._threads:
            thread.join()
        while not self._tasks.empty():
            _, _, task = self._tasks.get()
            if task is not None:
                task.future.cancel()
        self._outputs.cleanup()

    def _serve(self, index: int) -> None:
        try:
            while (task := self._tasks.get()[2]) is not None and not self._closing.is_set():
                if task.future.set_running_or_notify_cancel():
                    self._settle(index, task)
                with self._lock:
                    self._unfinished -= 1
            if task is not None:
                task.future.cancel()
        finally:
            self._drop(index)

    def _settle(self, index: int, task: _Task) -> None:
        try:
            value = self._attempt(index, task)
        except BaseException as error:
            # What a closing pool does to a task is no failure of the task.
            task.future.set_exception(CancelledError() if self._closing.is_set() else error)
        else:
            task.future.set_result(value)

    def _attempt(self, index: int, task: _Task) -> Any:
        tries = 0
        while True:
            worker = self._running.get(index)
            if worker is None or not worker.alive:
                self._drop(index)
                worker = self._start(index)
            tries += 1
            began = time.monotonic()
            try:
                kind, value = worker.run(task, task.limit.seconds, self._memory)
            except _EndedError:
                if tries > 2 or self._closing.is_set():
                    raise WorkerStartError(f"A worker process takes no task: {worker.ending(0)}") from None
                continue
            except _DiedError:
                self._drop(index)
                if not worker.killed or tries > 1 or self._closing.is_set():
                    raise
                continue
            if kind == "done":
                task.limit.took(time.monotonic() - began)
                return value
            if kind == "unusable":
                self._drop(index)
            raise TaskFailedError(value)

    def _start(self, index: int) -> _Worker:
        handle, name = tempfile.mkstemp(dir=self._outputs.name)
        os.close(handle)
        worker = self._running[index] = _Worker(self._setup, Path(name), self._closing)
        return worker

    def _drop(self, index: int) -> None:
        worker = self._running.pop(index, None)
        if worker is not None:
            worker.kill()


def _resident_bytes(pid: int | None) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:  # it has just ended
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _work(connection: Connection, setup: Callable[[], None], output: str, parent: int) -> None:
    """What a worker process does."""
    # A group of its own: Ctrl-C is the parent's to handle, and what the process starts is killed with it.
    os.setsid()
    # A task that never returns would not see that the parent has been killed.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with open(output, "ab") as file:  # noqa: PTH123 - its descriptor replaces standard output and error
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        setup()
    except BaseException as error:
        connection.send(("failed", _text(error)))
        os._exit(1)
    connection.send(("ready", ""))
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(("started", ""))
        try:
            value = function(*args)
        except WorkerUnusableError as error:
            connection.send(("unusable", str(error)))
            # Not a clean exit: that would wait for a GPU which may never answer.
            os._exit(1)
        except BaseException as error:
            connection.send(("failed", _text(error)))
        else:
            connection.send(("done", value))


def _text(error: BaseException) -> str:
    if isinstance(error, TunegenError):
        return str(error)
    if isinstance(error, MemoryError):
        return "ran out of memory"
    if isinstance(error, SystemExit):
        return f"tried to exit with status {error.code}"
    return f"{type(error).__name__}: {error}"
