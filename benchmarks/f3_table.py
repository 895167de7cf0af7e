"""The README's table of the F3 kernel: tuned against default, AITER's kernel and traffic twin.

Usage: python benchmarks/f3_table.py [--aiter-root FOLDER] [--configs tuned_configs] [--out DIR]

AITER rotates in the activation dtype and tunegen in fp32 (rounding "none"): the bytes are the same, a third of the
rotated values is not. Before a line is timed both are checked against the truth, and copies bit for bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch
from tables import Line, about, aiter_if_there, compile_ahead, headline, must_agree, noise, plain, time_all

from tunegen.bench.agreement import RopeOutputs, rope_failures
from tunegen.bench.aiter import Aiter
from tunegen.bench.aiter.ops import mla_rope_cache
from tunegen.configs import TunedEntry, load_entries
from tunegen.evaluate.measure import Replay, empty_kernel_replay
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.targets import Device, present_device

OP = "mla_rope_cache"
# Heads, variant, token counts: a rank of DeepSeek-R1, one of V2-Lite or of R1 at TP 8, one of Kimi-K2.
ROWS: tuple[tuple[int, str, tuple[int, ...]], ...] = (
    (128, "none", (1, 16, 64, 256, 4096)),
    (16, "none", (1, 64, 256, 1024, 4096)),
    (64, "none", (64, 1024)),
    (128, "none,fp8", (1, 64, 256, 4096)),
    (16, "none,fp8", (64, 1024)),
)
COLUMNS = (
    *("heads", "cache", "tokens", "empty", "twin", "twin GB/s", "AITER", "default", "tuned", "twin/tuned"),
    *("speed-up over AITER", "over default", "noise"),
)
ABSENT = "-"


def problem_of(heads: int, variant: str) -> Problem:
    """The op at DeepSeek's sizes."""
    return Problem.of(OP, {"num_heads": heads, "kv_lora_rank": 512, "rope_dim": 64}, variant)


def tuned_entry(problem: Problem, entries: list[TunedEntry], device: Device) -> TunedEntry | None:
    """The entry measured on this device that serves a problem: its own, or another variant's."""
    mine = [entry for entry in entries if entry.device.matches(device.key) and entry.evidence == "measured"]
    own = [entry for entry in mine if entry.problem == problem]
    return next(iter(own or [e for e in mine if problem in get_family(OP).served(e.problem)]), None)


def check(line: Line, configs: dict[str, Config], aiter: Aiter | None) -> dict[str, float]:
    """Ends the run unless all kernels' outputs are right, each on a cache as it was before.

    Returns:
        What share of the rotated values of q_out and k_pe_out AITER rounds otherwise than we do.
    """
    args = list(line.workload.inputs[0])
    cache, width, rank = args[6], args[6].shape[-1], args[2].shape[1]

    def left_by(what: str, run: Any) -> RopeOutputs:
        args[6] = cache.clone()
        outputs = tuple(torch.full_like(output, float("nan")) for output in line.workload.outputs[0])
        run(outputs)
        left = RopeOutputs(*outputs, args[6].view(-1, width))
        must_agree(f"{line.problem}, {line.tokens} tokens: {what}", rope_failures(args, cache.view(-1, width), left))
        return left

    op, units = line.workload.op, line.workload.units
    ours = {
        name: left_by(name, lambda outputs, config=config: op.launch(line.kernel(config), units, outputs, *args))
        for name, config in configs.items()
    }
    if aiter is None:
        return {}
    theirs = left_by("AITER", lambda outputs: mla_rope_cache(aiter, args, outputs))
    mine = next(iter(ours.values()))
    return {
        "q_pe": float((theirs.q_out[..., rank:] != mine.q_out[..., rank:]).float().mean()),
        "k_pe": float((theirs.k_pe_out != mine.k_pe_out).float().mean()),
    }


