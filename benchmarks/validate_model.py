"""Compares the prediction with what was measured: rank correlation, and the regret of trusting it.

Reads measurements of many configs of a problem: optuna storages that `tunegen tune --evidence measured` wrote, or
recordings of benchmarks/record_space.py. Every kernel is compiled anew (no GPU is needed), predicted, and set against
its measured time. Compiled listings are kept in --cache.

Usage: python benchmarks/validate_model.py studies.sqlite3 [space.jsonl ...] [--cache DIR] [--most N] [--by-tokens]
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import optuna
import triton

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render
from tunegen.codegen.resources import Resources, nvidia_usage, read_listing, resources_of
from tunegen.evaluate.predict import MODEL, predict
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.targets import Target, get_target

TOP = 5
# Bytes alone tell few configs apart: its choices are the mean over orders of the tied ones.
SHUFFLES = 50
FEWEST = 10


@dataclass
class Space:
    """Measured configs of a problem: microseconds by token count."""

    problem: Problem
    target: Target
    times: list[tuple[Config, dict[int, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """How well a model does at one token count; regrets are relative, 0.05 is 5 % slower than the best config."""

    spearman: float
    best: float
    best_of_top: float
    default: float
    ratio: float


def from_storage(path: Path) -> list[Space]:
    """The measured studies of an optuna storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    spaces = []
    for study in storage.get_all_studies():
        name, target, evidence, *_ = study.study_name.split(" | ")
        match = re.fullmatch(r"(\w+) \((.*)\)", name)
        if evidence != "measured" or match is None:
            continue
        parts = [part.split(" ") for part in match[2].split(", ")]
        shape = {words[0]: int(words[1]) for words in parts if len(words) == 2}
        variant = next((words[0] for words in parts if len(words) == 1), "none")
        space = Space(Problem.of(match[1], shape, variant), get_target(target))
        for trial in storage.get_all_trials(study._study_id):
            attributes = trial.user_attrs
            if not attributes["failure"]:
                times = {int(tokens): value for tokens, value in attributes["times"].items()}
                space.times.append((attributes["config"], times))
        spaces.append(space)
    return spaces


def from_recording(path: Path) -> list[Space]:
    """The looks of a recording, the median over all samples of a config."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    header = lines[0]
    samples: dict[tuple[int, str], list[list[float]]] = defaultdict(lambda: [[] for _ in header["tokens"]])
    for line in lines:
        if line["kind"] == "look":
            known = samples[line["problem"], config_key(line["config"])]
            for into, new in zip(known, line["samples_us"], strict=True):
                into.extend(new)
    target = get_target(header["target"])
    spaces = [Space(Problem.of(p["op"], p["shape"], p["rounding"]), target) for p in header["problems"]]
    for (index, key), rows in samples.items():
        medians = [statistics.median(row) for row in rows]
        spaces[index].times.append((json.loads(key), dict(zip(header["tokens"], medians, strict=True))))
    return spaces


def resources(problem: Problem, target_name: str, config: Config, cache: Path) -> Resources:
    """Of a config's kernel, compiled unless the cache has its listing."""
    target = get_target(target_name)
    rendered = render(problem, target, config)
    # How many programs loop is a matter of the launch.
    lines = rendered.source.splitlines()
    body = "\n".join(line for line in lines if not line.startswith(("#", "PROGRAMS_PER_UNIT")))
    digest = hashlib.sha256(f"{triton.__version__} {target.name} {body}".encode()).hexdigest()[:24]
    path = cache / f"{digest}.json"
    if not path.exists():
        compiled = compile_kernel(rendered)
        used = compiled.resources
        usage = nvidia_usage(compiled.binary)
        data = {"listing": compiled.listing, "usage": usage, "warps": used.warps, "shared": used.shared_memory}
        write_text_atomically(path, json.dumps(data))
    data = json.loads(path.read_text(encoding="utf-8"))
    instructions = read_listing(target, data["listing"])
    return resources_of(target, instructions, tuple(data["usage"]), data["warps"], data["shared"])


def _job(job: tuple[Problem, str, Config, list[int]], cache: Path) -> list[float]:
    problem, target, config, tokens = job
    used = resources(problem, target, config, cache)
    return [predict(problem, get_target(target), config, used, count).microseconds for count in tokens]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            result[order[place]] = (start + end) / 2
        start = end + 1
    return result


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; 0 if either side does not distinguish anything."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return statistics.correlation(ranks(one), ranks(other))


