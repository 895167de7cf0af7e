"""Hardware counters of tuned F2 kernels and their traffic twins, by NVIDIA's Nsight Compute (`ncu` on the PATH).

Usage: python benchmarks/counters.py [--tokens 1,64,256,1024] [--configs tuned_configs] [--out DIR]

Caches are as in the benchmarks (hot: counts whose data is in the L2 cache) and clocks are left alone: the program is
run once for each set of counters, so that nothing is saved and restored around a kernel. A kernel runs alone, not in a
graph: its time here is longer than in the tables, and what is to be read is what its warps wait for and how full the
pipes are. On AMD: `rocprofv3 --pmc`.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from tunegen.bench.baselines import ADD, NORM
from tunegen.bench.line import Line
from tunegen.bench.run import tuned_entry
from tunegen.configs import load_entries
from tunegen.files import write_text_atomically
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir
from tunegen.targets import Device, present_device

# The program runs once for each few counters: what the table does not show is not asked for.
SECTIONS = ("WarpStateStats",)
# Columns of the table, by the name of the counter.
COUNTERS = {
    "gpu__time_duration.sum": "ns",
    "smsp__inst_executed.sum": "instructions",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active": "integer pipe %",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active": "fp32 pipe %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "lts__t_sectors.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "dram__cycles_active.avg.pct_of_peak_sustained_elapsed": "DRAM %",
}
STALL, STALL_END = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
MOST_STALLS = 3
WARM_UP = 3


@dataclass(frozen=True)
class Counted:
    """What was counted of one launch; `counters` has every one of the sections."""

    op: str
    tokens: int
    kernel: str
    counters: dict[str, float]

    def stalls(self) -> dict[str, float]:
        """What a warp waited for, as shares of its time, the greatest first."""
        found = {
            name[len(STALL) : -len(STALL_END)]: value
            for name, value in self.counters.items()
            if name.startswith(STALL) and name.endswith(STALL_END)
        }
        total = sum(found.values())
        return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1]) if total}

    def row(self) -> str:
        """A line of the table."""
        figures = [f"{self.counters[name]:,.0f}" if name in self.counters else "-" for name in COUNTERS]
        waits = ", ".join(f"{name} {share:.0%}" for name, share in list(self.stalls().items())[:MOST_STALLS])
        return f"| `{self.op}` | {self.tokens} | {self.kernel} | {' | '.join(figures)} | {waits} |"


def nvidia_gpu() -> Device:
    """The GPU here."""
    device = present_device()
    if device is None or torch.version.hip is not None:
        raise click.ClickException("ncu counts on an NVIDIA GPU; there is none here. On AMD use rocprofv3 --pmc.")
    return device


def launches(configs: Path, tokens: list[int]) -> list[tuple[str, int, str]]:
    """Launches, between the profiler's start and stop, what is to be counted; says op, tokens and kernel of each."""
    device = nvidia_gpu()
    entries = load_entries(configs, [device.target.name])
    done = []
    for op in (NORM, ADD):
        problem = Problem.of(op, {"hidden_size": 7168})
        entry = tuned_entry(problem, entries, device)
        if entry is None:
            raise click.ClickException(f"{configs} has no entry of {problem} for this GPU.")
        for count in tokens:
            line, config = Line(problem, device.target, count), entry.bucket(count).config
            for name, twin in (("tuned", False), ("its twin", True)):
                launch = line.workload.launch(line.kernel(config, twin))
                for index in range(WARM_UP):
                    launch(index)
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaProfilerStart()
                launch(0)
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaProfilerStop()
                done.append((op, count, name))
    return done


def read(report: Path) -> list[dict[str, float]]:
    """The counters of each launch, from ncu's log."""
    text = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith('"')]
    rows = []
    for row in csv.DictReader(text):
        if row["ID"]:  # the line below the head has the units
            numbers = {name: value.replace(",", "") for name, value in row.items() if "__" in name}
            rows.append({name: float(value) for name, value in numbers.items() if value.replace(".", "").isdigit()})
    return rows


@click.command()
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--tokens", default="1,64,256,1024", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("build"), show_default=True)
@click.option("--launch", type=click.Path(path_type=Path), help="Only launch, and write here what: what ncu runs.")
def main(configs: Path, tokens: str, out: Path, launch: Path | None) -> None:
    """Prints a table of the counters, and writes all of them to OUT/counters.json and OUT/counters.md."""
    counts = [int(part) for part in tokens.split(",")]
    if launch:
        launch.write_text(json.dumps(launches(configs, counts)), encoding="utf-8")
        return
    nvidia_gpu()
    ncu = shutil.which("ncu")
    if ncu is None:
        raise click.ClickException("ncu is not on the PATH; it comes with CUDA, or as NVIDIA Nsight Compute.")
    out.mkdir(parents=True, exist_ok=True)
    report, launched = out / "ncu.csv", out / "launched.json"
    options = ["--csv", "--page", "raw", "--print-units", "base", "--replay-mode", "application"]
    options += ["--clock-control", "none", "--cache-control", "none", "--metrics", ",".join(COUNTERS)]
    sections = [word for section in SECTIONS for word in ("--section", section)]
    own = [sys.executable, __file__, "--configs", str(configs), "--tokens", tokens, "--launch", str(launched)]
    target = ["--profile-from-start", "off", "--target-processes", "all", "--log-file", str(report), *own]
    done = subprocess.run([ncu, *options, *sections, *target], check=False)
    if done.returncode:
        raise click.ClickException(f"ncu ended with status {done.returncode}; {report} may say why.")
    counted = [
        Counted(*what, counters)
        for what, counters in zip(json.loads(launched.read_text(encoding="utf-8")), read(report), strict=True)
    ]
    columns = ["op", "tokens", "kernel", *COUNTERS.values(), "what warps wait for"]
    table = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(each.row() for each in counted)]
    write_text_atomically(out / "counters.json", json.dumps([asdict(each) for each in counted], indent=1) + "\n")
    write_text_atomically(out / "counters.md", "\n".join(table) + "\n")
    click.echo("\n".join(table))


if __name__ == "__main__":
    main()
