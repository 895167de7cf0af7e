"""Compares problems one after another, a line at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from tunegen.bench.aiter import Aiter, load_aiter
from tunegen.bench.baselines import Baseline, baselines_of, pack_op
from tunegen.bench.compare import Row, compare
from tunegen.bench.line import Line, compile_ahead
from tunegen.configs import TunedEntry, load_entries
from tunegen.errors import BenchError, UsageError
from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.targets import Device

BASELINES = ("compiled", "unfused", "aiter")
Extra = Callable[[Problem], list[Baseline]]


def aiter_if_there(root: Path | None) -> tuple[Aiter | None, str]:
    """AITER, or why it is not compared with.

    Raises:
        UsageError: A folder was given and has no AITER that can be used.
    """
    try:
        return load_aiter(root), ""
    except UsageError as error:
        if root is not None:
            raise
        return None, str(error)


def tuned_entry(problem: Problem, entries: Sequence[TunedEntry], device: Device) -> TunedEntry | None:
    """The entry of this device that serves a problem: its own, or another variant's; measured before predicted."""
    mine = [entry for entry in entries if entry.op == problem.op and entry.device.matches(device.key)]
    own = [entry for entry in mine if entry.problem == problem]
    fitting = own or [entry for entry in mine if problem in get_family(problem.op).served(entry.problem)]
    return min(fitting, key=lambda entry: (entry.evidence != "measured", entry.dtype != "bfloat16"), default=None)


def import_pack(name: str) -> str:
    """Imports an installed pack, which registers its ops; returns what it is.

    Raises:
        UsageError: There is none, or it is no pack.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--pack takes the name of an installed pack; {name!r} does not import: {error}.") from error
    missing = [op for op in OPS if not hasattr(getattr(torch.ops, name), op)]
    if missing:
        raise UsageError(f"--pack takes the name of a pack; {name!r} registers no {missing[0]}. Emit one with `emit`.")
    return f"{name} {module.__version__}"


def raise_if_wrong(rows: Sequence[Row]) -> None:
    """Ends a comparison in which something was left out, once all else is written.

    Raises:
        BenchError: A baseline did not compute what the op does.
    """
    wrong = [reason for row in rows for reason in row.wrong.values()]
    if wrong:
        raise BenchError("\n".join(wrong))


def run(
    lines: Iterable[tuple[Problem, int]],
    device: Device,
    configs: Path,
    aiter: Aiter | None,
    against: Sequence[str] = BASELINES,
    pack: str | None = None,
    extra: Extra = lambda _: [],
    said: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """Times problems at token counts.

    Args:
        lines: What; the lines of a problem together.
        device: The GPU here.
        configs: Folder of tuned configs.
        aiter: AITER, if there is one.
        against: Which of `BASELINES`.
        pack: An imported pack, whose ops then take the place of the tuned kernels.
        extra: More baselines of a problem.
        said: Is told each row as it is there.

    Raises:
        BenchError: The op computes something else than it should.
    """
    token_counts: dict[Problem, list[int]] = {}
    for problem, tokens in lines:
        token_counts.setdefault(problem, []).append(tokens)
    entries = load_entries(configs, [device.target.name])
    chosen = {problem: tuned_entry(problem, entries, device) for problem in token_counts}
    compile_ahead(
        (
            (problem, [entry.bucket(tokens).config for tokens in token_counts[problem]] if entry else [])
            for problem, entry in chosen.items()
        ),
        device.target,
    )
    rows = []
    for problem, entry in chosen.items():
        baselines = [baseline for baseline in baselines_of(problem, aiter) if baseline.name in against]
        baselines += extra(problem)
        if pack:
            baselines.append(pack_op(pack, problem))
        for tokens in token_counts[problem]:
            line = Line(problem, device.target, tokens)
            rows.append(compare(line, entry.bucket(tokens).config if entry else None, baselines))
            said(rows[-1])
            del line
            torch.cuda.empty_cache()
    return rows