def score(measured: list[float], predicted: list[float], default: float) -> Score:
    """Of one token count; ``default`` is the default config's measured time."""
    least = min(measured)
    generator = random.Random(0)
    best, best_of_top = [], []
    for _ in range(SHUFFLES if len(set(predicted)) < len(predicted) else 1):
        order = list(range(len(measured)))
        generator.shuffle(order)
        order.sort(key=lambda index: predicted[index])
        best.append(measured[order[0]] / least - 1)
        best_of_top.append(min(measured[index] for index in order[:TOP]) / least - 1)
    return Score(
        spearman(measured, predicted),
        statistics.mean(best),
        statistics.mean(best_of_top),
        default / least - 1,
        statistics.median(p / m for p, m in zip(predicted, measured, strict=True)),
    )


def scores_of(space: Space, predicted: list[list[float]], tokens: list[int]) -> tuple[list[Score], list[Score]]:
    """The model's and the bytes' scores at each token count."""
    family = get_family(space.problem.op)
    default = family.default(space.problem, space.target)
    model, by_bytes = [], []
    for index, count in enumerate(tokens):
        measured = [times[count] for _, times in space.times]
        of_default = next((times[count] for config, times in space.times if config == default), float("nan"))
        asked = [float(family.bytes_requested(space.problem, config, count)) for config, _ in space.times]
        model.append(score(measured, [row[index] for row in predicted], of_default))
        by_bytes.append(score(measured, asked, of_default))
    return model, by_bytes


COLUMNS = ("Spearman", "best", f"top {TOP}", "default", "bytes: Spearman", "best", f"top {TOP}", "predicted/measured")


def cells(model: list[Score], by_bytes: list[Score]) -> list[float]:
    """Means over token counts, in the order of COLUMNS."""

    def mean(scores: list[Score], pick: Callable[[Score], float]) -> float:
        return statistics.mean(map(pick, scores))

    return [
        mean(model, lambda s: s.spearman),
        mean(model, lambda s: s.best),
        mean(model, lambda s: s.best_of_top),
        mean(model, lambda s: s.default),
        mean(by_bytes, lambda s: s.spearman),
        mean(by_bytes, lambda s: s.best),
        mean(by_bytes, lambda s: s.best_of_top),
        mean(model, lambda s: s.ratio),
    ]


def row(name: str, configs: str, values: list[float]) -> str:
    """A line of the table."""
    shown = [f"{v:.2f}" if i in (0, 4, 7) else f"{v:.1%}" for i, v in enumerate(values)]
    return f"| {name} | {configs} | " + " | ".join(shown) + " |"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".tunegen/listings"), show_default=True)
@click.option("--workers", type=int, default=min(os.cpu_count() or 1, 16))
@click.option("--most", type=int, help="the first so many configs of a problem; default: all")
@click.option("--by-tokens", is_flag=True, help="a line for each token count too")
def main(files: tuple[Path, ...], cache: Path, workers: int, most: int | None, by_tokens: bool) -> None:
    """Prints the table; see the top of the file."""
    cache.mkdir(parents=True, exist_ok=True)
    spaces = [space for file in files for space in (from_recording if file.suffix == ".jsonl" else from_storage)(file)]
    spaces = [space for space in spaces if len(space.times) >= FEWEST]
    if not spaces:
        names = ", ".join(map(str, files))
        raise click.ClickException(
            f"There is nothing to compare with: {names} must have a problem of which {FEWEST} configs were measured."
        )
    for space in spaces:
        space.times = space.times[:most]
    print(f"{MODEL}, triton {triton.__version__}; regrets: time over that of the best measured config, less 1")
    print("| problem | configs | " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    table = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for space in spaces:
            tokens = sorted(space.times[0][1])
            jobs = [(space.problem, space.target.name, config, tokens) for config, _ in space.times]
            predicted = pool.map(functools.partial(_job, cache=cache), jobs, chunksize=1)
            model, by_bytes = scores_of(space, predicted, tokens)
            table.append(cells(model, by_bytes))
            print(row(str(space.problem), str(len(space.times)), table[-1]), flush=True)
            for count, one, other in zip(tokens, model, by_bytes, strict=True) if by_tokens else ():
                print(row(f"&nbsp; {count} tokens", "", cells([one], [other])))
    print(row("**median**", "", [statistics.median(column) for column in zip(*table, strict=True)]))


if __name__ == "__main__":
    main()
