"""The Gaussian process and what it suggests."""

from __future__ import annotations

import math

import optuna
import pytest
import torch
from made_up import PROBLEM, TARGET, TOKENS, formula, recording

from tunegen.ops import Knob, config_key, get_family
from tunegen.search.surrogate import BOUNDS, PRIORS, KnobProcess, SurrogateSampler, ordered_choices

CODES = torch.tensor([[i % 4, i // 4 % 3, i // 12] for i in range(24)], dtype=torch.float64)


def observations(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    at = torch.arange(0, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(1))][:count]
    codes = CODES[at]
    first = 0.1 * codes[:, 0] + 0.3 * (codes[:, 1] - 1).abs()
    return at, torch.stack([first, 0.2 * codes[:, 2] + 0.1 * codes[:, 0] * codes[:, 1]], 1)


def density(process: KnobProcess, raw: torch.Tensor, at: torch.Tensor, values: torch.Tensor) -> float:
    """The loss, written out in another way than the gradient is."""
    knobs = CODES.shape[1]
    step, other, alone = (raw[i * knobs : (i + 1) * knobs].exp() for i in range(3))
    covariance = raw[-1].exp() * torch.eye(len(at), dtype=torch.float64)
    for i, left in enumerate(CODES[at]):
        for j, right in enumerate(CODES[at]):
            distance = step * (left - right).abs() + other * (left != right)
            covariance[i, j] += (alone * torch.exp(-distance)).sum() + torch.exp(-distance.sum())
    inverse = torch.linalg.inv(covariance)
    ones = torch.ones(len(at), dtype=torch.float64)
    loss = 0.5 * values.shape[1] * torch.logdet(covariance)
    for column in values.T:
        residual = column - (ones @ inverse @ column) / (ones @ inverse @ ones)
        loss += 0.5 * len(at) * torch.log(residual @ inverse @ residual / len(at) + 1e-8)
    spans = [(PRIORS[n], knobs if n != "noise" else 1) for n in PRIORS]
    usual = torch.cat([torch.full((count,), math.log(prior[0]), dtype=torch.float64) for prior, count in spans])
    deviations = torch.cat([torch.full((count,), prior[1], dtype=torch.float64) for prior, count in spans])
    return float(loss + (((raw - usual) / deviations) ** 2).sum() / 2)


def test_gradient_is_that_of_the_density() -> None:
    process = KnobProcess(CODES)
    at, values = observations(12)
    raw = process._raw + torch.linspace(-0.5, 0.5, len(process._raw), dtype=torch.float64)
    process._raw = raw
    gradient = process._gradient(CODES[at], values)
    for i in range(len(raw)):
        shift = torch.zeros_like(raw)
        shift[i] = 1e-5
        slope = (density(process, raw + shift, at, values) - density(process, raw - shift, at, values)) / 2e-5
        assert float(gradient[i]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_a_fit_is_likelier_and_within_bounds() -> None:
    process = KnobProcess(CODES)
    at, values = observations(16)
    before = density(process, process._raw, at, values)
    process.fit(at, values)
    assert density(process, process._raw, at, values) < before - 1
    assert bool(((process._raw >= BOUNDS[0]) & (process._raw <= BOUNDS[1])).all())


def test_what_is_known_is_predicted_and_the_rest_is_between() -> None:
    process = KnobProcess(CODES)
    at, values = observations(16)
    process.fit(at, values)
    process.condition(at, values)
    assert torch.allclose(process.means[at], values, atol=0.05)
    rest = [i for i in range(24) if i not in at.tolist()]
    assert bool((process.variances[rest] > process.variances[at].max()).all())


def test_a_believed_result_leaves_the_means() -> None:
    """Believing is conditioning on the mean, done in place."""
    process = KnobProcess(CODES)
    at, values = observations(10)
    process.condition(at, values)
    new = next(i for i in range(24) if i not in at.tolist())
    means, variances = process.means.clone(), process.variances.clone()
    process.believe(new)
    assert torch.equal(process.means, means)
    assert process.variances[new] < variances[new] / 10
    again = KnobProcess(CODES)
    again.condition(torch.cat([at, torch.tensor([new])]), torch.cat([values, means[new][None]]))
    assert torch.allclose(process.variances, again.variances, atol=1e-9)


def test_numbers_are_ordered_and_words_stay() -> None:
    assert ordered_choices(Knob("vector", (8, 16, 4), "")) == [4, 8, 16]
    assert ordered_choices(Knob("policy", ("default", "evict_first"), "")) == ["default", "evict_first"]


def test_it_closes_in_on_the_optimum_and_then_is_spent() -> None:
    space = recording(noise=0.0).configs
    sampler = SurrogateSampler(get_family(PROBLEM.op).knobs(PROBLEM, TARGET), space, seed=0)
    study = optuna.create_study(directions=["minimize"] * len(TOKENS), sampler=sampler)
    default = {count: formula(space[0], count) for count in TOKENS}
    best = {count: min(formula(config, count) for config in space) for count in TOKENS}
    seen: dict[str, dict[int, float]] = {}
    knobs = {
        knob.name: optuna.distributions.CategoricalDistribution(knob.choices)
        for knob in get_family(PROBLEM.op).knobs(PROBLEM, TARGET)
    }
    while len(seen) < 60 and not sampler.spent:
        trial = study.ask(knobs)
        key = config_key(trial.params)
        assert key not in seen
        assert trial.params in space
        seen[key] = {count: formula(trial.params, count) for count in TOKENS}
        study.tell(trial, [seen[key][count] / default[count] for count in TOKENS])
    found = {count: min(times[count] for times in seen.values()) for count in TOKENS}
    assert found == pytest.approx(best, rel=0.01)
    assert len(seen) < 60
