"""The README's table of the F2 kernels: tuned against default, hand-written kernel and traffic twin.

Usage: python benchmarks/f2_table.py [--configs tuned_configs] [--json FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch
from handwritten_f2 import HIDDEN_SIZE, run

from tunegen.codegen.render import render
from tunegen.configs import load_entries
from tunegen.evaluate.measure import Replay, Workload, copy_bandwidth, empty_kernel_replay, time_interleaved
from tunegen.files import write_text_atomically
from tunegen.ops import Problem, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import get_target, present_device

TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
ROUNDS = 41
KERNELS = Path("build/bench-kernels")


def row(problem: Problem, tokens: int, config: Any) -> dict[str, Any]:
    """Times one line of the table, all kernels interleaved."""
    family, target = get_family(problem.op), get_target("sm90")
    workload = Workload(problem, tokens)
    sets = len(workload.inputs)

    def replay(settings: Any, twin: bool = False) -> Replay:
        kernel = load_kernel(render(problem, target, settings, twin=twin).write(KERNELS))
        return Replay(workload.launch(kernel), sets)

    def handwritten(index: int) -> None:
        x, *residual, weight, _, _ = workload.inputs[index % sets]
        run(x, residual[0] if residual else None, weight, workload.outputs[index % sets])

    reference = [torch.empty_like(t) for t in workload.outputs[0]]
    handwritten(0)
    for kept, output in zip(reference, workload.outputs[0], strict=True):
        kept.copy_(output)
    default = family.default(problem, target)
    tuned = replay(config)
    workload.launch(load_kernel(render(problem, target, config).write(KERNELS)))(0)
    for kept, output in zip(reference, workload.outputs[0], strict=True):
        # Another order of the row's sum can move a value over a rounding boundary; more than that is a bug.
        if (kept.view(torch.uint8) != output.view(torch.uint8)).float().mean() > 1e-3:
            raise SystemExit(f"{problem}: the hand-written kernel and the tuned one disagree")
    twins = [replay(c, twin=True) for c in family.twin_configs(problem, target)]
    looks = time_interleaved(twins, 5)
    twin = min(zip(looks, twins, strict=True), key=lambda look: look[0].median)[1]
    # The twin takes a row at a time; a config that is only valid for several has no twin of its own.
    alone = {**config, "rows": 1}
    same_launch = replay(alone, twin=True) if family.valid(problem, target, alone) else twin
    names = ("empty", "twin", "twin_same_launch", "handwritten", "default", "tuned", "tuned_again")
    graphs = [
        empty_kernel_replay(),
        twin,
        same_launch,
        Replay(handwritten, sets),
        replay(default),
        tuned,
        replay(config),
    ]
    timings = time_interleaved(graphs, ROUNDS)
    times = {name: timing.median for name, timing in zip(names, timings, strict=True)}
    spreads = {name: timing.spread for name, timing in zip(names, timings, strict=True)}
    return {"op": problem.op, "tokens": tokens, "us": times, "spread_us": spreads, "config": config}


@click.command()
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir())
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(configs: Path, json_file: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None or device.target.name != "sm90":
        sys.exit("This table is of sm90: run it on an H100 or H200.")
    print(f"{device.name}, torch {torch.__version__}; a device copy moves {copy_bandwidth() / 1e9:.0f} GB/s")
    rows = []
    for op in ("rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"):
        problem = Problem.of(op, {"hidden_size": HIDDEN_SIZE})
        (entry,) = (e for e in load_entries(configs, ["sm90"]) if e.problem == problem and e.device.matches(device.key))
        print(f"\n{op}, N = {HIDDEN_SIZE}, bfloat16, rounding none\n")
        print(
            "| tokens | empty | twin | twin, same launch | hand-written | default | tuned | tuned/twin"
            " | hand-written/twin | speed-up over hand-written | over default | noise |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for tokens in TOKENS:
            result = row(problem, tokens, entry.bucket(tokens).config)
            rows.append(result)
            us = result["us"]
            noise = max(abs(us["tuned"] / us["tuned_again"] - 1), result["spread_us"]["tuned"] / us["tuned"] / 2)
            figures = (us["empty"], us["twin"], us["twin_same_launch"], us["handwritten"], us["default"], us["tuned"])
            shares = (us["twin"] / us["tuned"], us["twin"] / us["handwritten"])
            gains = (us["handwritten"] / us["tuned"], us["default"] / us["tuned"])
            cells = [*(f"{v:.2f}" for v in (*figures, *shares, *gains)), f"{100 * noise:.1f} %"]
            print(f"| {tokens} | {' | '.join(cells)} |", flush=True)
    if json_file:
        write_text_atomically(json_file, json.dumps({"device": device.name, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
