"""Times the tuned kernel, the default one and the traffic twin of a problem, interleaved."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tunegen.codegen.render import render
from tunegen.configs import TunedEntry
from tunegen.evaluate.measure import Replay, Timing, Workload, empty_kernel_replay, time_interleaved
from tunegen.ops import Config, get_family
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import get_target

ROUNDS = 21
LOOKS = 5


@dataclass(frozen=True)
class Comparison:
    """Times of one problem at one token count, in microseconds.

    Attributes:
        tokens: Token count.
        gib: GiB that a call must move.
        empty, twin, default, tuned: Timings; the twin is the best over its launch choices.
        again: The tuned kernel once more: how far a kernel differs from itself.
        config: The tuned config.
    """

    tokens: int
    gib: float
    empty: Timing
    twin: Timing
    default: Timing
    tuned: Timing
    again: Timing
    config: Config

    @property
    def noise(self) -> float:
        """Relative difference that is no difference."""
        return max(
            abs(self.tuned.median / self.again.median - 1),
            max(timing.spread / timing.median for timing in (self.tuned, self.again, self.default)) / 2,
        )


def compare(entry: TunedEntry, token_counts: list[int]) -> list[Comparison]:
    """Times an entry's winners at each token count on the current GPU."""
    problem, target = entry.problem, get_target(entry.target)
    family = get_family(problem.op)
    rows = []
    with tempfile.TemporaryDirectory(prefix="tunegen-bench-") as name:
        folder = Path(name)
        empty = empty_kernel_replay()
        for tokens in token_counts:
            workload = Workload(problem, tokens)

            def replay(config: Config, twin: bool = False, workload: Workload = workload) -> Replay:
                kernel = load_kernel(render(problem, target, config, twin=twin).write(folder))
                return Replay(workload.launch(kernel), sets=len(workload.inputs))

            tuned = entry.bucket(tokens).config
            own = [family.twin_of(problem, target, config) for config in (family.default(problem, target), tuned)]
            twins = [replay(config, twin=True) for config in [*family.twin_configs(problem, target), *own] if config]
            looks = time_interleaved(twins, LOOKS)
            twin = min(zip(looks, twins, strict=True), key=lambda look: look[0].median)[1]
            graphs = [empty, twin, replay(family.default(problem, target)), replay(tuned), replay(tuned)]
            nothing, moved, usual, best, again = time_interleaved(graphs, ROUNDS)
            rows.append(Comparison(tokens, workload.bytes / 2**30, nothing, moved, usual, best, again, tuned))
    return rows
