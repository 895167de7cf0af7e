"""tunegen models | ops | targets: what there is."""

from __future__ import annotations

import click

from tunegen.cli._options import plain_console


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
