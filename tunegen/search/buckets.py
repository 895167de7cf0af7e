"""Where one token bucket ends and the next begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence


def crossing(low: int, high: int, lead_at_low: float, lead_at_high: float) -> int:
    """The last token count that the config for ``low`` serves, if the next one is for ``high``.

    Both were timed at both counts. On logarithmic axes the times are taken for straight lines between the two, which
    cross where neither leads; if neither leads at either end, the geometric midpoint.

    Args:
        low: Token count the first config won at.
        high: Token count the second config won at, above ``low``.
        lead_at_low: Time of the second config over that of the first, at ``low``.
        lead_at_high: Time of the first config over that of the second, at ``high``.
    """
    before, after = max(math.log(lead_at_low), 0.0), max(math.log(lead_at_high), 0.0)
    share = before / (before + after) if before + after > 0 else 0.5
    return min(int(low * (high / low) ** share), high - 1)


def edges_from_times(tokens: Sequence[int], times: Sequence[Mapping[int, float]]) -> list[int | None]:
    """Last token count of each bucket, None for the last bucket.

    Args:
        tokens: Token counts that were tuned, ascending.
        times: Of the winner at each of them: microseconds by token count, its own and its neighbours' at least.
    """
    edges: list[int | None] = []
    for (low, first), (high, second) in itertools.pairwise(zip(tokens, times, strict=True)):
        edges.append(crossing(low, high, second[low] / first[low], first[high] / second[high]))
    return [*edges, None]
