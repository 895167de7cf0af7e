"""tunegen report: what was tuned, how, and on what evidence, as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from tunegen.cli._options import OUT_HELP, STORAGE, configs_folder
from tunegen.errors import UsageError


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option(
    "--storage",
    "storages",
    multiple=True,
    help=f"What `tunegen tune` was given; may be repeated. Default: {STORAGE}, where there is one.",
)
@click.option("--target", "targets", multiple=True, help="Only this target; may be repeated.")
@click.option("--op", "ops", multiple=True, help="Only this op; may be repeated.")
@click.option(
    "--baselines",
    "baseline_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Times of other kernels: what `tunegen bench --json` wrote; may be repeated.",
)
def report(
    out: Path,
    configs: Path | None,
    storages: tuple[str, ...],
    targets: tuple[str, ...],
    ops: tuple[str, ...],
    baseline_files: tuple[Path, ...],
) -> None:
    """Write tuned configs, their searches and baselines as one self-contained HTML page."""
    from tunegen.configs import load_entries
    from tunegen.files import require_writable, write_text_atomically
    from tunegen.ops import get_family
    from tunegen.report.baselines import read_baselines
    from tunegen.report.gather import gather
    from tunegen.report.page import render_page
    from tunegen.search.record import read_studies
    from tunegen.search.storage import exists, open_storage
    from tunegen.targets import get_target

    names = [get_target(name).name for name in targets]
    wanted = [op for op in ops if get_family(op)]
    for storage in storages:
        if not exists(storage):
            raise UsageError(f"There is no storage {storage}. `tunegen tune` makes it; leave --storage out for none.")
    chosen = storages or ((STORAGE,) if exists(STORAGE) else ())
    baselines = [group for path in baseline_files for group in read_baselines(path)]
    require_writable(out.parent)
    studies = [study for storage in chosen for study in read_studies(open_storage(storage))]
    subjects = [
        subject
        for subject in gather(load_entries(configs_folder(configs)), studies, baselines)
        if (not names or subject.target in names) and (not wanted or subject.problem.op in wanted)
    ]
    if not subjects:
        raise UsageError("There is nothing to report: no tuned configs and no searches of these targets and ops.")
    write_text_atomically(out, render_page(subjects))
    searched = sum(subject.search is not None for subject in subjects)
    click.echo(f"wrote {out}: {len(subjects)} problems, {searched} with their search")
