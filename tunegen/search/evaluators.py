"""Says what configs take: measured on the GPU here, or predicted from the compiled kernel."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import platform
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import triton

from tunegen import __version__
from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered, render
from tunegen.codegen.resources import Resources
from tunegen.configs import TunedBucket
from tunegen.errors import CompileError
from tunegen.evaluate import measure
from tunegen.evaluate.conformance import fewest_lanes_per_row, first_case, run_case
from tunegen.evaluate.interpreter import Interpreter, interpretable
from tunegen.evaluate.predict import MODEL, limits_of, predict
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.search.decide import decide
from tunegen.search.record import Outcome
from tunegen.targets import Device, Target, get_target

# A prediction tells times apart no finer than this.
PREDICTION_MARGIN = 0.01
# Configs of a bucket that are timed again, interleaved, before the winner is declared.
FINALISTS = 6
FINAL_ROUNDS = 13
FIRST_LOOK_ROUNDS = 3
# Differences below half a percent are never taken for real, however quiet the run was.
LEAST_MARGIN = 0.005


@dataclass(frozen=True)
class _Job:
    """What a compile worker gives back: no listing, no binary."""

    resources: Resources | None
    binary: str
    times: dict[int, float]
    limiters: dict[int, str]
    memory_us: dict[int, float]
    failure: str


def _compile_job(rendered: Rendered, folder: Path, tokens: list[int], predicted: bool) -> _Job:
    try:
        compiled = compile_kernel(rendered, folder=folder)
    except CompileError as error:
        return _Job(None, "", {}, {}, {}, f"does not compile: {error}")
    binary = hashlib.sha256(compiled.binary).hexdigest()
    if not predicted:
        return _Job(compiled.resources, binary, {}, {}, {}, "")
    target = get_target(rendered.target)
    results = {m: predict(rendered.problem, target, rendered.config, compiled.resources, m) for m in tokens}
    return _Job(
        compiled.resources,
        binary,
        {m: result.microseconds for m, result in results.items()},
        {m: result.limiter for m, result in results.items()},
        {m: result.memory_us for m, result in results.items()},
        "",
    )


class Evaluator(ABC):
    """Evaluates configs of problems on one target.

    Args:
        target: The GPU kernels are rendered for.
        device: The device results are for.
        tokens: Token counts, ascending.
        workers: Compile processes; default: one a core, at most 16.
    """

    evidence: str

    def __init__(self, target: Target, device: DeviceKey, tokens: list[int], workers: int | None = None) -> None:
        self.target, self.device, self.tokens = target, device, tokens
        self._folder = tempfile.TemporaryDirectory(prefix="tunegen-")
        self._pool = ProcessPoolExecutor(
            workers or min(os.cpu_count() or 1, 16), mp_context=multiprocessing.get_context("spawn")
        )
        self._jobs: dict[str, Future[_Job]] = {}

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and removes what was compiled."""
        self._pool.shutdown(cancel_futures=True)
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

    def prepare(self, problem: Problem, config: Config, twin: bool = False) -> Rendered:
        """Renders a config and sends it off to be compiled; `evaluate` waits for it."""
        rendered = render(problem, self.target, config, twin=twin)
        if rendered.digest not in self._jobs:
            predicted = self.evidence == "predicted"
            job = self._pool.submit(_compile_job, rendered, self.folder, self.tokens, predicted)
            self._jobs[rendered.digest] = job
        return rendered

    def job(self, rendered: Rendered) -> _Job:
        """Waits for a compile."""
        return self._jobs[rendered.digest].result()

    @abstractmethod
    def evaluate(self, problem: Problem, config: Config) -> Outcome:
        """What a prepared config takes at every token count."""

    @abstractmethod
    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> list[TunedBucket]:
        """The winner at every token count; the default config's outcome is among ``outcomes``."""

    def finish(self, problem: Problem) -> None:  # noqa: B027 - nothing to drop is the ordinary case
        """Drops what was held for a problem."""


