"""What issuing instructions allows, beside what was measured: for kernels that neither memory nor latency explains.

Usage: python benchmarks/issue_limit.py FIGURES.json [--op OP] [--tokens 256,1024] [--out FILE]

FIGURES is what `tunegen bench --json` or a table script wrote. The tuned kernels of its lines are compiled (no GPU is
needed; use the Triton of the run, whose assembler it brings) and the instructions of the way that a warp takes are
counted by the pipe that executes them, with the rates of tunegen/limits/. A scheduler is busy as long as its busiest
pipe is, or as it issues. The busiest compute unit has ceil(programs / units) of the programs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import triton

from tunegen.bench.compare import Row
from tunegen.bench.report import Environment, read_json
from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render
from tunegen.codegen.resources import SCHEDULERS
from tunegen.limits import limits_of
from tunegen.ops import Config, get_family
from tunegen.targets import Target, get_target

PIPES = ("float", "integer", "special", "uniform", "memory")
COLUMNS = (
    *("op", "tokens", "programs", "a unit", "warps", "issued", *PIPES, "clocks of a scheduler"),
    *("issue-bound us", "evenly spread", "empty", "measured less empty", "of it issue-bound"),
)


def line_of(row: Row, config: Config, target: Target, ghz: float) -> list[str]:
    """One line: instructions and clocks are of a warp, a lane's element each."""
    family = get_family(row.problem.op)
    compiled = compile_kernel(render(row.problem, target, config))
    once, turn, warps = compiled.resources.once, compiled.resources.turn, compiled.resources.warps
    units = target.device.units
    tiles, programs = family.grid(row.problem, config, row.tokens, units)
    turns = -(-tiles // programs)
    elements = row.tokens * row.problem.sizes["hidden_size"] / (programs * warps * target.warp_size)

    def of_warp(name: str) -> float:
        return float(getattr(once, name) + turns * getattr(turn, name))

    def on_pipe(pipe: str) -> float:
        return once.clocks.get(pipe, 0.0) + turns * turn.clocks.get(pipe, 0.0)

    busy = max(of_warp("scheduler_clocks") / SCHEDULERS, of_warp("unit_clocks")) * warps
    most = -(-programs // units)
    bound, even = (count * busy / (1e3 * ghz) for count in (most, programs / units))
    empty, measured = row.timings["empty"].median, row.timings[row.ours].median
    figures = [of_warp("issued") / elements, *(on_pipe(pipe) / elements for pipe in PIPES)]
    figures.append(of_warp("scheduler_clocks") / elements)
    times = (bound, even, empty, measured - empty)
    return [
        *(f"`{row.problem.op}`", str(row.tokens), str(programs), str(most), str(warps)),
        *(f"{figure:.2f}" for figure in (*figures, *times)),
        f"{bound / (measured - empty):.0%}",
    ]


def opcodes_of(row: Row, config: Config, target: Target) -> dict[str, int]:
    """How often each opcode stands in the listing, the most frequent first."""
    from collections import Counter

    from tunegen.codegen.resources import read_listing

    compiled = compile_kernel(render(row.problem, target, config))
    counted = Counter(i.opcode.split(".")[0] for i in read_listing(target, compiled.listing))
    return dict(counted.most_common(12))


def told(environment: Environment, rows: list[Row], target: Target, ghz: float) -> str:
    """The table, as Markdown, and what the listings consist of."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    mixes = []
    for row in rows:
        config = row.config or get_family(row.problem.op).default(row.problem, target)
        lines.append(f"| {' | '.join(line_of(row, config, target, ghz))} |")
        mix = ", ".join(f"{name} {count}" for name, count in opcodes_of(row, config, target).items())
        mixes.append(f"- `{row.problem.op}`, {row.tokens} tokens: {mix}")
    head = (
        f"{environment.device}, torch {environment.torch}, triton {environment.triton}; listing of triton"
        f" {triton.__version__}; {ghz} GHz. Instructions and clocks of a warp, for each element that a lane has."
    )
    return "\n".join([head, "", *lines, "", "Opcodes of the listing:", "", *mixes]) + "\n"


@click.command()
@click.argument("figures", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--op", "ops", multiple=True, default=("rmsnorm_mxfp4_quant",), show_default=True)
@click.option("--tokens", default="256,1024", show_default=True)
@click.option("--ghz", type=float, help="Clock of the run. Default: that of tunegen/limits/.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Writes the table here too.")
def main(figures: Path, ops: tuple[str, ...], tokens: str, ghz: float | None, out: Path | None) -> None:
    """Prints the table as Markdown."""
    data: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    environment, rows = read_json(data)
    counts = {int(count) for count in tokens.split(",")}
    chosen = [row for row in rows if row.problem.op in ops and row.tokens in counts]
    if not chosen:
        raise click.ClickException(f"{figures} has no line of {', '.join(ops)} at {tokens} tokens.")
    target = get_target(environment.arch)
    text = told(environment, chosen, target, ghz or limits_of(target.name).clock_ghz)
    click.echo(text)
    if out:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
