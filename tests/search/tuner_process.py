"""A tuner in a process of its own, for tests that kill it or run two of them; its worker times by a formula."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from formula_task import timed
from quiet import Quiet

from tunegen.configs import TunedBucket, TunedEntry
from tunegen.evaluate.isolated import IsolatedPool, TimeLimit
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.search.decide import decide
from tunegen.search.evaluators import Choice, Evaluator
from tunegen.search.record import Outcome
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, tune
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TARGET = get_target("sm90")
TOKENS = (1, 4096)

# A server that has imported all of this starts a tuner in no time.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Worker(Evaluator):
    """Has a worker process time configs, one at a time."""

    evidence = "predicted"

    def __init__(self, folder: Path, name: str, seconds: float) -> None:
        super().__init__(TARGET, DeviceKey("sm90", 132, 79), list(TOKENS), workers=1)
        self.notes, self.name, self.seconds = folder, name, seconds
        self.pool = IsolatedPool(1, TimeLimit(60, 60))
        self.pool.start()

    def close(self) -> None:
        self.pool.close()
        super().close()

    @property
    def environment(self) -> dict[str, str]:
        return {"device_name": "a formula"}

    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()

        def done(future: Future[dict[int, float]]) -> None:
            if error := future.exception():
                outcome.set_exception(error)
            else:
                outcome.set_result(Outcome(config, future.result(), "", {}))

        task = self.pool.submit(timed, config_key(config), TOKENS, str(self.notes), self.name, self.seconds)
        task.add_done_callback(done)
        return outcome

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> Choice:
        family = get_family(problem.op)
        default = family.default(problem, TARGET)
        buckets = []
        for tokens, edge in zip(TOKENS, edges, strict=True):
            times = [(outcome.config, outcome.times[tokens]) for outcome in outcomes]
            decision = decide(times, default, 0.01, lambda c: family.complexity(problem, TARGET, c))
            buckets.append(TunedBucket(tokens, edge, decision.config, {"predicted_us": decision.time}))
        return Choice(buckets, [])


class Noting(Quiet):
    """Notes every outcome once it is recorded, and the winners."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.folder, self.name = folder, name

    def evaluated(self, problem: Problem, outcome: Outcome, done: int, best: float) -> None:
        with (self.folder / "recorded.log").open("a") as file:
            file.write(config_key(outcome.config) + "\n")

    def decided(self, entry: TunedEntry, idle: dict[str, int]) -> None:
        (self.folder / f"winners-{self.name}.json").write_text(json.dumps([bucket.config for bucket in entry.buckets]))


def _main(url: str, folder: Path, name: str, trials: int, seconds: float) -> None:
    os.setsid()
    with Worker(folder, name, seconds) as evaluator:
        plan = Plan(TOKENS, trials, 0)
        list(tune([PROBLEM], evaluator, plan, open_storage(url), [], Noting(folder, name)))


def start(url: str, folder: Path, name: str, trials: int, seconds: float) -> ForkServerProcess:
    """Starts a tuner whose trials take so many seconds."""
    process = CONTEXT.Process(target=_main, args=(url, folder, name, trials, seconds))
    process.start()
    return process


def lines(path: Path) -> list[str]:
    """The whole lines of a log; a process may have been killed while it wrote the last one."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, for two minutes at most."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)
