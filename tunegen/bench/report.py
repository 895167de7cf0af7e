"""Comparisons as tables for people, as CSV and as JSON, each with what they depend on."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch
import triton

from tunegen.bench.aiter import Aiter
from tunegen.bench.compare import Ratio, Row, geometric_mean
from tunegen.evaluate.measure import POLICY, Timing, copy_bandwidth
from tunegen.ops import Problem
from tunegen.targets import Device

FORMAT = 1
ABSENT = "-"
# What is compared with, in the order of the tables.
OTHERS = ("compiled", "unfused", "aiter", "handwritten", "default")
TITLES = {"compiled": "Inductor", "aiter": "AITER", "handwritten": "hand-written"}
LEGEND = (
    "Microseconds a call by graph replay, kernels of a line interleaved. twin: the same bytes moved and no arithmetic,"
    " the best of its launches. Inductor: torch.compile of the op in PyTorch. x: how many times longer it takes than"
    " the op, ± half the interquartile range, ~ where the difference is within the noise; noise: how far the op differs"
    " from itself."
)


@dataclass(frozen=True)
class Environment:
    """What figures depend on.

    Attributes:
        device: Marketing name of the GPU.
        arch, units, memory_gib: Its key.
        torch, triton, python: Versions.
        runtime: CUDA or ROCm, and its version.
        policy: How was timed.
        copy_gbs: GB/s of a device copy, read and written.
        aiter: Which AITER, or why there is none.
        configs: Which tuned configs, or which pack.
        date: UTC.
    """

    device: str
    arch: str
    units: int
    memory_gib: int
    torch: str
    triton: str
    python: str
    runtime: str
    policy: str
    copy_gbs: float
    aiter: str
    configs: str
    date: str

    def __str__(self) -> str:
        return (
            f"{self.device}, torch {self.torch}, triton {self.triton}, {self.runtime}, {self.policy}, {self.date};"
            f" a device copy moves {self.copy_gbs:.0f} GB/s. {self.aiter}. {self.configs}."
        )


def environment_of(device: Device, aiter: str, configs: str) -> Environment:
    """That of the GPU here; measures a copy."""
    key, hip = device.key, torch.version.hip
    return Environment(
        device=device.name,
        arch=key.arch,
        units=key.units,
        memory_gib=key.memory_gib,
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
        runtime=f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}",
        policy=POLICY,
        copy_gbs=copy_bandwidth() / 1e9,
        aiter=aiter,
        configs=configs,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


def aiter_line(aiter: Aiter | None, why: str) -> str:
    """Which AITER, or why none is compared with."""
    return f"AITER: {aiter.origin}" if aiter else f"AITER is not compared with: {why.rstrip('.')}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _ratio(ratio: Ratio | None) -> str:
    return ABSENT if ratio is None else str(ratio)


def columns_of(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Columns of a table and how to fill them: those for which a row has something."""
    others = [name for name in OTHERS if any(name in row.timings for row in rows)]

    def us(name: str) -> Callable[[Row], str]:
        return lambda row: _number(row.us(name))

    def against(name: str) -> Callable[[Row], str]:
        return lambda row: _ratio(row.ratio(name)) if name != row.ours else ABSENT

    found: list[tuple[str, Callable[[Row], str]]] = [("tokens", lambda row: str(row.tokens))]
    found += [("empty", us("empty")), ("twin", us("twin"))]
    found += [(TITLES.get(name, name), us(name)) for name in others]
    found += [("tuned", us("tuned")), ("of twin", lambda row: _ratio(row.ratio("twin")))]
    found += [(f"x {TITLES.get(name, name)}", against(name)) for name in others]
    return [
        *found,
        ("GB/s", lambda row: f"{row.gb_per_s:.0f}"),
        ("noise", lambda row: f"{100 * row.noise:.1f} %"),
    ]


