"""tunegen inspect: what the compiler made of one kernel, what limits it, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunegen.cli._options import auto_target, chosen_problems, parse_settings, parse_tokens, size_options
from tunegen.errors import UsageError

if TYPE_CHECKING:
    from tunegen.codegen.compile import Compiled
    from tunegen.ops import Config, Problem
    from tunegen.targets import Target

MOST_LINES = 6


@click.command()
@click.argument("op")
@size_options
@click.option("--target", default="auto", show_default=True, help="See `tunegen targets`.")
@click.option("--variant", "--rounding", help="As of `tunegen render`. Default: the usual one.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A config value; may be repeated.")
@click.option(
    "--against",
    multiple=True,
    metavar="KEY=VALUE",
    help="Compare with a second config, B: the first but for this value; may be repeated.",
)
@click.option("--tokens", default="1,64,1024,8192", show_default=True, help="Token counts to predict at.")
@click.option(
    "--listing",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the listing here, as the line numbers count it.",
)
def inspect(
    op: str,
    target: str,
    variant: str | None,
    settings: tuple[str, ...],
    against: tuple[str, ...],
    tokens: str,
    listing: Path | None,
    **sizes: tuple[int, ...],
) -> None:
    """Show what the compiled kernel of OP uses, what its time is predicted to be, and what limits it.

    Config values that are not set are the default's. No GPU is needed.
    """
    from tunegen.codegen.compile import compile_kernel
    from tunegen.codegen.render import render
    from tunegen.ops import Problem, get_family

    family = get_family(op)
    first, *others = chosen_problems(None, 1, [op], **sizes)
    if any(other.shape != first.shape for other in others):
        raise UsageError("tunegen inspect shows one kernel: give each size once.")
    problem = Problem(op, first.shape, variant or first.rounding)
    family.check_shape(problem)
    problem = family.canonical_problem(problem)
    gpu = auto_target(target)
    counts = parse_tokens(tokens)
    chosen = parse_settings(settings)
    configs = [family.resolve(problem, gpu, chosen)]
    if against:
        configs.append(family.resolve(problem, gpu, {**chosen, **parse_settings(against)}))
    compiled = [compile_kernel(render(problem, gpu, config)) for config in configs]
    if listing:
        listing.write_text(compiled[0].listing, encoding="utf-8")
    click.echo(f"{problem} for {gpu.name} ({gpu.device_name}); predicted, not measured\n")
    _say_configs(configs)
    _say_resources(problem, gpu, compiled)
    for index, (config, kernel) in enumerate(zip(configs, compiled, strict=True)):
        _say_prediction(problem, gpu, config, kernel, counts, "AB"[index] if against else "")
    _say_findings(gpu, compiled[0], bool(against))


def _say_configs(configs: list[Config]) -> None:
    first = configs[0]
    click.echo("config    " + ", ".join(f"{name}={value}" for name, value in first.items()))
    for other in configs[1:]:
        changed = [f"{name}={value}" for name, value in other.items() if first.get(name) != value]
        click.echo("B differs " + (", ".join(changed) or "in nothing: it is the same config"))


def _row(name: str, values: list[str], note: str = "") -> None:
    click.echo(f"  {name:28}" + "".join(f"{value:>14}" for value in values) + (f"   {note}" if note else ""))


def _say_resources(problem: Problem, target: Target, compiled: list[Compiled]) -> None:
    from tunegen.codegen.listing import MEMORY_KINDS

    amd = target.backend == "hip"
    warps = "waves" if amd else "warps"
    uses = [kernel.resources for kernel in compiled]
    click.echo()
    _row("resources", list("AB") if len(uses) > 1 else [""], "limit")
    _row("registers a lane", [str(r.registers) for r in uses], str(target.registers))
    if amd:
        _row("  accumulation", [str(r.accumulation_registers) for r in uses])
        _row("scalar registers", [str(r.scalar_registers) for r in uses], "102")
    _row("spilled bytes a lane", [str(r.spills) for r in uses], "0 wanted")
    _row("LDS bytes" if amd else "shared memory bytes", [str(r.shared_memory) for r in uses], str(target.shared_memory))
    _row(f"{warps} a program", [str(r.warps) for r in uses], str(target.max_warps))
    _row("programs a compute unit", [str(r.programs_per_unit) for r in uses], str(target.programs_per_unit))
    _row("  limited by", [r.limiter for r in uses])
    _row(f"{warps} a SIMD" if amd else f"{warps} a scheduler", [str(r.warps_per_scheduler) for r in uses],
         str(target.warps_per_unit // 4))  # fmt: skip
    _row("loops", [str(r.loops) for r in uses])
    _row("kinds of programs", [str(r.ways) for r in uses])
    click.echo()
    _row("instructions (a loop's once)", [""] * len(uses))
    kinds = sorted({kind for r in uses for kind in r.mix}, key=lambda kind: (kind.startswith(MEMORY_KINDS), kind))
    for kind in kinds:
        name = f"{kind} bytes" if kind.startswith(MEMORY_KINDS) else kind
        _row(name, [str(r.mix.get(kind, 0)) for r in uses])
    click.echo()
    _row("a warp alone" if not amd else "a wave alone", [""] * len(uses))
    _row("clocks, memory at once", [f"{r.once.alone + r.turn.alone:.0f}" for r in uses], "with one turn of a loop")
    _row("waits for memory", [f"{r.once.round_trips + r.turn.round_trips:.1f}" for r in uses], "one after another")
    _row("clocks of its scheduler", [f"{r.once.scheduler_clocks + r.turn.scheduler_clocks:.0f}" for r in uses])


def _say_prediction(
    problem: Problem, target: Target, config: Config, kernel: Compiled, counts: list[int], name: str
) -> None:
    from tunegen.evaluate.predict import MODEL, predict

    click.echo(f"\n  predicted by {MODEL}, microseconds{f': {name}' if name else ''}")
    header = ("tokens", "time", "of limit", "memory", "issue", "shared", "latency", "programs", "rounds", "limited by")
    click.echo("  " + "".join(f"{column:>10}" for column in header[:-1]) + f"   {header[-1]}")
    for count in counts:
        p = predict(problem, target, config, kernel.resources, count)
        cells = [f"{count}", f"{p.microseconds:.2f}", f"{p.limit_us / p.microseconds:.0%}"]
        cells += [f"{value:.2f}" for value in (p.memory_us, p.issue_us, p.shared_us, p.latency_us)]
        cells += [f"{p.programs}", f"{p.rounds:.2f}", p.limiter]
        click.echo("  " + "".join(f"{cell:>10}" for cell in cells[:-1]) + f"   {cells[-1]}")


def _say_findings(target: Target, kernel: Compiled, compared: bool) -> None:
    from tunegen.codegen.findings import findings_of
    from tunegen.codegen.resources import read_listing

    click.echo(f"\n  findings{' of A' if compared else ''}, with lines of the listing (--listing FILE writes it)")
    for finding in findings_of(target, read_listing(target, kernel.listing)):
        shown = ", ".join(map(str, finding.lines[:MOST_LINES]))
        more = f" and {len(finding.lines) - MOST_LINES} more" if len(finding.lines) > MOST_LINES else ""
        click.echo(f"    {finding.what}" + (f": {shown}{more}" if shown else ""))
