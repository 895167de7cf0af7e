"""Reads times of other kernels from the JSON that `tunegen bench` and the scripts in benchmarks/ write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegen.errors import UsageError
from tunegen.ops import OP_NAMES, Problem, get_family

# Columns that are tunegen's own: a tuned entry has them already.
OWN = frozenset(("empty", "twin", "twin_same_launch", "default", "tuned", "again", "default_again", "tuned_again"))
# The script for the MLA ops times one op and does not name it.
UNNAMED_OP = "mla_rope_cache"


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
    """The baselines in a file; none if it has tunegen's own columns alone.

    Rows, under ``rows`` or ``results``, have ``tokens``, the sizes of an op, its ``variant`` and times in
    microseconds: under ``us``, or beside the sizes.

    Raises:
        UsageError: Not such a file.
    """
    advice = "It must be what `tunegen bench --json` or a script in benchmarks/ wrote."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--baselines {path} cannot be read: {error}. {advice}") from error
    rows = data.get("rows", data.get("results")) if isinstance(data, dict) else None
    if not isinstance(rows, list) or not isinstance(data.get("device"), str):
        raise UsageError(f"--baselines {path} has no device and rows. {advice}")
    found: dict[Problem, Baselines] = {}
    try:
        for row in rows:
            problem, tokens, times = _row(row)
            group = found.setdefault(problem, Baselines(problem, data["device"], {}))
            for kernel, time in times.items():
                group.times.setdefault(kernel, {})[tokens] = time
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--baselines {path}: a field is missing or wrong: {error!r}. {advice}") from error
    return [group for group in found.values() if group.times]


def _row(row: dict[str, Any]) -> tuple[Problem, int, dict[str, float]]:
    op = row.get("op", UNNAMED_OP)
    if op not in OP_NAMES:
        raise ValueError(f"op {op!r}")
    family = get_family(op)
    problem = Problem.of(op, {name: int(row[name]) for name in family.sizes}, row.get("variant", "none"))
    known = {"op", "tokens", "variant", *family.sizes}
    times = row.get("us") or {key: value for key, value in row.items() if key not in known}
    timed = {
        str(kernel): float(value)
        for kernel, value in times.items()
        if kernel not in OWN and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    }
    return family.canonical_problem(problem), int(row["tokens"]), timed
