"""Hardware counters of the tuned F2 kernels, through CUPTI as torch.profiler has it; NVIDIA only.

Usage: python benchmarks/counters.py [--configs tuned_configs] [--out FILE]

Says what is missing where a driver keeps the counters from its users, or PyTorch was built without CUPTI.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from tunegen.bench.baselines import NORM
from tunegen.bench.line import Line
from tunegen.bench.run import tuned_entry
from tunegen.configs import load_entries
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir
from tunegen.targets import present_device

METRICS = (
    "smsp__cycles_active.sum",
    "smsp__inst_executed.sum",
    "smsp__inst_executed_pipe_alu.sum",
    "smsp__inst_executed_pipe_fma.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)


def counted(line: Line, config: Any) -> list[dict[str, Any]]:
    """What CUPTI counted of a launch."""
    launch = line.workload.launch(line.kernel(config))
    launch(0)
    torch.cuda.synchronize()
    options = torch.profiler._ExperimentalConfig(profiler_metrics=list(METRICS), profiler_measure_per_kernel=True)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], experimental_config=options) as profiled:
        launch(1)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return [event["args"] for event in events if event.get("cat") == "cuda_profiler_range"]


@click.command()
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--tokens", default="256,1024", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Writes the counters here too, as JSON.")
def main(configs: Path, tokens: str, out: Path | None) -> None:
    """Prints the counters."""
    device = present_device()
    if device is None or torch.version.hip is not None:
        raise click.ClickException("CUPTI counts on an NVIDIA GPU; there is none here. On AMD use rocprofv3 --pmc.")
    problem = Problem.of(NORM, {"hidden_size": 7168})
    entry = tuned_entry(problem, load_entries(configs, [device.target.name]), device)
    if entry is None:
        raise click.ClickException(f"{configs} has no entry of {problem} for this GPU.")
    found = {}
    for count in (int(part) for part in tokens.split(",")):
        found[count] = counted(Line(problem, device.target, count), entry.bucket(count).config)
        click.echo(f"{problem}, {count} tokens: {found[count] or 'CUPTI counted nothing: not permitted, or not built'}")
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
