"""Fused forms against their unfused sequences: verified on the device, then timed, all of a line interleaved.

Usage: python benchmarks/forms_table.py [--op OP ...] [--out DIR]

The unfused sequence of a form is what a graph without it runs: a torch.compile'd norm or gated activation (two norms:
two calls), which rounds its result to the activation dtype; then this project's own quantiser kernel; then, for another
layout of the scales, a torch.compile'd copy into it. Fused and quantiser kernels each have the best of a few configs,
looked at shortly at every token count; the search is not run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from tunegen.bench.baselines import add_norm, norm
from tunegen.bench.compare import time_all
from tunegen.bench.line import KERNELS, Line
from tunegen.bench.report import environment_of
from tunegen.codegen.render import render
from tunegen.evaluate.conformance import Case, candidates, case_factors, fewest_lanes_per_row, first_case, pairwise
from tunegen.evaluate.measure import Replay, time_interleaved
from tunegen.evaluate.on_device import OnDevice
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime.families.recipe import RECIPES, Variant
from tunegen.runtime.kernel import load_kernel
from tunegen.runtime.reference.activation import activate
from tunegen.runtime.reference.scale_layout import place
from tunegen.targets import Target, present_device

TOKENS = (1, 64, 1024, 8192)
VERIFIED_TOKENS = (3, 100)
SIZES = {"hidden_size": 7168, "intermediate_size": 2048}
TWO_SIZES = {"hidden_size": 1536, "second_size": 512}
# Forms that differ in the layout of their scales alone.
LAYOUTS = (("rmsnorm_add_mxfp4_quant", "none,shuffled"), ("rmsnorm_add_mxfp4_quant", "none,padded"))
COLUMNS = ("form", "tokens", "fused us", "unfused us", "of it the quantiser", "speed-up", "config")
SHORT_CALLS = 8
LOOKS = 3
MAX_WORKERS = 14
AIM = 1.3


@dataclass(frozen=True)
class Form:
    """A fused form: its problem, and that of the quantiser that its unfused sequence ends in, if any."""

    problem: Problem
    quantiser: Problem | None


def forms(ops: Sequence[str]) -> list[Form]:
    """Every form that fuses something, or those of some ops."""
    names = [name for name, recipe in RECIPES.items() if recipe.source != "plain" and (not ops or name in ops)]
    variants = [(name, "none") for name in names] + [(name, variant) for name, variant in LAYOUTS if name in names]
    found = []
    for name, variant in variants:
        recipe = RECIPES[name]
        sizes = TWO_SIZES if recipe.second else {recipe.width_name: SIZES[recipe.width_name]}
        quantiser = None
        if recipe.quantiser:
            quantiser = Problem.of(f"dynamic_{recipe.quantiser}_quant", {"hidden_size": recipe.width(sizes)})
        found.append(Form(Problem.of(name, sizes, variant), quantiser))
    return found


def some_configs(problem: Problem, target: Target) -> list[Config]:
    """The default config, and those that a search mostly ends near: split rows, other warps, a loop over rows."""
    family = get_family(problem.op)
    default = family.default(problem, target)
    warps = int(default["num_warps"])
    changes: list[Config] = [{}, {"splits": 4}, {"num_warps": warps * 2}, {"num_warps": max(warps // 2, 1)}]
    changes += [{"programs_per_unit": 4, "num_stages": 1}, {"store_policy": "streaming"}]
    configs = [family.canonical({**default, **change}) for change in changes]
    return [c for i, c in enumerate(configs) if family.valid(problem, target, c) and c not in configs[:i]]


# --- Verification ---


def cases_of(problem: Problem, target: Target) -> list[Case]:
    """A case of every rounding and of every layout of the scales; dtypes, layouts of inputs and tokens take turns."""
    recipe = RECIPES[problem.op]
    usual = [Problem(problem.op, problem.shape, text) for text in recipe.variants() if _usual(recipe.parse(text))]
    chosen: dict[Problem, Case] = {}
    # Each needs a kernel of its own to be compiled: one case a variant.
    for case in pairwise(candidates(usual, VERIFIED_TOKENS, target), case_factors, seed=len(problem.op)):
        chosen.setdefault(case.problem, case)
    return list(chosen.values())


def _usual(variant: Variant) -> bool:
    return variant.rounding == "none" or variant.layout == "rows"


def submit(pool: OnDevice, problems: Sequence[Problem], target: Target) -> list[tuple[Case, Future[list[str]]]]:
    """Has every config that will be timed, and the default in all variants, compiled and judged."""
    futures = []
    for problem in problems:
        configs = some_configs(problem, target)
        work = [(first_case(problem, target), config) for config in configs]
        if problem.rounding == "none":
            work += [(case, configs[0]) for case in cases_of(problem, target)]
        for case, config in work:
            path = render(case.problem, target, config).write(KERNELS)
            futures.append((case, pool.submit(path, case, fewest_lanes_per_row(target, config))))
    return futures


# --- The unfused sequence ---


def gated(x: torch.Tensor, activation: str) -> torch.Tensor:
    """f(gate) * up rounded to the activation dtype once."""
    gate, up = x.to(torch.float32).chunk(2, dim=-1)
    return (activate(gate, activation) * up).to(x.dtype)


class Unfused:
    """The compiled parts of all unfused sequences."""

    def __init__(self) -> None:
        # Whole graphs alone: past its limit of sizes, Dynamo would go on uncompiled.
        compiled = [torch.compile(f, fullgraph=True) for f in (norm, add_norm, gated, place)]
        self._norm, self._add_norm, self._gated, self._place = compiled
        torch._dynamo.config.recompile_limit = 64

    def first(self, form: Form, args: tuple[Any, ...]) -> torch.Tensor:
        """What comes before the quantiser, with all else that the form returns; the rows are returned."""
        recipe = RECIPES[form.problem.op]
        _mark(*args)
        if recipe.activation:
            return self._gated(args[0], recipe.activation)
        count = 4 if recipe.residual else 3
        rows = self._add_norm(*args[:count])[0] if recipe.residual else self._norm(*args[:count])
        if recipe.second:
            self._norm(*args[count : count + 3])
        return rows

    def last(self, form: Form, scales: torch.Tensor) -> None:
        """What comes after the quantiser."""
        layout = RECIPES[form.problem.op].parse(form.problem.rounding).layout
        if layout != "rows":
            _mark(scales)
            self._place(scales, layout)


def _mark(*args: Any) -> None:
    """Has Inductor compile for any number of tokens but 1, and for the width that there is."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.dim() == 2:
            torch._dynamo.mark_static(arg, 1)
            if arg.shape[0] > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)


