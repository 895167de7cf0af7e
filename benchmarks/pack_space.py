"""Packs recordings made with record_space.py into the one file that searches are replayed on.

Usage: python benchmarks/pack_space.py space.jsonl [more.jsonl ...] --out benchmarks/data/h100_space.json.xz

Times of later recordings are brought to the level of the first (recording_model.py). The samples of a config that is
in several, the default, stand side by side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from recording_model import at_counts, estimates, step

from tunegen.ops import Config, Knob, Problem, config_key
from tunegen.search.replay import Recorded, save
from tunegen.targets import get_target

# Of a config in one recording.
VISITS = 2

Line = dict[str, Any]
Array = npt.NDArray[np.float64]


def read(path: Path) -> tuple[Line, list[Line]]:
    """The header of a recording and its other lines; a line cut off by a stop is left out."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"{path}, line {number + 1} is not whole and is left out", file=sys.stderr)
    return lines[0], lines[1:]


def check_alike(headers: list[Line]) -> None:
    """Stops if the recordings are of different things."""
    for header in headers[1:]:
        for key in ("device", "target", "tokens", "policy", "environment"):
            if header[key] != headers[0][key]:
                sys.exit(f"The recordings differ in {key}: {headers[0][key]} and {header[key]}.")
        for one, other in zip(headers[0]["problems"], header["problems"], strict=True):
            # Templates may have changed, if only the spaces are the same; what that does to times goes with the level.
            if {**one, "template_hash": ""} != {**other, "template_hash": ""}:
                sys.exit(f"The recordings differ in a problem: {one} and {other}.")


def looks_of(lines: list[Line]) -> dict[str, list[Line]]:
    """The visits of each config, by its key."""
    visits: dict[str, list[Line]] = {}
    for line in lines:
        if line["kind"] == "look":
            visits.setdefault(config_key(line["config"]), []).append(line)
    return visits


def finals_of(lines: list[Line]) -> dict[str, dict[int, list[float]]]:
    """Samples of the final timing by config key and token count."""
    finals: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        if line["kind"] == "final":
            for config, samples in zip(line["configs"], line["samples_us"], strict=True):
                finals.setdefault(config_key(config), {})[line["tokens"]] = samples
    return finals


def middles(visits: dict[str, list[Line]]) -> dict[str, Array]:
    """Mean over the visits of the median over the samples, microseconds by token count, of each config."""
    return {key: np.mean([np.median(v["samples_us"], axis=1) for v in of], axis=0) for key, of in visits.items()}


def excess(lines: list[Line], tokens: tuple[int, ...]) -> Array:
    """What looks take more than the final timing of the same recording, median over its finalists, by token count."""
    looks, finals = middles(looks_of(lines)), finals_of(lines)
    return np.array(
        [
            np.median([looks[key][at] - np.median(of[count]) for key, of in finals.items() if count in of])
            for at, count in enumerate(tokens)
        ]
    )


def levels(knobs: tuple[Knob, ...], tokens: tuple[int, ...], recordings: list[list[Line]]) -> list[tuple[Array, Array]]:
    """How far looks and finals of each recording lie above the first's, in microseconds by token count.

    Finals lie in their recording's looks as the excess says, so that no config has to be in two finals.
    """
    visits = [looks_of(lines) for lines in recordings]
    times = [middles(of) for of in visits]
    found = [(np.zeros(len(tokens)), np.zeros(len(tokens)))]
    for which in range(1, len(recordings)):
        configs = [visits[i][key][0]["config"] for i in (0, which) for key in times[i]]
        both = np.array([*times[0].values(), *times[which].values()])
        later = np.arange(len(both)) >= len(times[0])
        steps = [step(knobs, configs, both[:, at], later) for at in range(len(tokens))]
        print(f"  recording {which + 1} above the first, us:", " ".join(f"{s:+.3f}({e:.3f})" for s, e in steps))
        above = np.array([microseconds for microseconds, _ in steps])
        found.append((above, above - excess(recordings[which], tokens) + excess(recordings[0], tokens)))
    return found


def side_by_side(rows: list[list[float]]) -> Array:
    """Samples by token count, some of which have more than others; NaN where there is none."""
    finals = np.full((len(rows), max(map(len, rows))), np.nan)
    for into, row in zip(finals, rows, strict=True):
        into[: len(row)] = row
    return finals


def best_estimates(
    knobs: tuple[Knob, ...], configs: tuple[Config, ...], captures: list[tuple[int, Array]], counts: int
) -> Array:
    """What each config takes, [config, token count], of captures: index of the config and times by token count."""
    columns, noises = [], []
    for at in range(counts):
        there = [(config, times[at]) for config, times in captures if not np.isnan(times[at])]
        column, noise = estimates(knobs, configs, *map(np.array, zip(*there, strict=True)))
        columns.append(column)
        noises.append(100 * noise)
    print("  noise of a capture, %:", " ".join(f"{noise:.1f}" for noise in noises))
    return np.stack(columns, axis=1)


