"""The ``tunegen`` command. Command modules import what is heavy inside their functions: help answers at once."""

from __future__ import annotations

import sys

import click

from tunegen import __version__
from tunegen.cli import bench, emit, info, inspect, render, report, show, tune, verify
from tunegen.cli._group import Commands
from tunegen.errors import TunegenError


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tunegen")
def cli() -> None:
    """Kernels for LLM inference: rendered for the exact model, tuned on the exact GPU, emitted as a torch op pack.

    \b
    tunegen tune --model deepseek-r1      search the best config for every shape of a model
    tunegen emit --out build/pack         write the winners as an installable package
    tunegen verify --pack tunegen_ops     check it against the numerics contract
    """


for command in (
    info.models,
    info.ops,
    info.targets,
    show.show,
    render.render,
    inspect.inspect,
    tune.tune,
    emit.emit,
    verify.verify,
    bench.bench,
    report.report,
):
    cli.add_command(command)


def main() -> None:
    """Runs the command; an error of ours is a message and exit status 1, not a traceback."""
    try:
        cli()
    except TunegenError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