class PredictedEvaluator(Evaluator):
    """Predicts from the compiled kernel; a winner has been run in Triton's interpreter."""

    evidence = "predicted"

    def __init__(self, target: Target, tokens: list[int], workers: int | None = None) -> None:
        limits_of(target.name)
        super().__init__(target, target.device, tokens, workers)
        self._interpreter = Interpreter(workers=1)
        self._checked: dict[str, str] = {}

    def close(self) -> None:
        self._interpreter.close()
        super().close()

    @property
    def environment(self) -> dict[str, Any]:
        return {**super().environment, "device_name": self.target.device_name, "model": MODEL}

    def evaluate(self, problem: Problem, config: Config) -> Outcome:
        job = self.job(self.prepare(problem, config))
        if job.resources is None:
            return Outcome(config, {}, job.failure, {})
        details = {"limiters": {str(m): name for m, name in job.limiters.items()}, "resources": asdict(job.resources)}
        details["memory_us"] = {str(m): value for m, value in job.memory_us.items()}
        return Outcome(config, job.times, "", details)

    def _failure(self, problem: Problem, config: Config) -> str:
        """Why the kernel is wrong, by Triton's interpreter; empty if it is right."""
        key = f"{problem} {config_key(config)}"
        if key not in self._checked:
            rendered = interpretable(problem, self.target, config)
            lanes = fewest_lanes_per_row(self.target, config)
            found = self._interpreter.run_case(rendered.write(self.folder), first_case(problem, self.target), lanes)
            self._checked[key] = "; ".join(found)
        return self._checked[key]

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> list[TunedBucket]:
        family = get_family(problem.op)
        default = family.default(problem, self.target)
        good = [outcome for outcome in outcomes if not outcome.failure]
        buckets = []
        for tokens, edge in zip(self.tokens, edges, strict=True):
            contenders = list(good)
            while True:
                decision = decide(
                    [(outcome.config, outcome.times[tokens]) for outcome in contenders],
                    default,
                    PREDICTION_MARGIN,
                    lambda config: family.complexity(problem, self.target, config),
                )
                failure = self._failure(problem, decision.config)
                if not failure:
                    break
                if decision.config == default:
                    raise CompileError(f"The default config of {problem} computes wrong results: {failure}")
                contenders = [outcome for outcome in contenders if outcome.config != decision.config]
            by_key = {config_key(outcome.config): outcome for outcome in good}
            winner = by_key[config_key(decision.config)]
            fields: dict[str, Any] = {
                "predicted_us": round(decision.time, 3),
                "default_us": round(by_key[config_key(default)].times[tokens], 3),
                "memory_us": round(winner.details["memory_us"][str(tokens)], 3),
                "limiter": winner.details["limiters"][str(tokens)],
                "margin": PREDICTION_MARGIN,
                "runner_up": decision.runner_up,
                "runner_up_us": decision.runner_up_time and round(decision.runner_up_time, 3),
            }
            buckets.append(TunedBucket(tokens, edge, decision.config, fields))
        return buckets


