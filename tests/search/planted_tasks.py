"""What the GPU's worker runs in test_planted_trials.py: times by a formula, and faults by config."""

from __future__ import annotations

import ast
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunegen.evaluate.isolated import WorkerUnusableError

if TYPE_CHECKING:
    from tunegen.evaluate.measure import Timing
    from tunegen.evaluate.trial import Contest

# Every call of a task, a line each.
LOG = "calls.log"


def config_of(source: Path) -> dict[str, str]:
    """The config that a rendered file names in its header."""
    match = re.search(r"^# config +(.*)$", source.read_text(), re.MULTILINE)
    assert match
    return dict(item.split("=", 1) for item in match[1].split(", "))


def formula(config: dict[str, str], tokens: int) -> float:
    """Rows are good, and warps once there are many tokens."""
    warps = int(config["num_warps"])
    return 20.0 - int(config["rows"]) - (warps if tokens > 64 else -warps) / 8


def _note(task: str, source: Path) -> None:
    with (source.parent / LOG).open("a") as file:
        file.write(f"{task} {source.name}\n")


def _fault(source: Path, faults: dict[str, str]) -> None:
    fault = faults.get(source.name, "")
    if fault == "hangs":
        time.sleep(1000)
    if fault == "exits":
        os._exit(5)
    if fault == "faults":
        raise WorkerUnusableError("AcceleratorError: CUDA error: an illegal memory access was encountered")
    if fault == "wrong":
        raise WorkerUnusableError("computes wrong results: q: 3 bytes not written")
    if fault == "exhausts memory":
        eaten = []
        while True:
            eaten.append(bytes([1]) * (32 << 20))


def faults_of(source: Path, when: str) -> dict[str, str]:
    """The faults that the test has planted, by file name."""
    path = source.parent / f"faults_{when}.txt"
    return dict(ast.literal_eval(path.read_text())) if path.exists() else {}


def start(index: int) -> None:
    assert index in (0, 1)


def look(problem: object, target: str, source: Path, lanes: int, tokens: Sequence[int]) -> dict[int, float]:
    _note("look", source)
    _fault(source, faults_of(source, "look"))
    config = config_of(source)
    return {count: formula(config, count) for count in tokens}


def probe(problem: object, tokens: int, source: Path) -> float:
    _note("probe", source)
    _fault(source, faults_of(source, "final") | faults_of(source, "race"))
    return formula(config_of(source), tokens)


def contest(problem: object, tokens: int, twins: Sequence[Path], kernels: Sequence[Path]) -> Contest:
    from tunegen.evaluate.measure import Timing
    from tunegen.evaluate.trial import Contest

    for source in kernels:
        _note("final", source)
        _fault(source, faults_of(source, "final"))
    timings = [Timing.of([formula(config_of(source), tokens)] * 3) for source in kernels]
    return Contest(Timing.of([1.0]), Timing.of([2.0]), tuple(timings))


def race(problem: object, tokens: int, kernels: Sequence[Path], stays: Path | None) -> tuple[Timing, ...]:
    from tunegen.evaluate.measure import Timing

    # What many are compared with, the default, is among them.
    assert len(kernels) <= 2 or stays in kernels
    for source in kernels:
        _note("race", source)
        _fault(source, faults_of(source, "race"))
    return tuple(Timing.of([formula(config_of(source), tokens)] * 3) for source in kernels)


def forget(problem: object) -> None:
    pass
