"""Which knobs changed nothing."""

from __future__ import annotations

import itertools
from collections import defaultdict

from tunegen.ops import config_key
from tunegen.search.record import Outcome


def idle_knobs(outcomes: list[Outcome]) -> dict[str, int]:
    """Knobs that never changed what is launched, with the number of pairs that show it.

    A pair are two compiled configs that differ in this knob alone; in all pairs of an idle knob both are the same
    machine code on the same grids. A knob without such a pair is not judged.
    """
    compiled = [outcome for outcome in outcomes if "fingerprint" in outcome.details]
    names = {name for outcome in compiled for name in outcome.config}
    idle = {}
    for name in sorted(names):
        alike: dict[str, list[str]] = defaultdict(list)
        for outcome in compiled:
            others = {key: value for key, value in outcome.config.items() if key != name}
            alike[config_key(others)].append(outcome.details["fingerprint"])
        pairs = [pair for group in alike.values() for pair in itertools.combinations(group, 2)]
        if pairs and all(one == other for one, other in pairs):
            idle[name] = len(pairs)
    return idle
