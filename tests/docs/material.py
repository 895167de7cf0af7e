"""What the documents' commands take that others made: a table of times, and a recording of a space."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tunegen.bench.compare import Row
from tunegen.bench.report import Environment, as_json
from tunegen.evaluate.measure import Timing
from tunegen.ops import Problem, get_family
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168})
TARGET = get_target("sm90")
CONFIGS = 12
OWN = ("empty", "twin", "twin_same_launch", "default", "default_again", "tuned", "tuned_again")


def write_table(path: Path) -> None:
    """Made-up times of a problem, as `tunegen bench --json` and the table scripts write them."""
    environment = Environment("GPU", "sm90", 132, 79, "", "", "", "", "", 1.0, "", "", "")
    config = get_family(PROBLEM.op).default(PROBLEM, TARGET)
    rows = [
        Row(PROBLEM, tokens, 1000, config, {name: Timing.of([n + 1.0] * 3) for n, name in enumerate((*OWN, "aiter"))})
        for tokens in (256, 1024)
    ]
    path.write_text(json.dumps(as_json(environment, rows), default=float))


def write_recording(path: Path) -> None:
    """Made-up looks at a few configs, as benchmarks/record_space.py writes them."""
    about = {"op": PROBLEM.op, "shape": dict(PROBLEM.shape), "rounding": PROBLEM.rounding}
    lines = [{"kind": "header", "target": TARGET.name, "tokens": [1, 1024], "problems": [about]}]
    configs = itertools.islice(get_family(PROBLEM.op).space(PROBLEM, TARGET), CONFIGS)
    lines += [
        {"kind": "look", "problem": 0, "config": config, "visit": 1, "samples_us": [[2.0 + n], [8.0 + n]]}
        for n, config in enumerate(configs)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
