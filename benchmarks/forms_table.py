"""Fused forms against their unfused sequences: verified on the device, then timed, all of a line interleaved.

Usage: python benchmarks/forms_table.py [--op OP ...] [--aiter-root FOLDER] [--configs tuned_configs] [--out DIR]

The unfused sequence of a form is what a graph without it runs: a torch.compile'd norm or gated activation (two norms:
two calls), which rounds its result to the activation dtype; then a quantiser; then, for another layout of the scales, a
torch.compile'd copy into it. The quantiser is AITER's Triton kernel, as in the `unfused` of `tunegen bench`, where
AITER is there and the form is MXFP4; and, in a second sequence on the same line, this project's own kernel, which is
the harder one to beat. A form that does not quantise has one sequence, in the columns of the second. What the sequences
return is judged before it is timed.

Fused and quantiser kernels run in the tuned config of the token count where --configs has an entry of this GPU, else in
the best of a few configs, looked at shortly at every token count; the search is not run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from unfused_forms import Form, Outputs, Quantise, Unfused, aiters_agreement, wrong_in

from tunegen.bench.aiter import Aiter
from tunegen.bench.compare import time_all
from tunegen.bench.line import KERNELS, Line
from tunegen.bench.report import ABSENT, aiter_line, environment_of
from tunegen.bench.run import aiter_if_there, tuned_entry
from tunegen.codegen.render import render
from tunegen.configs import TunedEntry, load_entries
from tunegen.errors import TunegenError
from tunegen.evaluate.conformance import Case, candidates, case_factors, fewest_lanes_per_row, first_case, pairwise
from tunegen.evaluate.measure import Replay, time_interleaved
from tunegen.evaluate.on_device import OnDevice
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.runtime.families.recipe import RECIPES, Variant
from tunegen.runtime.reference.mxfp4 import BLOCK
from tunegen.targets import Target, present_device

TOKENS = (1, 64, 1024, 8192)
VERIFIED_TOKENS = (3, 100)
SIZES = {"hidden_size": 7168, "intermediate_size": 2048}
TWO_SIZES = {"hidden_size": 1536, "second_size": 512}
# Forms that differ in the layout of their scales alone.
LAYOUTS = (("rmsnorm_add_mxfp4_quant", "none,shuffled"), ("rmsnorm_add_mxfp4_quant", "none,padded"))
# The unfused sequences by what they are called in the JSON, and whose quantiser each has.
AITERS, OURS = "unfused_aiter", "unfused"
SEQUENCES = {AITERS: "AITER's", OURS: "our"}
COLUMNS = (
    *("form", "tokens", "fused us", *(f"unfused us ({whose} quantiser)" for whose in SEQUENCES.values())),
    *("our quantiser us", *(f"speed-up ({whose} quantiser)" for whose in SEQUENCES.values()), "config"),
)
SHORT_CALLS = 8
LOOKS = 3
MAX_WORKERS = 14
AIM = 1.3

Tuned = Mapping[Problem, TunedEntry | None]


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


def configs_at(problem: Problem, target: Target, entry: TunedEntry | None, tokens: int) -> list[Config]:
    """The tuned config of a token count; without an entry, those that are looked at."""
    return [entry.bucket(tokens).config] if entry else some_configs(problem, target)


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


def submit(pool: OnDevice, tuned: Tuned, target: Target) -> list[tuple[Case, Future[list[str]]]]:
    """Has every config that will be timed, and the default in all variants, compiled and judged."""
    futures = []
    for problem, entry in tuned.items():
        every = [config for tokens in TOKENS for config in configs_at(problem, target, entry, tokens)]
        configs = [config for i, config in enumerate(every) if config not in every[:i]]
        work = [(first_case(problem, target), config) for config in configs]
        if problem.rounding == "none":
            default = get_family(problem.op).default(problem, target)
            work += [(case, default) for case in cases_of(problem, target)]
        for case, config in work:
            path = render(case.problem, target, config).write(KERNELS)
            futures.append((case, pool.submit(path, case, fewest_lanes_per_row(target, config))))
    return futures


# --- One line ---


def aiters_quantiser(form: Form, aiter: Aiter | None) -> Quantise | None:
    """The form's quantiser as AITER has it, if it is there."""
    return aiter.dynamic_mxfp4_quant if aiter and form.recipe.quantiser == "mxfp4" else None


