"""tunegen bench: the tuned kernels against the default ones and the traffic twin."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tunegen.cli._options import OUT_HELP, chosen_problems, configs_folder, parse_tokens, plain_console, shape_options
from tunegen.errors import TargetError, UsageError

DEFAULT_TOKENS = "1,64,256,1024,4096,16384"


@click.command()
@shape_options
@click.option("--tokens", default=DEFAULT_TOKENS, show_default=True, help="Token counts.")
@click.option("--configs", type=click.Path(path_type=Path, file_okay=False), help=OUT_HELP)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here too."
)
def bench(
    model: str | None,
    tp: int,
    ops: tuple[str, ...],
    tokens: str,
    configs: Path | None,
    json_file: Path | None,
    **sizes: tuple[int, ...],
) -> None:
    """Time tuned kernels, default kernels and the traffic twin on the GPU here, interleaved."""
    from rich.table import Table

    from tunegen.bench.compare import compare
    from tunegen.configs import load_entries
    from tunegen.evaluate.measure import POLICY, copy_bandwidth
    from tunegen.files import write_text_atomically
    from tunegen.targets import present_device

    problems = chosen_problems(model, tp, ops, **sizes)
    counts = parse_tokens(tokens)
    device = present_device()
    if device is None:
        raise TargetError("tunegen bench times kernels on a GPU; there is none here.")
    entries = [e for e in load_entries(configs_folder(configs), [device.target.name]) if e.device.matches(device.key)]
    chosen = [entry for problem in problems for entry in entries if entry.problem == problem]
    if not chosen:
        raise UsageError(
            f"There is no tuned entry of {', '.join(map(str, problems))} for {device.key}. Run `tunegen tune` first."
        )
    console = plain_console()
    bandwidth = copy_bandwidth()
    console.print(f"{device.name} ({device.key}), {POLICY}; a device copy moves {bandwidth / 1e9:.0f} GB/s")
    results = []
    for entry in chosen:
        columns = (
            "tokens",
            "empty us",
            "twin us",
            "default us",
            "tuned us",
            "twin/default",
            "twin/tuned",
            "GB/s",
            "noise",
        )
        table = Table(*columns, title=f"{entry.problem}, {entry.dtype}, evidence {entry.evidence}")
        for row in compare(entry, counts):
            tuned = row.tuned.median
            table.add_row(
                str(row.tokens),
                *(f"{timing.median:.2f}" for timing in (row.empty, row.twin, row.default, row.tuned)),
                f"{row.twin.median / row.default.median:.3f}",
                f"{row.twin.median / tuned:.3f}",
                f"{row.gib * 2**30 / tuned / 1e3:.0f}",
                f"{100 * row.noise:.1f} %",
            )
            times = {name: getattr(row, name).median for name in ("empty", "twin", "default", "tuned", "again")}
            results.append(
                {
                    "op": entry.op,
                    **entry.shape,
                    "variant": entry.variant,
                    "tokens": row.tokens,
                    **times,
                    "config": row.config,
                }
            )
        console.print(table)
    if json_file:
        about = {"device": device.name, "policy": POLICY, "copy_gbs": bandwidth / 1e9, "results": results}
        write_text_atomically(json_file, json.dumps(about, indent=1) + "\n")
