"""An optuna sampler for small spaces of valid configs that are judged at several token counts at once.

The whole space is listed, so a suggestion is always a valid config that was not tried. A Gaussian process over the
knobs models the logarithm of the time at every token count; the config is suggested that is expected to lower the sum
over the token counts of the best logarithm most (expected improvement: Mockus 1978; Jones, Schonlau and Welch 1998).
Token counts share the kernel and each has a mean and a scale of its own (Conti and O'Hagan 2010). A config under way
counts as tried with the result that the model expects (kriging believer: Ginsbourger, Le Riche and Carraro 2010).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from tunegen.ops import Config, Knob, config_key

# Of what each hyperparameter's logarithm is before the data: median and standard deviation.
PRIORS = {
    "step": (0.15, 1.0),  # how much correlation falls from a choice to the next one
    "other": (0.15, 1.0),  # how much it falls from a choice to any other
    "alone": (0.3, 1.0),  # variance that a knob makes alone, over that of all together
    "noise": (0.01, 1.0),  # variance of noise, over that of all knobs together
}
# Of a raw hyperparameter: without noise the covariance of configs that are alike would be singular.
BOUNDS = (-9.0, 3.0)
FIT_STEPS = 30
FIT_RATE = 0.1
INDEPENDENT = 2.0
LEAST_SCALE = 1e-8
# A config this much slower than the fastest (in logarithms) may be any slower: its region is of no interest.
SLOWEST = 1.0
# Results that the model is made of: beyond these, the better half and some of the others.
MOST_KEPT = 256
# The hyperparameters are fitted anew when there are this many times as many results.
REFIT = 1.08
# The search is over when of this many suggestions none promised to lower the time by this much, over token counts.
SPENT_AFTER = 8
SPENT_GAIN = 0.0005
DOUBLE = torch.float64


def ordered_choices(knob: Knob) -> list[int | str]:
    """A knob's choices in an order in which neighbours are alike: numbers ascending, others as the family has them."""
    return sorted(knob.choices, key=lambda c: (0, c) if isinstance(c, int) else (1, 0))