def recorded(header: Line, recordings: list[list[Line]], index: int) -> Recorded:
    """One problem's data, at the level of the first recording; the default config first, the others as they came."""
    about = header["problems"][index]
    knobs = tuple(Knob(name, tuple(choices), "") for name, choices in about["knobs"].items())
    tokens = tuple(header["tokens"])
    mine = [[line for line in lines if line.get("problem") == index] for lines in recordings]
    # Of each config, in which recording it came first.
    configs: dict[str, tuple[Config, int]] = {config_key(about["default"]): (about["default"], 0)}
    for which, lines in enumerate(mine):
        for line in lines:
            if line["kind"] in ("look", "failure"):
                configs.setdefault(config_key(line["config"]), (line["config"], which))
    position = {key: i for i, key in enumerate(configs)}
    samples = max(len(row) for lines in mine for line in lines if line["kind"] == "look" for row in line["samples_us"])
    looks = np.full((len(configs), len(tokens), VISITS * len(mine), samples), np.nan)
    failures = {
        position[config_key(line["config"])]: line["reason"]
        for lines in mine
        for line in lines
        if line["kind"] == "failure"
    }
    resources: list[dict[str, Any]] = [{} for _ in configs]
    final_tokens = tuple(sorted({line["tokens"] for lines in mine for line in lines if line["kind"] == "final"}))
    again: dict[int, list[list[float]]] = {}
    # Of each capture of a graph, the config and its times on the level of the first recording's finals.
    captures: list[tuple[int, Array]] = []
    over = excess(mine[0], tokens)
    for which, (lines, (above, finals_above)) in enumerate(zip(mine, levels(knobs, tokens, mine), strict=True)):
        for key, visits in looks_of(lines).items():
            for line in visits:
                visit = VISITS * which + line["visit"] - 1
                looks[position[key], :, visit] = np.array(line["samples_us"]) - above[:, None]
                captures.append((position[key], np.median(looks[position[key], :, visit], axis=1) - over))
                if "resources" in line and not resources[position[key]]:
                    resources[position[key]] = {**line["resources"], "binary": line["binary"]}
        down = at_counts(tokens, finals_above, final_tokens)
        for key, by_count in finals_of(lines).items():
            rows = again.setdefault(position[key], [[] for _ in final_tokens])
            for count, row in by_count.items():
                at = final_tokens.index(count)
                rows[at].extend(value - down[at] for value in row)
            middle = {count: np.median(row) for count, row in by_count.items()}
            times = [middle.get(count, np.nan) - down[final_tokens.index(count)] for count in tokens]
            captures.append((position[key], np.array(times)))
    listed = tuple({name: config[name] for name in about["knobs"]} for config, _ in configs.values())
    truth = best_estimates(knobs, listed, captures, len(tokens))
    return Recorded(
        problem=Problem.of(about["op"], about["shape"], about["rounding"]),
        target=get_target(header["target"]),
        tokens=tokens,
        knobs=knobs,
        configs=listed,
        looks=looks,
        failures=failures,
        final_tokens=final_tokens,
        finals={at: side_by_side(rows) for at, rows in again.items()},
        resources=tuple(resources),
        truth=np.where(np.isnan(truth), np.inf, truth),
        recordings=tuple(which for _, which in configs.values()),
    )


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(recordings: tuple[Path, ...], out: Path) -> None:
    """Packs; see the top of the file."""
    headers, lines = zip(*map(read, recordings), strict=True)
    check_alike(list(headers))
    header = headers[0]
    problems = [recorded(header, list(lines), index) for index in range(len(header["problems"]))]
    about = {name: header[name] for name in ("device", "device_name", "environment", "policy")}
    about["valid_configs"] = [problem["valid_configs"] for problem in header["problems"]]
    about["recordings"] = [
        {
            "model": each["model"],
            "seed": each["seed"],
            "template_hashes": [problem["template_hash"] for problem in each["problems"]],
        }
        for each in headers
    ]
    save(problems, about, out)
    for one, valid in zip(problems, about["valid_configs"], strict=True):
        twice = sum(len(one.visits_of(config)) > 1 for config in range(len(one.configs)))
        parts = [one.recordings.count(which) for which in range(len(headers))]
        print(
            f"{one.problem}: {len(one.configs)} of {valid} configs {parts}, {twice} visited twice,"
            f" {len(one.failures)} failed, {len(one.finals)} timed again at {len(one.final_tokens)} token counts"
        )
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    # Matrices this small take one core less time than many.
    torch.set_num_threads(1)
    main()
