"""The correctness matrix: kernels of a pack, or of tuned configs, against the numerics contract.

Every kernel (op, shape, config, rounding) meets token counts, dtypes, memory layouts and special values so that any
two of them meet; see `tunegen.evaluate.conformance`. The ops of a pack are also called as a user would.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from tunegen.codegen.render import render
from tunegen.configs import TunedEntry
from tunegen.errors import UsageError
from tunegen.evaluate.conformance import (
    Case,
    candidates,
    case_factors,
    fewest_lanes_per_row,
    large_cases,
    pairwise,
)
from tunegen.evaluate.executor import WHERE as EXECUTED
from tunegen.evaluate.executor import Executor, executable
from tunegen.evaluate.interpreter import Interpreter, interpretable, substituted
from tunegen.evaluate.on_device import OnDevice, call_failures
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.runtime.manifest import Manifest, read_manifest
from tunegen.targets import DEFAULT_TARGET, Device, Target, get_target

# Small counts and counts that no bucket was tuned at; the interpreter takes milliseconds a row.
DEVICE_TOKENS = (0, 1, 3, 17, 33, 100, 257, 700)
INTERPRETED_TOKENS = (0, 1, 3, 17)
EXECUTED_TOKENS = (0, 1, 3, 17)
INTERPRETED_BYTES = 180_000
CALL_TOKENS = (0, 1, 2, 3, 24, 100, 300, 700, 1500, 3000)
CALL_TOKENS_CPU = (0, 1, 3, 17, 33)


@dataclass
class Row:
    """What was verified of one problem, and of the variants served alike, on one target.

    Attributes:
        problem, target: What.
        kernels: Kernels that were run.
        calls: Cases that were run.
        where: ``"device"``, ``"executed (functional), not timed"``, ``"interpreter"`` or ``"interpreter, software
            conversion"``.
        failures: What is wrong; empty if nothing is.
    """

    problem: Problem
    target: str
    kernels: int
    where: str
    calls: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """The kernels to verify of one op at one shape on one target.

    Attributes:
        problem: Op and shape.
        target: Target.
        configs: The distinct configs.
        source: Gives the file of a config and variant; None where the file is to be rendered.
    """

    problem: Problem
    target: Target
    configs: list[Config]
    source: Callable[[Config, str], Path | None]


def _distinct(configs: list[Config]) -> list[Config]:
    return list({config_key(config): config for config in configs}.values())


def subjects_of_entries(entries: list[TunedEntry]) -> list[Subject]:
    """Winners and default configs of tuned entries."""
    subjects = []
    for entry in entries:
        family, target = get_family(entry.op), get_target(entry.target)
        configs = [family.default(entry.problem, target), *(bucket.config for bucket in entry.buckets)]
        subjects.append(Subject(entry.problem, target, _distinct(configs), lambda config, rounding: None))
    return subjects


def subjects_of_pack(manifest: Manifest, root: Path, arch: str | None) -> list[Subject]:
    """The kernels of a pack; of one architecture if ``arch`` says so."""
    subjects = []
    for entry in manifest.entries:
        if arch is not None and entry.device.arch != arch:
            continue
        files = {config_key(bucket.config): bucket.kernels for bucket in entry.buckets}

        def source(config: Config, rounding: str, files: dict[str, dict[str, str]] = files) -> Path:
            return root / files[config_key(config)][rounding]

        configs = _distinct([bucket.config for bucket in entry.buckets])
        problem = Problem.of(entry.op, entry.shape, entry.variant)
        subjects.append(Subject(problem, get_target(entry.target), configs, source))
    return subjects


def _work(subject: Subject, tokens: tuple[int, ...]) -> list[tuple[Case, Config]]:
    problems = get_family(subject.problem.op).served(subject.problem)
    cases = candidates(problems, tokens, subject.target)
    pairs = [(case, config) for case in cases for config in subject.configs]
    return pairwise(pairs, lambda pair: (*case_factors(pair[0]), config_key(pair[1])))


def verify_kernels(
    subjects: list[Subject], device: Device | None, folder: Path, interpret: bool = False
) -> Iterator[Row]:
    """Runs the matrix: on the device where it is the target's; otherwise compiled and executed on the CPU where the
    executor has the target; otherwise in Triton's interpreter.

    Args:
        subjects: What to verify.
        device: The GPU here, if any.
        folder: Where sources are rendered to.
        interpret: Run in the interpreter what would be executed.

    Yields:
        A row a subject, in order.
    """
    cores, index = os.cpu_count() or 1, device.index if device else 0
    # The large cases go one after another: two at a time might not fit.
    with (
        Interpreter(min(cores, 16)) as interpreter,
        Executor(min(cores, 16)) as executor,
        OnDevice(min(cores, 16), index) as pool,
        OnDevice(1, index) as one,
    ):
        waiting: list[tuple[Row, list[tuple[Case, Config, Future[list[str]]]]]] = []
        for subject in subjects:
            here = device is not None and device.target == subject.target
            replaced = substituted(subject.problem, subject.target, subject.configs[0])
            executed = not interpret and not here and executable(subject.target)
            where = f"interpreter{', software conversion' if replaced else ''}"
            where = "device" if here else EXECUTED if executed else where
            problem, target = subject.problem, subject.target
            row = Row(problem, target.name, len(subject.configs), where)
            most = max(INTERPRETED_BYTES // get_family(problem.op).bytes_moved(problem, 1), 3)
            tokens = tuple(n for n in INTERPRETED_TOKENS if n <= most)
            tokens = DEVICE_TOKENS if here else EXECUTED_TOKENS if executed else tokens
            work = [(*item, pool) for item in _work(subject, tokens)]
            if here:
                work += [(case, subject.configs[-1], one) for case in large_cases(problem, target)]
            submitted = []
            for case, config, runner in work:
                lanes = fewest_lanes_per_row(target, config)
                path = subject.source(config, case.problem.rounding)
                if here or executed:
                    path = path or render(case.problem, target, config).write(folder)
                    future = runner.submit(path, case, lanes) if here else executor.submit(path, case, lanes, target)
                else:
                    # A kernel file of a pack whose conversion is an instruction is rendered anew without it.
                    if path is None or replaced:
                        path = interpretable(case.problem, target, config).write(folder)
                    future = interpreter.submit(path, case, lanes)
                submitted.append((case, config, future))
            waiting.append((row, submitted))
        for row, submitted in waiting:
            for case, config, future in submitted:
                row.calls += 1
                row.failures += [f"{case}, {config}: {failure}" for failure in future.result()]
            yield row


def verify_calls(manifest: Manifest, device: Device | None, wanted: Callable[[Problem], bool]) -> Iterator[Row]:
    """Calls the ops of an importable pack at every wanted shape: on the GPU here, otherwise on the CPU."""
    target = device.target if device else get_target(DEFAULT_TARGET)
    entries = [entry for entry in manifest.entries if device is None or entry.device.arch == device.key.arch]
    problems = dict.fromkeys(Problem.of(entry.op, entry.shape, entry.variant) for entry in entries)
    place = torch.device("cuda", device.index) if device else torch.device("cpu")
    with ExitStack() as stack:
        # On a GPU kernels compile as they are called, so that processes call side by side.
        pool = stack.enter_context(OnDevice(min(os.cpu_count() or 1, 16), device.index)) if device else None
        waiting: list[tuple[Row, list[tuple[Case, Callable[[], list[str]]]]]] = []
        for problem in sorted(filter(wanted, problems), key=str):
            row = Row(problem, target.name if device else "cpu", 0, "torch.ops")
            counts = CALL_TOKENS if device else CALL_TOKENS_CPU
            cases = candidates(get_family(problem.op).served(problem), counts, target)
            chooser = random.Random(0)
            chosen = [chooser.choice([case for case in cases if case.num_tokens == count]) for count in counts]
            calls: list[tuple[Case, Callable[[], list[str]]]] = [
                (case, pool.submit_call(manifest.pack, case).result)
                if pool
                else (case, partial(call_failures, manifest.pack, case, place))
                for case in chosen
            ]
            waiting.append((row, calls))
        for row, calls in waiting:
            for case, failures in calls:
                row.calls += 1
                row.failures += [f"{case}: {failure}" for failure in failures()]
            yield row


def import_pack(name: str) -> tuple[Manifest, Path]:
    """Imports an installed pack, which registers its ops; returns its manifest and folder.

    Raises:
        UsageError: It is not installed, or is not a pack.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(
            f"There is no package {name!r} to import. `tunegen emit --out DIR` writes one, and `pip install DIR`"
            " installs it."
        ) from error
    root = Path(str(module.__file__)).parent
    if not (root / "manifest.json").is_file():
        raise UsageError(f"The package {name!r} ({root}) is not a pack that tunegen emitted: it has no manifest.json.")
    return read_manifest(root), root
