"""What the table scripts share: `tunegen.bench` on chosen lines, printed as Markdown as it goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from tunegen import targets
from tunegen.bench.baselines import Baseline
from tunegen.bench.compare import Row
from tunegen.bench.report import Environment, aiter_line, as_json, environment_of, markdown
from tunegen.bench.run import BASELINES, aiter_if_there, raise_if_wrong, run
from tunegen.errors import TunegenError
from tunegen.files import write_text_atomically
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir

Lines = Iterable[tuple[Problem, int]]


def command(name: str, lines: Callable[[], Lines], extra: Callable[[Problem], list[Baseline]]) -> click.Command:
    """The command of a table script, which writes NAME.json and NAME.md."""

    @click.command(name)
    @click.option("--aiter-root", type=click.Path(path_type=Path), help="Folder of an unpacked amd-aiter.")
    @click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
    @click.option("--against", default=",".join(BASELINES), show_default=True, help="As of `tunegen bench`.")
    @click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures here too.")
    @click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=f"Writes {name}.json and {name}.md.")
    def main(aiter_root: Path | None, configs: Path, against: str, json_file: Path | None, out: Path | None) -> None:
        def write(environment: Environment, rows: list[Row]) -> None:
            files = {json_file} if json_file else set()
            if out:
                out.mkdir(parents=True, exist_ok=True)
                files.add(out / f"{name}.json")
                write_text_atomically(out / f"{name}.md", markdown(environment, rows))
            for file in files:
                write_text_atomically(file, json.dumps(as_json(environment, rows), indent=1) + "\n")

        device = targets.present_device()
        if device is None:
            sys.exit("This table is measured: run it on a GPU.")
        try:
            aiter, why = aiter_if_there(aiter_root)
            environment = environment_of(device, aiter_line(aiter, why), f"Configs of {configs}")
            rows: list[Row] = []

            def take(row: Row) -> None:
                rows.append(row)
                click.echo(f"{row.problem}, {row.tokens} tokens: {row.us(row.ours):.2f}", err=True)
                write(environment, rows)  # at once: what is measured is not lost if the rest fails

            run(lines(), device, configs, aiter, against.split(","), extra=extra, said=take)
            click.echo(markdown(environment, rows))
            raise_if_wrong(rows)
        except TunegenError as error:
            raise click.ClickException(str(error)) from error

    return main
