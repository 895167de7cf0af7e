"""What the search asks of an evaluator."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import triton

from tunegen import __version__
from tunegen.codegen.render import Rendered, render
from tunegen.configs import TunedBucket
from tunegen.evaluate.isolated import IsolatedPool, TimeLimit
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.search.evaluators._compilation import Compilation, compile_task
from tunegen.search.record import Outcome
from tunegen.targets import Target


@dataclass(frozen=True)
class Choice:
    """The winners of a problem.

    Attributes:
        buckets: One a token count, and those between.
        failures: Configs that turned out to be unusable only now, with the reason.
        held_out_regret: See `tunegen.configs.TunedEntry`.
    """

    buckets: list[TunedBucket]
    failures: list[Outcome]
    held_out_regret: dict[str, float] = field(default_factory=dict)


class Evaluator(ABC):
    """Evaluates configs of problems on one target; a context manager.

    Args:
        target: The GPU kernels are rendered for.
        device: The device results are for.
        tokens: Token counts, ascending.
        workers: Compile processes; default: one a core, at most 16.

    Attributes:
        evidence: ``"measured"`` or ``"predicted"``.
        lanes: Problems that can be evaluated side by side.
    """

    evidence: str
    lanes: int = 1
    # Resident bytes that a worker process may have; None: an equal share of the machine's.
    memory: int | None = None
    # What a compile may take before it is known what others take, and at least.
    compile_seconds = (300.0, 60.0)

    def __init__(self, target: Target, device: DeviceKey, tokens: list[int], workers: int | None = None) -> None:
        self.target, self.device, self.tokens = target, device, tokens
        self._folder = tempfile.TemporaryDirectory(prefix="tunegen-")
        self._compilers = IsolatedPool(
            workers or min(os.cpu_count() or 1, 16), TimeLimit(*self.compile_seconds), memory=self.memory
        )
        self._compilations: dict[str, Future[Compilation]] = {}

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers, whatever they do, and removes what was compiled."""
        self._compilers.close()
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """Where sources lie while they are evaluated."""
        return Path(self._folder.name)

    @property
    def environment(self) -> dict[str, Any]:
        """What the evidence was made with."""
        return {"torch": torch.__version__, "triton": triton.__version__, "tunegen": __version__}

    @property
    def circumstances(self) -> list[str]:
        """What a recorded time depends on besides the problem and the template."""
        return [str(self.device), *(f"{name} {value}" for name, value in self.environment.items())]

    def render(self, problem: Problem, config: Config, twin: bool = False) -> Rendered:
        """The source of a config's kernel."""
        return render(problem, self.target, config, twin=twin)

    def compile(self, rendered: Rendered) -> Future[Compilation]:
        """Sends a source off to be compiled, unless it was sent before."""
        if rendered.digest not in self._compilations:
            self._compilers.start()
            predicted = tuple(self.tokens) if self.evidence == "predicted" else ()
            future = self._compilers.submit(compile_task, rendered, self.folder, predicted)
            self._compilations[rendered.digest] = future
        return self._compilations[rendered.digest]

    def fingerprint(self, problem: Problem, config: Config, binary: str) -> str:
        """Names what is launched: two configs with the same machine code on the same grids are one kernel."""
        grids = [get_family(problem.op).grid(problem, config, m, self.device.units) for m in self.tokens]
        return hashlib.sha256(f"{binary} {grids}".encode()).hexdigest()[:16]

    @abstractmethod
    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        """Has a config evaluated at every token count; a config that fails is an outcome too."""

    @abstractmethod
    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> Choice:
        """The winner at every token count; the default config's outcome is among ``outcomes``.

        It takes its time, and may be called from a thread of its own.

        Raises:
            CompileError: The default config cannot be used.
        """

    def recall(self, problem: Problem, outcome: Outcome) -> None:  # noqa: B027 - most need no memory
        """Hears of an outcome that was recorded earlier or elsewhere."""

    def finish(self, problem: Problem) -> None:  # noqa: B027 - nothing to drop is the ordinary case
        """Drops what was held for a problem."""
