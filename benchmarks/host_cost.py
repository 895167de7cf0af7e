"""What a pack costs on the host: importing it, warming it up, and an eager call of its ops.

Usage: python benchmarks/host_cost.py PACK [--only PART] [--out DIR]

PACK is the folder that `tunegen emit` wrote. Each part runs in a process of its own:

import     `import tunegen_ops` after torch and triton, three times
warm-up    into an empty cache of Triton's, with an eager call at many token counts and alignments afterwards, which
           must ask Triton for nothing; then again in another process, from the cache
call       microseconds on the host of a call that returns before the GPU is done, interleaved: the op; a bare launch
           of its Triton kernel that allocates the same outputs; torch.library's floor, an op of the same schema that
           allocates them and does nothing else
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tunegen.targets import present_device

ROUNDS, CALLS = 25, 200
TOKENS = (1, 16, 64)
UNSEEN_TOKENS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 127, 256, 300, 1000, 1024, 3000)
# The longest bucket of ops that take rows; of the others, whose calls are larger by far, it begins below 3000.
MOST_ROWS = 12000
HEADS = {"num_heads": 128, "kv_lora_rank": 512, "rope_dim": 64}
# Calls that are timed: op, shape, variant.
CASES: tuple[tuple[str, dict[str, int], str], ...] = (
    ("dynamic_mxfp4_quant", {"hidden_size": 7168}, "none"),
    ("rmsnorm_mxfp4_quant", {"hidden_size": 7168}, "none"),
    ("rmsnorm_add_mxfp4_quant", {"hidden_size": 7168}, "none"),
    ("mla_rope_cache", HEADS, "none"),
    ("mla_rope_cache_", HEADS, "act"),
)


def load_pack(folder: Path) -> Any:
    """Imports the pack of a project folder."""
    (package,) = (path.parent for path in folder.glob("*/manifest.json"))
    sys.path.insert(0, str(folder))
    return importlib.import_module(package.name)


# --- In processes of their own ---


def importing(folder: Path) -> dict[str, Any]:
    """Seconds of importing torch and triton, and then the pack."""
    start = time.perf_counter()
    import torch  # noqa: F401
    import triton  # noqa: F401

    between = time.perf_counter()
    load_pack(folder)
    seconds = time.perf_counter() - between
    return {"torch_triton_s": between - start, "pack_s": seconds, "inductor": "torch._inductor" in sys.modules}


def warming(folder: Path) -> dict[str, Any]:
    """A warm-up, then calls of every entry; how often they asked Triton for a kernel that it had not."""
    import torch
    import triton

    pack = load_pack(folder)
    done = pack.warmup()
    asked: list[str] = []

    def ask(repr: str = "", **_: Any) -> bool:
        asked.append(repr)
        return False

    triton.knobs.runtime.jit_cache_hook = ask
    families = importlib.import_module(f"{pack.__name__}.runtime.families")
    device, calls = torch.device("cuda"), 0
    for name, op in families.OPS.items():
        for shape, variant in served(pack, name):
            for tokens in (*UNSEEN_TOKENS, *([MOST_ROWS] if "hidden_size" in shape else [])):
                args = op.inputs(shape, tokens, torch.bfloat16, device, torch.Generator(device), variant)
                for moved in (args, shifted(args, 8), shifted(args, 2)):
                    getattr(getattr(torch.ops, pack.__name__), name).default(*moved)
                    calls += 1
    torch.cuda.synchronize()
    return {"kernels": done.kernels, "seconds": done.seconds, "calls": calls, "asked": asked}


def served(pack: Any, op: str) -> list[tuple[dict[str, int], str]]:
    """Shapes and variants of a pack's entries for the GPU here."""
    entries = [entry for entry in pack._pack.manifest.entries if entry.op == op]
    return [(e.shape, e.variant) for e in entries if pack.supports(op, variant=e.variant, **e.shape)]


