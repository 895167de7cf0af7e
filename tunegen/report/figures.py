"""Plotly figures of the report, as plain dicts.

Colours are names of CSS variables, ``"--tuned"``: the page puts the values of its light or dark scheme in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tunegen.configs import TunedEntry, time_of
from tunegen.ops import Config, config_key, get_family
from tunegen.report.gather import Search, Subject, limit_of
from tunegen.report.importance import importances
from tunegen.targets import get_target

Figure = dict[str, Any]
Trace = dict[str, Any]

PLOT_HEIGHT = 300
MARGIN = {"l": 52, "r": 92, "t": 14, "b": 42}
LABEL_PIXELS = 14.0
ROW_PIXELS = 20
KNOB_PIXELS = 46
FEWEST_TICKS = (1, 16, 256, 4096, 65536, 1048576)
GROUP_COLOURS = {"decode": "--group-1", "mixed": "--group-2", "prefill": "--group-3"}
# Kernels of others, in the order in which they come.
BASELINE_COLOURS = ("--baseline-1", "--baseline-2", "--baseline-3", "--baseline-4")
LONGEST_KNOB = 16


def _layout(height: int = PLOT_HEIGHT, **fields: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": dict(MARGIN),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--text"},
        "hoverlabel": {"bgcolor": "--panel", "bordercolor": "--line", "font": {"color": "--text"}},
        "showlegend": False,
        "dragmode": False,
        **fields,
    }


def _axis(title: str, **fields: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 6},
        "gridcolor": "--grid",
        "linecolor": "--line",
        "zeroline": False,
        "fixedrange": True,
        "automargin": False,
        "ticks": "outside",
        "ticklen": 3,
        "tickcolor": "--line",
        **fields,
    }


def _short_count(count: int) -> str:
    """A token count for an axis: 16384 as 16k."""
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


def _token_axis(tokens: Sequence[int]) -> dict[str, Any]:
    low, high = math.log10(tokens[0]), math.log10(tokens[-1])
    room = 0.03 * max(high - low, 1.0)
    ticks = [tick for tick in FEWEST_TICKS if tokens[0] <= tick <= tokens[-1]] or [tokens[0]]
    ticking = {
        "tickvals": ticks,
        "ticktext": [_short_count(tick) for tick in ticks],
        "range": [low - room, high + room],
    }
    return _axis("tokens", type="log", **ticking)


def _nice_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between two values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) < 8 else [tick for tick in ticks if f"{tick:e}".startswith("1")]


def _spread_labels(positions: Sequence[float], least: float) -> list[float]:
    """Positions moved as little as needed for neighbours to lie at least so far apart, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for _ in range(200):
        moved = False
        for lower in range(len(placed) - 1):
            overlap = least - (placed[lower + 1] - placed[lower])
            if overlap > 1e-9:
                placed[lower] -= overlap / 2
                placed[lower + 1] += overlap / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(placed)
    for index, value in zip(order, placed, strict=True):
        result[index] = value
    return result


def _end_labels(
    ends: Sequence[tuple[str, float, str]], low: float, high: float, height: int = PLOT_HEIGHT
) -> list[dict[str, Any]]:
    """Names at the right ends of lines, moved apart where they would overlap.

    Args:
        ends: Name, position on the axis (the logarithm on a log axis) and colour of each line.
        low, high: The axis' range, in the same terms.
        height: Pixels of the whole figure.
    """
    pixels = (height - MARGIN["t"] - MARGIN["b"]) / (high - low)
    wanted = [value * pixels for _, value, _ in ends]
    shown = _spread_labels(wanted, LABEL_PIXELS)
    return [
        {
            "text": name,
            "x": 1.0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 6,
            "y": value,
            "yref": "y",
            "yanchor": "middle",
            "yshift": round(at - want, 1),
            "showarrow": False,
            "font": {"color": colour, "size": 12},
            "captureevents": False,
        }
        for (name, value, colour), want, at in zip(ends, wanted, shown, strict=True)
    ]


