"""tunegen emit: the winners as an installable package."""

from __future__ import annotations

from pathlib import Path

import click

from tunegen.cli._options import OUT_HELP, configs_folder


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write the pack to."
)
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option("--target", "targets", multiple=True, help="Only this target; may be repeated. Default: all there are.")
@click.option("--name", default="tunegen_ops", show_default=True, help="Package name, and namespace under torch.ops.")
@click.option("--wheel", is_flag=True, help="Build a wheel of it too.")
@click.option("--allow-stale", is_flag=True, help="Take entries made from another version of their template too.")
def emit(out: Path, configs: Path | None, targets: tuple[str, ...], name: str, wheel: bool, allow_stale: bool) -> None:
    """Write the tuned kernels as an importable torch op pack."""
    from tunegen.configs import load_entries
    from tunegen.oppack.emit import emit_pack

    entries = load_entries(configs_folder(configs), list(targets) or None)
    pack = emit_pack(entries, out, name=name, wheel=wheel, allow_stale=allow_stale)
    click.echo(pack)