def shifted(args: tuple[Any, ...], num_bytes: int) -> tuple[Any, ...]:
    """The arguments with tensors that are inputs alone beginning some bytes after a boundary of 16."""
    import torch

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        elements = max(1, num_bytes // tensor.element_size())
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        flat = torch.empty(last + 1 + 16, dtype=tensor.dtype, device=tensor.device)
        return flat.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)

    return tuple(moved(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)


class Recorder:
    """In the place of a kernel's function: takes up with what it would be launched."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def record(*args: Any, **options: Any) -> None:
            self.launched = grid, args, options

        return record


def calling(folder: Path) -> dict[str, Any]:
    """Microseconds on the host of a call, by op and token count."""
    import torch

    pack = load_pack(folder)
    runtime = pack.__name__ + ".runtime"
    families = importlib.import_module(f"{runtime}.families")
    load_kernel = importlib.import_module(f"{runtime}.kernel").load_kernel
    device = torch.device("cuda")
    units = torch.cuda.get_device_properties(device).multi_processor_count
    floor = torch.library.Library("tunegen_floor", "DEF")
    rows = []
    for name, shape, variant in CASES:
        op = families.OPS[name]
        if not pack.supports(name, variant=variant, **shape):
            continue
        floor.define(name + op.schema)
        floor.impl(name, lambda *args, op=op: op.allocate(*complete(op, args)) or None, "CUDA")
        for tokens in TOKENS:
            args = op.inputs(shape, tokens, torch.bfloat16, device, torch.Generator(device), variant)
            kernel = load_kernel(pack._pack.root / pack.explain(name, tokens, variant=variant, **shape).kernel)
            functions = {
                "op": bound(getattr(getattr(torch.ops, pack.__name__), name).default, args),
                "pack function": bound(getattr(pack, name), args),
                "bare": bare_launch(op, kernel, units, args),
                "floor": bound(getattr(torch.ops.tunegen_floor, name).default, args),
            }
            times = time_interleaved(functions)
            medians = {what: times[what][0] for what in times}
            spreads = {what: times[what][1] for what in times}
            rows.append({"op": name, "tokens": tokens, "us": medians, "spread_us": spreads})
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}


def complete(op: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with the defaults that PyTorch leaves out; those that allocation looks at are None."""
    return (*args, *(None for _ in range(14 - len(args)))) if op.name.startswith("mla") else args


def bound(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """A call with these arguments."""
    return lambda: function(*args)


def bare_launch(op: Any, kernel: Any, units: int, args: tuple[Any, ...]) -> Callable[[], Any]:
    """What a launch written by hand does: allocate, and call the ``@triton.jit`` function with all it takes."""
    import torch

    recorder, outputs = Recorder(), op.allocate(*args)
    op.launch(replace(kernel, function=recorder), units, outputs, *args)
    grid, given, options = recorder.launched
    wanted = [(output.shape, output.dtype) for output in outputs]
    first = next((at for at, arg in enumerate(given) if any(arg is output for output in outputs)), len(given))
    before, after = given[:first], given[first + len(outputs) :]
    assert all(arg is output for arg, output in zip(given[first:], outputs, strict=False))
    device, function = args[0].device, kernel.function

    def launch() -> Any:
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in wanted]
        function[grid](*before, *made, *after, **options)
        return made

    return launch


def time_interleaved(functions: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """Median and interquartile range of microseconds a call, in batches taken in turn."""
    import statistics

    import torch

    samples: dict[str, list[float]] = {name: [] for name in functions}
    with torch.inference_mode():
        for turn in range(ROUNDS + 3):
            for name, function in functions.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(CALLS):
                    function()
                took = time.perf_counter() - start
                if turn >= 3:
                    samples[name].append(1e6 * took / CALLS)
    torch.cuda.synchronize()
    return {
        name: (statistics.median(taken), statistics.quantiles(taken)[2] - statistics.quantiles(taken)[0])
        for name, taken in samples.items()
    }


PARTS = {"import": importing, "warm-up": warming, "call": calling}


# --- Here ---


def part(name: str, pack: Path, cache: Path | None = None) -> dict[str, Any]:
    """Runs a part in a process of its own, with a cache of Triton's of its own."""
    environment = {**os.environ, **({"TRITON_CACHE_DIR": str(cache)} if cache else {})}
    command = [sys.executable, __file__, str(pack), "--part", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def tell(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for imported in results["import"]:
        inductor = "with" if imported["inductor"] else "without"
        lines.append(
            f"- import: torch and triton {imported['torch_triton_s']:.2f} s, then the pack {imported['pack_s']:.3f} s,"
            f" {inductor} Inductor"
        )
    for cache, warmed in zip(("an empty cache", "the cache of the first process"), results["warm-up"], strict=False):
        lines.append(
            f"- warm-up from {cache}: {warmed['kernels']} kernels in {warmed['seconds']:.1f} s; of"
            f" {warmed['calls']} calls after it {len(warmed['asked'])} asked Triton for a kernel"
        )
        lines += [f"    - {asked}" for asked in warmed["asked"][:5]]
    called = results["call"]
    if called:
        lines += [
            f"\nMicroseconds of the host a call, eager, under inference_mode: {called['device']}, torch"
            f" {called['torch']}.\n",
            "| op | tokens | op | bare launch | op - bare | torch.library's floor | pack's function | spread of op |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for row in called.get("rows", []):
        us = row["us"]
        figures = (
            us["op"],
            us["bare"],
            us["op"] - us["bare"],
            us["floor"],
            us["pack function"],
            row["spread_us"]["op"],
        )
        lines.append(f"| `{row['op']}` | {row['tokens']} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("pack", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--part", "one", type=click.Choice(list(PARTS)), help="Run this part here, and print its JSON.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Parts to run. Default: all.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Writes host_cost.json and host_cost.md.")
def main(pack: Path, one: str | None, only: tuple[str, ...], out: Path | None) -> None:
    """Prints what the pack costs, as Markdown."""
    if one:
        click.echo(json.dumps(PARTS[one](pack)))
        return
    wanted = only or tuple(PARTS)
    if set(wanted) - {"import"} and present_device() is None:
        raise click.ClickException("Calls and warm-up are measured on a GPU; there is none here. See --only import.")
    results: dict[str, Any] = {"import": [], "warm-up": [], "call": {}}
    if "import" in wanted:
        results["import"] = [part("import", pack) for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="tunegen-host-") as name:
        cache = Path(name)
        if "warm-up" in wanted:
            results["warm-up"] = [part("warm-up", pack, cache) for _ in range(2)]
        if "call" in wanted:
            results["call"] = part("call", pack, cache)
    text = tell(results)
    click.echo(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "host_cost.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (out / "host_cost.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
