"""The page: sections, tables and figures, with plotly.js and the data inside."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from statistics import geometric_mean
from typing import Any

from tunegen import __version__
from tunegen.configs import TunedBucket, TunedEntry, time_of
from tunegen.ops import OP_NAMES, Config, Problem
from tunegen.report import figures
from tunegen.report.gather import Search, Subject, limit_of

LONGEST_REASON = 240
SIZE_WORDS = {
    **{"hidden_size": "N", "intermediate_size": "N", "second_size": "and"},
    **{"num_heads": "heads", "kv_lora_rank": "R", "rope_dim": "D"},
}
# Sizes that hardly vary are left out of short names where they have these values.
USUAL = {"kv_lora_rank": 512, "rope_dim": 64}


class _Figures:
    """Collects figures; gives the elements that they are drawn in."""

    def __init__(self) -> None:
        self.specs: list[figures.Figure] = []

    def add(
        self, figure: figures.Figure, caption: str, wide: bool = False, narrow: dict[str, str] | None = None
    ) -> str:
        """A figure element. ``caption`` is HTML; ``narrow`` are names of rows for a narrow window."""
        self.specs.append(figure)
        names = f" data-narrow='{escape(json.dumps(narrow), quote=True)}'" if narrow else ""
        height = figure["layout"]["height"]
        plot = f'<div class="plot" data-figure="{len(self.specs) - 1}" style="height:{height}px"{names}></div>'
        return f"<figure{' class=wide' if wide else ''}><figcaption>{caption}</figcaption>{plot}</figure>"


def short_name(problem: Problem, with_op: bool = True) -> str:
    """A problem's name for a row: its op, and the sizes that tell it from others."""
    sizes = [f"{SIZE_WORDS[name]} {size}" for name, size in problem.shape if USUAL.get(name) != size]
    if problem.rounding not in ("none", "act"):
        sizes.append(problem.rounding.removeprefix("none,").removeprefix("act,"))
    return " ".join([*([problem.op] if with_op else []), *sizes])


def _chip(evidence: str) -> str:
    return f'<span class="chip {evidence}">{evidence}</span>'


def _mark(evidence: str) -> str:
    return f'<span class="mark {evidence}">{evidence}</span>'


def _key(variable: str, text: str, kind: str = "") -> str:
    return f'<span class="key {kind}" style="--c:var({variable})"></span>{text}'


