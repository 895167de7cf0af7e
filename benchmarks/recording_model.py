"""What configs take, made of noisy times in several recordings: how far these lie apart, and the best estimates.

Between recordings the level moves: another GPU of the kind, another time from the start of a graph to its first
kernel, a template that was touched. Only the default config is in all of them, and a difference of its visits is as
noisy as they are. All configs together tell more: times are a Gaussian process over the knobs, plus a step between the
recordings that generalised least squares finds.

The same process says what a config takes. The lowest of hundreds of noisy medians is low because its noise was:
configs that are alike and a config's other times tell how much of it to believe (best linear unbiased prediction:
Robinson 1991; kriging with noise: Rasmussen and Williams 2006, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tunegen.ops import Config, Knob
from tunegen.search.surrogate import DOUBLE, KnobProcess, ordered_choices

Array = npt.NDArray[np.float64]

# The step is a matter of the start of a graph, so of microseconds more than of per cent: slow configs would blur it.
FASTEST_SHARE = 0.5
# The hyperparameters are fitted without the step that was found before.
ROUNDS = 2


# Configs slower than so many times the tenth fastest are out of question for the winner, and of the estimates.
IN_QUESTION = 1.5
# A visit so much slower than the middle of the config's others was disturbed.
DISTURBED = 1.3


def codes_of(knobs: Sequence[Knob], configs: Sequence[Config]) -> torch.Tensor:
    """Index of the choice, [config, knob], as `KnobProcess` takes it."""
    orders = [(knob.name, ordered_choices(knob)) for knob in knobs]
    return torch.tensor([[order.index(config[name]) for name, order in orders] for config in configs], dtype=DOUBLE)


def step(knobs: Sequence[Knob], configs: Sequence[Config], times: Array, later: Array) -> tuple[float, float]:
    """What times of a later recording take more than those of an earlier one.

    Args:
        knobs: What the configs choose from.
        configs: One for each of the times; a config timed in both recordings comes twice.
        times: Microseconds.
        later: True where a time is of the later recording.

    Returns:
        Microseconds at the middle of the faster half of the configs, and the standard error.
    """
    fast = times <= np.quantile(times, FASTEST_SHARE)
    codes = codes_of(knobs, [config for config, taken in zip(configs, fast, strict=True) if taken])
    logs = torch.from_numpy(np.log(times[fast]))
    design = torch.stack([torch.ones(len(logs)), torch.from_numpy(later[fast])], 1).to(DOUBLE)
    process, everything = KnobProcess(codes), torch.arange(len(logs))
    found = torch.zeros(2, dtype=DOUBLE)
    for _ in range(ROUNDS):
        process.fit(everything, (logs - design[:, 1] * found[1])[:, None])
        factor = torch.linalg.cholesky(process.covariance(everything))
        white = torch.linalg.solve_triangular(factor, torch.cat([design, logs[:, None]], 1), upper=False)
        inverse = torch.linalg.inv(white[:, :2].T @ white[:, :2])
        found = inverse @ white[:, :2].T @ white[:, 2]
        error = torch.sqrt(inverse[1, 1] * ((white[:, 2] - white[:, :2] @ found) ** 2).mean())
    middle = float(np.median(times[fast]))
    return float(found[1]) * middle, float(error) * middle


def estimates(knobs: Sequence[Knob], configs: Sequence[Config], which: Array, times: Array) -> tuple[Array, float]:
    """What each config takes, of all captures of the configs, at one token count.

    Args:
        knobs: What the configs choose from.
        configs: Distinct ones.
        which: Of each capture of a graph, the index of its config.
        times: Microseconds of each capture; all on one level.

    Returns:
        Microseconds by config, NaN where it has no capture: of those in question the prediction of the process, of
        the others the median of their captures. And the noise of one capture as the process has it: 0.01 is a per cent.
    """
    found = np.array([np.median(times[which == i]) if (which == i).any() else np.nan for i in range(len(configs))])
    limit = IN_QUESTION * np.sort(found[~np.isnan(found)])[:10][-1]
    kept = (found[which] < limit) & (times < DISTURBED * found[which])
    at, values = torch.from_numpy(which[kept]), torch.from_numpy(np.log(times[kept]))[:, None]
    process = KnobProcess(codes_of(knobs, configs))
    for _ in range(ROUNDS):
        process.fit(at, values)
    process.condition(at, values)
    inside = np.unique(which[kept])
    found[inside] = process.means[:, 0].exp().numpy()[inside]
    return found, float((process.noise * process.scales[0]).sqrt())


def at_counts(tokens: Sequence[int], microseconds: Array, counts: Sequence[int]) -> Array:
    """Steps found at some token counts, at others: on lines between them over the logarithm of the count."""
    found: Array = np.interp(np.log2(counts), np.log2(tokens), microseconds)
    return found
