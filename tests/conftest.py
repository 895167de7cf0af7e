"""Shared fixtures: where kernels run: on the GPU if there is one; else executed on the CPU from their listings, where
the executor has the target (gfx950, gfx942), or in Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tunegen.codegen.render import render
from tunegen.errors import TargetError
from tunegen.evaluate.conformance import Case, fewest_lanes_per_row
from tunegen.evaluate.executor import Executor, executable
from tunegen.evaluate.interpreter import Interpreter, interpretable
from tunegen.evaluate.on_device import OnDevice
from tunegen.ops import Config
from tunegen.targets import Target, get_target, present_device

# Two warp sizes, and conversions to FP4 in software and by an instruction.
TARGETS_WITHOUT_A_GPU = ("sm90", "gfx942", "gfx950")

Work = Sequence[tuple[Case, Config]]
Judge = Callable[[Target, Work], list[str]]


def _gpu_target() -> Target | None:
    try:
        device = present_device()
    except TargetError:
        return None
    return device.target if device else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files of rendered kernels anew")
    parser.addoption("--exhaustive", action="store_true", help="run the check of all 2^32 fp32 patterns, on a GPU")
    parser.addoption(
        "--full-matrix",
        action="store_true",
        help="execute every config of gfx950 in every rounding, and every config variant at every size: CPU hours",
    )
    parser.addoption(
        "--write-docs",
        type=Path,
        metavar="REPORT",
        help="write the pictures of docs/, those of the report of this page",
    )
    parser.addoption("--aiter-root", type=Path, help="folder of an unpacked amd-aiter to compare with")


@pytest.fixture
def update_golden(pytestconfig: pytest.Config) -> bool:
    """True if golden files are to be written."""
    return bool(pytestconfig.getoption("--update-golden"))


@pytest.fixture
def exhaustive(pytestconfig: pytest.Config) -> bool:
    """True if the exhaustive check was asked for."""
    return bool(pytestconfig.getoption("--exhaustive"))


@pytest.fixture(scope="session")
def full_matrix(pytestconfig: pytest.Config) -> bool:
    """True if all of the matrix of executed kernels is to run, not what represents it."""
    return bool(pytestconfig.getoption("--full-matrix"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``target`` runs for that of the GPU here, or else for those that need none."""
    if "target" in metafunc.fixturenames:
        gpu = _gpu_target()
        targets = [gpu] if gpu else [get_target(name) for name in TARGETS_WITHOUT_A_GPU]
        metafunc.parametrize("target", targets, ids=lambda target: target.name)


@pytest.fixture(scope="session")
def on_gpu() -> bool:
    """True if kernels run on a GPU."""
    return _gpu_target() is not None


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rendered kernels are written; they must outlive what loads them."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def interpreter(pytestconfig: pytest.Config) -> Iterator[Interpreter]:
    """The pool of interpreting processes; they start with the first case."""
    # pytest-xdist has a process a core already.
    workers = 1 if hasattr(pytestconfig, "workerinput") else os.cpu_count() or 2
    with Interpreter(workers) as pool:
        yield pool


@pytest.fixture(scope="session")
def executor(pytestconfig: pytest.Config) -> Iterator[Executor]:
    """The pool of processes that compile for a GPU that is not here and execute the listings; as above."""
    workers = 1 if hasattr(pytestconfig, "workerinput") else os.cpu_count() or 2
    with Executor(workers) as pool:
        yield pool


@pytest.fixture(scope="session")
def device_pool(pytestconfig: pytest.Config) -> Iterator[OnDevice]:
    """Processes that compile and run kernels on the GPU side by side."""
    workers = getattr(pytestconfig, "workerinput", {"workercount": 1})["workercount"]
    with OnDevice(max(1, min(16, os.cpu_count() or 1) // workers)) as pool:
        yield pool


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest, kernel_folder: Path, on_gpu: bool) -> Judge:
    """Runs cases, each with a config, and returns what is wrong, a line a failure."""

    def on_device(target: Target, work: Work) -> list[list[str]]:
        pool: OnDevice = request.getfixturevalue("device_pool")
        futures = []
        for case, config in work:
            path = render(case.problem, target, config).write(kernel_folder)
            futures.append(pool.submit(path, case, fewest_lanes_per_row(target, config)))
        return [future.result() for future in futures]

    def interpreted(target: Target, work: Work) -> list[list[str]]:
        pool: Interpreter = request.getfixturevalue("interpreter")
        futures = []
        for case, config in work:
            path = interpretable(case.problem, target, config).write(kernel_folder)
            futures.append(pool.submit(path, case, fewest_lanes_per_row(target, config)))
        return [future.result() for future in futures]

    def executed(target: Target, work: Work) -> list[list[str]]:
        pool: Executor = request.getfixturevalue("executor")
        futures = []
        for case, config in work:
            path = render(case.problem, target, config).write(kernel_folder)
            futures.append(pool.submit(path, case, fewest_lanes_per_row(target, config), target))
        return [future.result() for future in futures]

    def run(target: Target, work: Work) -> list[str]:
        how = on_device if on_gpu else executed if executable(target) else interpreted
        results = how(target, work)
        return [
            f"{case}, {config}: {failure}"
            for (case, config), found in zip(work, results, strict=True)
            for failure in found
        ]

    return run
