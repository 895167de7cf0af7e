"""What the table scripts share: one line's kernels, ready to be timed interleaved, and AITER where there is one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
import triton

from tunegen.bench.aiter import Aiter, load_aiter
from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered, render
from tunegen.errors import UsageError
from tunegen.evaluate.measure import POLICY, Replay, Timing, Workload, copy_bandwidth, time_interleaved
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime.kernel import Kernel, load_kernel
from tunegen.targets import Device, Target

KERNELS = Path("build/bench-kernels")
ROUNDS = 41
LOOKS = 5


class Line:
    """One problem at one token count on the current GPU: its inputs, and graphs of kernels that run on them."""

    def __init__(self, problem: Problem, target: Target, tokens: int) -> None:
        self.problem, self.target, self.tokens = problem, target, tokens
        self.family = get_family(problem.op)
        self.workload = Workload(problem, tokens)
        self.sets = len(self.workload.inputs)

    def kernel(self, config: Config, twin: bool = False) -> Kernel:
        """A config's kernel, or its traffic twin."""
        return load_kernel(render(self.problem, self.target, config, twin=twin).write(KERNELS))

    def replay(self, config: Config, twin: bool = False) -> Replay:
        """A graph of calls of it."""
        return Replay(self.workload.launch(self.kernel(config, twin)), self.sets)

    def replay_baseline(self, call: Callable[[int], Any]) -> Replay:
        """A graph of calls of something else, which takes the number of an input set.

        What a call returns is kept until the next one on its set: calls that allocate their outputs then write to as
        many places in turn as the kernels do that are given theirs.
        """
        kept: list[Any] = [None] * self.sets

        def run(index: int) -> None:
            kept[index % self.sets] = call(index % self.sets)

        return Replay(run, self.sets)

    def best_twin(self, *timed: Config) -> Replay:
        """The traffic twin with the fastest of its launch choices, those of the configs that are timed among them."""
        own = [self.family.twin_of(self.problem, self.target, config) for config in timed]
        configs = [*self.family.twin_configs(self.problem, self.target), *own]
        twins = [self.replay(config, twin=True) for config in configs if config]
        looks = time_interleaved(twins, LOOKS)
        return min(zip(looks, twins, strict=True), key=lambda look: look[0].median)[1]


def compile_ahead(problems: Iterable[tuple[Problem, Iterable[Config]]], target: Target) -> None:
    """Compiles the kernels and twins of all lines side by side: a launch then finds them in Triton's cache."""
    rendered: dict[str, Rendered] = {}
    for problem, timed in problems:
        family = get_family(problem.op)
        configs = [family.default(problem, target), *timed]
        own = [family.twin_of(problem, target, config) for config in configs]
        twins = [config for config in [*family.twin_configs(problem, target), *own] if config]
        made = [render(problem, target, c) for c in configs] + [render(problem, target, c, twin=True) for c in twins]
        rendered |= {kernel.digest: kernel for kernel in made}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, rendered.values()))


def _compile(rendered: Rendered) -> None:
    compile_kernel(rendered, folder=KERNELS)


def time_all(graphs: dict[str, Replay]) -> dict[str, Timing]:
    """Times graphs interleaved, by name."""
    return dict(zip(graphs, time_interleaved(list(graphs.values()), ROUNDS), strict=True))


def noise(timings: dict[str, Timing], name: str) -> float:
    """Relative difference that is no difference: of a kernel with itself (``<name>_again``), or half its spread."""
    timing = timings[name]
    return max(abs(timing.median / timings[f"{name}_again"].median - 1), timing.spread / timing.median / 2)


def plain(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Medians and spreads, for JSON."""
    return {
        "us": {name: timing.median for name, timing in timings.items()},
        "spread_us": {name: timing.spread for name, timing in timings.items()},
    }


def about(device: Device, aiter: Aiter | None) -> dict[str, Any]:
    """What the figures depend on, for JSON."""
    return {
        "device": device.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "policy": POLICY,
        "copy_gbs": copy_bandwidth() / 1e9,
        "aiter": aiter.origin if aiter else None,
    }


def headline(facts: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"{facts['device']}, torch {facts['torch']}, triton {facts['triton']}, {facts['policy']};"
        f" a device copy moves {facts['copy_gbs']:.0f} GB/s"
    )


def aiter_if_there(root: Path | None) -> tuple[Aiter | None, str]:
    """AITER and a line that says which, or why it is not compared with.

    Raises:
        click.ClickException: A folder was given and has no AITER that can be used.
    """
    try:
        aiter = load_aiter(root)
    except UsageError as error:
        if root is not None:
            raise click.ClickException(str(error)) from error
        return None, f"AITER is not compared with. {error}"
    return aiter, f"AITER: {aiter.origin}"


def must_agree(what: str, failures: list[str]) -> None:
    """Ends the run if outputs are wrong: a time of them would be one of something else."""
    if failures:
        raise click.ClickException(f"{what} does not compute what the op does: {'; '.join(failures)}")
