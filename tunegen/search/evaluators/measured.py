"""Measures what configs take on the GPUs of this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunegen.codegen.render import Rendered
from tunegen.configs import TunedBucket
from tunegen.errors import CompileError, UsageError
from tunegen.evaluate import measure, trial
from tunegen.evaluate.conformance import fewest_lanes_per_row
from tunegen.evaluate.isolated import IsolatedPool, TaskFailedError, TimeLimit
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.buckets import fill_in, held_out_regret
from tunegen.search.decide import decide
from tunegen.search.evaluators._base import Choice, Evaluator
from tunegen.search.evaluators._compilation import Compilation
from tunegen.search.record import Outcome
from tunegen.targets import Device

# Configs of a bucket that are timed again, interleaved, before the winner is declared.
FINALISTS = 6
# Differences below half a percent are never taken for real, however quiet the run was.
LEAST_MARGIN = 0.005


class MeasuredEvaluator(Evaluator):
    """Measures on GPUs of one kind; each problem stays on one of them.

    Every GPU has a worker process of its own, which alone touches it and is replaced when a kernel breaks it.

    Args:
        devices: The GPUs.
        tokens: Token counts, ascending.
        workers: Compile processes.

    Raises:
        UsageError: The GPUs are not all alike: what is fastest on one need not be on another.
    """

    evidence = "measured"
    # What a trial or a bucket's final may take before it is known what others take, and at least.
    run_seconds = (180.0, 20.0)
    # What the workers run; module-level functions, imported by name.
    start, look, probe, contest, race, forget = (
        staticmethod(trial.start),
        staticmethod(trial.look),
        staticmethod(trial.probe),
        staticmethod(trial.contest),
        staticmethod(trial.race),
        staticmethod(trial.forget),
    )

    def __init__(self, devices: list[Device], tokens: list[int], workers: int | None = None) -> None:
        first = devices[0]
        for device in devices[1:]:
            if device.key != first.key:
                raise UsageError(
                    f"The GPUs of --devices must be alike; GPU {first.index} is a {first.name} ({first.key}) and GPU"
                    f" {device.index} a {device.name} ({device.key}). Tune for each kind in a run of its own."
                )
        super().__init__(first.target, first.key, tokens, workers)
        self._device = first
        self.lanes = len(devices)
        self._finals = TimeLimit(*self.run_seconds)
        looks = TimeLimit(*self.run_seconds)
        self._gpus = [IsolatedPool(1, looks, partial(self.start, device.index), self.memory) for device in devices]
        self._lane_of: dict[Problem, int] = {}
        self._times: dict[str, Future[dict[int, float]]] = {}

    def close(self) -> None:
        for gpu in self._gpus:
            gpu.close()
        super().close()

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

    def _gpu(self, problem: Problem) -> IsolatedPool:
        if problem not in self._lane_of:
            taken = list(self._lane_of.values())
            self._lane_of[problem] = min(range(self.lanes), key=taken.count)
        return self._gpus[self._lane_of[problem]]

    def recall(self, problem: Problem, outcome: Outcome) -> None:
        if not outcome.failure and "fingerprint" in outcome.details:
            known: Future[dict[int, float]] = Future()
            known.set_result(outcome.times)
            self._times.setdefault(f"{problem} {outcome.details['fingerprint']}", known)

    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        gpu = self._gpu(problem)
        gpu.start()  # while the kernel compiles
        result: Future[Outcome] = Future()
        rendered = self.render(problem, config)

        def compiled(future: Future[Compilation]) -> None:
            try:
                compilation = future.result()
            except TaskFailedError as error:
                result.set_result(Outcome(config, {}, f"does not compile: {error}", {}))
                return
            except (Exception, CancelledError) as error:
                result.set_exception(error)
                return
            fingerprint = self.fingerprint(problem, config, compilation.binary)
            details = {"resources": compilation.resources, "fingerprint": fingerprint}
            # The same machine code launched on the same grids is the same measurement.
            key = f"{problem} {fingerprint}"
            if key not in self._times:
                lanes = fewest_lanes_per_row(self.target, config)
                source = rendered.write(self.folder)
                self._times[key] = gpu.submit(self.look, problem, self.target.name, source, lanes, tuple(self.tokens))
            self._times[key].add_done_callback(partial(timed, details))

        def timed(details: dict[str, Any], future: Future[dict[int, float]]) -> None:
            try:
                result.set_result(Outcome(config, future.result(), "", details))
            except TaskFailedError as error:
                result.set_result(Outcome(config, {}, str(error), details))
            except (Exception, CancelledError) as error:
                result.set_exception(error)

        self.compile(rendered).add_done_callback(compiled)
        return result

    def own_twins(self, problem: Problem, configs: list[Config]) -> list[Rendered]:
        """The twins with the launch choices of configs, where there are such."""
        family = get_family(problem.op)
        own = [family.twin_of(problem, self.target, config) for config in configs]
        return [self.render(problem, config, twin=True) for config in own if config]

    def _sources(self, rendered: list[Rendered]) -> list[Path]:
        """Files of the kernels that compile, compiled."""
        futures = [self.compile(each) for each in rendered]
        sources = []
        for each, future in zip(rendered, futures, strict=True):
            try:
                future.result()
            except TaskFailedError:
                continue
            sources.append(each.write(self.folder))
        return list(dict.fromkeys(sources))

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> Choice:
        family = get_family(problem.op)
        default = family.default(problem, self.target)
        good = {config_key(outcome.config): outcome for outcome in outcomes if not outcome.failure}
        usual = [self.render(problem, config, twin=True) for config in family.twin_configs(problem, self.target)]
        self._sources(usual)
        distinct = self._distinct(problem, default, list(good.values()))
        finals = {tokens: self._finalists(distinct, default, tokens) for tokens in self.tokens}
        every = {config_key(config): config for configs in finals.values() for config in configs}
        # Compiled by an earlier run, if this one goes on from it.
        kernels = [self.render(problem, config) for config in every.values()]
        self._sources([*kernels, *self.own_twins(problem, list(every.values()))])
        buckets: list[TunedBucket] = []
        failures: dict[str, Outcome] = {}
        for tokens, edge in zip(self.tokens, edges, strict=True):
            final = _Final(self, problem, default, tokens, usual)
            able = [outcome for outcome in distinct if config_key(outcome.config) not in failures]
            finalists = self._finalists(able, default, tokens)
            fields, config = final.hold(finalists)
            for broken, reason in final.failures:
                failures[config_key(broken)] = Outcome(broken, {}, reason, good[config_key(broken)].details)
            buckets.append(TunedBucket(tokens, edge, config, fields))

        def race(count: int, configs: Sequence[Config]) -> dict[str, float]:
            final = _Final(self, problem, default, count, [])
            times = final.race([config for config in configs if config_key(config) not in failures])
            for broken, reason in final.failures:
                failures[config_key(broken)] = Outcome(broken, {}, reason, good[config_key(broken)].details)
            return times

        def rivals(count: int) -> list[Config]:
            near = [max(t for t in self.tokens if t < count), min(t for t in self.tokens if t > count)]
            return [config for tokens in near for config in finals[tokens]]

        known = len(failures)
        buckets = fill_in(buckets, default, rivals, race)
        regret = held_out_regret(buckets, rivals, race)
        if len(failures) > known:  # a winner broke between the counts at which it won
            again = self.choose(problem, [o for o in outcomes if config_key(o.config) not in failures], edges)
            return replace(again, failures=[*failures.values(), *again.failures])
        return Choice(buckets, list(failures.values()), regret)

    def _distinct(self, problem: Problem, default: Config, good: list[Outcome]) -> list[Outcome]:
        """One config for each kernel: of those that are the same machine code the default, or the simplest."""
        family = get_family(problem.op)

        def rank(outcome: Outcome) -> tuple[bool, tuple[int, ...]]:
            return outcome.config != default, family.complexity(problem, self.target, outcome.config)

        kernels: dict[str, Outcome] = {}
        for outcome in sorted(good, key=rank):
            kernels.setdefault(outcome.details["fingerprint"], outcome)
        return list(kernels.values())

    @staticmethod
    def _finalists(good: list[Outcome], default: Config, tokens: int) -> list[Config]:
        """The default config first, then the fastest others."""
        ranked = sorted(good, key=lambda outcome: outcome.times[tokens])
        return [default, *(outcome.config for outcome in ranked[:FINALISTS] if outcome.config != default)]

    def finish(self, problem: Problem) -> None:
        self._gpu(problem).submit(self.forget, problem, limit=self._finals, urgent=True)
        del self._lane_of[problem]


class _Final:
    """The final of one bucket."""

    def __init__(
        self, evaluator: MeasuredEvaluator, problem: Problem, default: Config, tokens: int, twins: list[Rendered]
    ) -> None:
        self.evaluator, self.problem, self.default, self.tokens = evaluator, problem, default, tokens
        self.twins = twins
        self.failures: list[tuple[Config, str]] = []

    def hold(self, finalists: list[Config]) -> tuple[dict[str, Any], Config]:
        """Evidence and winner; finalists that break the worker are found and left out."""
        evaluator, problem = self.evaluator, self.problem
        # The twin has the launch choices that the kernel has, those of the finalists among them.
        twins = evaluator._sources([*self.twins, *evaluator.own_twins(problem, finalists)])
        while True:
            sources = {config_key(c): evaluator.render(problem, c).write(evaluator.folder) for c in finalists}
            # The default twice: how far a kernel differs from itself is what noise can make.
            kernels = [sources[config_key(self.default)], *(sources[config_key(c)] for c in finalists)]
            try:
                contest = self._run(evaluator.contest, tuple(twins), tuple(kernels))
            except TaskFailedError as error:
                reasons = {path: self._probe(path) for path in [*twins, *dict.fromkeys(kernels)]}
                twins = [twin for twin in twins if not reasons[twin]]
                broken = [(config, reasons[sources[config_key(config)]]) for config in finalists]
                self.failures += [(config, reason) for config, reason in broken if reason]
                alone = not any(reasons.values())
                # Where each is well alone and all together are not, fewer are tried.
                left = len(finalists) // 2 if alone else len(finalists)
                finalists = [config for config, reason in broken if not reason][:left]
                if self.default not in finalists or not twins:
                    raise CompileError(
                        f"The default config of {problem} cannot be timed at {self.tokens} tokens: {error}"
                    ) from error
                continue
            return self._decide(finalists, contest)

    def race(self, configs: Sequence[Config]) -> dict[str, float]:
        """Microseconds by config; those that break the worker are found and left out."""
        evaluator, able = self.evaluator, list(configs)
        while able:
            sources = [evaluator.render(self.problem, config).write(evaluator.folder) for config in able]
            try:
                stays = sources[able.index(self.default)] if self.default in able else None
                timings = self._run(evaluator.race, tuple(sources), stays)
                return {config_key(c): timing.median for c, timing in zip(able, timings, strict=True)}
            except TaskFailedError as error:
                reasons = [self._probe(source) for source in sources]
                broken = [(config, reason) for config, reason in zip(able, reasons, strict=True) if reason]
                self.failures += broken
                if self.default in [config for config, _ in broken]:
                    raise CompileError(
                        f"The default config of {self.problem} cannot be timed at {self.tokens} tokens: {error}"
                    ) from error
                # Where each is well alone and all together are not, fewer are tried.
                left = len(able) if broken else len(able) // 2
                able = [config for config, reason in zip(able, reasons, strict=True) if not reason][:left]
        return {}

    def _run(self, task: Any, *args: Any) -> Any:
        gpu = self.evaluator._gpu(self.problem)
        return gpu.submit(task, self.problem, self.tokens, *args, limit=self.evaluator._finals, urgent=True).result()

    def _probe(self, source: Path) -> str:
        """Why a kernel cannot be timed alone; empty if it can."""
        try:
            self._run(self.evaluator.probe, source)
        except TaskFailedError as error:
            return str(error)
        return ""

    def _decide(self, finalists: list[Config], contest: trial.Contest) -> tuple[dict[str, Any], Config]:
        family, target = get_family(self.problem.op), self.evaluator.target
        first, second, *rest = contest.kernels
        configs = finalists[1:]
        default_us = min(first.median, second.median)
        typical = sorted(t.spread / t.median for t in [first, second, *rest])[len(rest) // 2 + 1]
        margin = max(LEAST_MARGIN, abs(first.median / second.median - 1), typical / 2)
        timed = [(self.default, default_us), *((c, t.median) for c, t in zip(configs, rest, strict=True))]
        decision = decide(timed, self.default, margin, lambda c: family.complexity(self.problem, target, c))
        spread = next((t.spread for c, t in zip(configs, rest, strict=True) if c == decision.config), first.spread)
        fields: dict[str, Any] = {
            "median_us": round(decision.time, 3),
            "spread_us": round(spread, 3),
            "default_us": round(default_us, 3),
            "twin_us": round(contest.twin.median, 3),
            "empty_us": round(contest.empty.median, 3),
            "margin": round(margin, 4),
            "runner_up": decision.runner_up,
            "runner_up_us": decision.runner_up_time and round(decision.runner_up_time, 3),
        }
        return fields, decision.config
