"""Processes that compile for a warm-up, and how its jobs are shared among them; no GPU is needed for that."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from synthetic import make_entry, make_rope_entry

from tunegen.oppack import emit_pack
from tunegen.ops.mla_rope import INPLACE
from tunegen.runtime.families import mla_rope
from tunegen.runtime.forms import load_form
from tunegen.runtime.kernel import load_kernel
from tunegen.runtime.warmup import Wanted, run
from tunegen.runtime.warmup.compilers import CompileOnly, Compiler, Task, compile_for
from tunegen.runtime.warmup.jobs import Job
from tunegen.runtime.warmup.run import Schedule, order_of, worth_processes
from tunegen.targets import get_target

CPU = torch.device("cpu")
TARGETS: dict[str, tuple[str, Any, int]] = {"sm90": ("cuda", 90, 32), "gfx950": ("hip", "gfx950", 64)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Triton's, set as a program may set it: not by its environment."""
    # Setting the attribute would set the variable of the environment too.
    monkeypatch.setitem(vars(triton.knobs.cache), "dir", str(tmp_path / "cache"))
    assert triton.knobs.cache.dir == str(tmp_path / "cache")
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

    load_form.cache_clear()  # what this process compiled stays with the functions
    load_kernel.cache_clear()
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
        assert [compiler.compile(number) for number in (0, 3, 5)] == ["", "", ""]
        assert all(hits(task, 0, monkeypatch))
        assert all(hits(task, 3, monkeypatch))
        assert all(hits(task, 5, monkeypatch))
        assert not any(hits(task, 1, monkeypatch))
        os.kill(compiler._process.pid, signal.SIGKILL)
        assert [compiler.compile(number) for number in (1, 2)] == ["it has ended", "it has ended"]


def test_a_job_that_does_not_compile_is_answered(task: Task, cache: Path) -> None:
    """Whoever asked compiles it too, and raises what is wrong with it."""
    jobs = task.jobs(CPU)
    jobs[0].path.write_text(jobs[0].path.read_text().replace("tl.load(", "tl.lood("))
    with Compiler(task, TARGETS[task.key.arch]) as compiler:
        assert compiler.compile(0).startswith("CompilationError: ")
        assert compiler.compile(5) == ""


