"""What a fusion pass did, for people and for tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Match:
    """One rewrite.

    Attributes:
        pattern: Its pattern, one of `PATTERNS`.
        producer: Whose ops were replaced: ``"pytorch"``, ``"vllm_ir"``, ``"_C"``, ...
        rounding: The rounding that the new op has.
        where: Name of the node that quantised or that wrote the cache.
        graph: Number of the graph, from 0.
    """

    pattern: str
    producer: str
    rounding: str
    where: str
    graph: int


@dataclass(frozen=True)
class Miss:
    """Something that looked like a candidate and was left alone.

    Attributes:
        pattern: What it might have been.
        where: Name of the node that quantises or that writes the cache.
        reason: Why it was left alone.
        graph: Number of the graph, from 0.
    """

    pattern: str
    where: str
    reason: str
    graph: int


@dataclass
class Report:
    """What a pass has done in all graphs so far; ``str()`` of it is for people.

    Attributes:
        graphs: Number of graphs it was called on.
        matches: The rewrites, in order.
        misses: What was left alone, in order.
        others: Quantisers whose input is nothing like a norm (an activation function's output, say), by pattern.
    """

    graphs: int = 0
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """Matches by pattern, without those that had none."""
        return dict(Counter(match.pattern for match in self.matches))

    def of_graph(self, graph: int) -> Report:
        """The part of one graph; ``others`` is not kept by graph."""
        return Report(
            1,
            [match for match in self.matches if match.graph == graph],
            [miss for miss in self.misses if miss.graph == graph],
        )

    def __str__(self) -> str:
        plural = "" if self.graphs == 1 else "s"
        lines = [f"{len(self.matches)} matches in {self.graphs} graph{plural}"]
        groups = Counter((match.pattern, match.producer, match.rounding) for match in self.matches)
        lines += [
            f"  {count} x {pattern}, of {producer}, rounding {rounding}"
            for (pattern, producer, rounding), count in groups.items()
        ]
        if self.misses:
            lines.append(f"{len(self.misses)} candidates left alone")
            reasons: dict[tuple[str, str], list[str]] = {}
            for miss in self.misses:
                reasons.setdefault((miss.pattern, miss.reason), []).append(miss.where)
            for (pattern, reason), places in reasons.items():
                where = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
                lines.append(f"  {len(places)} x {pattern}: {reason} ({where})")
        lines += [f"{count} x {kind} of something other than a norm" for kind, count in self.others.items()]
        return "\n".join(lines)