def compile_steps(form: Form, tokens: int, target: Target, unfused: Unfused, aiters: Quantise | None) -> None:
    """Runs a form's sequences once, but for this project's quantiser."""

    def stand_in(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows, torch.zeros((tokens, rows.shape[1] // BLOCK), dtype=torch.uint8, device=rows.device)

    args = Line(form.problem, target, tokens).workload.inputs[0]
    unfused.run(form, args, stand_in if form.quantiser else None)
    if aiters:
        unfused.run(form, args, aiters)


def best(line: Line, configs: list[Config]) -> Config:
    """The fastest of a few configs, by a short look."""
    if len(configs) == 1:
        return configs[0]
    replays = [Replay(line.workload.launch(line.kernel(config)), line.sets, SHORT_CALLS) for config in configs]
    looks = time_interleaved(replays, LOOKS, 1)
    return min(zip(looks, configs, strict=True), key=lambda look: look[0].median)[1]


def our_step(plain: Line, config: Config, sets: int) -> Callable[[int], Quantise]:
    """This project's quantiser as a step of a form with so many input sets: what it does for each."""
    kernel, workload = plain.kernel(config), plain.workload
    x, *rest = workload.inputs[0]
    made = [workload.op.allocate(x, *rest) for _ in range(sets)]

    def quantise(outputs: Outputs, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        workload.op.launch(kernel, workload.units, outputs, rows, *rest)
        q, scales = outputs
        return q, scales

    return lambda index: partial(quantise, made[index])


def row(
    form: Form, tokens: int, target: Target, unfused: Unfused, tuned: Tuned, aiters: Quantise | None
) -> dict[str, Any]:
    """Times one form at one token count; a sequence that is wrong is not timed."""
    line = Line(form.problem, target, tokens)
    entry = tuned[form.problem]
    config = best(line, configs_at(form.problem, target, entry, tokens))
    graphs = {"fused": line.replay(config)}
    # The second step of each sequence, for an input set.
    steps: dict[str, Callable[[int], Quantise | None]] = {OURS: lambda index: None}
    quantiser_config = None
    if form.quantiser:
        plain = Line(form.quantiser, target, tokens)
        quantiser_config = best(plain, configs_at(form.quantiser, target, tuned[form.quantiser], tokens))
        graphs["quantiser"] = plain.replay(quantiser_config)
        steps[OURS] = our_step(plain, quantiser_config, line.sets)
    if aiters:
        steps[AITERS] = lambda index: aiters
    args = line.workload.inputs[0]
    rows, _ = unfused.first(form, args)
    wrong: dict[str, list[str]] = {}
    undefined = 0.0
    for name, step in steps.items():

        def sequence(index: int, step: Callable[[int], Quantise | None] = step) -> Outputs:
            return unfused.run(form, line.workload.inputs[index], step(index))

        if name == OURS:
            found = wrong_in(form, args, rows, sequence(0))
        else:
            agreement = aiters_agreement(form, rows, sequence(0))
            undefined = agreement.undefined_scales / agreement.blocks
            # What comes before the quantiser is the same in both, and judged in ours.
            found = [*wrong.get(OURS, []), *agreement.failures]
        if found:
            wrong[name] = found
        else:
            graphs[name] = line.replay_baseline(sequence)
    timings = time_all(graphs)
    return {
        "op": form.problem.op,
        "variant": form.problem.rounding,
        "tokens": tokens,
        "config": config,
        "quantiser_config": quantiser_config,
        "tuned": entry is not None,
        "us": {name: timing.median for name, timing in timings.items()},
        "spread_us": {name: timing.spread for name, timing in timings.items()},
        "wrong": wrong,
        "undefined_scales": undefined,
    }


def cells(result: dict[str, Any]) -> list[str]:
    """A result as a line of the table."""
    us = result["us"]
    name = result["op"] if result["variant"] == "none" else f"{result['op']}, {result['variant'].partition(',')[2]}"
    times = [f"{us[what]:.2f}" if what in us else ABSENT for what in ("fused", *SEQUENCES, "quantiser")]
    speed_ups = [f"{us[what] / us['fused']:.2f}" if what in us else ABSENT for what in SEQUENCES]
    chosen = " ".join(f"{key}={value}" for key, value in result["config"].items() if key in ("splits", "num_warps"))
    return [name, str(result["tokens"]), *times, *speed_ups, "tuned" if result["tuned"] else chosen]


def summary(results: Sequence[dict[str, Any]]) -> list[str]:
    """What is below the table: where the aim is missed, and what is wrong or undefined."""
    lines = []
    for name, whose in SEQUENCES.items():
        timed = [result for result in results if name in result["us"]]
        slow = [r for r in timed if r["us"][name] < AIM * r["us"]["fused"]]
        below = "; ".join(f"{r['op']} ({r['variant']}) at {r['tokens']}" for r in slow) or "none"
        if timed:
            lines.append(f"Below {AIM} with {whose} quantiser: {below}.")
    for r in results:
        for name, found in r["wrong"].items():
            where = f"{r['op']} ({r['variant']}) at {r['tokens']}"
            lines.append(f"WRONG: {where}, unfused with {SEQUENCES[name]} quantiser, not timed: {'; '.join(found)}")
    undefined = max((r["undefined_scales"] for r in results), default=0.0)
    if undefined:
        lines.append(f"AITER's scales below 1 are undefined on this GPU: up to {undefined:.0%} of a line's are wrong.")
    return lines


@click.command()
@click.option("--op", "ops", multiple=True, help="Only this form; may be repeated.")
@click.option("--aiter-root", type=click.Path(path_type=Path), help="Folder of an unpacked amd-aiter.")
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Writes forms_table.md and forms_table.json here too.")
def main(ops: tuple[str, ...], aiter_root: Path | None, configs: Path, out: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None:
        raise click.ClickException("This table is measured: run it on a GPU.")
    target, start = device.target, time.perf_counter()
    try:
        aiter, why = aiter_if_there(aiter_root)
        entries = load_entries(configs, [target.name])
    except TunegenError as error:
        raise click.ClickException(str(error)) from error
    ran_in = f"Configs of {configs}, and the best of a few where it has none of this GPU"
    environment = environment_of(device, aiter_line(aiter, why), ran_in)
    lines = [str(environment), ""]
    chosen = forms(ops)
    quantisers = [form.quantiser for form in chosen if form.quantiser]
    problems = list(dict.fromkeys([*(form.problem for form in chosen), *quantisers]))
    tuned = {problem: tuned_entry(problem, entries, device) for problem in problems}
    unfused = Unfused()
    with OnDevice(min(os.cpu_count() or 1, MAX_WORKERS), device.index) as pool:
        futures = submit(pool, tuned, target)
        # While kernels compile elsewhere, Inductor compiles here.
        for form in chosen:
            for tokens in TOKENS[:2]:
                compile_steps(form, tokens, target, unfused, aiters_quantiser(form, aiter))
        failures = [(case, failure) for case, future in futures for failure in future.result()]
        right = sum(not future.result() for _, future in futures)
    wrong = {case.problem.op for case, _ in failures}
    # Nothing is timed that does not compute what it should.
    chosen = [form for form in chosen if not wrong & {form.problem.op, form.quantiser and form.quantiser.op}]
    lines += [f"WRONG: {case}: {failure}" for case, failure in failures]
    seconds = time.perf_counter() - start
    lines += [f"{len(problems)} forms, right in {right} of {len(futures)} cases ({seconds:.0f} s).", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    results = []
    for form in chosen:
        for tokens in TOKENS:
            results.append(row(form, tokens, target, unfused, tuned, aiters_quantiser(form, aiter)))
            lines.append(f"| {' | '.join(cells(results[-1]))} |")
            print(lines[-1], flush=True)
            torch.cuda.empty_cache()  # what a sequence allocated while it was captured is its own until then
    wrong |= {result["op"] for result in results if result["wrong"]}
    below = ["", *summary(results), f"{time.perf_counter() - start:.0f} s in all."]
    lines += below
    print("\n".join(below))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "forms_table.md", "\n".join(lines) + "\n")
        document = {**asdict(environment), "cases": len(futures), "rows": results}
        write_text_atomically(out / "forms_table.json", json.dumps(document, indent=1) + "\n")
    if wrong:
        raise click.ClickException(f"wrong outputs, named beside the table: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
