"""tunegen emit: the winners as an installable package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from tunegen.cli._options import OUT_HELP, configs_folder, part, part_options
from tunegen.errors import UsageError


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write the pack to."
)
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option("--target", "targets", multiple=True, help="Only this target; may be repeated. Default: all there are.")
@part_options
@click.option("--name", default="tunegen_ops", show_default=True, help="Package name, and namespace under torch.ops.")
@click.option("--wheel", is_flag=True, help="Build a wheel of it too.")
@click.option("--allow-stale", is_flag=True, help="Take entries made from another version of their template too.")
def emit(
    out: Path,
    configs: Path | None,
    targets: tuple[str, ...],
    model: str | None,
    tp: int,
    ops: tuple[str, ...],
    name: str,
    wheel: bool,
    allow_stale: bool,
    **sizes: tuple[int, ...],
) -> None:
    """Write the tuned kernels as an importable torch op pack.

    --model, --op and the sizes leave others out: a pack of one model is smaller, and sooner ready. Sizes beside --model
    add to its own, as in tune.
    """
    from tunegen.configs import load_entries
    from tunegen.models import get_model, problems_of
    from tunegen.oppack.emit import emit_pack

    meant = part(model, tp, ops, sizes)
    found = load_entries(configs_folder(configs), list(targets) or None)
    entries = [entry for entry in found if meant(entry.problem)]
    if found and not entries:
        raise UsageError(
            "There is nothing to emit: the tuned configs have no entry of these ops and shapes. `tunegen tune` with the"
            " same options makes them; `tunegen show` lists what there is."
        )
    if model:
        of_model = problems_of(get_model(model), list(ops) or None, tp)
        for problem in dict.fromkeys(replace(each, rounding="none") for each in of_model):
            tuned = {e.target for e in entries if (e.op, e.problem.shape) == (problem.op, problem.shape)}
            for name_of_target in sorted({*targets, *(entry.target for entry in found)} - tuned):
                click.echo(f"not tuned for {name_of_target}: {problem}; `tunegen tune` does", err=True)
    pack = emit_pack(entries, out, name=name, wheel=wheel, allow_stale=allow_stale)
    click.echo(pack)
