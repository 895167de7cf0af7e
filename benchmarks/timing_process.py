"""The process that times kernels for record_space.py: it may die of a fault, and another takes its place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import triton

from tunegen.evaluate.measure import Replay, Workload, time_interleaved
from tunegen.ops import Problem
from tunegen.runtime.kernel import Kernel, load_kernel

# Token count at which outputs are compared with those of the default config.
CHECKED_TOKENS = 64
# Another order of a row's sum moves a value over a rounding boundary now and then; more than that is a bug.
MOST_DIFFERING = 0.005


@dataclass(frozen=True)
class Candidate:
    """A compiled kernel to be timed.

    Attributes:
        path: The rendered file, or one that differs from it in nothing but the programs a unit.
        programs_per_unit: Of this config.
    """

    path: Path
    programs_per_unit: int

    def kernel(self) -> Kernel:
        """The kernel, loaded once for all configs that share the code."""
        return dataclasses.replace(load_kernel(self.path), programs_per_unit=self.programs_per_unit)


@dataclass(frozen=True)
class Look:
    """Asks for samples of one kernel at some token counts; the answer is a list a count, or why there is none."""

    problem: Problem
    default: Candidate
    candidate: Candidate
    tokens: tuple[int, ...]
    samples: int


@dataclass(frozen=True)
class Final:
    """Asks for interleaved samples of several kernels at one token count; the answer is a list a kernel."""

    problem: Problem
    candidates: tuple[Candidate, ...]
    tokens: int
    samples: int


class _Timer:
    """Keeps input sets of the problems under way."""

    def __init__(self) -> None:
        self._workloads: dict[tuple[Problem, int], Workload] = {}
        self._expected: dict[Problem, list[torch.Tensor]] = {}

    def workload(self, problem: Problem, tokens: int) -> Workload:
        key = (problem, tokens)
        if key not in self._workloads:
            self._workloads[key] = Workload(problem, tokens)
        return self._workloads[key]

    def drop(self) -> None:
        self._workloads = {}
        torch.cuda.empty_cache()

    def replay(self, problem: Problem, tokens: int, candidate: Candidate) -> Replay:
        workload = self.workload(problem, tokens)
        return Replay(workload.launch(candidate.kernel()), sets=len(workload.inputs))

    def _outputs(self, problem: Problem, candidate: Candidate) -> list[torch.Tensor]:
        workload = self.workload(problem, CHECKED_TOKENS)
        for output in workload.outputs[0]:
            output.view(torch.uint8).fill_(0x5A)
        workload.launch(candidate.kernel())(0)
        return [output.contiguous().view(torch.uint8).clone() for output in workload.outputs[0]]

    def failure(self, look: Look) -> str:
        """What of its outputs differs from the default config's; empty if next to nothing."""
        if look.problem not in self._expected:
            self._expected[look.problem] = self._outputs(look.problem, look.default)
        found = self._outputs(look.problem, look.candidate)
        for index, (got, expected) in enumerate(zip(found, self._expected[look.problem], strict=True)):
            share = (got != expected).float().mean().item()
            if share > MOST_DIFFERING:
                return f"{100 * share:.1f} % of the bytes of output {index} are not those of the default config"
        return ""

    def look(self, look: Look) -> list[list[float]] | str:
        try:
            failure = self.failure(look)
            if failure:
                return failure
            samples = []
            for tokens in look.tokens:
                replay = self.replay(look.problem, tokens, look.candidate)
                samples.append(list(time_interleaved([replay], look.samples, warmup=1)[0].samples))
            return samples
        except triton.runtime.errors.OutOfResources as error:
            return f"out of resources: {error}"

    def final(self, final: Final) -> list[list[float]]:
        replays = [self.replay(final.problem, final.tokens, candidate) for candidate in final.candidates]
        samples = [list(timing.samples) for timing in time_interleaved(replays, final.samples)]
        self.drop()
        return samples


def serve(connection: Connection) -> None:
    """Answers requests until None comes; an error other than a kernel's refusal ends the process."""
    torch.cuda.set_device(0)
    timer = _Timer()
    connection.send("ready")
    while True:
        request = connection.recv()
        if request is None:
            return
        connection.send(timer.look(request) if isinstance(request, Look) else timer.final(request))
