"""tunegen show: tuned configs, their coverage, two sets side by side, and what failed while tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunegen.cli._options import LOG_WIDTH, OUT_HELP, STORAGE, configs_folder, parse_tokens, plain_console
from tunegen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tunegen.configs import TunedEntry
    from tunegen.ops import Config

MOST_MISSING = 4


@click.command()
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option("--target", "target_names", multiple=True, help="Only this target; may be repeated.")
@click.option("--op", "op_names", multiple=True, help="Only this op; may be repeated.")
@click.option("--coverage", is_flag=True, help="Which model presets and token counts are tuned for which target.")
@click.option("--model", "models", multiple=True, help="Only this preset, with --coverage; may be repeated.")
@click.option("--tp", "ranks", type=int, multiple=True, help="Ranks, with --coverage; may be repeated. Default: 1.")
@click.option("--tokens", help="Token counts that shall be tuned, with --coverage. Default: those of `tunegen tune`.")
@click.option(
    "--diff",
    "other",
    metavar="FOLDER|TARGET",
    help="Compare with another folder of tuned configs, or --target's with those of another target.",
)
@click.option("--failures", is_flag=True, help="Configs that failed while tuning, with the reason, from --storage.")
@click.option("--storage", default=STORAGE, show_default=True, help="What `tunegen tune` was given; for --failures.")
def show(
    configs: Path | None,
    target_names: tuple[str, ...],
    op_names: tuple[str, ...],
    coverage: bool,
    models: tuple[str, ...],
    ranks: tuple[int, ...],
    tokens: str | None,
    other: str | None,
    failures: bool,
    storage: str,
) -> None:
    """Tuned configs and their evidence; what is covered; two sets compared; what failed while tuning."""
    from tunegen.configs import load_entries
    from tunegen.ops import PRESET_OPS, get_family

    if coverage + failures + (other is not None) > 1:
        raise UsageError("Take one of --coverage, --diff and --failures at a time.")
    if (models or ranks or tokens) and not coverage:
        raise UsageError("--model, --tp and --tokens say what --coverage looks at; give that too.")
    wanted = [op for op in op_names if get_family(op)]
    console = plain_console()
    if failures:
        _show_failures(console, storage, target_names, wanted)
        return
    folder = configs_folder(configs)
    entries = [e for e in load_entries(folder, list(target_names) or None) if not wanted or e.op in wanted]
    if coverage:
        _show_coverage(console, entries, models, ranks or (1,), tokens, target_names, wanted or list(PRESET_OPS))
    elif other is not None:
        _show_difference(console, folder, entries, other, target_names, wanted)
    else:
        _show_entries(console, entries)


def _settings(config: Config) -> str:
    return " ".join(f"{key}={value}" for key, value in config.items())


def _show_entries(console: Console, entries: list[TunedEntry]) -> None:
    from rich.table import Table

    for entry in entries:
        colour = "green" if entry.evidence == "measured" else "yellow"
        stale = " [red]stale: the template renders other kernels now[/red]" if entry.stale else ""
        console.print(
            f"\n[bold]{entry.problem}[/bold] on {entry.environment.get('device_name', '?')} ({entry.device}):"
            f" [{colour}]{entry.evidence}[/{colour}], {entry.trials} configs tried{stale}"
        )
        time = "median_us" if entry.evidence == "measured" else "predicted_us"
        limit = "twin_us" if entry.evidence == "measured" else "memory_us"
        table = Table("tokens", f"{time[:-3]} us", "default us", f"{limit[:-3]} us", "config")
        for bucket in entry.buckets:
            # A bucket between tuned counts has no twin of its own.
            found = (bucket.fields.get(name) for name in (time, "default_us", limit))
            numbers = ["" if number is None else f"{number:.2f}" for number in found]
            table.add_row(str(bucket.tokens), *numbers, _settings(bucket.config))
        console.print(table)


def _show_coverage(
    console: Console,
    entries: list[TunedEntry],
    models: tuple[str, ...],
    ranks: tuple[int, ...],
    tokens: str | None,
    target_names: tuple[str, ...],
    ops: list[str],
) -> None:
    from rich.table import Table

    from tunegen.coverage import Tuned, coverage
    from tunegen.models import MODELS, get_model
    from tunegen.search.tune import DEFAULT_TOKENS
    from tunegen.targets import TARGETS

    counts = parse_tokens(tokens) if tokens else list(DEFAULT_TOKENS)
    targets = list(target_names) or [target.name for target in TARGETS.values() if target.measurable]
    about = f"{len(counts)} token counts from {counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]} tokens"
    table = Table("model", "ranks", *targets, title=f"problems with tuned configs for {about}")
    tuned = [Tuned(entry, entry.stale) for entry in entries]
    any_tuned = {entry.target for entry in entries}
    missing: dict[str, list[str]] = {}
    for model in [get_model(name) for name in models or MODELS]:
        for count in ranks:
            cells = []
            for target in targets:
                found = coverage(tuned, model, target, counts, ops, count)
                if found is None:
                    cells.append(f"{model.num_heads} heads do not split")
                    continue
                complete = [one for one in found if not one.missing]
                parts = []
                for evidence, colour in (("measured", "green"), ("predicted", "yellow")):
                    number = sum(one.evidence == evidence for one in complete)
                    parts += [f"[{colour}]{number} {evidence}[/{colour}]"] if number else []
                stale = sum(one.stale for one in complete)
                parts += [f"[red]{stale} stale[/red]"] if stale else []
                cells.append(f"{', '.join(parts) or '[red]0[/red]'} of {len(found)}")
                if target not in any_tuned:
                    missing[f"tunegen tune --model NAME --target {target}"] = [f"everything for {target}"]
                elif len(complete) < len(found):
                    lines = [_missing_line(one.problem, one.missing, counts) for one in found if one.missing]
                    more = len(lines) - MOST_MISSING
                    shown = [*lines[:MOST_MISSING], *([f"and {more} more"] if more > 0 else [])]
                    ranked = f" --tp {count}" if count > 1 else ""
                    missing[f"tunegen tune --model {model.name}{ranked} --target {target}"] = shown
            table.add_row(model.name, str(count), *cells)
    console.print(table)
    for command, lines in missing.items():
        console.print(f"\nmissing, for `{command}`:", highlight=False, soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", highlight=False, soft_wrap=True)


def _missing_line(problem: object, missing: tuple[int, ...], counts: list[int]) -> str:
    which = "all token counts" if len(missing) == len(counts) else f"{', '.join(map(str, missing))} tokens"
    return f"{problem}: {which}"


def _show_difference(
    console: Console,
    folder: Path,
    entries: list[TunedEntry],
    other: str,
    target_names: tuple[str, ...],
    wanted: list[str],
) -> None:
    from rich.table import Table

    from tunegen.configs import load_entries, time_of
    from tunegen.difference import differences
    from tunegen.targets import TARGETS, get_target

    across = other in TARGETS or not Path(other).is_dir()
    if across:
        get_target(other)
        if len(target_names) != 1 or target_names[0] == other:
            raise UsageError(f"--diff {other} compares with another target: name that one, once, with --target.")
        names = (target_names[0], other)
        second = load_entries(folder, [other])
    else:
        names = (str(folder), other)
        second = load_entries(Path(other), list(target_names) or None)
    second = [entry for entry in second if not wanted or entry.op in wanted]
    equal = 0
    for difference in differences(entries, second, across):
        title = f"\n[bold]{difference.problem}[/bold]"
        first_entry, second_entry = difference.first, difference.second
        if first_entry is None or second_entry is None:
            entry = first_entry or second_entry
            assert entry is not None
            on = "" if across else f" on {entry.target}"
            console.print(f"{title}{on}: only in {names[second_entry is not None]}", highlight=False)
            continue
        same_evidence = first_entry.evidence == second_entry.evidence
        if not difference.changes and same_evidence:
            equal += 1
            continue
        evidence = (
            f"both {first_entry.evidence}" if same_evidence else f"{first_entry.evidence}, then {second_entry.evidence}"
        )
        on = "" if across else f" on {first_entry.target}"
        console.print(f"{title}{on}: {evidence}", highlight=False)
        table = Table("tokens", f"{names[0]} us", f"{names[1]} us", "second/first", f"{names[0]} -> {names[1]}")
        for change in difference.changes:
            changed = " ".join(f"{k}={'-' if a is None else a}->{'-' if b is None else b}" for k, (a, b) in
                               change.changed.items())  # fmt: skip
            # A bucket's time is of the token count that it was tuned at.
            exact = [b.tokens == change.tokens for b in (change.first, change.second)]
            times = [time_of(bucket) for bucket in (change.first, change.second)]
            cells = [f"{time:.2f}" if known else "-" for time, known in zip(times, exact, strict=True)]
            # A measured time over a predicted one says nothing.
            ratio = f"{times[1] / times[0]:.2f}" if all(exact) and same_evidence else "-"
            table.add_row(str(change.tokens), *cells, ratio, changed)
        console.print(table, width=max(console.width, LOG_WIDTH) if not console.is_terminal else None)
    console.print(f"\n{equal} problems have the same configs in {names[0]} and {names[1]}.", highlight=False)


def _show_failures(console: Console, storage: str, target_names: tuple[str, ...], op_names: list[str]) -> None:
    from rich.markup import escape

    from tunegen.search.effects import idle_knobs
    from tunegen.search.record import read_studies
    from tunegen.search.storage import exists, open_storage
    from tunegen.targets import get_target

    targets = [get_target(name).name for name in target_names]
    if not exists(storage):
        raise UsageError(f"There is no storage {storage}. `tunegen tune` makes it; --storage names another one.")
    for study in read_studies(open_storage(storage)):
        if (targets and study.target not in targets) or (op_names and study.problem.op not in op_names):
            continue
        failed = [outcome for outcome in study.outcomes if outcome.failure]
        evidence = study.circumstances[0]
        title = f"[bold]{study.problem}[/bold] on {study.target}, {evidence}"
        console.print(f"\n{title}: {len(failed)} of {len(study.outcomes)} configs failed", highlight=False)
        for outcome in failed:
            console.print(
                f"  {_settings(outcome.config)}\n    [red]{escape(outcome.failure)}[/red]",
                highlight=False,
                soft_wrap=True,
            )
        for knob, pairs in idle_knobs(study.outcomes).items():
            console.print(f"  {knob} changed nothing: the same machine code in all of {pairs} pairs", highlight=False)
