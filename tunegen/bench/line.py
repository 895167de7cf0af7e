"""One problem at one token count on the GPU: its inputs, and graphs of kernels that run on them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered, render
from tunegen.evaluate.measure import Replay, Workload, time_interleaved
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime.kernel import Kernel, load_kernel
from tunegen.targets import Target

# Kernel files stay there, so that a second run finds them compiled in Triton's cache.
KERNELS = Path("build/bench-kernels")
LOOKS = 5


class Line:
    """What is compared at one token count.

    Attributes:
        problem: The op at one shape.
        target: What its kernels are rendered for.
        tokens: Token count.
        workload: Input sets and outputs.
        sets: How many there are.
    """

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
        twins = [self.replay(config, twin=True) for config in _twins(self.problem, self.target, timed)]
        looks = time_interleaved(twins, LOOKS)
        return min(zip(looks, twins, strict=True), key=lambda look: look[0].median)[1]


def _twins(problem: Problem, target: Target, timed: Iterable[Config]) -> list[Config]:
    family = get_family(problem.op)
    own = [family.twin_of(problem, target, config) for config in timed]
    distinct: list[Config] = []
    for config in [*family.twin_configs(problem, target), *own]:
        if config is not None and config not in distinct:
            distinct.append(config)
    return distinct


def compile_ahead(problems: Iterable[tuple[Problem, Iterable[Config]]], target: Target) -> None:
    """Compiles the kernels and twins of all lines side by side: a launch then finds them in Triton's cache."""
    rendered: list[Rendered] = []
    for problem, timed in problems:
        configs = [get_family(problem.op).default(problem, target), *timed]
        rendered += [render(problem, target, config) for config in configs]
        rendered += [render(problem, target, config, twin=True) for config in _twins(problem, target, configs)]
    compile_side_by_side(rendered)


def compile_side_by_side(kernels: Iterable[Rendered]) -> None:
    """Compiles kernels in as many processes as there are cores, each source once."""
    rendered = {kernel.digest: kernel for kernel in kernels}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, rendered.values()))


def _compile(rendered: Rendered) -> None:
    compile_kernel(rendered, folder=KERNELS)