def test_paths_that_are_no_text_and_what_is_printed_do_not_matter(
    task: Task, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printing = task.jobs(CPU)[5].path
    printing.write_text("print('hello', flush=True)\n" + printing.read_text())
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    with Compiler(task, TARGETS[task.key.arch]) as compiler:
        assert [compiler.compile(number) for number in (5, 0)] == ["", ""]


def test_ctrl_c_is_not_for_a_process(task: Task, cache: Path) -> None:
    """It is sent to all processes of the terminal's foreground group."""
    with Compiler(task, TARGETS[task.key.arch]) as compiler:
        assert os.getpgid(compiler._process.pid) != os.getpgid(0)


def test_a_warm_up_compiles_everything_and_launches_it_once(
    task: Task, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU that is made up: the second of two, of a machine with four cores."""
    gpu = SimpleNamespace(device=lambda _: nullcontext(), device_count=lambda: 2, synchronize=lambda _: None)
    monkeypatch.setattr(run, "torch", SimpleNamespace(cuda=gpu, device=lambda *_: CPU))
    monkeypatch.setattr(run, "device_key", lambda _: task.key)
    monkeypatch.setattr(run, "worth_processes", lambda elapsed, done, left: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    launched: list[Job] = []
    run_job = Job.run

    def run_or_launch(job: Job, function: Any, units: int) -> None:
        if isinstance(function(None), CompileOnly):
            run_job(job, function, units)
        else:
            launched.append(job)

    with monkeypatch.context() as patched:
        patched.setattr(Job, "run", run_or_launch)
        done = run.warm_up(task.root, 1, task.dtypes, task.wanted, verbose=True)
    jobs = task.jobs(CPU)
    assert [(job.path, job.aligned) for job in launched] == [(job.path, job.aligned) for job in jobs]
    found = [hits(task, number, monkeypatch) for number in range(len(jobs))]
    assert all(map(all, found))
    assert done.kernels == sum(map(len, found))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(jobs) + 1
    assert said[-1] == str(done)


class Fake:
    """In the place of a `Compiler`."""

    def __init__(self, log: list[tuple[str, int]], why: str) -> None:
        self.log, self.why, self.ended = log, why, False

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True

    def compile(self, number: int) -> str:
        self.log.append(("process", number))
        return self.why


class Shared:
    """A schedule of 400 jobs for seven threads; each is in its first one until all are, so that none comes too late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, why: str = "") -> None:
        monkeypatch.setattr(run, "worth_processes", lambda elapsed, done, left: True)
        self.log: list[tuple[str, int]] = []
        self.processes: list[Fake] = []
        started = threading.Barrier(7)
        waited: set[int] = set()

        def here(number: int) -> None:
            thread = threading.get_ident()
            if thread not in waited:
                waited.add(thread)
                started.wait(timeout=60)
            self.log.append(("here", number))

        def start() -> Any:
            self.processes.append(Fake(self.log, why))
            return self.processes[-1]

        Schedule(range(400), here, start).run(7)


def test_processes_compile_first_what_is_then_found_here(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared(monkeypatch)
    assert sorted(number for place, number in shared.log if place == "here") == list(range(400))
    assert len(shared.processes) == 7 - run.OWN_THREADS
    assert all(process.ended for process in shared.processes)
    elsewhere = [number for place, number in shared.log if place == "process"]
    assert len(elsewhere) == len(set(elsewhere)) >= len(shared.processes)
    for number in elsewhere:
        assert shared.log.index(("process", number)) < shared.log.index(("here", number))


def test_a_process_that_is_of_no_use_is_said_and_its_job_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="done without: it has ended"):
        shared = Shared(monkeypatch, "it has ended")
    assert sorted(number for place, number in shared.log if place == "here") == list(range(400))
    assert sum(place == "process" for place, _ in shared.log) == len(shared.processes) == 7 - run.OWN_THREADS


def test_where_no_process_can_start_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "worth_processes", lambda elapsed, done, left: True)
    done: list[int] = []
    barrier = threading.Barrier(3)
    waited: set[int] = set()

    def here(number: int) -> None:
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            barrier.wait(timeout=60)
        done.append(number)

    def start() -> Any:
        raise BlockingIOError("no more processes")

    with pytest.warns(UserWarning, match="it cannot be started: no more processes"):
        Schedule(range(50), here, start).run(3)
    assert sorted(done) == list(range(50))


def test_a_few_threads_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "worth_processes", lambda elapsed, done, left: True)
    done: list[int] = []
    Schedule(range(50), done.append, lambda: pytest.fail("no process is needed")).run(run.OWN_THREADS)
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize(
    ("elapsed", "done", "left", "worth"),
    [
        (1.0, 5, 400, False),  # not known yet
        (2.5, 15, 400, True),
        (2.5, 0, 1, True),  # a kernel that takes long is none of the cache's
        (2.5, 15, 60, False),  # 10 seconds more
        (2.5, 15, 80, True),  # 13
        (2.5, 150, 1400, False),  # from the cache: 23 seconds more, and processes would not help
    ],
)
def test_when_processes_are_worth_while(elapsed: float, done: int, left: int, worth: bool) -> None:
    assert worth_processes(elapsed, done, left) == worth


def test_devices_begin_at_different_jobs() -> None:
    assert order_of(5, 0, 1) == [0, 1, 2, 3, 4]
    assert [order_of(10, index, 4)[0] for index in range(4)] == [0, 2, 5, 7]
    assert all(sorted(order_of(10, index, 4)) == list(range(10)) for index in range(4))
    assert order_of(0, 3, 4) == []


def test_what_a_job_raises_ends_the_schedule() -> None:
    begun: list[int] = []

    def here(number: int) -> None:
        begun.append(number)
        if number == 5:
            raise ValueError("job 5")
        if number > 5:
            raised.wait(timeout=60)  # until the thread of job 5 has ended

    raised = threading.Event()

    class Ending(Schedule):
        def _work(self, may_start: bool) -> None:
            try:
                super()._work(may_start)
            finally:
                raised.set()

    with pytest.raises(ValueError, match="job 5"):
        Ending(range(1000), here, lambda: pytest.fail("no process is needed")).run(run.OWN_THREADS)
    assert len(begun) <= 7
