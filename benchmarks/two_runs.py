"""How far two tuning runs agree: where their winners differ, both are timed, interleaved.

Usage: python benchmarks/two_runs.py FIRST SECOND [--out DIR]

FIRST and SECOND are folders of tuned configs for the GPU here, such as the --out of two runs of `tunegen tune`. Of each
problem that both have, at each token count that both searched: whether the winners are one kernel, and if not whether
their times differ by more than the noise margin that the runs measured, the larger of the two.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from tunegen.bench.compare import ROUNDS
from tunegen.bench.line import Line, compile_side_by_side
from tunegen.bench.report import environment_of
from tunegen.bench.run import tuned_entry
from tunegen.codegen.render import render
from tunegen.configs import TunedBucket, load_entries
from tunegen.evaluate.measure import time_captured
from tunegen.files import write_text_atomically
from tunegen.ops import Problem
from tunegen.targets import Device, present_device

# Graphs of each kernel: of a short call one differs from another by 2 to 5 %, more than the margins.
CAPTURES = 9
COLUMNS = ("problem", "token counts", "the same kernel", "within the margin", "mean difference", "largest")


@dataclass(frozen=True)
class Pair:
    """The winners of two runs at one token count.

    Attributes:
        problem: The op at one shape.
        tokens: Token count.
        same: One kernel won both.
        margin: Relative difference that is noise, by the runs.
        first_us: Median of the first's winner; None where it is the second's too.
        second_us: Median of the second's.
    """

    problem: str
    tokens: int
    same: bool
    margin: float
    first_us: float | None = None
    second_us: float | None = None

    @property
    def difference(self) -> float:
        """How much slower the slower winner is, relatively."""
        if self.first_us is None or self.second_us is None:
            return 0.0
        return max(self.first_us, self.second_us) / min(self.first_us, self.second_us) - 1


Winners = list[tuple[Problem, int, TunedBucket, TunedBucket]]


def winners_of(first: Path, second: Path, device: Device) -> Winners:
    """What both runs searched, with the buckets of both."""
    before, after = (load_entries(folder, [device.target.name]) for folder in (first, second))
    found = []
    for entry in before:
        other = tuned_entry(entry.problem, after, device)
        if other is None or other.problem != entry.problem or not entry.device.matches(device.key):
            continue
        searched = [{b.tokens: b for b in each.buckets if "twin_us" in b.fields} for each in (entry, other)]
        found += [(entry.problem, tokens, searched[0][tokens], searched[1][tokens]) for tokens in searched[0]
                  if tokens in searched[1]]  # fmt: skip
    return found


def compare(winners: Winners, device: Device) -> list[Pair]:
    """Times the winners that differ."""
    target = device.target
    differing = [(p, bucket) for p, _, *both in winners if both[0].config != both[1].config for bucket in both]
    compile_side_by_side(render(problem, target, bucket.config) for problem, bucket in differing)
    pairs = []
    for problem, tokens, a, b in winners:
        margin = max(a.fields["margin"], b.fields["margin"])
        if a.config == b.config:
            pairs.append(Pair(str(problem), tokens, True, margin))
            continue
        line = Line(problem, target, tokens)
        first, second = time_captured([[line.replay(each.config) for _ in range(CAPTURES)] for each in (a, b)], ROUNDS)
        pairs.append(Pair(str(problem), tokens, False, margin, first.median, second.median))
    return pairs


def table(pairs: list[Pair]) -> list[str]:
    """A line a problem, and one of all."""
    by_problem: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_problem.setdefault(pair.problem, []).append(pair)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name, mine in [*by_problem.items(), ("all", pairs)]:
        differences = [pair.difference for pair in mine]
        within = sum(pair.difference <= pair.margin for pair in mine)
        worst = max(mine, key=lambda pair: pair.difference)
        figures = (f"{sum(differences) / len(mine):.1%}", f"{worst.difference:.1%} at {worst.tokens} tokens")
        counts = (str(len(mine)), str(sum(pair.same for pair in mine)), str(within))
        lines.append(f"| {name} | {' | '.join((*counts, *figures))} |")
    return lines


@click.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("second", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="Writes two_runs.md and two_runs.json here too.")
def main(first: Path, second: Path, out: Path | None) -> None:
    """Prints the table as Markdown."""
    device = present_device()
    if device is None:
        raise click.ClickException("Winners are compared by measuring them: run this on a GPU.")
    winners = winners_of(first, second, device)
    if not winners:
        raise click.ClickException(f"{first} and {second} have no problem in common that was measured on this GPU.")
    pairs = compare(winners, device)
    environment = environment_of(device, "AITER is not compared with", f"Winners of {first} and {second}")
    text = "\n".join([str(environment), "", *table(pairs)]) + "\n"
    print(text, end="")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "two_runs.md", text)
        document = {**asdict(environment), "pairs": [asdict(pair) for pair in pairs]}
        write_text_atomically(out / "two_runs.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
