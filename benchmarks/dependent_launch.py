"""What programmatic dependent launch would save: kernels with it and without, alone and behind a GEMM.

Usage: python benchmarks/dependent_launch.py [--tokens 1,64,256,1024,8192] [--configs tuned_configs] [--out DIR]

From sm90 on a kernel may begin before the one before it has ended, and waits for it where it needs its results. The
kernels that ship do not; this adds it to their sources, in two forms:

wait       waits before anything is loaded
weights    has loaded the weights before it waits, which is right only if no kernel before it has written them

Each is timed in a graph of its own calls, where every kernel lets the next begin early, and in one where the kernel
before is torch.mm, which writes the input, as in a model. What the graphs write is compared bit by bit first.
"""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from tunegen.bench.baselines import ADD, NORM, QUANT
from tunegen.bench.line import KERNELS, Line
from tunegen.bench.report import environment_of
from tunegen.bench.run import tuned_entry
from tunegen.codegen.render import Rendered, render
from tunegen.configs import load_entries
from tunegen.evaluate.measure import Replay, time_interleaved
from tunegen.files import write_text_atomically
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir
from tunegen.runtime.kernel import Kernel, load_kernel
from tunegen.targets import present_device

PROBLEMS = (
    *(Problem.of(op, {"hidden_size": 7168}) for op in (QUANT, NORM, ADD)),
    Problem.of("dual_rmsnorm", {"hidden_size": 1536, "second_size": 512}),
)
SHIPS, FORMS = "ships", ("wait", "weights")
COLUMNS = ("op", "tokens", *(f"{where}: {form}" for where in ("alone", "behind mm") for form in (SHIPS, *FORMS)))
# Columns of the matrix from which torch.mm makes the input: what a GPU of eight has of the output projection.
INNER = 2048
ROUNDS = 41
GDC = "from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait\n"
LAUNCH_OPTION = 'OPTIONS = {"launch_pdl": True, '
# A line and its indent, and the calls that are put there.
Insertion = tuple[tuple[int, int], tuple[str, ...]]


def dependent(source: str, form: str) -> str | None:
    """A kernel's source with dependent launch; None if it has no such form."""
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    (name,) = (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _target(n) == "KERNEL")
    first = _first(functions[name])
    begin = (first.lineno - 1, first.col_offset)
    added: list[Insertion]
    if form == "wait":
        added = [(begin, ("gdc_wait()", "gdc_launch_dependents()"))]
    else:
        last = [[node for node in f.body if _target(node).startswith("weight_")][-1:] for f in functions.values()]
        waits: list[Insertion] = [
            ((node.end_lineno or 0, node.col_offset), ("gdc_wait()",)) for nodes in last for node in nodes
        ]
        if not waits:
            return None
        added = [(begin, ("gdc_launch_dependents()",)), *waits]
    lines = source.splitlines(keepends=True)
    for (line, indent), calls in sorted(added, reverse=True):
        lines[line:line] = [" " * indent + call + "\n" for call in calls]
    text = "".join(lines).replace("import triton\n", "import triton\n" + GDC, 1)
    return text.replace("OPTIONS = {", LAUNCH_OPTION, 1)


def _target(node: ast.stmt) -> str:
    """The name that a statement assigns to, or nothing."""
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else ""


def _first(function: ast.FunctionDef) -> ast.stmt:
    """The first statement that is not the docstring."""
    return function.body[1 if ast.get_docstring(function) else 0]


def kernels(rendered: Rendered) -> dict[str, Kernel]:
    """The kernel that ships and its forms."""
    sources = {SHIPS: rendered.source, **{form: dependent(rendered.source, form) for form in FORMS}}
    return {
        form: load_kernel(replace(rendered, source=source).write(KERNELS)) for form, source in sources.items() if source
    }


def outputs(line: Line, replay: Replay) -> list[torch.Tensor]:
    """What a graph writes for every input set, as bytes."""
    tensors = [tensor for made in line.workload.outputs for tensor in made]
    for tensor in tensors:
        tensor.zero_()
    replay.warm_up()
    torch.cuda.synchronize()
    return [tensor.view(torch.uint8).clone() for tensor in tensors]


def check(line: Line, replays: dict[str, Replay]) -> None:
    """Compares what the forms write with what the kernel writes that ships."""
    right = outputs(line, replays[SHIPS])
    for form in FORMS:
        if form in replays and not all(map(torch.equal, outputs(line, replays[form]), right)):
            raise click.ClickException(f"{line.problem} at {line.tokens} tokens, {form}: not what ships writes")


def row(line: Line, rendered: Rendered) -> dict[str, Any]:
    """Times one problem at one token count."""
    forms = kernels(rendered)
    inputs = [args[0] for args in line.workload.inputs]
    left = torch.randn((line.tokens, INNER), dtype=inputs[0].dtype, device="cuda")
    right_side = torch.randn((INNER, inputs[0].shape[1]), dtype=inputs[0].dtype, device="cuda")

    def behind(kernel: Kernel | None) -> Replay:
        launch = line.workload.launch(kernel) if kernel else None

        def run(index: int) -> None:
            torch.mm(left, right_side, out=inputs[index % line.sets])
            if launch:
                launch(index)

        return Replay(run, line.sets)

    alone = {form: Replay(line.workload.launch(kernel), line.sets) for form, kernel in forms.items()}
    chained = {"mm": behind(None), **{form: behind(kernel) for form, kernel in forms.items()}}
    result: dict[str, Any] = {"op": line.problem.op, "tokens": line.tokens, "config": rendered.config}
    for name, replays in (("alone", alone), ("behind mm", chained)):
        check(line, replays)
        timings = time_interleaved(list(replays.values()), ROUNDS)
        result[name] = {form: asdict(timing) for form, timing in zip(replays, timings, strict=True)}
    return result


def table(results: list[dict[str, Any]]) -> list[str]:
    """Microseconds, as Markdown; behind torch.mm, what the two take less what torch.mm takes."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for result in results:
        cells = [f"`{result['op']}`", f"{result['tokens']:,}"]
        for where in ("alone", "behind mm"):
            base = result[where].get("mm", {"median": 0.0})["median"]
            times = {form: timing["median"] - base for form, timing in result[where].items()}
            cells += [f"{times[form]:.2f}" if form in times else "-" for form in (SHIPS, *FORMS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--tokens", default="1,64,256,1024,8192", show_default=True)
@click.option("--configs", type=click.Path(path_type=Path), default=tuned_configs_dir(), show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Writes dependent_launch.md and .json.")
def main(tokens: str, configs: Path, out: Path | None) -> None:
    """Prints a table of microseconds."""
    device = present_device()
    if device is None or torch.version.hip is not None or torch.cuda.get_device_capability() < (9, 0):
        raise click.ClickException("Dependent launch is of NVIDIA GPUs from sm90 on; there is none here.")
    entries = load_entries(configs, [device.target.name])
    environment = environment_of(
        device, "AITER is not compared with", f"Configs of {configs}; defaults where it has none"
    )
    results = []
    for problem in PROBLEMS:
        entry = tuned_entry(problem, entries, device)
        for count in map(int, tokens.split(",")):
            line = Line(problem, device.target, count)
            config = entry.bucket(count).config if entry else line.family.default(problem, device.target)
            results.append(row(line, render(problem, device.target, config)))
            print(table(results[-1:])[-1], flush=True)
            torch.cuda.empty_cache()
    text = "\n".join([str(environment), "", *table(results)])
    print(f"\n{text}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "dependent_launch.md", text + "\n")
        document = {**asdict(environment), "rows": results}
        write_text_atomically(out / "dependent_launch.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