# --- One line ---


def best(line: Line, configs: list[Config]) -> Config:
    """The fastest of a few configs, by a short look."""
    replays = [Replay(line.workload.launch(line.kernel(config)), line.sets, SHORT_CALLS) for config in configs]
    looks = time_interleaved(replays, LOOKS, 1)
    return min(zip(looks, configs, strict=True), key=lambda look: look[0].median)[1]


def row(form: Form, tokens: int, target: Target, unfused: Unfused) -> dict[str, Any]:
    """Times one form at one token count."""
    line = Line(form.problem, target, tokens)
    config = best(line, some_configs(form.problem, target))
    quantise: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    graphs = {"fused": line.replay(config)}
    if form.quantiser:
        plain_line = Line(form.quantiser, target, tokens)
        op = plain_line.workload.op
        quantiser = some_configs(form.quantiser, target)
        kernel = load_kernel(render(form.quantiser, target, best(plain_line, quantiser)).write(KERNELS))
        graphs["quantiser"] = Replay(plain_line.workload.launch(kernel), plain_line.sets)
        made = [op.allocate(*args) for args in plain_line.workload.inputs]
        rest = [args[1:] for args in plain_line.workload.inputs]

        def quantise(index: int, rows: torch.Tensor) -> torch.Tensor:
            at = index % len(made)
            op.launch(kernel, line.workload.units, made[at], rows, *rest[at])
            return made[at][1]

    def sequence(index: int) -> None:
        rows = unfused.first(form, line.workload.inputs[index])
        if quantise:
            unfused.last(form, quantise(index, rows))

    graphs["unfused"] = line.replay_baseline(sequence)
    timings = time_all(graphs)
    return {
        "op": form.problem.op,
        "variant": form.problem.rounding,
        "tokens": tokens,
        "config": config,
        "us": {name: timing.median for name, timing in timings.items()},
        "spread_us": {name: timing.spread for name, timing in timings.items()},
    }


