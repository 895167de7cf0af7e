"""tunegen verify: the numerics contract, on the GPU here, executed on the CPU, or in Triton's interpreter."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import click

from tunegen.cli._options import OUT_HELP, configs_folder, part, part_options, plain_console
from tunegen.errors import UsageError

SHOWN_FAILURES = 5


@click.command()
@click.option("--pack", help="An installed pack: its kernel files, and its ops as a user calls them.")
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=f"{OUT_HELP} Not with --pack.")
@click.option(
    "--target", "targets", multiple=True, help="Only this target; may be repeated. Default: the GPU here, or all."
)
@part_options
@click.option(
    "--interpret",
    is_flag=True,
    help="Without their GPU, run gfx950 and gfx942 kernels in Triton's interpreter instead.",
)
def verify(
    pack: str | None,
    configs: Path | None,
    targets: tuple[str, ...],
    model: str | None,
    tp: int,
    ops: tuple[str, ...],
    interpret: bool,
    **sizes: tuple[int, ...],
) -> None:
    """Check kernels against the numerics contract; exit status 1 if anything fails.

    --model, --op and the sizes leave others out. Sizes beside --model add to its own, as in tune.

    They run on the GPU here if it is their target. Otherwise those for gfx950 and gfx942 are compiled for it and their
    listings executed on the CPU, functionally and without timing: docs/executor.md says what that proves. Others run in
    Triton's interpreter, which cannot run inline assembly or intrinsics: the table says where a software conversion
    stood in for an instruction.
    """
    from rich.table import Table

    from tunegen.configs import load_entries
    from tunegen.evaluate import verify as matrix
    from tunegen.evaluate.executor import WHERE as EXECUTED
    from tunegen.targets import get_target, present_device

    names = [get_target(name).name for name in targets]
    meant = part(model, tp, ops, sizes)
    device = present_device()
    if not names and device is not None:
        names = [device.target.name]
    rows = []
    manifest = None
    if pack is not None:
        manifest, root = matrix.import_pack(pack)
        subjects = matrix.subjects_of_pack(manifest, root, None)
    else:
        folder = configs_folder(configs)
        entries = load_entries(folder, names or None)
        subjects = matrix.subjects_of_entries([entry for entry in entries if not entry.stale])

    subjects = [
        subject for subject in subjects if (not names or subject.target.name in names) and meant(subject.problem)
    ]
    if not subjects:
        raise UsageError(
            f"There is nothing to verify for {', '.join(names) or 'any target'}: no kernels of these ops and sizes."
            " `tunegen tune` makes some."
        )
    console = plain_console()
    with tempfile.TemporaryDirectory(prefix="tunegen-verify-") as temporary:
        found = matrix.verify_kernels(subjects, device, Path(temporary), interpret)
        if manifest is not None:
            # Last: the kernels compiled side by side, and calls find them in Triton's cache.
            found = itertools.chain(found, matrix.verify_calls(manifest, device, meant))
        for row in found:
            rows.append(row)
            if not console.is_terminal:
                state = f"{len(row.failures)} FAILED" if row.failures else "ok"
                console.print(f"{row.problem} {row.target}: {row.calls} calls, {state}", highlight=False)
    table = Table("problem", "target", "run in", "configs", "calls", "failed", title="numerics contract")
    for row in rows:
        colour = "red" if row.failures else "green"
        counts = (str(row.kernels or "-"), str(row.calls), f"[{colour}]{len(row.failures)}[/{colour}]")
        table.add_row(str(row.problem), row.target, row.where, *counts)
    console.print(table)
    for row in rows:
        for failure in row.failures[:SHOWN_FAILURES]:
            console.print(f"[red]FAILED[/red] {row.problem} on {row.target}: {failure}", soft_wrap=True)
    if any(row.where == EXECUTED for row in rows):
        console.print(
            "Executed (functional), not timed: the compiled listings, by AMD's documented semantics, not on the device;"
            " docs/executor.md says what that proves and what it does not."
        )
    if any("software conversion" in row.where for row in rows):
        replaced = ", ".join(dict.fromkeys(row.target for row in rows if "software conversion" in row.where))
        console.print(
            f"Not executed: conversions to FP4 by an instruction ({replaced}); a software conversion stood in."
        )
    failed = sum(len(row.failures) for row in rows)
    console.print(f"{sum(row.calls for row in rows)} calls, {failed} failures")
    sys.exit(1 if failed else 0)