class _Lines:
    """The lines of a subject: tuned and default times, the limit, the baselines."""

    def __init__(self, subject: Subject) -> None:
        entry = subject.entry
        assert entry is not None
        self.measured = entry.evidence == "measured"
        self.tokens = [bucket.tokens for bucket in entry.buckets]
        tuned = {bucket.tokens: time_of(bucket) for bucket in entry.buckets}
        default = {bucket.tokens: float(bucket.fields["default_us"]) for bucket in entry.buckets}
        found = {bucket.tokens: limit_of(bucket) for bucket in entry.buckets}
        self.limit = {tokens: limit for tokens, limit in found.items() if limit is not None}
        # The tuned line last: it lies on top.
        self.lines: list[tuple[str, str, dict[int, float]]] = [("default", "--default", default)]
        for (name, times), colour in zip(sorted(subject.baselines.items()), BASELINE_COLOURS, strict=False):
            known = {tokens: times[tokens] for tokens in sorted(times)}
            self.lines.append((_short(name), colour, known))
        self.lines.append(("tuned", "--measured" if self.measured else "--predicted", tuned))

    def trace(self, name: str, colour: str, points: dict[int, float], unit: str) -> Trace:
        """A line; what is predicted is dashed, with open markers."""
        tuned = name == "tuned"
        marker: dict[str, Any] = {"size": 7 if tuned else 5, "color": colour}
        if not self.measured:
            marker = {**marker, "color": "--panel", "line": {"color": colour, "width": 1.6}}
        kind = "measured" if self.measured else "predicted"
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(points),
            "y": list(points.values()),
            "line": {"color": colour, "width": 2.6 if tuned else 1.6, "dash": "solid" if self.measured else "dash"},
            "marker": marker,
            "hovertemplate": f"{name}, {kind}<br>%{{x:,}} tokens: %{{y:.3~f}}{unit}<extra></extra>",
        }


def _short(kernel: str) -> str:
    """A kernel's name as a label."""
    return {"aiter": "AITER", "handwritten": "hand-written", "compiled": "Inductor"}.get(kernel, kernel)[:LONGEST_KNOB]


def times_figure(subject: Subject) -> Figure:
    """Microseconds over tokens, both logarithmic: tuned, default, limit and baselines."""
    lines = _Lines(subject)
    traces: list[Trace] = []
    ends = []
    limit_name = "traffic twin" if lines.measured else "memory limit"
    if lines.limit:
        dots = {"color": "--limit", "width": 1.6, "dash": "dot"}
        hover = f"{limit_name}<br>%{{x:,}} tokens: %{{y:.3~f}} us<extra></extra>"
        x, y = list(lines.limit), list(lines.limit.values())
        traces.append({"type": "scatter", "mode": "lines", "name": limit_name, "x": x, "y": y, "line": dots,
                       "hovertemplate": hover})  # fmt: skip
        ends.append((limit_name, math.log10(y[-1]), "--limit-text"))
    for name, colour, points in lines.lines:
        traces.append(lines.trace(name, colour, points, " us"))
        ends.append((name, math.log10(list(points.values())[-1]), f"{colour}-text"))
    every = [value for trace in traces for value in trace["y"]]
    low, high = math.log10(min(every)) - 0.06, math.log10(max(every)) + 0.08
    ticks = _nice_ticks(10**low, 10**high)
    yaxis = _axis("µs a call", type="log", range=[low, high], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    annotations = _end_labels(ends, low, high)
    return {"data": traces, "layout": _layout(xaxis=_token_axis(lines.tokens), yaxis=yaxis, annotations=annotations)}


def limit_figure(subject: Subject) -> Figure:
    """Times over the practical limit: how far each kernel is from it."""
    lines = _Lines(subject)
    traces: list[Trace] = []
    ends = []
    for name, colour, points in lines.lines:
        ratios = {n: time / lines.limit[n] for n, time in points.items() if lines.limit.get(n)}
        if ratios:
            traces.append(lines.trace(name, colour, ratios, " of the limit"))
            ends.append((name, list(ratios.values())[-1], f"{colour}-text"))
    every = [1.0, *(value for trace in traces for value in trace["y"])]
    room = 0.06 * (max(every) - min(every) or 1.0)
    low, high = min(every) - room, max(every) + room
    ends.append(("traffic twin" if lines.measured else "memory limit", 1.0, "--limit-text"))
    one = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "layer": "below",
           "line": {"color": "--limit", "width": 1.6, "dash": "dot"}}  # fmt: skip
    yaxis = _axis("time / limit", range=[low, high], tickformat=".2~f")
    layout = _layout(xaxis=_token_axis(lines.tokens), yaxis=yaxis, shapes=[one],
                     annotations=_end_labels(ends, low, high))  # fmt: skip
    return {"data": traces, "layout": layout}