def by_problem(rows: Sequence[Row]) -> dict[Problem, list[Row]]:
    """Rows of each problem, in order."""
    found: dict[Problem, list[Row]] = {}
    for row in rows:
        found.setdefault(row.problem, []).append(row)
    return found


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Geometric means, and what is not as it should be."""
    notes = []
    for name in OTHERS:
        ratios = [row.ratio(name) for row in rows if name != row.ours]
        values = [ratio.value for ratio in ratios if ratio]
        if len(values) > 1:
            title = TITLES.get(name, name)
            notes.append(
                f"{title} takes {geometric_mean(values):.2f} times as long (geometric mean), {min(values):.2f} to"
                f" {max(values):.2f}."
            )
    worst = max((share for row in rows for share in row.undefined_scales.values()), default=0.0)
    if worst:
        notes.append(
            f"AITER's scales below 1 are undefined here, and wrong in up to {100 * worst:.0f} % of the blocks."
        )
    left_out = {name: [row.tokens for row in rows if name in row.wrong] for row in rows for name in row.wrong}
    for name, counts in left_out.items():
        at = ", ".join(map(str, counts))
        notes.append(
            f"{TITLES.get(name, name)} does not compute what the op does at {at} tokens, and is not timed there."
        )
    if any(row.ours == "default" for row in rows):
        notes.append("Not tuned for this device: the default config stands for the op. `tunegen tune` makes an entry.")
    return notes


def markdown(environment: Environment, rows: Sequence[Row]) -> str:
    """A table a problem."""
    parts = [str(environment), LEGEND]
    for problem, own in by_problem(rows).items():
        columns = columns_of(own)
        lines = [f"| {' | '.join(title for title, _ in columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(fill(row) for _, fill in columns)} |" for row in own]
        parts += [f"### {problem}", "\n".join(lines), "\n".join(footnotes(own))]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(environment: Environment, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, samples too; `read_json` reads it back."""
    return {
        "format": FORMAT,
        "environment": asdict(environment),
        "rows": [
            {
                **{"op": row.problem.op, "shape": row.problem.sizes, "variant": row.problem.rounding},
                **{"tokens": row.tokens, "bytes": row.bytes, "config": row.config, "noise": row.noise},
                "us": {name: timing.median for name, timing in row.timings.items()},
                "spread_us": {name: timing.spread for name, timing in row.timings.items()},
                "ratios": {name: _plain(row.ratio(name)) for name in row.timings if name != row.ours},
                "undefined_scales": row.undefined_scales,
                "wrong": row.wrong,
                "samples_us": {name: timing.samples for name, timing in row.timings.items()},
            }
            for row in rows
        ],
    }


def _plain(ratio: Ratio | None) -> dict[str, Any]:
    return asdict(ratio) if ratio else {}


def read_json(data: dict[str, Any]) -> tuple[Environment, list[Row]]:
    """The inverse of `as_json`."""
    rows = [
        Row(
            Problem.of(row["op"], row["shape"], row["variant"]),
            *(row["tokens"], row["bytes"], row["config"]),
            {name: Timing.of(samples) for name, samples in row["samples_us"].items()},
            row["undefined_scales"],
            row.get("wrong", {}),  # what was written before it was left out
        )
        for row in data["rows"]
    ]
    return Environment(**data["environment"]), rows


def as_csv(environment: Environment, rows: Sequence[Row]) -> str:
    """One line for each thing timed, ``ratio`` is its time by our kernel's; and for each that was wrong, and why."""
    about = asdict(environment)
    names = [
        *("op", "shape", "variant", "tokens", "what"),
        *("us", "spread_us", "ratio", "ratio_spread", "within_noise", "wrong"),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *about])
    for row in rows:
        shape = " ".join(f"{name}={size}" for name, size in row.problem.shape)
        for name, timing in row.timings.items():
            ratio = row.ratio(name)
            judged = [ratio.value, ratio.spread, ratio.within_noise] if ratio and name != row.ours else ["", "", ""]
            own = [row.problem.op, shape, row.problem.rounding, row.tokens, name, timing.median, timing.spread]
            writer.writerow([*own, *judged, "", *about.values()])
        for name, reason in row.wrong.items():
            own = [row.problem.op, shape, row.problem.rounding, row.tokens, name, "", ""]
            writer.writerow([*own, "", "", "", reason, *about.values()])
    return text.getvalue()
