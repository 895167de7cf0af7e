"""Compares the samplers on recorded times and draws what docs/search.md shows; needs matplotlib, and no GPU.

Usage: python benchmarks/compare_samplers.py [--samplers surrogate:20:128,tpe,gp:3,...] [--seeds 20] [--out docs]
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
from tunegen.search.tune import UNDER_WAY

DATA = Path(__file__).parent / "data" / "h100_space.json.xz"
COUNTS = (4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)


@functools.cache
def _loaded(data: Path) -> list[Recorded]:
    return load(data)


def _one(data: Path, problem: int, sampler: str, seed: int, under_way: int, evaluations: int) -> dict[str, Any]:
    """One search: regrets at each token count by number of evaluations, and processor seconds.

    It goes on to so many ``evaluations`` if the budget is smaller.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    recorded = _loaded(data)[problem]
    given = budget(len(recorded.configs))
    most = max(given, evaluations)
    judged_at = sorted({*(count for count in COUNTS if count < most), given, most})
    start = time.process_time()
    judged = search(recorded, sampler, most, seed, under_way, judged_at=judged_at)
    curve = {str(count): [round(float(r), 5) for r in regrets] for count, regrets in judged.items()}
    return {
        "problem": problem,
        "sampler": sampler,
        "seed": seed,
        "budget": given,
        "curve": curve,
        "seconds": time.process_time() - start,
    }


def summary(runs: Sequence[dict[str, Any]], evaluations: int | None = None) -> dict[str, float]:
    """Regrets in per cent after so many evaluations of each run; default: its budget."""
    ends = [run["curve"][str(evaluations or run["budget"])] for run in runs]
    every = [100 * regret for end in ends for regret in end]
    return {
        "mean": statistics.mean(every),
        "worst run": max(100 * statistics.mean(end) for end in ends),
        "95th percentile": float(np.percentile(every, 95)),
        "worst": max(every),
        "seconds": statistics.mean(run["seconds"] for run in runs),
    }


def cells_of(runs: Sequence[dict[str, Any]], evaluations: int | None = None) -> str:
    """The summary as cells of a table."""
    return " | ".join(f"{value:.2f}" for value in summary(runs, evaluations).values())


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


def held_out(recorded: Recorded, which: int, powers: bool, winners_race: bool) -> dict[int, float]:
    """Regrets, in per cent, at token counts that were not tuned, over the best of the configs timed there.

    Args:
        recorded: The times; the configs that one recording timed again at its end are the candidates.
        which: That recording; between recordings levels are known at the tuned counts only.
        powers: The powers of two are tuned, not only the counts that all configs were timed at.
        winners_race: The fastest of the winners serves a count, as if it were one of those between tuned counts at
            which they are timed; otherwise the winner of the nearest tuned count.
    """
    candidates = [samples for i, samples in recorded.finals.items() if i and recorded.recordings[i] == which]
    there = [at for at in range(len(recorded.final_tokens)) if not any(np.isnan(c[at, 0]) for c in candidates)]
    medians = [{recorded.final_tokens[at]: float(np.nanmedian(c[at])) for at in there} for c in candidates]
    tuned = [count for count in medians[0] if count & (count - 1) == 0] if powers else recorded.tokens
    tokens = list(tuned)
    winners = [min(medians, key=lambda times: times[count]) for count in tokens]
    edges = bucket_edges(tokens)
    regrets = {}
    for count in HELD_OUT:
        bucket = next(i for i, edge in enumerate(edges) if edge is None or count <= edge)
        best = min(times[count] for times in medians)
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
    plt.close("all")


def print_buckets(problems: Sequence[Recorded]) -> None:
    """Regret at held-out token counts, for both ways to serve them and the grids that were recorded."""
    for powers in (False, True):
        for winners_race in (False, True):
            name = f"{'powers of two' if powers else 'recorded counts'}, {'all' if winners_race else 'nearest'} winners"
            every = []
            for recorded in problems:
                for which in sorted(set(recorded.recordings)):
                    found = held_out(recorded, which, powers, winners_race)
                    every += found.values()
                    print(f"{name}: {recorded.problem} {which}:", " ".join(f"{r:5.2f}" for r in found.values()))
            print(f"{name}: mean {statistics.mean(every):.2f}, worst {max(every):.1f}")


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=DATA, show_default=True)
@click.option(
    "--samplers", default=",".join(SAMPLERS), show_default=True, help="NAME[:SEEDS[:EVALUATIONS]], comma separated"
)
@click.option("--seeds", default=20, show_default=True)
@click.option("--under-way", default=UNDER_WAY, show_default=True, help="configs asked for before results are known")
@click.option("--workers", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="folder for plots and search.json; default: print only")
def main(data: Path, samplers: str, seeds: int, under_way: int, workers: int, out: Path | None) -> None:
    """Compares; see the top of the file."""
    problems = load(data)
    runs: list[dict[str, Any]] = []
    print("| sampler | mean, % | worst run, % | 95th percentile, % | worst, % | processor s a run |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(workers) as pool:
        for item in samplers.split(","):
            sampler, own_seeds, evaluations, *_ = [*item.split(":"), "", ""]
            jobs = [
                pool.submit(_one, data, problem, sampler, seed, under_way, int(evaluations or 0))
                for problem in range(len(problems))
                for seed in range(int(own_seeds or seeds))
            ]
            found = [job.result() for job in jobs]
            runs += found
            print(f"| {sampler} | {cells_of(found)} |", flush=True)
            for count in sorted(set.intersection(*({int(c) for c in run["curve"]} for run in found))):
                print(f"|   after {count} | {cells_of(found, count)} |")
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