class KnobProcess:
    """A Gaussian process on the configs of a space; see the top of the file.

    With d_k a distance between choices of knob k, two configs have the covariance sum_k alone_k exp(-d_k) +
    exp(-sum_k d_k): what knobs do by themselves and what they do together.

    Args:
        codes: Index of the choice, [config, knob], among the ordered choices of the knob.
    """

    def __init__(self, codes: torch.Tensor) -> None:
        self._codes = codes
        count = {"step": codes.shape[1], "other": codes.shape[1], "alone": codes.shape[1], "noise": 1}
        # Logarithms of the hyperparameters.
        self._raw = torch.cat([torch.full((count[name],), math.log(PRIORS[name][0]), dtype=DOUBLE) for name in PRIORS])
        self._usual = self._raw.clone()
        self._deviations = torch.cat([torch.full((count[name],), PRIORS[name][1], dtype=DOUBLE) for name in PRIORS])
        # Covariances of a config with the whole space, which stay until the next fit.
        self._rows: dict[int, torch.Tensor] = {}

    def _parts(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of configs with some codes: by knob, how far apart choices are and what a knob alone makes; the product."""
        knobs = self._codes.shape[1]
        step, other = self._raw[:knobs].exp(), self._raw[knobs : 2 * knobs].exp()
        apart = (left.T[:, :, None] - right.T[:, None, :]).abs()
        distance = step[:, None, None] * apart + other[:, None, None] * (apart > 0)
        return apart, torch.exp(-distance), torch.exp(-distance.sum(0))

    @property
    def _alone(self) -> torch.Tensor:
        knobs = self._codes.shape[1]
        return self._raw[2 * knobs : 3 * knobs].exp()

    @property
    def noise(self) -> torch.Tensor:
        """Variance of the noise of a value, over the output scale."""
        return self._raw[-1].exp()

    def _kernel(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Covariance of configs with the codes ``left`` and ``right``, over the output scale."""
        knobs = self._codes.shape[1]
        step, other = self._raw[: 2 * knobs].exp().view(2, knobs, 1, 1)
        choices = torch.arange(int(self._codes.max()) + 1)
        apart = (choices[:, None] - choices).abs()
        # A table of choice by choice for each knob: there are few choices, and many configs.
        tables = torch.exp(-step * apart - other * (apart > 0))
        each = tables[torch.arange(knobs)[:, None, None], left.T.long()[:, :, None], right.T.long()[:, None, :]]
        covariance: torch.Tensor = torch.tensordot(self._alone, each, dims=1) + each.prod(0)
        return covariance

    def _with_all(self, at: Sequence[int]) -> torch.Tensor:
        """Covariances of the configs of index ``at`` with every config of the space, over the output scale."""
        new = [index for index in at if index not in self._rows]
        if new:
            self._rows.update(zip(new, self._kernel(self._codes[new], self._codes), strict=True))
        return torch.stack([self._rows[index] for index in at])

    def covariance(self, at: torch.Tensor) -> torch.Tensor:
        """Of values measured of the configs of index ``at``, noise included, over the output scale."""
        codes = self._codes[at]
        return self._kernel(codes, codes) + self.noise * torch.eye(len(at), dtype=DOUBLE)

    def _solve(self, factor: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Generalised least squares mean of each column, mean square about it, and whitened residuals."""
        ones = torch.linalg.solve_triangular(factor, torch.ones(len(values), 1, dtype=DOUBLE), upper=False)
        white = torch.linalg.solve_triangular(factor, values, upper=False)
        means = (ones * white).sum(0) / (ones * ones).sum()
        residuals = white - ones * means
        return means, (residuals**2).mean(0) + LEAST_SCALE, residuals

    def _gradient(self, codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Of the negative logarithm of the posterior density of the raw hyperparameters, means and scales profiled out.

        That is T/2 log det K + n/2 sum_t log(scale_t) for T token counts and n configs, and the priors.
        """
        apart, each, together = self._parts(codes, codes)
        covariance = torch.tensordot(self._alone, each, dims=1) + together
        factor = torch.linalg.cholesky(covariance + self.noise * torch.eye(len(codes), dtype=DOUBLE))
        _, scales, residuals = self._solve(factor, values)
        weights = torch.linalg.solve_triangular(factor.T, residuals, upper=True) / scales.sqrt()
        slope = (values.shape[1] * torch.cholesky_inverse(factor) - weights @ weights.T) / 2
        # Token counts are not independent: together they tell as much as about INDEPENDENT that are.
        slope = slope * min(1.0, INDEPENDENT / values.shape[1])
        by_distance = -slope * (self._alone[:, None, None] * each + together)
        likelihood = torch.cat(
            [
                (by_distance * apart).sum((1, 2)),
                (by_distance * (apart > 0)).sum((1, 2)),
                (slope * each).sum((1, 2)),
                slope.diagonal().sum()[None],
            ]
        )
        gradient: torch.Tensor = likelihood * self._raw.exp() + (self._raw - self._usual) / self._deviations**2
        return gradient

    def fit(self, at: torch.Tensor, values: torch.Tensor) -> None:
        """Moves the hyperparameters towards the likeliest ones, given values of the configs of index ``at``.

        Adam (Kingma and Ba 2015), from where the last fit ended.
        """
        codes = self._codes[at]
        first, second = torch.zeros_like(self._raw), torch.zeros_like(self._raw)
        for step in range(1, FIT_STEPS + 1):
            gradient = self._gradient(codes, values)
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient**2
            move = (first / (1 - 0.9**step)) / (torch.sqrt(second / (1 - 0.99**step)) + 1e-9)
            self._raw = (self._raw - FIT_RATE * move).clamp(*BOUNDS)
        self._rows = {}

    def condition(self, at: torch.Tensor, values: torch.Tensor) -> None:
        """Takes in values; `means` and `variances` of the whole space are then up to date."""
        factor = torch.linalg.cholesky(self.covariance(at))
        means, self.scales, white = self._solve(factor, values)
        # Rows: what each tried config explains of every config's variance.
        self._explained = torch.linalg.solve_triangular(factor, self._with_all(at.tolist()), upper=False)
        self.means = means + self._explained.T @ white
        self.variances = 1 + self._alone.sum() - (self._explained**2).sum(0)

    def believe(self, index: int) -> None:
        """Takes in that a config takes what is expected: means stay, variances fall."""
        row = self._with_all([index])[0]
        row = row - self._explained[:, index] @ self._explained
        row = row / torch.sqrt(self.variances[index].clamp(min=1e-12) + self.noise)
        self._explained = torch.cat([self._explained, row[None]])
        self.variances = self.variances - row**2


class SurrogateSampler(optuna.samplers.BaseSampler):
    """Suggests configs of a listed space; objectives are times over the default's, one a token count, to be lowered.

    Args:
        knobs: Of the problem.
        space: All valid configs.
        seed: Of ties and of what is suggested before there is any result.
    """

    def __init__(self, knobs: Sequence[Knob], space: Sequence[Config], seed: int) -> None:
        self._random = random.Random(seed)
        self._space = space
        self._index = {config_key(config): i for i, config in enumerate(space)}
        orders = {knob.name: ordered_choices(knob) for knob in knobs}
        self._names = list(orders)
        codes = torch.tensor([[orders[name].index(config[name]) for name in orders] for config in space], dtype=DOUBLE)
        self._process = KnobProcess(codes)
        self._distributions: dict[str, BaseDistribution] = {
            knob.name: optuna.distributions.CategoricalDistribution(knob.choices) for knob in knobs
        }
        self._indices: dict[int, int | None] = {}
        self._conditioned: frozenset[int] = frozenset()
        self._believed: set[int] = set()
        self._fitted = 1
        self._gains: list[float] = []

    @property
    def spent(self) -> bool:
        """True if no more improvement worth the while was expected of any of the last suggestions."""
        return len(self._gains) >= SPENT_AFTER and max(self._gains[-SPENT_AFTER:]) < SPENT_GAIN

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs at once."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The most promising config that is neither tried nor under way."""
        states = self._states(study)
        unseen = [i for i in range(len(self._space)) if i not in states]
        done = {i: t.values for i, t in states.items() if t.state == TrialState.COMPLETE}
        if not done or not unseen:
            return dict(self._space[self._random.choice(unseen or range(len(self._space)))])
        failed = [i for i, t in states.items() if t.state == TrialState.FAIL]
        # Matrices this small take one core less time than many, above all where the others are compiling.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._update(done, failed, [i for i, t in states.items() if t.state == TrialState.RUNNING])
        gain = self._gain(list(done))[unseen]
        torch.set_num_threads(threads)
        chosen = int(gain.argmax())
        self._gains.append(float(gain[chosen]) / self._process.means.shape[1])
        return dict(self._space[unseen[chosen]])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Any choice: only of a knob that the space does not have."""
        assert isinstance(param_distribution, optuna.distributions.CategoricalDistribution)
        return self._random.choice(param_distribution.choices)

    def _states(self, study: optuna.Study) -> dict[int, FrozenTrial]:
        """The trials of configs of the space, by the config's index."""
        states = {}
        for trial in study.get_trials(deepcopy=False):
            if trial.number not in self._indices and len(trial.params) == len(self._names):
                self._indices[trial.number] = self._index.get(config_key(trial.params))
            index = self._indices.get(trial.number)
            if index is not None:
                states[index] = trial
        return states

    def _update(self, done: dict[int, list[float]], failed: list[int], running: list[int]) -> None:
        known = frozenset([*done, *failed])
        if known != self._conditioned:
            logs = torch.tensor(list(done.values()), dtype=DOUBLE).log()
            logs = (logs - logs.amin(0)).clamp(max=SLOWEST)
            values = torch.cat([logs, torch.full((len(failed), logs.shape[1]), SLOWEST)])
            at = torch.tensor([*done, *failed])
            if len(at) > MOST_KEPT:
                ranked = values.sum(1).argsort().tolist()
                kept = ranked[: MOST_KEPT // 2] + self._random.sample(ranked[MOST_KEPT // 2 :], MOST_KEPT // 2)
                at, values = at[kept], values[kept]
            if len(known) > REFIT * self._fitted:
                self._process.fit(at, values)
                self._fitted = len(known)
            self._process.condition(at, values)
            self._conditioned, self._believed = known, set()
        for index in running:
            if index not in self._believed:
                self._process.believe(index)
                self._believed.add(index)

    def _gain(self, done: list[int]) -> torch.Tensor:
        """Expected improvement over the best tried config, summed over token counts."""
        best = self._process.means[done].amin(0)
        deviations = torch.sqrt(self._process.variances.clamp(min=1e-12))[:, None] * torch.sqrt(self._process.scales)
        z = (best - self._process.means) / deviations
        density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        gain: torch.Tensor = deviations * (z * torch.special.ndtr(z) + density)
        return gain.sum(1)
