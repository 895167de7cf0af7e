"""Predicts what configs take from the compiled kernel."""

from __future__ import annotations

import os
from concurrent.futures import CancelledError, Future
from typing import Any

from tunegen.codegen.render import Rendered
from tunegen.configs import TunedBucket
from tunegen.errors import CompileError
from tunegen.evaluate import interpreter
from tunegen.evaluate.conformance import fewest_lanes_per_row, first_case
from tunegen.evaluate.isolated import IsolatedPool, TaskFailedError, TimeLimit
from tunegen.evaluate.predict import MODEL, limits_of
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.decide import decide
from tunegen.search.evaluators._base import Choice, Evaluator
from tunegen.search.evaluators._compilation import Compilation
from tunegen.search.record import Outcome
from tunegen.targets import Target

# A prediction tells times apart no finer than this.
PREDICTION_MARGIN = 0.01


class PredictedEvaluator(Evaluator):
    """Predicts from the compiled kernel; a winner has been run in Triton's interpreter."""

    evidence = "predicted"
    # What the interpreter may take for a winner's first case, before it is known what others take, and at least.
    check_seconds = (600.0, 120.0)

    def __init__(self, target: Target, tokens: list[int], workers: int | None = None) -> None:
        limits_of(target.name)
        super().__init__(target, target.device, tokens, workers)
        count = min(os.cpu_count() or 1, 4)
        self._interpreters = IsolatedPool(workers or count, TimeLimit(*self.check_seconds), interpreter.start_worker)
        self._checks: dict[str, Future[list[str]]] = {}

    def close(self) -> None:
        self._interpreters.close()
        super().close()

    @property
    def environment(self) -> dict[str, Any]:
        return {**super().environment, "device_name": self.target.device_name, "model": MODEL}

    def submit(self, problem: Problem, config: Config) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()

        def compiled(future: Future[Compilation]) -> None:
            try:
                outcome.set_result(self._outcome(problem, config, future.result()))
            except TaskFailedError as error:
                outcome.set_result(Outcome(config, {}, f"does not compile: {error}", {}))
            except (Exception, CancelledError) as error:
                outcome.set_exception(error)

        self.compile(self.render(problem, config)).add_done_callback(compiled)
        return outcome

    def _outcome(self, problem: Problem, config: Config, compilation: Compilation) -> Outcome:
        details = {
            "limiters": {str(m): prediction.limiter for m, prediction in compilation.predictions.items()},
            "resources": compilation.resources,
            "memory_us": {str(m): prediction.memory_us for m, prediction in compilation.predictions.items()},
            "limit_us": {str(m): prediction.limit_us for m, prediction in compilation.predictions.items()},
            "fingerprint": self.fingerprint(problem, config, compilation.binary),
        }
        times = {m: prediction.microseconds for m, prediction in compilation.predictions.items()}
        return Outcome(config, times, "", details)

    def _check(self, problem: Problem, config: Config) -> Future[list[str]]:
        """Runs the kernel in Triton's interpreter; what is wrong with it, or TaskFailedError."""
        key = f"{problem} {config_key(config)}"
        if key not in self._checks:
            source = self.interpretable(problem, config).write(self.folder)
            lanes = fewest_lanes_per_row(self.target, config)
            self._checks[key] = self._interpreters.submit(
                interpreter.run_task, source, first_case(problem, self.target), lanes
            )
        return self._checks[key]

    def interpretable(self, problem: Problem, config: Config) -> Rendered:
        """The source that is interpreted for a config."""
        return interpreter.interpretable(problem, self.target, config)

    def _failure(self, problem: Problem, config: Config) -> str:
        """Why the kernel is wrong, by Triton's interpreter; empty if it is right."""
        try:
            found = self._check(problem, config).result()
        except TaskFailedError as error:
            return f"cannot be interpreted: {error}"
        return f"computes wrong results: {'; '.join(found)}" if found else ""

    def choose(self, problem: Problem, outcomes: list[Outcome], edges: list[int | None]) -> Choice:
        family = get_family(problem.op)
        default = family.default(problem, self.target)
        good = {config_key(outcome.config): outcome for outcome in outcomes if not outcome.failure}
        failures: list[Outcome] = []
        while True:
            decisions = [
                decide(
                    [(outcome.config, outcome.times[tokens]) for outcome in good.values()],
                    default,
                    PREDICTION_MARGIN,
                    lambda config: family.complexity(problem, self.target, config),
                )
                for tokens in self.tokens
            ]
            winners = {config_key(decision.config): decision.config for decision in decisions}
            for config in winners.values():  # all of them side by side
                self._check(problem, config)
            wrong = {key: failure for key, config in winners.items() if (failure := self._failure(problem, config))}
            if config_key(default) in wrong:
                raise CompileError(
                    f"The default config of {problem} computes wrong results: {wrong[config_key(default)]}"
                )
            failures += [Outcome(winners[key], {}, failure, good.pop(key).details) for key, failure in wrong.items()]
            if not wrong:
                break
        buckets = []
        for tokens, edge, decision in zip(self.tokens, edges, decisions, strict=True):
            winner = good[config_key(decision.config)]
            fields: dict[str, Any] = {
                "predicted_us": round(decision.time, 3),
                "default_us": round(good[config_key(default)].times[tokens], 3),
                "memory_us": round(winner.details["memory_us"][str(tokens)], 3),
                "limit_us": round(winner.details["limit_us"][str(tokens)], 3),
                "limiter": winner.details["limiters"][str(tokens)],
                "margin": PREDICTION_MARGIN,
                "runner_up": decision.runner_up,
                "runner_up_us": decision.runner_up_time and round(decision.runner_up_time, 3),
            }
            buckets.append(TunedBucket(tokens, edge, decision.config, fields))
        return Choice(buckets, failures)
