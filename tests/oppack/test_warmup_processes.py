"""Processes that compile for a warm-up, and how its jobs are shared among them; no GPU is needed for that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from synthetic import make_entry, make_rope_entry

from tunegen.oppack import emit_pack
from tunegen.ops.mla_rope import INPLACE
from tunegen.runtime.families import mla_rope
from tunegen.runtime.warmup import Wanted, run
from tunegen.runtime.warmup.compilers import CompileOnly, Compiler, Task, compile_for
from tunegen.runtime.warmup.run import _Schedule
from tunegen.targets import get_target

CPU = torch.device("cpu")
TARGETS: dict[str, tuple[str, Any, int]] = {"sm90": ("cuda", 90, 32), "gfx950": ("hip", "gfx950", 64)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Triton's, set as a program may set it: not by its environment."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["sm90", "gfx950"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    """Two norms of a kernel and an op with tables, while this process compiles for the target too."""
    monkeypatch.setattr(mla_rope, "MAX_POSITION", 64)
    target = get_target(request.param)
    entries = [make_entry("rmsnorm_mxfp4_quant", 96, target), make_rope_entry(INPLACE, "act,fp8", target, buckets=1)]
    root = emit_pack(entries, tmp_path / "pack").package
    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    compile_for(TARGETS[request.param])
    yield Task(root, target.device, (torch.float16,), Wanted(variants=["none", "act,fp8"]))


def hits(task: Task, number: int, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each kernel of a job comes from Triton's cache."""
    found: list[bool] = []

    def heard(*, cache_hit: bool, **_: object) -> None:
        found.append(cache_hit)

    with monkeypatch.context() as patched:
        patched.setattr(triton.knobs.compilation, "listener", heard)
        job = task.jobs(CPU)[number]
        job.run(lambda function: CompileOnly(function, lambda kernel: None), task.key.units)
    assert found
    return found


def test_what_a_process_compiled_is_found_here(task: Task, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = task.jobs(CPU)
    assert [job.aligned for job in jobs] == [True, True, True, False, True, False]
    with Compiler(task, TARGETS[task.key.arch]) as compiler:
        for number in (0, 3, 5):
            assert compiler.compile(number)
        assert all(hits(task, 0, monkeypatch))
        assert all(hits(task, 3, monkeypatch))
        assert all(hits(task, 5, monkeypatch))
        assert not any(hits(task, 1, monkeypatch))
        os.kill(compiler._process.pid, signal.SIGKILL)
        assert not compiler.compile(1)
        assert not compiler.compile(2)


def test_a_job_that_does_not_compile_is_answered(task: Task, cache: Path) -> None:
    """Whoever asked compiles it too, and raises what is wrong with it."""
    jobs = task.jobs(CPU)
    jobs[0].path.write_text(jobs[0].path.read_text().replace("tl.load(", "tl.lood("))
    with Compiler(task, TARGETS[task.key.arch]) as compiler:
        assert compiler.compile(0)
        assert compiler.compile(5)


class Fake:
    """In the place of a `Compiler`; ends with the job number ``last``."""

    def __init__(self, log: list[tuple[str, int]], last: int = -1) -> None:
        self.log, self.last, self.ended = log, last, False

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True

    def compile(self, number: int) -> bool:
        self.log.append(("process", number))
        time.sleep(0.001)
        return number != self.last


def shared(
    monkeypatch: pytest.MonkeyPatch, jobs: int, threads: int, seconds: float, ends: bool = False
) -> tuple[list[tuple[str, int]], list[Fake]]:
    """What was compiled where by a schedule that looks at once, and its processes."""
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(run, "WORTH_SECONDS", 0.5)
    monkeypatch.setattr(run, "CACHED_RATE", 1000.0)
    log: list[tuple[str, int]] = []
    processes: list[Fake] = []
    lock = threading.Lock()

    def here(number: int) -> None:
        time.sleep(0 if ("process", number) in log else seconds)
        log.append(("here", number))

    def start() -> Any:
        with lock:
            processes.append(Fake(log))
            if ends:
                processes[-1].compile = lambda number: False  # type: ignore[method-assign]  # one that has ended
        return processes[-1]

    _Schedule(jobs, here, start).run(threads)
    return log, processes


def test_processes_start_where_compiling_here_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    log, processes = shared(monkeypatch, jobs=400, threads=7, seconds=0.02)
    assert sorted(number for place, number in log if place == "here") == list(range(400))
    assert len(processes) == 7 - run.OWN_THREADS
    assert all(process.ended for process in processes)
    elsewhere = [number for place, number in log if place == "process"]
    assert len(elsewhere) == len(set(elsewhere)) > 200
    for number in elsewhere:
        assert log.index(("process", number)) < log.index(("here", number))


def test_none_start_where_kernels_come_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    log, processes = shared(monkeypatch, jobs=8000, threads=7, seconds=0.001)
    assert len(log) == 8000
    assert processes == []


def test_none_start_on_a_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    log, processes = shared(monkeypatch, jobs=100, threads=2, seconds=0.02)
    assert len(log) == 100
    assert processes == []


def test_a_process_that_ended_is_said_and_its_job_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="has ended before its time"):
        log, processes = shared(monkeypatch, jobs=200, threads=6, seconds=0.02, ends=True)
    assert sorted(number for _, number in log) == list(range(200))
    assert len(processes) == 6 - run.OWN_THREADS


def test_what_a_job_raises_ends_the_schedule() -> None:
    done: list[int] = []

    def here(number: int) -> None:
        if number == 5:
            raise ValueError("job 5")
        done.append(number)
        time.sleep(0.001)

    with pytest.raises(ValueError, match="job 5"):
        _Schedule(100_000, here, lambda: pytest.fail("no process is needed")).run(4)
    assert len(done) < 50_000
