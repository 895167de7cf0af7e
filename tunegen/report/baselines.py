"""Reads times of other kernels from the JSON that `tunegen bench` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegen.errors import UsageError
from tunegen.ops import OP_NAMES, Problem, get_family

# Columns that are tunegen's own: a tuned entry has them already.
OWN = frozenset(("empty", "twin", "twin_same_launch", "default", "tuned", "default_again", "tuned_again"))
FORMAT = 1


@dataclass(frozen=True)
class Baselines:
    """Times of other kernels for one problem on one device.

    Attributes:
        problem: Which problem.
        device: Marketing name of the GPU they were timed on.
        times: Microseconds a call, by kernel and token count.
    """

    problem: Problem
    device: str
    times: dict[str, dict[int, float]]


def read_baselines(path: Path) -> list[Baselines]:
    """The baselines in a file that `tunegen bench --json` wrote; none if it has tunegen's own columns alone.

    Raises:
        UsageError: Not such a file.
    """
    advice = "It must be what `tunegen bench --json` wrote."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--baselines {path} cannot be read: {error}. {advice}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise UsageError(f"--baselines {path} must have format {FORMAT}; it has {found!r}. {advice}")
    found_of: dict[Problem, Baselines] = {}
    try:
        for row in data["rows"]:
            problem = _problem(row)
            group = found_of.setdefault(problem, Baselines(problem, data["environment"]["device"], {}))
            for kernel, time in row["us"].items():
                if kernel not in OWN:
                    group.times.setdefault(kernel, {})[int(row["tokens"])] = float(time)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"--baselines {path}: a field is missing or wrong: {error!r}. {advice}") from error
    return [group for group in found_of.values() if group.times]


def _problem(row: dict[str, Any]) -> Problem:
    if row["op"] not in OP_NAMES:
        raise ValueError(f"there is no op {row['op']!r}")
    problem = Problem.of(row["op"], row["shape"], row["variant"])
    return get_family(problem.op).canonical_problem(problem)