def cells(result: dict[str, Any]) -> list[str]:
    """A result as a line of the table."""
    us = result["us"]
    name = result["op"] if result["variant"] == "none" else f"{result['op']}, {result['variant'].partition(',')[2]}"
    speed_up = us["unfused"] / us["fused"]
    quantiser = f"{us['quantiser']:.2f}" if "quantiser" in us else "-"
    config = " ".join(f"{key}={value}" for key, value in result["config"].items() if key in ("splits", "num_warps"))
    figures = (f"{us['fused']:.2f}", f"{us['unfused']:.2f}", quantiser, f"{speed_up:.2f}")
    return [name, str(result["tokens"]), *figures, config]


@click.command()
@click.option("--op", "ops", multiple=True, help="Only this form; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Writes forms_table.md and forms_table.json here too.")
def main(ops: tuple[str, ...], out: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None:
        raise click.ClickException("This table is measured: run it on a GPU.")
    target, start = device.target, time.perf_counter()
    environment = environment_of(device, "AITER is not compared with", "The best of a few configs each")
    lines = [str(environment), ""]
    chosen = forms(ops)
    quantisers = [form.quantiser for form in chosen if form.quantiser]
    problems = list(dict.fromkeys([*(form.problem for form in chosen), *quantisers]))
    unfused = Unfused()
    with OnDevice(min(os.cpu_count() or 1, MAX_WORKERS), device.index) as pool:
        futures = submit(pool, problems, target)
        # While kernels compile elsewhere, Inductor compiles here.
        for form in chosen:
            for tokens in TOKENS[:2]:
                line = Line(form.problem, target, tokens)
                rows = unfused.first(form, line.workload.inputs[0])
                if form.problem.rounding != "none":
                    scales = torch.zeros((tokens, rows.shape[1] // 32), dtype=torch.uint8, device=rows.device)
                    unfused.last(form, scales)
        failures = [(case, failure) for case, future in futures for failure in future.result()]
    wrong = {case.problem.op for case, _ in failures}
    # Nothing is timed that does not compute what it should.
    chosen = [form for form in chosen if not wrong & {form.problem.op, form.quantiser and form.quantiser.op}]
    lines += [f"WRONG: {case}: {failure}" for case, failure in failures]
    seconds = time.perf_counter() - start
    right = len(futures) - len({str(case) for case, _ in failures})
    lines += [f"{len(problems)} forms, right in {right} of {len(futures)} cases ({seconds:.0f} s).", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    results = []
    for form in chosen:
        for tokens in TOKENS:
            results.append(row(form, tokens, target, unfused))
            lines.append(f"| {' | '.join(cells(results[-1]))} |")
            print(lines[-1], flush=True)
    slow = [r for r in results if r["us"]["unfused"] < AIM * r["us"]["fused"]]
    below = "; ".join(f"{r['op']} ({r['variant']}) at {r['tokens']}" for r in slow) or "none"
    lines += ["", f"Below {AIM}: {below}. {time.perf_counter() - start:.0f} s in all."]
    print("\n".join(lines[-2:]))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "forms_table.md", "\n".join(lines) + "\n")
        document = {**asdict(environment), "cases": len(futures), "rows": results}
        write_text_atomically(out / "forms_table.json", json.dumps(document, indent=1) + "\n")
    if wrong:
        raise click.ClickException(f"wrong outputs, named above the table: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
