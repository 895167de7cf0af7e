"""Processes that fail in every way, and a pool that goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import isolated_tasks as tasks
import pytest

from tunegen.evaluate.isolated import IsolatedPool, TaskFailedError, TimeLimit, WorkerStartError


@pytest.fixture(scope="module")
def pool() -> Iterator[IsolatedPool]:
    with IsolatedPool(1, TimeLimit(2, 2), memory=600 << 20) as made:
        yield made


def gone(pid: int) -> bool:
    """True once the process has ended; a zombie has."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("task", "reason", "replaced"),
    [
        (tasks.raises, "ValueError: planted", False),
        (tasks.exits_in_python, "tried to exit with status 4", False),
        (tasks.unusable, "planted fault", True),
        (tasks.exits, "its process exited with status 3: last words", True),
        (tasks.aborts, "its process was ended by SIGABRT", True),
        (tasks.killed_always, "its process was ended by SIGKILL", True),
        (tasks.eats_memory, "took more than 0.6 GiB of memory", True),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_failure_costs_its_task_alone(
    pool: IsolatedPool, task: Callable[[], Any], reason: str, replaced: bool
) -> None:
    before = pool.submit(tasks.own_pid)
    failing = pool.submit(task)
    after = pool.submit(tasks.own_pid)
    with pytest.raises(TaskFailedError) as caught:
        failing.result()
    assert str(caught.value).startswith(reason)
    assert (before.result() != after.result()) == replaced


def test_a_task_that_hangs_is_killed_with_what_it_started(pool: IsolatedPool, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    with pytest.raises(TaskFailedError, match="ran longer than the limit of 2 s"):
        pool.submit(tasks.starts_a_child_and_hangs, str(note)).result()
    assert all(gone(int(pid)) for pid in note.read_text().split())


def test_a_process_killed_from_outside_has_its_task_run_again(pool: IsolatedPool, tmp_path: Path) -> None:
    assert pool.submit(tasks.killed_the_first_time, str(tmp_path / "note")).result() == "xx"


def test_a_process_killed_while_idle_costs_nothing(pool: IsolatedPool) -> None:
    first = pool.submit(tasks.own_pid).result()
    os.kill(first, signal.SIGKILL)
    assert pool.submit(tasks.own_pid).result() != first


def test_closing_cancels_what_runs_and_what_waits() -> None:
    with IsolatedPool(1, TimeLimit(1000, 1000)) as pool:
        pid = pool.submit(tasks.own_pid).result()
        futures = [pool.submit(tasks.sleeps, 1000.0) for _ in range(2)]
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()
    assert gone(pid)
    assert pool.submit(tasks.own_pid).cancelled()


def test_a_worker_that_cannot_be_set_up_is_no_fault_of_a_task() -> None:
    with (
        IsolatedPool(1, TimeLimit(5, 5), tasks.cannot_set_up) as pool,
        pytest.raises(WorkerStartError, match="RuntimeError: no such device"),
    ):
        pool.submit(tasks.own_pid).result()


def test_processes_are_started_before_there_is_a_task() -> None:
    with IsolatedPool(2, TimeLimit(5, 5)) as pool:
        before = set(multiprocessing.active_children())
        pool.start()
        end = time.monotonic() + 60
        while len(started := set(multiprocessing.active_children()) - before) < 2:
            assert time.monotonic() < end, "they are not started"
            time.sleep(0.01)
        pool.start()
        assert pool.submit(tasks.own_pid).result() in {process.pid for process in started}
        assert set(multiprocessing.active_children()) - before == started


def test_the_limit_follows_what_tasks_take() -> None:
    limit = TimeLimit(first=300, least=10, factor=20)
    assert limit.seconds == 300
    for seconds in (1, 2, 60):
        limit.took(seconds)
    assert limit.seconds == 40
    for _ in range(3):
        limit.took(0.1)
    assert limit.seconds == pytest.approx(20 * 0.55)
    limit.took(0.1)
    limit.took(0.1)
    assert limit.seconds == 10
