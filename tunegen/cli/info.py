"""tunegen models | ops | targets | show: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunegen.cli._options import OUT_HELP, STORAGE, configs_folder, plain_console

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
def models() -> None:
    """Model presets and the shapes they have."""
    from rich.table import Table

    from tunegen.models import MODELS

    table = Table("model", "hidden size", "q_lora_rank", "kv_lora_rank", "rope dim", "heads")
    for model in MODELS.values():
        sizes = (model.hidden_size, model.q_lora_rank or "-", model.kv_lora_rank, model.rope_dim, model.num_heads)
        table.add_row(model.name, *map(str, sizes))
    plain_console().print(table)


@click.command()
def ops() -> None:
    """Ops, their schemas and what can be tuned."""
    from rich.markup import escape
    from rich.table import Table

    from tunegen.models import get_model, problems_of
    from tunegen.ops import FAMILIES
    from tunegen.runtime.families import OPS
    from tunegen.targets import get_target

    console = plain_console()
    for family in FAMILIES:
        console.print(f"[bold]{family.name}[/bold] (templates/{family.template})")
        for op in family.ops:
            about = "" if op in family.preset else "  [dim](tuned when named)[/dim]"
            console.print(f"  {op}{escape(OPS[op].schema)}{about}")
        problem = problems_of(get_model("deepseek-r1"), [family.ops[0]])[0]
        table = Table("config key", "meaning", f"choices of {problem} on gfx950")
        for knob in family.knobs(problem, get_target("gfx950")):
            table.add_row(knob.name, knob.meaning, ", ".join(map(str, knob.choices)))
        console.print(table)


@click.command()
def targets() -> None:
    """GPUs that kernels can be rendered for."""
    from rich.table import Table

    from tunegen.targets import TARGETS

    table = Table("target", "device", "units", "FP4 conversion", "can do")
    for target in TARGETS.values():
        able = "compile, predict, measure" if target.measurable else "compile"
        table.add_row(target.name, target.device_name, str(target.device.units), target.fp4_conversion, able)
    plain_console().print(table)


@click.command()
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option("--target", "target_names", multiple=True, help="Only this target; may be repeated.")
@click.option("--op", "op_names", multiple=True, help="Only this op; may be repeated.")
@click.option("--failures", is_flag=True, help="Configs that failed while tuning, with the reason, from --storage.")
@click.option("--storage", default=STORAGE, show_default=True, help="What `tunegen tune` was given; for --failures.")
def show(
    configs: Path | None, target_names: tuple[str, ...], op_names: tuple[str, ...], failures: bool, storage: str
) -> None:
    """Tuned configs and their evidence, or what failed while tuning."""
    from rich.table import Table

    from tunegen.configs import load_entries
    from tunegen.ops import get_family

    wanted = [op for op in op_names if get_family(op)]
    console = plain_console()
    if failures:
        _show_failures(console, storage, target_names, wanted)
        return
    for entry in load_entries(configs_folder(configs), list(target_names) or None):
        if wanted and entry.op not in wanted:
            continue
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
            config = " ".join(f"{key}={value}" for key, value in bucket.config.items())
            table.add_row(str(bucket.tokens), *numbers, config)
        console.print(table)


def _show_failures(console: Console, storage: str, target_names: tuple[str, ...], op_names: list[str]) -> None:
    from rich.markup import escape

    from tunegen.errors import UsageError
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
            config = " ".join(f"{key}={value}" for key, value in outcome.config.items())
            console.print(f"  {config}\n    [red]{escape(outcome.failure)}[/red]", highlight=False, soft_wrap=True)
        for knob, pairs in idle_knobs(study.outcomes).items():
            console.print(f"  {knob} changed nothing: the same machine code in all of {pairs} pairs", highlight=False)
