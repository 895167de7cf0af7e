"""Searches replayed on recorded times: no GPU, no compiler, and the noise of the recording.

A recording (benchmarks/record_space.py) has what many configs of some problems took, sample by sample. A search is
run on it with the proposer that tuning uses; what it would have decided is judged by the best estimate of what each
config takes, which benchmarks/pack_space.py makes of all samples.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunegen.errors import TunegenError
from tunegen.ops import Config, Knob, Problem, config_key
from tunegen.search.decide import decide
from tunegen.search.proposals import Proposer, objectives, token_groups
from tunegen.targets import Target, get_target

Array = npt.NDArray[np.float64]

# As in tuning: samples of a first look, finalists of a token count beside the default, samples of the final.
LOOK_SAMPLES = 3
FINALISTS = 6
FINAL_SAMPLES = 13
LEAST_MARGIN = 0.005


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the configs of one problem took; this list of configs is the space of a replayed search.

    Attributes:
        problem: What was timed.
        target: On which GPU architecture.
        tokens: Token counts that every config was timed at, ascending.
        knobs: What the configs choose from: the family's knobs when it was recorded.
        configs: The space, the default config first.
        looks: Microseconds, [config, token count, visit, sample]; NaN where there is no sample.
        failures: Why a config has no times, by index.
        final_tokens: Token counts that the fastest configs were timed at again, interleaved.
        finals: Microseconds by config index, [token count, sample]; NaN where there is no sample.
        resources: Of each config as compiled, by name; empty for those that failed.
        truth: Best estimate of what a config takes, microseconds, [config, token count]; infinite for one that failed.
        recordings: In which of the recordings that were packed together a config was timed. The default, which was in
            all of them, has 0 here.
    """

    problem: Problem
    target: Target
    tokens: tuple[int, ...]
    knobs: tuple[Knob, ...]
    configs: tuple[Config, ...]
    looks: Array
    failures: dict[int, str]
    final_tokens: tuple[int, ...]
    finals: dict[int, Array]
    resources: tuple[dict[str, Any], ...]
    truth: Array
    recordings: tuple[int, ...]

    @property
    def default(self) -> Config:
        """The config of the analytic rule."""
        return self.configs[0]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Position of a config by its key."""
        return {config_key(config): i for i, config in enumerate(self.configs)}

    @functools.cached_property
    def excess(self) -> Array:
        """What a look took more than the final timing did, in microseconds by token count; 0 without finals.

        Looks were taken while kernels were compiled beside them: a replay of a graph then starts some microseconds
        later, whatever is in it.
        """
        excess = np.zeros(len(self.tokens))
        for at, tokens in enumerate(self.tokens):
            if tokens in self.final_tokens and self.finals:
                row = self.final_tokens.index(tokens)
                differences = [np.nanmedian(self.looks[i, at]) - np.nanmedian(f[row]) for i, f in self.finals.items()]
                excess[at] = np.median(differences)
        return excess

    def samples(self, config: int, at: int) -> Array:
        """Undisturbed samples of a config at the token count of index ``at``.

        Those of the final timing if it was in it; otherwise all of its looks, less their `excess`.
        """
        if config in self.finals and self.tokens[at] in self.final_tokens:
            found: Array = self.finals[config][self.final_tokens.index(self.tokens[at])]
        else:
            found = self.looks[config, at].ravel() - self.excess[at]
        there: Array = found[~np.isnan(found)]
        return there

    def visits_of(self, config: int) -> list[int]:
        """Which visits of a config there are."""
        return [v for v in range(self.looks.shape[2]) if not np.isnan(self.looks[config, 0, v, 0])]

    @functools.cached_property
    def deviations(self) -> Array:
        """What one visit is off the middle of two, by [config that was visited twice, token count], as a factor."""
        medians = np.log(np.median(self.looks, axis=3))
        twice = [(config, self.visits_of(config)) for config in range(1, len(self.configs))]
        halves = [(medians[c, :, v[0]] - medians[c, :, v[1]]) / 2 for c, v in twice if len(v) == 2]
        return np.exp(np.array(halves).reshape(-1, len(self.tokens)))

    def regrets(self, config: int) -> Array:
        """How much more than the best of the space a config takes at each token count: 0.01 is a per cent."""
        regrets: Array = self.truth[config] / self.truth.min(axis=0) - 1
        return regrets

    def _complexity(self, config: Config) -> tuple[int, ...]:
        """As `Family.complexity`, for the knobs that the recording has."""
        ranks = [knob.choices.index(config[knob.name]) for knob in self.knobs]
        return (sum(ranks), *ranks)

    def first_look(self, config: int, generator: np.random.Generator) -> dict[int, float] | None:
        """What tuning would see of a config: medians of a few samples of one visit; None if it failed.

        If nothing is known of a config but one visit, a search would see the very times it is judged by. It sees
        them as far off as a visit of another config was, one way or the other.
        """
        if config in self.failures:
            return None
        visits = self.visits_of(config)
        visit = self.looks[config, :, generator.choice(visits)]
        drawn = generator.choice(visit.shape[1], LOOK_SAMPLES, replace=False)
        times = np.median(visit[:, drawn], axis=1)
        if len(visits) == 1 and config not in self.finals and len(self.deviations):
            times = times * generator.choice(self.deviations) ** generator.choice((-1, 1))
        return dict(zip(self.tokens, times.tolist(), strict=True))

    def decided(self, seen: dict[int, dict[int, float]], generator: np.random.Generator) -> list[int]:
        """The config that tuning would declare the winner at each token count.

        Args:
            seen: First looks by config; the default's among them.
            generator: Of the noise.
        """
        winners = []
        for at, tokens in enumerate(self.tokens):
            ranked = sorted(seen, key=lambda config: seen[config][tokens])
            finalists = [config for config in ranked[:FINALISTS] if config]
            final = [generator.choice(self.samples(c, at), FINAL_SAMPLES) for c in (0, 0, *finalists)]
            medians = [float(np.median(samples)) for samples in final]
            ordered = [np.sort(samples) for samples in final]
            quarter = FINAL_SAMPLES // 4
            spreads = sorted(float(s[-1 - quarter] - s[quarter]) / m for s, m in zip(ordered, medians, strict=True))
            typical = spreads[len(finalists) // 2 + 1]
            margin = max(LEAST_MARGIN, abs(medians[0] / medians[1] - 1), typical / 2)
            timed = [(self.default, min(medians[:2]))]
            timed += [(self.configs[c], median) for c, median in zip(finalists, medians[2:], strict=True)]
            decision = decide(timed, self.default, margin, self._complexity)
            winners.append(self.index[config_key(decision.config)])
        return winners


def load(path: Path) -> list[Recorded]:
    """Reads a recording as `save` writes it.

    Raises:
        TunegenError: Not such a file.
    """
    try:
        with lzma.open(path) as file:
            data = json.loads(file.read())
        return [_recorded(item, get_target(data["target"])) for item in data["problems"]]
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError) as error:
        raise TunegenError(
            f"{path} must be a recording made with benchmarks/record_space.py and packed; it cannot be read: {error!r}."
        ) from error


def save(recordings: Sequence[Recorded], about: dict[str, Any], path: Path) -> None:
    """Writes a recording: JSON, compressed, times as whole nanoseconds a sample.

    Args:
        recordings: Of one target.
        about: What it was recorded with: device, versions, timing policy.
        path: An .xz file.
    """
    problems = []
    for recorded in recordings:
        problems.append(
            {
                "op": recorded.problem.op,
                "shape": recorded.problem.sizes,
                "rounding": recorded.problem.rounding,
                "tokens": recorded.tokens,
                "knobs": {knob.name: knob.choices for knob in recorded.knobs},
                "configs": [[k.choices.index(config[k.name]) for k in recorded.knobs] for config in recorded.configs],
                "looks": _to_integers(recorded.looks),
                "failures": {str(i): reason for i, reason in recorded.failures.items()},
                "final_tokens": recorded.final_tokens,
                "finals": {str(i): _to_integers(samples) for i, samples in recorded.finals.items()},
                "resource_names": (names := sorted({name for r in recorded.resources for name in r})),
                "resources": [[r.get(name) for name in names] for r in recorded.resources],
                "truth": _to_integers(np.where(np.isinf(recorded.truth), np.nan, recorded.truth)),
                "recordings": recorded.recordings,
            }
        )
    target = recordings[0].target.name
    text = json.dumps({"target": target, "about": about, "problems": problems}, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9))


def _to_integers(microseconds: Array) -> Any:
    """Nested lists of nanoseconds: of each innermost list the first, then differences from it; -1 for no sample.

    Differences are small, so that they compress. Where a sample is missing those behind it are missing too.
    """
    whole = np.where(np.isnan(microseconds), -1, np.rint(1000 * microseconds)).astype(np.int64)
    whole[..., 1:] = np.where(whole[..., :1] < 0, 0, whole[..., 1:] - whole[..., :1])
    return whole.tolist()


def _from_integers(data: Any) -> Array:
    whole = np.array(data, dtype=np.float64)
    whole[..., 1:] += whole[..., :1]
    return np.where(whole < 0, np.nan, whole / 1000)


def _recorded(item: dict[str, Any], target: Target) -> Recorded:
    knobs = tuple(Knob(name, tuple(choices), "") for name, choices in item["knobs"].items())
    return Recorded(
        problem=Problem.of(item["op"], item["shape"], item["rounding"]),
        target=target,
        tokens=tuple(item["tokens"]),
        knobs=knobs,
        configs=tuple({k.name: k.choices[i] for k, i in zip(knobs, row, strict=True)} for row in item["configs"]),
        looks=_from_integers(item["looks"]),
        failures={int(i): reason for i, reason in item["failures"].items()},
        final_tokens=tuple(item["final_tokens"]),
        finals={int(i): _from_integers(samples) for i, samples in item["finals"].items()},
        resources=tuple(
            {name: value for name, value in zip(item["resource_names"], row, strict=True) if value is not None}
            for row in item["resources"]
        ),
        truth=np.where(np.isnan(truth := _from_integers(item["truth"])), np.inf, truth),
        recordings=tuple(item["recordings"]),
    )


def budget(space: int) -> int:
    """Evaluations that a search of a space gets: 32, or a twentieth of it."""
    return max(32, -(-space // 20))


def search(
    recorded: Recorded,
    sampler: str,
    evaluations: int,
    seed: int,
    under_way: int,
    warm: Sequence[Config] = (),
    judged_at: Sequence[int] = (),
) -> dict[int, Array]:
    """Searches as tuning does and judges what would be declared the winners after some numbers of evaluations.

    Args:
        recorded: The times.
        sampler: Name of one of `tunegen.search.proposals.SAMPLERS`.
        evaluations: Budget: distinct configs, failing ones too.
        seed: Of the sampler and of the noise.
        under_way: Configs that are asked for before the result of the first of them is known; after each result
            another one is.
        warm: Configs evaluated before any is proposed; those that the space does not have are left out.
        judged_at: Numbers of evaluations; default: the budget.

    Returns:
        Regret of the winner at each token count, by number of evaluations.
    """
    generator = np.random.default_rng(seed)
    groups = len(token_groups(recorded.tokens, sampler))
    proposer = Proposer(recorded.problem, recorded.target, groups, seed, sampler, recorded.configs, recorded.knobs)
    judged_at = judged_at or (evaluations,)
    waiting = deque(c for c in warm if config_key(c) in recorded.index and c != recorded.default)
    asked = deque([recorded.default])
    seen: dict[int, dict[int, float]] = {}
    count = 0
    judged: dict[int, Array] = {}
    while asked:
        config = asked.popleft()
        index = recorded.index[config_key(config)]
        times = recorded.first_look(index, generator)
        if times is not None:
            seen[index] = times
        proposer.record(config, None if times is None else objectives(times, seen[0], sampler))
        count += 1
        if count in judged_at:
            winners = recorded.decided(seen, generator)
            judged[count] = np.array([recorded.regrets(w)[at] for at, w in enumerate(winners)])
        while len(asked) < min(under_way, evaluations - count) and (waiting or not proposer.exhausted):
            config = waiting.popleft() if waiting else proposer.propose()
            proposer.reserve(config)
            asked.append(config)
    return judged
