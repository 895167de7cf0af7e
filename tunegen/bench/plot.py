"""Time over tokens, and the share of the twin, one figure a problem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunegen.bench.compare import Row
from tunegen.bench.report import OTHERS, TITLES, Environment, by_problem
from tunegen.errors import UsageError

# Okabe and Ito's palette, which the colour-blind can tell apart; the same thing has the same colour everywhere.
COLOURS = {
    "tuned": "#000000",
    "twin": "#999999",
    "default": "#0072B2",
    "aiter": "#D55E00",
    "unfused": "#009E73",
    "compiled": "#CC79A7",
    "handwritten": "#E69F00",
}


def plot(environment: Environment, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes an SVG for each problem that has more than one token count.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: `pip install tunegen[bench]`.") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for problem, own in by_problem(rows).items():
        if len(own) < 2:
            continue
        tokens = [row.tokens for row in own]
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        times, shares = figure.subplots(1, 2)
        for name in ("twin", *OTHERS, "tuned"):
            timed = [row for row in own if name in row.timings]
            if not timed:
                continue
            style = {"color": COLOURS[name], "label": TITLES.get(name, name), "marker": "o", "markersize": 3}
            at = [row.tokens for row in timed]
            medians = [row.timings[name].median for row in timed]
            half = [row.timings[name].spread / 2 for row in timed]
            times.errorbar(at, medians, yerr=half, linestyle="--" if name == "twin" else "-", **style)
            if name != "twin":
                ratios = [row.ratio("twin", name) for row in timed]
                shares.plot(at, [ratio.value if ratio else float("nan") for ratio in ratios], **style)
        shares.axhline(1.0, color=COLOURS["twin"], linestyle="--")
        for axes, label in ((times, "microseconds a call"), (shares, "the twin's time by its time")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(tokens, [str(count) for count in tokens], rotation=45)
            axes.set_xlabel("tokens")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        times.set_yscale("log")
        shares.set_ylim(bottom=0)
        times.legend(fontsize="small")
        figure.suptitle(f"{problem}: {environment.device}")
        shape = "_".join(f"{name}{size}" for name, size in problem.shape)
        path = folder / f"{problem.op}_{shape}_{problem.rounding.replace(',', '_')}.svg"
        figure.savefig(path)
        written.append(path)
    return written