def _table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; columns are name and whether they hold numbers. Narrow windows stack its cells."""
    kinds = [' class="number"' if number else "" for _, number in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for (name, _), kind in zip(columns, kinds, strict=True))
    body = ""
    for row in rows:
        cells = zip(row, columns, kinds, strict=True)
        line = (f'<td{kind} data-label="{escape(name)}"><span>{cell}</span></td>' for cell, (name, _), kind in cells)
        body += f"<tr>{''.join(line)}</tr>"
    return f'<div class="scroll"><table class="stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _gain(entry: TunedEntry) -> float:
    return geometric_mean(float(bucket.fields["default_us"]) / time_of(bucket) for bucket in entry.buckets)


def _nearness(entry: TunedEntry) -> float | None:
    limits = [(limit_of(bucket), time_of(bucket)) for bucket in entry.buckets]
    shares = [limit / time for limit, time in limits if limit]
    return geometric_mean(shares) if shares else None


def _anchor(subject: Subject) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", f"{subject.problem} {subject.target} {subject.evidence}".lower()).strip("-")


def _changes(config: Config, default: Config) -> str:
    """What a config sets otherwise than the default."""
    changed = [f"{name}={value}" for name, value in config.items() if default.get(name) != value]
    return f"<code>{escape(' '.join(changed))}</code>" if changed else "the default config"


def _range(entry: TunedEntry, index: int) -> str:
    bucket = entry.buckets[index]
    first = 1 if index == 0 else (entry.buckets[index - 1].max_tokens or 0) + 1
    last = bucket.max_tokens
    if last is None:
        return f"{first:,} and more"
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _evidence(bucket: TunedBucket) -> str:
    fields = bucket.fields
    margin = f"{100 * float(fields['margin']):.1f} %" if "margin" in fields else "?"
    runner = f", next best {fields['runner_up_us']:.2f} µs" if fields.get("runner_up_us") else ""
    if "median_us" in fields:
        how = "raced between tuned counts" if bucket.raced else f"spread {fields['spread_us']:.3f} µs"
        return f"{_mark('measured')} {how}, margin {margin}{runner}"
    return f"{_mark('predicted')} limited by {escape(str(fields.get('limiter', '?')))}, margin {margin}{runner}"


def _found(search: Search | None, config: Config, default: Config) -> str:
    if config == default:
        return "default"
    number = search.number(config) if search else None
    return f"config {number} of {len(search.outcomes)}" if search and number else "another search"


def _winners(subject: Subject) -> str:
    entry = subject.entry
    assert entry is not None
    default = subject.default_config
    rows = []
    for index, bucket in enumerate(entry.buckets):
        time = time_of(bucket)
        cells = [_range(entry, index), f"{bucket.tokens:,}", f"{time:.2f}"]
        cells.append(f"{float(bucket.fields['default_us']) / time:.2f}&times;")
        cells += [_evidence(bucket), _found(subject.search, bucket.config, default), _changes(bucket.config, default)]
        rows.append(cells)
    columns = [("tokens", True), ("tuned at", True), ("µs", True), ("over default", True)]
    table = _table([*columns, ("evidence", False), ("found as", False), ("changes", False)], rows)
    if not entry.held_out_regret:
        return table
    count, worst = max(entry.held_out_regret.items(), key=lambda item: item[1])
    held_out = ", ".join(f"{int(tokens):,}" for tokens in entry.held_out_regret)
    return (
        f"{table}<p class=soft>Token counts that were never tuned ({held_out}) lose at most {100 * worst:.1f} %,"
        f" at {int(count):,} tokens, against the fastest config known there.</p>"
    )


def _reason(failure: str) -> str:
    """A failure without its numbers, so that equal ones fall together."""
    first = failure.strip().splitlines()[0] if failure.strip() else "no reason recorded"
    return re.sub(r"0x[0-9a-f]+|\d+(?:\.\d+)?", "…", first)[:LONGEST_REASON]


def _failures(search: Search) -> str:
    found: dict[str, list[tuple[str, Config]]] = defaultdict(list)
    for outcome in search.outcomes:
        if outcome.failure:
            found[_reason(outcome.failure)].append((outcome.failure, outcome.config))
    if not found:
        return f"<p class=soft>None of {len(search.outcomes)} configs failed.</p>"
    rows = []
    for examples in sorted(found.values(), key=len, reverse=True):
        message, config = examples[0]
        settings = " ".join(f"{name}={value}" for name, value in config.items())
        rows.append(
            [
                str(len(examples)),
                escape(message.strip().splitlines()[0][:LONGEST_REASON]) if message.strip() else "no reason recorded",
                f"<code>{escape(settings)}</code>",
            ]
        )
    return _table([("configs", True), ("reason", False), ("the first of them", False)], rows)


def _environment(entry: TunedEntry) -> str:
    items: dict[str, Any] = {**entry.environment, "device": entry.device, "activations": entry.dtype}
    pairs = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in items.items())
    return f"<dl>{pairs}</dl>"


def _search_part(subject: Subject, page: _Figures) -> str:
    search = subject.search
    if search is None:
        return "<h3>Search</h3><p class=soft>The studies given do not have it.</p>"
    parts = []
    if search.default is not None:
        keys = "".join(_key(figures.GROUP_COLOURS[n], f"{n} ({g[0]:,} to {g[-1]:,} tokens)") for n, g in
                       search.groups.items())  # fmt: skip
        parts.append(page.add(figures.best_so_far_figure(search), f"<b>Best so far</b>{keys}"))
        importance = figures.importance_figure(search)
        if importance:
            parts.append(page.add(importance, "<b>What matters</b>: share of each knob (PED-ANOVA), same colours"))
    accent = f"--{subject.evidence}"
    keys = _key(accent, "wins a bucket") + _key("--default", "best quarter") + _key("--faint", "slower")
    if any(outcome.failure for outcome in search.outcomes):
        keys += _key("--failed", "failed", "dotted")
    parts.append(page.add(figures.knobs_figure(subject, search), f"<b>Configs tried</b>{keys}", wide=True))
    return f'<h3>Search</h3><div class="figures">{"".join(parts)}</div><h3>Failures</h3>{_failures(search)}'


def _section(subject: Subject, page: _Figures, first: bool) -> str:
    entry = subject.entry
    facts = [f'<span class="name">{escape(short_name(subject.problem))}</span>']
    facts.append(f"{_chip(subject.evidence)} <span class=fact>{escape(subject.device)}</span>")
    body = ""
    if entry is None:
        facts.append("<span class=fact>the search has not ended</span>")
    else:
        if entry.stale:
            facts.append('<span class="chip stale">stale</span>')
        nearness = _nearness(entry)
        limit = "twin" if entry.evidence == "measured" else "memory limit"
        facts.append(f"<span class=fact>{_gain(entry):.2f}&times; over default</span>")
        if nearness:
            facts.append(f"<span class=fact>{100 * nearness:.0f} % of the {limit}</span>")
        facts.append(f"<span class=fact>{entry.trials} configs</span>")
        dashes = "solid lines are measured" if entry.evidence == "measured" else "dashed lines are predicted"
        times = page.add(figures.times_figure(subject), f"<b>Time</b>: {dashes}")
        near = page.add(figures.limit_figure(subject), f"<b>Time over the {limit}</b>: lower is better")
        body += f"<h3>Times</h3><div class=figures>{times}{near}</div>"
        body += f"<h3>Winners and their evidence</h3>{_winners(subject)}"
    body += _search_part(subject, page)
    if entry is not None:
        body += f"<h3>Environment</h3>{_environment(entry)}"
    opened = " open" if first else ""
    inside = f"<summary>{' '.join(facts)}</summary><div class=body>{body}</div>"
    return f'<details class="problem {subject.evidence}" id="{_anchor(subject)}"{opened}>{inside}</details>'


def _overview(subjects: list[Subject], page: _Figures) -> str:
    groups: dict[tuple[str, str, str], list[TunedEntry]] = defaultdict(list)
    for subject in subjects:
        if subject.entry is not None:
            groups[subject.target, subject.device, subject.evidence].append(subject.entry)
    html = ""
    for (target, device, evidence), entries in groups.items():
        labels = [short_name(entry.problem) for entry in entries]
        if len(set(labels)) < len(labels):
            labels = [f"{label} {entry.dtype} {entry.device}" for label, entry in zip(labels, entries, strict=True)]
        narrow = {label: label.replace("mxfp4_quant", "").replace("dynamic_", "quantise").replace("__", "_").rstrip("_")
                  .replace("_ ", " ") for label in labels}  # fmt: skip
        gain = geometric_mean([_gain(entry) for entry in entries])
        limit = "traffic twin" if evidence == "measured" else "memory limit"
        parts = page.add(
            figures.overview_figure(entries, labels, "default"),
            "<b>Speed-up over the default config</b> (default / tuned)",
            narrow=narrow,
        )
        if any(_nearness(entry) is not None for entry in entries):
            figure = figures.overview_figure(entries, labels, "limit")
            parts += page.add(figure, f"<b>Share of the {limit}</b> ({limit} / tuned)", narrow=narrow)
        html += (
            f"<h2>{escape(device)} <span class=soft>({escape(target)})</span> {_chip(evidence)}</h2>"
            f"<p>{len(entries)} problems; {gain:.2f}&times; over the default configs in the geometric mean.</p>"
            f"<div class=figures>{parts}</div>"
        )
    return html


def _about(subjects: list[Subject]) -> str:
    kinds = [evidence for evidence in ("measured", "predicted") if any(s.evidence == evidence for s in subjects)]
    words = {
        "measured": "timed on the GPU named: CUDA-graph replay, finalists interleaved with the default config and with"
        " the traffic twin, a kernel that makes the same loads and stores and computes nothing.",
        "predicted": "worked out from the compiled code for a GPU that was not there. No time of it was measured; the"
        " memory limit is launch and memory traffic alone.",
    }
    return "".join(f"<p>{_chip(kind)} {words[kind]}</p>" for kind in kinds)


def render_page(subjects: list[Subject]) -> str:
    """The whole page; it loads nothing from elsewhere.

    Args:
        subjects: The sections, at least one.
    """
    page = _Figures()
    overview = _overview(subjects, page)
    sections = ""
    order = [op for op in OP_NAMES if any(subject.problem.op == op for subject in subjects)]
    for op in order:
        mine = [subject for subject in subjects if subject.problem.op == op]
        inside = "".join(_section(subject, page, op == order[0] and i == 0) for i, subject in enumerate(mine))
        sections += f'<h2 id="op-{escape(op)}">{escape(op)}</h2>{inside}'
    links = "".join(f'<a href="#op-{escape(op)}">{escape(op)}</a>' for op in order)
    css, script = (resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in
                   ("page.css", "page.js"))  # fmt: skip
    # Importing plotly takes a second; its script is all that is needed.
    plotly = resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    data = json.dumps(page.specs, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="tunegen {__version__}">
<title>tunegen report</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<main>
<h1>tunegen report</h1>
{_about(subjects)}
<nav>{links}</nav>
<noscript><p>The plots need JavaScript; the tables do not.</p></noscript>
{overview}
{sections}
<p class="soft">tunegen {__version__}; the plots are drawn by plotly.js, which this page contains.</p>
</main>
<script type="application/json" id="figures">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""