def best_so_far_figure(search: Search) -> Figure:
    """Every config's time over the default's, and the best so far for each kind of batch."""
    traces: list[Trace] = []
    ends = []
    lowest, highest = 1.0, 1.0
    for name, tokens in search.groups.items():
        scores = search.scores(tokens)
        best: list[float] = []
        numbers = []
        for number, score in enumerate(scores, 1):
            if score is not None:
                best.append(min([score, *best[-1:]]))
                numbers.append(number)
        colour = GROUP_COLOURS[name]
        tried = [(n, s) for n, s in enumerate(scores, 1) if s is not None]
        shown = [min(score, 2.0) for _, score in tried]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [n for n, _ in tried],
                "y": shown,
                "marker": {"color": colour, "size": 4, "opacity": 0.45},
                "customdata": [round(score, 3) for _, score in tried],
                "hovertemplate": f"config %{{x}}, {name}: %{{customdata}} of the default<extra></extra>",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"best, {name}",
                "x": [*numbers, len(scores)],
                "y": [*best, best[-1]],
                "line": {"color": colour, "width": 2.2, "shape": "hv"},
                "hovertemplate": f"best of %{{x}} configs, {name}: %{{y:.3f}}<extra></extra>",
            }
        )
        ends.append((name, math.log10(best[-1]), f"{colour}-text"))
        lowest, highest = min(lowest, best[-1]), max(highest, *shown)
    low, high = math.log10(lowest) - 0.03, math.log10(highest) + 0.02
    shown_ticks = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2)
    ticks = [tick for tick in shown_ticks if 10**low <= tick <= 10**high]
    yaxis = _axis("time / default", type="log", range=[low, high], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    one = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "layer": "below",
           "line": {"color": "--default", "width": 1.2}}  # fmt: skip
    xaxis = _axis("configs tried", range=[0, len(search.outcomes) + 1])
    layout = _layout(xaxis=xaxis, yaxis=yaxis, shapes=[one], annotations=_end_labels(ends, low, high))
    return {"data": traces, "layout": layout}


def importance_figure(search: Search) -> Figure | None:
    """Share of each knob in how good a config is; None with too few configs to say."""
    groups = {name: importances(search, tokens) for name, tokens in search.groups.items()}
    groups = {name: shares for name, shares in groups.items() if shares}
    if not groups:
        return None
    means: dict[str, float] = {}
    for shares in groups.values():
        for knob, share in shares.items():
            means[knob] = means.get(knob, 0.0) + share
    knobs = sorted(means, key=lambda knob: means[knob])
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": knobs,
            "x": [100 * shares.get(knob, 0.0) for knob in knobs],
            "marker": {"color": GROUP_COLOURS[name]},
            "hovertemplate": f"%{{y}}, {name}: %{{x:.0f}} %<extra></extra>",
        }
        for name, shares in reversed(groups.items())
    ]
    height = 60 + 30 * len(knobs)
    margin = {**MARGIN, "l": 128, "r": 16}
    layout = _layout(
        height, margin=margin, xaxis=_axis("share, %", rangemode="tozero"), yaxis=_axis("", ticks=""), bargap=0.3
    )
    return {"data": traces, "layout": layout}


def _positions(subject: Subject, configs: Iterable[Config]) -> dict[str, dict[Any, float]]:
    """Where each value of each knob lies on its axis, from 0 to 1, in the order of the knob's choices."""
    family = get_family(subject.problem.op)
    order = {k.name: k.choices for k in family.knobs(subject.problem, get_target(subject.target))}
    positions = {}
    configs = list(configs)
    for name in configs[0]:
        used = {config.get(name) for config in configs}
        known = order.get(name, ())
        values = [v for v in known if v in used] + sorted((v for v in used if v not in known), key=str)
        step = 1 / max(len(values) - 1, 1)
        positions[name] = {value: (i * step if len(values) > 1 else 0.5) for i, value in enumerate(values)}
    return positions