def measure(line: Line, tuned: Config | None, aiter: Aiter | None) -> dict[str, Any]:
    """Times one line of the table, all kernels interleaved."""
    default = line.family.default(line.problem, line.target)
    configs = {"default": default, **({"tuned": tuned} if tuned else {})}
    differences = check(line, configs, aiter)
    workload = line.workload
    graphs: dict[str, Replay] = {
        "empty": empty_kernel_replay(),
        "twin": line.best_twin(*configs.values()),
        "default": line.replay(default),
        "default_again": line.replay(default),
    }
    if tuned:
        graphs |= {"tuned": line.replay(tuned), "tuned_again": line.replay(tuned)}
    if aiter:
        graphs["aiter"] = line.replay_baseline(
            lambda index: mla_rope_cache(aiter, workload.inputs[index], workload.outputs[index])
        )
    timings = time_all(graphs)
    return {
        **line.problem.sizes,
        "variant": line.problem.rounding,
        "tokens": line.tokens,
        **plain(timings),
        "twin_gbs": workload.bytes / timings["twin"].median / 1e3,
        "noise": noise(timings, "tuned" if tuned else "default"),
        "config": tuned,
        "aiter_differs": differences,
    }


def cells(result: dict[str, Any]) -> list[str]:
    """A result as a line of the table; what was not measured is a dash."""
    us = result["us"]

    def time(name: str) -> str:
        return f"{us[name]:.2f}" if name in us else ABSENT

    def ratio(over: str, under: str) -> str:
        return f"{us[over] / us[under]:.2f}" if over in us and under in us else ABSENT

    return [
        str(result["num_heads"]),
        "fp8" if "fp8" in result["variant"] else "bf16",
        str(result["tokens"]),
        *(time("empty"), time("twin"), f"{result['twin_gbs']:.0f}", time("aiter"), time("default"), time("tuned")),
        *(ratio("twin", "tuned"), ratio("aiter", "tuned"), ratio("default", "tuned")),
        f"{100 * result['noise']:.1f} %",
    ]


@click.command()
@click.option("--aiter-root", type=click.Path(path_type=Path), help="Folder of an unpacked amd-aiter.")
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Writes f3_table.json and f3_table.md.")
def main(aiter_root: Path | None, configs: Path, out: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None:
        sys.exit("This table is measured: run it on a GPU.")
    aiter, which = aiter_if_there(aiter_root)
    facts = about(device, aiter)
    written: list[str] = []

    def say(text: str) -> None:
        written.append(text)
        print(text, flush=True)

    say(f"{headline(facts)}\n\n{which}\n")
    say(f"{OP}, kv_lora_rank 512, rope 64, bfloat16, interleaved pairs, microseconds a call\n")
    say(f"| {' | '.join(COLUMNS)} |")
    say("|" + "---|" * len(COLUMNS))
    entries = [entry for entry in load_entries(configs, [device.target.name]) if entry.op == OP]
    results, untuned = [], []
    problems = [problem_of(heads, variant) for heads, variant, _ in ROWS]
    chosen = {problem: tuned_entry(problem, entries, device) for problem in problems}
    timed = ((problem, [b.config for b in entry.buckets] if entry else []) for problem, entry in chosen.items())
    compile_ahead(timed, device.target)
    for heads, variant, token_counts in ROWS:
        problem = problem_of(heads, variant)
        entry = chosen[problem]
        if entry is None:
            untuned.append(str(problem))
        for tokens in token_counts:
            line = Line(problem, device.target, tokens)
            results.append(measure(line, entry.bucket(tokens).config if entry else None, aiter))
            say(f"| {' | '.join(cells(results[-1]))} |")
            del line
            torch.cuda.empty_cache()
    for problem_text in untuned:
        say(f"\nNo measured entry for {problem_text} on {device.key} in {configs}: `tunegen tune` makes one.")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "f3_table.json", json.dumps({**facts, "rows": results}, indent=1) + "\n")
        write_text_atomically(out / "f3_table.md", "\n".join(written) + "\n")


if __name__ == "__main__":
    main()
