"""tunegen bench: the ops against what users would otherwise run, and against the traffic twin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunegen.cli._options import OUT_HELP, chosen_problems, configs_folder, parse_tokens, plain_console, shape_options
from tunegen.errors import TargetError, UsageError

if TYPE_CHECKING:
    from tunegen.bench.compare import Row
    from tunegen.bench.report import Environment
    from tunegen.ops import Problem

DEFAULT_TOKENS = "1,4,16,64,256,1024,4096,16384"


@click.command()
@shape_options
@click.option("--tokens", default=DEFAULT_TOKENS, show_default=True, help="Token counts.")
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option("--pack", help="An installed pack: its ops are timed in the place of the tuned configs' kernels.")
@click.option(
    "--against",
    default="compiled,unfused,aiter",
    show_default=True,
    help="What else, of these; the default config, the twin and an empty kernel always.",
)
@click.option(
    "--aiter-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of an unpacked amd-aiter. Default: the installed one, if there is one.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write them here as CSV.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path, dir_okay=False), help="And the tables.")
@click.option(
    "--plot", "plot_folder", type=click.Path(path_type=Path, file_okay=False), help="Write a figure a problem here."
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Time nothing: take the figures from a file that --json wrote.",
)
def bench(
    model: str | None,
    tp: int,
    ops: tuple[str, ...],
    tokens: str,
    configs: Path | None,
    pack: str | None,
    against: str,
    aiter_root: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    plot_folder: Path | None,
    source: Path | None,
    **sizes: tuple[int, ...],
) -> None:
    """Time ops against what users would otherwise run, on the GPU here, interleaved in one process.

    Outputs are checked first. docs/benchmarks.md has the protocol.
    """
    from tunegen.bench.run import raise_if_wrong

    if source:
        from tunegen.bench.report import read_json

        environment, rows = read_json(json.loads(source.read_text(encoding="utf-8")))
        _show(rows)
    else:
        chosen = _against(against)
        counts = parse_tokens(tokens)
        problems = chosen_problems(model, tp, ops, **sizes)
        lines = [(problem, count) for problem in problems for count in counts]
        environment, rows = _timed(lines, configs_folder(configs), pack, chosen, aiter_root)
    _write(environment, rows, json_file, csv_file, markdown_file, plot_folder)
    raise_if_wrong(rows)


def _against(text: str) -> list[str]:
    from tunegen.bench.run import BASELINES

    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise UsageError(f"--against takes any of {', '.join(BASELINES)}, with commas between; got {unknown[0]!r}.")
    return names


def _timed(
    lines: list[tuple[Problem, int]], configs: Path, pack: str | None, against: list[str], aiter_root: Path | None
) -> tuple[Environment, list[Row]]:
    from tunegen.bench.report import aiter_line, environment_of
    from tunegen.bench.run import aiter_if_there, import_pack, run
    from tunegen.targets import present_device

    device = present_device()
    if device is None:
        raise TargetError("tunegen bench times kernels on a GPU; there is none here.")
    aiter, why = aiter_if_there(aiter_root) if "aiter" in against else (None, "not asked for")
    which = import_pack(pack) if pack else f"Configs of {configs}"
    environment = environment_of(device, aiter_line(aiter, why), which)
    click.echo(f"{environment}\n")
    rows: list[Row] = []
    for problem in dict.fromkeys(problem for problem, _ in lines):
        own = [line for line in lines if line[0] == problem]
        rows += run(own, device, configs, aiter, against, pack)
        _show(rows[-len(own) :])
    return environment, rows


def _show(rows: Sequence[Row]) -> None:
    from rich.table import Table

    from tunegen.bench.report import by_problem, columns_of, footnotes

    console = plain_console()
    for problem, own in by_problem(rows).items():
        columns = columns_of(own)
        table = Table(title=str(problem))
        for title, _ in columns:
            table.add_column(title, justify="right")
        for row in own:
            table.add_row(*(fill(row) for _, fill in columns))
        console.print(table)
        for note in footnotes(own):
            console.print(note)


def _write(
    environment: Environment,
    rows: Sequence[Row],
    json_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    plot_folder: Path | None,
) -> None:
    from tunegen.bench.report import as_csv, as_json, markdown
    from tunegen.files import write_text_atomically

    if json_file:
        write_text_atomically(json_file, json.dumps(as_json(environment, rows), indent=1) + "\n")
    if csv_file:
        write_text_atomically(csv_file, as_csv(environment, rows))
    if markdown_file:
        write_text_atomically(markdown_file, markdown(environment, rows))
    if plot_folder:
        from tunegen.bench.plot import plot

        for path in plot(environment, rows, plot_folder):
            click.echo(path)