def knobs_figure(subject: Subject, search: Search) -> Figure:
    """Parallel coordinates: a line a config through its knobs, one row each; winners stand out."""
    configs = [outcome.config for outcome in search.outcomes]
    positions = _positions(subject, configs)
    names = [name for name in positions if len(positions[name]) > 1] or list(positions)
    scores = search.scores(search.tokens) if search.tokens else [None] * len(configs)
    good = sorted(score for score in scores if score is not None)
    quarter = good[max(len(good) // 4 - 1, 0)] if good else 0.0
    entry = subject.entry
    winners = {config_key(bucket.config) for bucket in entry.buckets} if entry else set()
    classes: dict[str, list[int]] = {"failed": [], "rest": [], "good": [], "winner": []}
    for index, (config, score) in enumerate(zip(configs, scores, strict=True)):
        if config_key(config) in winners:
            classes["winner"].append(index)
        elif score is None:
            classes["failed"].append(index)
        else:
            classes["good" if score <= quarter else "rest"].append(index)
    winner = "--measured" if subject.evidence == "measured" else "--predicted"
    looks: dict[str, tuple[str, dict[str, Any]]] = {
        "failed": ("failed", {"color": "--failed", "width": 1, "dash": "dot"}),
        "rest": ("slower", {"color": "--faint", "width": 1}),
        "good": ("best quarter", {"color": "--default", "width": 1.3}),
        "winner": ("wins a bucket", {"color": winner, "width": 2.2}),
    }
    traces: list[Trace] = []
    for kind, indices in classes.items():
        if not indices:
            continue
        label, line = looks[kind]
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for index in indices:
            # Apart by a little, so that configs that share a value are seen as several.
            shift = 0.03 * ((index * 0.618) % 1 - 0.5)
            for row, name in enumerate(names):
                x.append(round(positions[name][configs[index].get(name)] + shift, 4))
                y.append(-row)
                score = scores[index]
                text.append(f"config {index + 1}, " + ("failed" if score is None else f"{score:.3f} of the default"))
            x.append(None)
            y.append(None)
            text.append("")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": x,
                "y": y,
                "text": text,
                "line": line,
                "hovertemplate": f"%{{text}} ({label})<extra></extra>",
            }
        )
    annotations = [
        {
            "text": str(value),
            "x": at,
            "y": -row,
            "yshift": 10,
            "showarrow": False,
            "font": {"size": 11, "color": "--text"},
            "bgcolor": "--panel",
            "borderpad": 0,
            "opacity": 0.85,
            "xanchor": "left" if at == 0 else "right" if at == 1 else "center",
        }
        for row, name in enumerate(names)
        for value, at in positions[name].items()
    ]
    height = 40 + KNOB_PIXELS * len(names)
    rows = {"tickvals": [-row for row in range(len(names))], "ticktext": names, "range": [-len(names) + 0.7, 0.7]}
    layout = _layout(
        height,
        margin={"l": 128, "r": 16, "t": 8, "b": 8},
        xaxis=_axis("", range=[-0.05, 1.05], showgrid=False, showticklabels=False, ticks=""),
        yaxis=_axis("", ticks="", **rows),
        annotations=annotations,
        hovermode="closest",
    )
    return {"data": traces, "layout": layout}


def overview_figure(entries: Sequence[TunedEntry], labels: Sequence[str], of: str) -> Figure:
    """A cell a problem and token count: what tuning gained over the default, or how near the limit it came.

    Args:
        entries: One row each, of one target and one evidence.
        labels: Their names.
        of: ``"default"`` for default time / tuned time, ``"limit"`` for limit / tuned time.
    """
    known = Counter(bucket.tokens for entry in entries for bucket in entry.buckets)
    # Buckets between tuned counts lie elsewhere in each problem: no columns of their own.
    tokens = sorted(count for count, number in known.items() if 2 * number > len(entries))
    rows = []
    for entry in entries:
        cells: dict[int, float] = {}
        for bucket in entry.buckets:
            base = float(bucket.fields["default_us"]) if of == "default" else limit_of(bucket)
            if base is not None:
                cells[bucket.tokens] = base / time_of(bucket)
        rows.append([cells.get(count) for count in tokens])
    low, high = (1.0, 1.5) if of == "default" else (0.5, 1.0)
    accent = "--measured" if entries[0].evidence == "measured" else "--predicted"
    ratio = "default / tuned" if of == "default" else "limit / tuned"
    heat = {
        "type": "heatmap",
        "x": [_short_count(count) for count in tokens],
        "y": list(labels),
        "z": rows,
        "zmin": low,
        "zmax": high,
        "colorscale": [[0, "--heat-low"], [1, accent]],
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": f"%{{y}}<br>%{{x}} tokens: {ratio} = %{{z:.2f}}<extra></extra>",
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.9,
            "x": 0.5,
            "y": 1.0,
            "yanchor": "bottom",
            "ypad": 6,
            "outlinewidth": 0,
            "tickvals": [low, (low + high) / 2, high],
            "ticktext": [f"≤ {low:g}", f"{(low + high) / 2:g}", f"≥ {high:g}"],
            "tickfont": {"color": "--text", "size": 11},
        },
    }
    height = 110 + ROW_PIXELS * len(entries)
    layout = _layout(
        height,
        margin={"l": 8, "r": 12, "t": 48, "b": 40},
        xaxis=_axis("tokens", type="category", ticks="", showgrid=False, tickangle=0, tickfont={"size": 10}),
        yaxis=_axis("", autorange="reversed", ticks="", showgrid=False, automargin=True, tickfont={"size": 11}),
    )
    return {"data": [heat], "layout": layout}
