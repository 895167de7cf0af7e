"""The README's table of the F2 kernels: tuned against default, hand-written kernel, AITER and traffic twin.

Usage: python benchmarks/f2_table.py [--aiter-root FOLDER] [--configs tuned_configs] [--json FILE]

With AITER there are two more columns: its fused kernel, and what a graph without a fused kernel runs: a torch.compile'd
norm and AITER's quantisation. Their outputs are checked first. On NVIDIA AITER's scales below 1 are undefined.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from handwritten_f2 import HIDDEN_SIZE, run
from tables import Line, about, aiter_if_there, compile_ahead, headline, must_agree, noise, plain, time_all

from tunegen.bench.agreement import mxfp4_agreement
from tunegen.bench.aiter import Aiter
from tunegen.bench.aiter.ops import mxfp4_quant
from tunegen.configs import load_entries
from tunegen.evaluate.measure import Replay, empty_kernel_replay
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem
from tunegen.paths import tuned_configs_dir
from tunegen.targets import present_device

TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
COLUMNS = (
    *("tokens", "empty", "twin", "twin, same launch", "hand-written", "default", "tuned", "tuned/twin"),
    *("hand-written/twin", "speed-up over hand-written", "over default", "noise"),
)
AITER_COLUMNS = ("AITER", "unfused", "speed-up over AITER", "over unfused")


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm rounded to the activation dtype once, as rounding "output" has it."""
    values = x.to(torch.float32)
    factor = torch.rsqrt((values * values).mean(dim=-1, keepdim=True) + epsilon)
    return (values * factor * weight.to(torch.float32)).to(x.dtype)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of x + residual, and their sum."""
    total = x.to(torch.float32) + residual.to(torch.float32)
    factor = torch.rsqrt((total * total).mean(dim=-1, keepdim=True) + epsilon)
    return (total * factor * weight.to(torch.float32)).to(x.dtype), total.to(x.dtype)


class Unfused:
    """A torch.compile'd norm, then AITER's quantisation."""

    def __init__(self, aiter: Aiter) -> None:
        self._aiter = aiter
        # A size is compiled for as such. Whole graphs alone: past its limit of sizes, Dynamo would go on uncompiled.
        self._norm, self._add_norm = (torch.compile(f, dynamic=False, fullgraph=True) for f in (norm, add_norm))

    def __call__(self, args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        if len(args) == 4:
            return self._aiter.dynamic_mxfp4_quant(self._norm(*args[:-1]))
        y, residual_out = self._add_norm(*args[:-1])
        return (*self._aiter.dynamic_mxfp4_quant(y), residual_out)


def check_handwritten(line: Line, config: Config) -> None:
    """Ends the run if the hand-written kernel and the tuned one differ."""
    workload = line.workload
    call_handwritten(line, 0)
    reference = [output.clone() for output in workload.outputs[0]]
    workload.launch(line.kernel(config))(0)
    for kept, output in zip(reference, workload.outputs[0], strict=True):
        # Another order of the row's sum can move a value over a rounding boundary; more than that is a bug.
        if (kept.view(torch.uint8) != output.view(torch.uint8)).float().mean() > 1e-3:
            raise SystemExit(f"{line.problem}: the hand-written kernel and the tuned one disagree")


def call_handwritten(line: Line, index: int) -> None:
    """Runs the hand-written kernel on an input set."""
    x, *residual, weight, _, _ = line.workload.inputs[index]
    run(x, residual[0] if residual else None, weight, line.workload.outputs[index])


def check_aiter(line: Line, aiter: Aiter, unfused: Unfused) -> dict[str, float]:
    """Ends the run if AITER's outputs are wrong but for scales that are undefined on this GPU; returns their share."""
    args = line.workload.inputs[0]
    shares = {}
    for name, rounding, outputs in (
        ("aiter", "none", mxfp4_quant(aiter, args)),
        ("unfused", "output", unfused(args)),
    ):
        found = mxfp4_agreement(args, rounding, outputs, undefined_scales_allowed=torch.version.hip is None)
        must_agree(f"{line.problem}, {line.tokens} tokens: {name}", found.failures)
        shares[name] = found.undefined_scales / found.blocks
    return shares


