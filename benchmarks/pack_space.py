"""Packs recordings made with record_space.py into the one file that searches are replayed on.

Usage: python benchmarks/pack_space.py space.jsonl [more.jsonl ...] --out benchmarks/data/h100_space.json.xz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from tunegen.ops import Config, Knob, Problem, config_key
from tunegen.search.replay import Recorded, save
from tunegen.targets import get_target

VISITS = 2


def read(paths: tuple[Path, ...]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header of the first file and the lines of all; a line cut off by a stop is left out."""
    headers, lines = [], []
    for path in paths:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                print(f"{path}, line {number + 1} is not whole and is left out", file=sys.stderr)
                continue
            (headers if line["kind"] == "header" else lines).append(line)
    first = headers[0]
    for header in headers[1:]:
        for key in ("device", "target", "tokens", "problems", "policy", "environment"):
            if header[key] != first[key]:
                sys.exit(f"The recordings differ in {key}: {first[key]} and {header[key]}.")
    return first, lines


def recorded(header: dict[str, Any], lines: list[dict[str, Any]], index: int) -> Recorded:
    """One problem's data, the default config first and the others as they came."""
    about = header["problems"][index]
    tokens = tuple(header["tokens"])
    mine = [line for line in lines if line.get("problem") == index]
    configs: dict[str, Config] = {config_key(about["default"]): about["default"]}
    for line in mine:
        if line["kind"] in ("look", "failure"):
            configs.setdefault(config_key(line["config"]), line["config"])
    position = {key: i for i, key in enumerate(configs)}
    samples = max(len(row) for line in mine if line["kind"] == "look" for row in line["samples_us"])
    looks = np.full((len(configs), len(tokens), VISITS, samples), np.nan)
    failures: dict[int, str] = {}
    resources: list[dict[str, Any]] = [{} for _ in configs]
    for line in mine:
        if line["kind"] == "failure":
            failures[position[config_key(line["config"])]] = line["reason"]
        elif line["kind"] == "look":
            at = position[config_key(line["config"])]
            looks[at, :, line["visit"] - 1] = line["samples_us"]
            if "resources" in line:
                resources[at] = {**line["resources"], "binary": line["binary"]}
    finals_of = [line for line in mine if line["kind"] == "final"]
    final_tokens = tuple(sorted({line["tokens"] for line in finals_of}))
    rounds = max((len(row) for line in finals_of for row in line["samples_us"]), default=0)
    finals: dict[int, Any] = {}
    for line in finals_of:
        for config, row in zip(line["configs"], line["samples_us"], strict=True):
            into = finals.setdefault(position[config_key(config)], np.full((len(final_tokens), rounds), np.nan))
            into[final_tokens.index(line["tokens"])] = row
    return Recorded(
        problem=Problem.of(about["op"], about["shape"], about["rounding"]),
        target=get_target(header["target"]),
        tokens=tokens,
        knobs=tuple(Knob(name, tuple(choices), "") for name, choices in about["knobs"].items()),
        configs=tuple({name: config[name] for name in about["knobs"]} for config in configs.values()),
        looks=looks,
        failures=failures,
        final_tokens=final_tokens,
        finals=finals,
        resources=tuple(resources),
    )


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(recordings: tuple[Path, ...], out: Path) -> None:
    """Packs; see the top of the file."""
    header, lines = read(recordings)
    problems = [recorded(header, lines, index) for index in range(len(header["problems"]))]
    about = {name: header[name] for name in ("device", "device_name", "environment", "policy", "model", "seed")}
    about["valid_configs"] = [problem["valid_configs"] for problem in header["problems"]]
    about["template_hashes"] = [problem["template_hash"] for problem in header["problems"]]
    save(problems, about, out)
    for one, valid in zip(problems, about["valid_configs"], strict=True):
        twice = int((~np.isnan(one.looks[:, 0, 1, 0])).sum())
        print(
            f"{one.problem}: {len(one.configs)} of {valid} configs, {twice} visited twice, {len(one.failures)} failed,"
            f" {len(one.finals)} timed again at {len(one.final_tokens)} token counts"
        )
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
