"""Compares the samplers on recorded times and draws what docs/search.md shows; needs matplotlib, and no GPU.

Usage: python benchmarks/compare_samplers.py [--samplers surrogate,tpe,gp:3,...] [--seeds 20] [--batch 4] [--out docs]
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import optuna
import torch

from tunegen.configs import bucket_edges
from tunegen.files import write_text_atomically
from tunegen.search.buckets import HELD_OUT
from tunegen.search.proposals import SAMPLERS
from tunegen.search.replay import Recorded, budget, load, search

DATA = Path(__file__).parent / "data" / "h100_space.json.xz"
COUNTS = (4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 100, 128, 160)


@functools.cache
def _loaded(data: Path) -> list[Recorded]:
    return load(data)


def _one(data: Path, problem: int, sampler: str, seed: int, batch: int) -> dict[str, Any]:
    """One search: regrets at each token count by number of evaluations, and processor seconds."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    recorded = _loaded(data)[problem]
    most = budget(len(recorded.configs))
    judged_at = sorted({*(count for count in COUNTS if count < most), most})
    start = time.process_time()
    judged = search(recorded, sampler, most, seed, batch, judged_at=judged_at)
    curve = {str(count): [round(float(r), 5) for r in regrets] for count, regrets in judged.items()}
    return {
        "problem": problem,
        "sampler": sampler,
        "seed": seed,
        "curve": curve,
        "seconds": time.process_time() - start,
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Regrets in per cent at the end of some runs."""
    ends = [list(run["curve"].values())[-1] for run in runs]
    every = [100 * regret for end in ends for regret in end]
    return {
        "mean": statistics.mean(every),
        "worst run": max(100 * statistics.mean(end) for end in ends),
        "95th percentile": float(np.percentile(every, 95)),
        "worst": max(every),
        "seconds": statistics.mean(run["seconds"] for run in runs),
    }


def cells_of(runs: Sequence[dict[str, Any]]) -> str:
    """The summary as cells of a table."""
    return " | ".join(f"{value:.2f}" for value in summary(runs).values())


def decision_floor(recorded: Recorded, seeds: int) -> list[float]:
    """Regrets, in per cent, of the winners if every config has been looked at: what noise and the tie rule cost."""
    regrets: list[float] = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        looks = {i: recorded.first_look(i, generator) for i in range(len(recorded.configs))}
        seen = {i: times for i, times in looks.items() if times is not None}
        winners = recorded.decided(seen, generator)
        regrets += [100 * float(recorded.regrets(winner)[at]) for at, winner in enumerate(winners)]
    return regrets


def held_out(recorded: Recorded, tokens: Sequence[int], winners_race: bool) -> dict[int, float]:
    """Regrets, in per cent, at token counts that were not tuned, over the best of the configs timed there.

    Args:
        recorded: The times; configs timed again at the end are the candidates.
        tokens: Token counts that are tuned.
        winners_race: The fastest of the winners serves a count, as if it were one of those between tuned counts at
            which they are timed; otherwise the winner of the nearest tuned count.
    """
    medians = {
        index: dict(zip(recorded.final_tokens, np.nanmedian(samples, axis=1).tolist(), strict=True))
        for index, samples in recorded.finals.items()
    }
    winners = [min(medians.values(), key=lambda times: times[count]) for count in tokens]
    edges = bucket_edges(list(tokens))
    regrets = {}
    for count in HELD_OUT:
        bucket = next(i for i, edge in enumerate(edges) if edge is None or count <= edge)
        best = min(times[count] for times in medians.values())
        served = min(times[count] for times in winners) if winners_race else winners[bucket][count]
        regrets[count] = 100 * (served / best - 1)
    return regrets


def draw(problems: Sequence[Recorded], runs: list[dict[str, Any]], out: Path) -> None:
    """Mean regret by evaluations: all problems in one figure, each problem in another."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tunegen"
    import matplotlib.pyplot as plt

    samplers = list(dict.fromkeys(run["sampler"] for run in runs))

    def plot(axes: Any, chosen: list[dict[str, Any]], worst: bool = False) -> None:
        for sampler in samplers:
            of = [run for run in chosen if run["sampler"] == sampler]
            counts = sorted({int(count) for run in of for count in run["curve"]})
            counts = [count for count in counts if all(str(count) in run["curve"] for run in of)]
            every = {c: [100 * regret for run in of for regret in run["curve"][str(c)]] for c in counts}
            values = [np.percentile(every[c], 95) if worst else statistics.mean(every[c]) for c in counts]
            axes.plot(counts, values, label=sampler, linewidth=2.2 if sampler == "surrogate" else 1.0)
        axes.set_xlabel("evaluations")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    plot(left, runs)
    left.set_title("mean over problems, token counts and seeds")
    left.set_ylabel("regret of the decided winner, %")
    plot(right, runs, worst=True)
    right.set_title("95th percentile")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "search_all.svg", metadata={"Date": None})
    columns = 3
    figure, grid = plt.subplots(math.ceil(len(problems) / columns), columns, figsize=(11, 6.5), squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(problems):
            axes.set_visible(False)
            continue
        plot(axes, [run for run in runs if run["problem"] == index])
        axes.set_title(str(problems[index].problem), fontsize=7)
        if index % columns == 0:
            axes.set_ylabel("mean regret, %")
    grid.flat[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(out / "search_each.svg", metadata={"Date": None})


def print_buckets(problems: Sequence[Recorded]) -> None:
    """Regret at held-out token counts, for both ways to serve them and the grids that were recorded."""
    for recorded in problems:
        powers = [count for count in recorded.final_tokens if count & (count - 1) == 0]
        for tokens in (recorded.tokens, powers):
            for winners_race in (False, True):
                found = held_out(recorded, tokens, winners_race)
                cells = " ".join(f"{regret:5.2f}" for regret in found.values())
                kind = "best of the winners" if winners_race else "nearest winner"
                name = f"{recorded.problem} {len(tokens)} counts, {kind}"
                print(f"{name}: {cells} | mean {statistics.mean(found.values()):.2f}")


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=DATA, show_default=True)
@click.option("--samplers", default=",".join(SAMPLERS), show_default=True, help="NAME or NAME:SEEDS, comma separated")
@click.option("--seeds", default=20, show_default=True)
@click.option("--batch", default=4, show_default=True, help="configs asked for before results are known")
@click.option("--workers", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="folder for plots and search.json; default: print only")
def main(data: Path, samplers: str, seeds: int, batch: int, workers: int, out: Path | None) -> None:
    """Compares; see the top of the file."""
    problems = load(data)
    runs: list[dict[str, Any]] = []
    print("| sampler | mean, % | worst run, % | 95th percentile, % | worst, % | processor s a run |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(workers) as pool:
        for item in samplers.split(","):
            sampler, _, own_seeds = item.partition(":")
            jobs = [
                pool.submit(_one, data, problem, sampler, seed, batch)
                for problem in range(len(problems))
                for seed in range(int(own_seeds or seeds))
            ]
            found = [job.result() for job in jobs]
            runs += found
            print(f"| {sampler} | {cells_of(found)} |", flush=True)
            for problem in range(len(problems)):
                mine = [run for run in found if run["problem"] == problem]
                print(f"|   {problems[problem].problem} | {cells_of(mine)} |", flush=True)
            if out:
                out.mkdir(parents=True, exist_ok=True)
                write_text_atomically(out / "search.json", json.dumps(runs, separators=(",", ":")) + "\n")
                draw(problems, runs, out)
    floor = [decision_floor(recorded, seeds) for recorded in problems]
    print(
        "every config looked at: mean and worst regret, %:", [(round(np.mean(f), 2), round(max(f), 2)) for f in floor]
    )
    if all(recorded.finals for recorded in problems):
        print_buckets(problems)


if __name__ == "__main__":
    main()