def row(line: Line, config: Config, aiter: Aiter | None, unfused: Unfused | None) -> dict[str, Any]:
    """Times one line of the table, all kernels interleaved."""
    family, workload = line.family, line.workload
    check_handwritten(line, config)
    default = family.default(line.problem, line.target)
    own = family.twin_of(line.problem, line.target, config)
    twin = line.best_twin(default, config)
    same_launch = line.replay(own, twin=True) if own else twin
    graphs: dict[str, Replay] = {
        "empty": empty_kernel_replay(),
        "twin": twin,
        "twin_same_launch": same_launch,
        "handwritten": line.replay_baseline(lambda index: call_handwritten(line, index)),
        "default": line.replay(default),
        "tuned": line.replay(config),
        "tuned_again": line.replay(config),
    }
    undefined: dict[str, float] = {}
    if aiter and unfused:
        undefined = check_aiter(line, aiter, unfused)
        graphs["aiter"] = line.replay_baseline(lambda index: mxfp4_quant(aiter, workload.inputs[index]))
        graphs["unfused"] = line.replay_baseline(lambda index: unfused(workload.inputs[index]))
    timings = time_all(graphs)
    return {
        **{
            "op": line.problem.op,
            "hidden_size": HIDDEN_SIZE,
            "tokens": line.tokens,
            "noise": noise(timings, "tuned"),
            "config": config,
        },
        **plain(timings),
        "undefined_scales": undefined,
    }


def cells(result: dict[str, Any]) -> list[str]:
    """A result as a line of the table."""
    us = result["us"]
    figures = (us["empty"], us["twin"], us["twin_same_launch"], us["handwritten"], us["default"], us["tuned"])
    shares = (us["twin"] / us["tuned"], us["twin"] / us["handwritten"])
    gains = (us["handwritten"] / us["tuned"], us["default"] / us["tuned"])
    line = [str(result["tokens"]), *(f"{v:.2f}" for v in (*figures, *shares, *gains)), f"{100 * result['noise']:.1f} %"]
    if "aiter" in us:
        compared = (us["aiter"], us["unfused"], us["aiter"] / us["tuned"], us["unfused"] / us["tuned"])
        line += [f"{v:.2f}" for v in compared]
    return line


@click.command()
@click.option("--aiter-root", type=click.Path(path_type=Path), help="Folder of an unpacked amd-aiter.")
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures here too.")
def main(aiter_root: Path | None, configs: Path, json_file: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None or device.target.name != "sm90":
        sys.exit("This table is of sm90: run it on an H100 or H200.")
    aiter, which = aiter_if_there(aiter_root)
    unfused = Unfused(aiter) if aiter else None
    columns = (*COLUMNS, *(AITER_COLUMNS if aiter else ()))
    facts = about(device, aiter)
    print(f"{headline(facts)}\n{which}")
    rows = []
    entries = {}
    for op in ("rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"):
        problem = Problem.of(op, {"hidden_size": HIDDEN_SIZE})
        (entries[problem],) = (
            e for e in load_entries(configs, ["sm90"]) if e.problem == problem and e.device.matches(device.key)
        )
    compile_ahead(((problem, [b.config for b in entry.buckets]) for problem, entry in entries.items()), device.target)
    for problem, entry in entries.items():
        op = problem.op
        print(f"\n{op}, N = {HIDDEN_SIZE}, bfloat16, rounding none\n\n| {' | '.join(columns)} |")
        print("|" + "---|" * len(columns))
        for tokens in TOKENS:
            line = Line(problem, device.target, tokens)
            rows.append(row(line, entry.bucket(tokens).config, aiter, unfused))
            print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
    worst = max((share for result in rows for share in result["undefined_scales"].values()), default=0.0)
    if worst:
        print(f"\nAITER's scales are undefined here, and wrong, in up to {100 * worst:.0f} % of the blocks.")
    if json_file:
        write_text_atomically(json_file, json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
