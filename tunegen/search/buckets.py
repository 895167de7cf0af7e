"""Which config serves token counts between those that were tuned.

A kernel's time is a staircase: it steps up where its programs need another turn of the GPU's multiprocessors, which is
at other counts for other configs, and where the data no longer fits the cache. Powers of two lie just below such steps
more often than other counts do, so that winners there say little about what lies between. So the winners, and who
nearly won at the tuned counts on both sides, are timed at counts between as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunegen.configs import TunedBucket
from tunegen.ops import Config, config_key

# Counts that are never tuned or timed before the buckets are made; the regret there is what users may expect.
HELD_OUT = (24, 100, 300, 700, 1500, 3000, 6000)
# Counts for each doubling, the tuned one among them: fewer where steps are rare, because there are too few programs for
# all units, or matter little, because a call that takes so many microseconds is many turns.
PER_OCTAVE = 6
PER_OCTAVE_OF_FEW = 3
FEW_TOKENS = 64
LONG_CALL = 50.0
# Where the winner changes between two counts, the count from which the second is faster is sought to this ratio.
EDGE_RATIO = 1.02
# Another config serves counts between two winners only if it is faster by more than a short race can be wrong: by the
# noise of the quieter of the two finals, but never by less or more than this.
MARGIN = 0.01
MOST_MARGIN = 0.03

Race = Callable[[int, Sequence[Config]], Mapping[str, float]]
"""Times configs at a token count: microseconds by `config_key`; one that broke, never the default, is left out."""
Rivals = Callable[[int], Sequence[Config]]
"""What might have won at a token count: the finalists of the tuned counts on both sides."""


def counts_between(low: int, high: int, us: float) -> list[int]:
    """Token counts strictly between two, evenly on a logarithmic axis; ``us``: what a call takes at the lower one."""
    step = 2 ** (1 / (PER_OCTAVE_OF_FEW if high <= FEW_TOKENS or us >= LONG_CALL else PER_OCTAVE))
    counts = []
    count = low * step
    while round(count) < high:
        counts.append(round(count))
        count *= step
    return [each for each in dict.fromkeys(counts) if low < each and each not in HELD_OUT]


def distinct(configs: Sequence[Config]) -> list[Config]:
    """Configs without repetitions, in order."""
    return list({config_key(config): config for config in configs}.values())


def fill_in(buckets: Sequence[TunedBucket], default: Config, rivals: Rivals, race: Race) -> list[TunedBucket]:
    """Buckets that serve the counts between tuned ones by what is fastest there.

    Args:
        buckets: One a tuned count, ascending.
        default: The default config, which may serve too.
        rivals: What may serve a count beside the winners.
        race: Times configs at a count.

    Returns:
        The buckets with other edges, and further ones where another config is faster than both neighbours.
    """
    winners = distinct([default, *(bucket.config for bucket in buckets)])
    # Each bucket with the first and the last count at which it was found to be the one to serve.
    served: list[tuple[TunedBucket, int, int]] = []
    for low, high in itertools.pairwise(buckets):
        between = counts_between(low.tokens, high.tokens, low.fields["median_us"])
        margin = min(max(MARGIN, min(low.fields["margin"], high.fields["margin"])), MOST_MARGIN)
        found = {}
        for count in between:
            times = race(count, distinct([low.config, high.config, *winners, *rivals(count)]))
            found[count] = _fastest(times, [[low.config, high.config], winners, rivals(count)], default, margin)
        runs = [list(run) for _, run in itertools.groupby(found, key=lambda count: config_key(found[count][0]))]
        first = last = low.tokens
        if served and served[-1][0] is low:
            first = served.pop()[1]
        if runs and config_key(found[runs[0][0]][0]) == config_key(low.config):
            last = runs.pop(0)[-1]
        served.append((low, first, last))
        first = high.tokens
        if runs and config_key(found[runs[-1][0]][0]) == config_key(high.config):
            first = runs.pop()[0]
        served += [(TunedBucket(run[0], None, *found[run[0]]), run[0], run[-1]) for run in runs]
        served.append((high, first, high.tokens))
    if not served:
        return list(buckets)
    edges = [
        _edge(last, first, low.config, high.config, race)
        for (low, _, last), (high, first, _) in itertools.pairwise(served)
    ]
    return [
        TunedBucket(bucket.tokens, edge, bucket.config, bucket.fields)
        for (bucket, _, _), edge in zip(served, [*edges, None], strict=True)
    ]


def _edge(last: int, first: int, low: Config, high: Config, race: Race) -> int:
    """The last count that ``low`` serves, which does at ``last``, where ``high`` does at ``first``."""
    configs = distinct([low, high])
    while len(configs) > 1 and first > EDGE_RATIO * last:
        # The geometric midpoint, or where that is held out one that is not.
        middle = int((last * first) ** 0.5)
        middle += middle in HELD_OUT
        if not last < middle < first:
            break
        times = race(middle, configs)
        lows, highs = (times.get(config_key(config), float("inf")) for config in configs)
        last, first = (middle, first) if lows <= highs else (last, middle)
    return min(int((last * first) ** 0.5), first - 1)


def _fastest(
    times: Mapping[str, float], preferred: Sequence[Sequence[Config]], default: Config, margin: float
) -> tuple[Config, dict[str, Any]]:
    """Who serves a count, and its evidence: one of the first group that has one as fast as any, its first such."""

    def us(config: Config) -> float:
        return times.get(config_key(config), float("inf"))

    limit = min(times.values()) * (1 + margin)
    group = next(group for group in preferred if any(us(config) <= limit for config in group))
    near = min(limit, min(us(config) for config in group) * (1 + MARGIN))
    best = next(config for config in group if us(config) <= near)
    fields = {
        "median_us": round(times[config_key(best)], 3),
        "default_us": round(times[config_key(default)], 3),
        "margin": margin,
    }
    return best, fields


def held_out_regret(buckets: Sequence[TunedBucket], rivals: Rivals, race: Race) -> dict[str, float]:
    """What token counts that were never tuned lose.

    Args:
        buckets: Winners by token count, ascending.
        rivals: What might have won at a count.
        race: Times configs at a count.

    Returns:
        By count, as text: the time of the config that serves it over that of the fastest of all, less 1. The fastest
        of many is in part the luckiest: the two are timed once more, by themselves, and only that counts.
    """
    regrets = {}
    for count in HELD_OUT:
        if buckets[0].tokens < count < buckets[-1].tokens:
            serving = next(b for b in buckets if b.max_tokens is None or count <= b.max_tokens).config
            configs = distinct([serving, *(bucket.config for bucket in buckets), *rivals(count)])
            first = race(count, configs)
            if config_key(serving) not in first:
                continue
            fastest = min((c for c in configs if config_key(c) in first), key=lambda c: first[config_key(c)])
            times = first if fastest == serving else race(count, [serving, fastest])
            if config_key(serving) in times and config_key(fastest) in times:
                regret = times[config_key(serving)] / times[config_key(fastest)] - 1
                regrets[str(count)] = round(max(regret, 0.0), 4)
    return regrets