class MeasuredEvaluator(Evaluator):
    """Measures on the GPU of this machine."""

    evidence = "measured"

    def __init__(self, device: Device, tokens: list[int], workers: int | None = None) -> None:
        super().__init__(device.target, device.key, tokens, workers)
        torch.cuda.set_device(device.index)
        self._device = device
        self._workloads: dict[tuple[Problem, int], measure.Workload] = {}
        self._identical: dict[str, dict[int, float]] = {}
        self._twins: dict[Problem, list[Rendered]] = {}
        self._empty = measure.empty_kernel_replay()

    @property
    def environment(self) -> dict[str, Any]:
        runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return {
            **super().environment,
            "device_name": self._device.name,
            "runtime": runtime,
            "python": platform.python_version(),
            "policy": measure.POLICY,
        }

    def prepare(self, problem: Problem, config: Config, twin: bool = False) -> Rendered:
        if problem not in self._twins:
            family = get_family(problem.op)
            self._twins[problem] = []
            configs = family.twin_configs(problem, self.target)
            self._twins[problem] = [super(MeasuredEvaluator, self).prepare(problem, c, twin=True) for c in configs]
        return super().prepare(problem, config, twin)

    def _workload(self, problem: Problem, tokens: int) -> measure.Workload:
        key = (problem, tokens)
        if key not in self._workloads:
            self._workloads[key] = measure.Workload(problem, tokens)
        return self._workloads[key]

    def _replay(self, problem: Problem, tokens: int, rendered: Rendered) -> measure.Replay:
        workload = self._workload(problem, tokens)
        kernel = load_kernel(rendered.write(self.folder))
        return measure.Replay(workload.launch(kernel), sets=len(workload.inputs))

    def _failure(self, problem: Problem, config: Config, rendered: Rendered) -> str:
        kernel = load_kernel(rendered.write(self.folder))
        op = OPS[problem.op]

        def launch(outputs: tuple[torch.Tensor, ...], args: tuple[Any, ...]) -> None:
            op.launch(kernel, self.device.units, outputs, *args)

        case, lanes = first_case(problem, self.target), fewest_lanes_per_row(self.target, config)
        return "; ".join(run_case(launch, case, torch.device("cuda"), lanes))

    def evaluate(self, problem: Problem, config: Config) -> Outcome:
        rendered = self.prepare(problem, config)
        job = self.job(rendered)
        if job.resources is None:
            return Outcome(config, {}, job.failure, {})
        details: dict[str, Any] = {"resources": asdict(job.resources), "binary": job.binary[:16]}
        # The same machine code launched on the same grids is the same measurement.
        grids = [get_family(problem.op).grid(problem, config, m, self.device.units) for m in self.tokens]
        same = f"{problem} {job.binary} {grids}"
        if same in self._identical:
            return Outcome(config, self._identical[same], "", details)
        try:
            failure = self._failure(problem, config, rendered)
            if failure:
                return Outcome(config, {}, f"computes wrong results: {failure}", details)
            times = {}
            for tokens in self.tokens:
                replay = self._replay(problem, tokens, rendered)
                times[tokens] = measure.time_interleaved([replay], FIRST_LOOK_ROUNDS, warmup=1)[0].median
        except triton.runtime.errors.OutOfResources as error:
            return Outcome(config, {}, f"out of resources: {error}", details)
        self._identical[same] = times
        return Outcome(config, times, "", details)

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> list[TunedBucket]:
        family = get_family(problem.op)
        default = family.default(problem, self.target)
        good = [outcome for outcome in outcomes if not outcome.failure]
        buckets = []
        for tokens, edge in zip(self.tokens, edges, strict=True):
            ranked = sorted(good, key=lambda outcome: outcome.times[tokens])
            configs = [outcome.config for outcome in ranked[:FINALISTS] if outcome.config != default]
            for config in [default, *configs]:  # compiled by an earlier run, if this one goes on from it
                self.prepare(problem, config)
            # The twin has the launch choices that the kernel has, those of the finalists among them.
            own = [family.twin_of(problem, self.target, config) for config in [default, *configs]]
            finalists = [self.prepare(problem, config, twin=True) for config in own if config]
            twins = list({twin.digest: twin for twin in [*self._twins[problem], *finalists]}.values())
            looks = [(measure.time_interleaved([self._replay(problem, tokens, t)], 2, 1)[0].median, t) for t in twins]
            twin = min(looks, key=lambda look: look[0])[1]
            # The default twice: how far a kernel differs from itself is what noise can make.
            replays = [
                self._replay(problem, tokens, render(problem, self.target, c)) for c in [default, default, *configs]
            ]
            timings = measure.time_interleaved(
                [self._empty, self._replay(problem, tokens, twin), *replays], FINAL_ROUNDS
            )
            empty, twin_time, first, second, *rest = timings
            default_us = min(first.median, second.median)
            typical = sorted(t.spread / t.median for t in [first, second, *rest])[len(rest) // 2 + 1]
            margin = max(LEAST_MARGIN, abs(first.median / second.median - 1), typical / 2)
            timed = [(default, default_us), *((c, t.median) for c, t in zip(configs, rest, strict=True))]
            decision = decide(timed, default, margin, lambda c: family.complexity(problem, self.target, c))
            spread = next((t.spread for c, t in zip(configs, rest, strict=True) if c == decision.config), first.spread)
            fields = {
                "median_us": round(decision.time, 3),
                "spread_us": round(spread, 3),
                "default_us": round(default_us, 3),
                "twin_us": round(twin_time.median, 3),
                "empty_us": round(empty.median, 3),
                "margin": round(margin, 4),
                "runner_up": decision.runner_up,
                "runner_up_us": decision.runner_up_time and round(decision.runner_up_time, 3),
            }
            buckets.append(TunedBucket(tokens, edge, decision.config, fields))
        return buckets

    def finish(self, problem: Problem) -> None:
        self._workloads = {key: value for key, value in self._workloads.items() if key[0] != problem}
        torch.cuda.empty_cache()
