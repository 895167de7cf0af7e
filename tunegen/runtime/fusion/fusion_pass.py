"""The pass: walks a post-grad graph and rewrites what it finds to the pack's ops."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

from ..api import Pack, unknown_name
from ..manifest import FILE_NAME
from ..table import TunegenPackWarning
from ..vllm import adapter
from . import norm_quant, rope_cache
from .nodes import NoMatchError
from .norms import Norm, find_norm
from .report import Match, Miss, Report
from .support import Support

PATTERNS = (*norm_quant.PATTERNS, *rope_cache.PATTERNS)


class FusionPass(CustomGraphPass):
    """Rewrites a graph to the ops of a pack: ``options={"post_grad_custom_post_pass": FusionPass(...)}``.

    Every rewrite keeps the rounding of the graph that it replaces. Whatever is not certain to be the same is left
    alone, and `report` says why. A graph in which nothing matched is warned of.

    Args:
        pack: The pack.
        patterns: Names among `PATTERNS`. Default: all of them.
        dump: A folder to write each graph to, before and after. Default: none is written.
        allow_reference: Rewrite also where the pack has no kernels for the shape and device, so that its reference in
            PyTorch runs: right, and slower than the graph was.

    Raises:
        PackNameError: There is no such pattern.
    """

    def __init__(
        self,
        pack: Pack,
        patterns: Sequence[str] | None = None,
        dump: Path | str | None = None,
        allow_reference: bool = False,
    ) -> None:
        for name in patterns or ():
            if name not in PATTERNS:
                raise unknown_name("pattern", name, PATTERNS)
        self._pack = pack
        self._patterns = PATTERNS if patterns is None else tuple(name for name in PATTERNS if name in patterns)
        self._dump = None if dump is None else Path(dump)
        self._support = Support(pack.table, allow_reference)
        self._options = (self._patterns, allow_reference)
        self._report = Report()

    def report(self) -> Report:
        """What was matched and what was not, in all graphs so far."""
        return self._report

    def uuid(self) -> str:
        """Changes with the patterns, the code of the pack, its kernels and its tuned configs.

        It is the same in every process that has the same pack and patterns, on every rank.
        """
        digest = hashlib.sha256(repr((self._pack.manifest.pack, self._options)).encode())
        digest.update((self._pack.root / FILE_NAME).read_bytes())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return f"{self._pack.manifest.pack} {self._pack.manifest.version} {digest.hexdigest()}"

    def __call__(self, graph: Graph) -> None:
        """Rewrites a graph in place."""
        number = self._report.graphs
        self._report.graphs += 1
        self._write(graph, number, "before")
        others = sum(self._report.others.values())
        self._norm_quant(graph, number)
        self._rope_cache(graph, number)
        graph.lint()
        self._write(graph, number, "after")
        self._say(self._report.of_graph(number), sum(self._report.others.values()) - others)

    def _norm_quant(self, graph: Graph, number: int) -> None:
        pack = self._pack.manifest.pack
        wanted = {name.partition(" -> ")[2] for name in self._patterns if name in norm_quant.PATTERNS}
        groups: dict[Node, list[norm_quant.Quantiser]] = {}
        for quantiser in norm_quant.find_quantisers(graph, pack):
            if quantiser.kind not in wanted:
                continue
            pattern = f"rms_norm -> {quantiser.kind}"
            try:
                norm = norm_quant.norm_of(quantiser)
            except NoMatchError as error:
                self._miss(pattern, quantiser.node, error, number)
                continue
            if norm is None:
                self._report.others[quantiser.kind] += 1
            else:
                groups.setdefault(norm.output, []).append(quantiser)
        for output, quantisers in groups.items():
            norm = find_norm(output)  # anew: its residual may be a sum that an earlier rewrite has replaced
            if norm is not None:
                self._fuse(graph, norm, quantisers, number)

    def _rope_cache(self, graph: Graph, number: int) -> None:
        pack = self._pack.manifest.pack
        for write in rope_cache.find_writes(graph, pack):
            if write.pattern not in self._patterns:
                continue
            where = write.node.name
            try:
                taken = rope_cache.fuse(graph, write, pack, self._support, self._adapter)
            except NoMatchError as error:
                self._miss(write.pattern, write.node, error, number)
            else:
                self._report.matches.append(Match(write.pattern, taken.producer, taken.rounding, where, number))

    def _adapter(self) -> Any:
        """The pack's op for vLLM's layers; None where vLLM is not installed."""
        pack = self._pack.manifest.pack
        return getattr(getattr(torch.ops, pack), adapter.NAME).default if adapter.register(pack) else None

    def _fuse(self, graph: Graph, norm: Norm, quantisers: list[norm_quant.Quantiser], number: int) -> None:
        forms = [norm, *([norm.without_residual] if norm.without_residual else [])]
        kept = [form for form in forms if self._names(form, quantisers) <= set(self._patterns)]
        names = sorted(self._names(norm, quantisers))
        where = [quantiser.node.name for quantiser in quantisers]
        if not kept:
            for name, place in zip(names, where, strict=False):
                self._report.misses.append(Miss(name, place, "the pattern is not among those asked for", number))
            return
        try:
            taken = norm_quant.fuse(graph, kept[0], quantisers, self._pack.manifest.pack, self._support)
        except NoMatchError as error:
            for quantiser in quantisers:
                self._miss(norm_quant.pattern_of(kept[0], quantiser.kind), quantiser.node, error, number)
            return
        for quantiser, place in zip(quantisers, where, strict=True):
            pattern = norm_quant.pattern_of(taken, quantiser.kind)
            self._report.matches.append(Match(pattern, taken.producer, taken.rounding, place, number))

    def _names(self, norm: Norm, quantisers: Sequence[norm_quant.Quantiser]) -> set[str]:
        return {norm_quant.pattern_of(norm, quantiser.kind) for quantiser in quantisers}

    def _miss(self, pattern: str, node: Node, error: NoMatchError, number: int) -> None:
        self._report.misses.append(Miss(pattern, node.name, str(error), number))

    def _say(self, report: Report, others: int) -> None:
        """Warns of a graph in which nothing matched."""
        if report.matches:
            return
        if report.misses:
            text = f"no pattern matched. {report}"
        elif others:
            text = f"no pattern matched: none of its {others} quantisers has a norm for input."
        else:
            text = "there is no quantiser of MXFP4 and no cache write in it, so that there is nothing to fuse."
        name = self._pack.manifest.pack
        warnings.warn(f"{name}.fusion.FusionPass: in a graph of {name}: {text}", TunegenPackWarning, stacklevel=2)

    def _write(self, graph: Graph, number: int, stage: str) -> None:
        if self._dump is None:
            return
        self._dump.mkdir(parents=True, exist_ok=True)
        (self._dump / f"graph{number}_{stage}.txt").write_text(graph_text(graph), encoding="utf-8")


def graph_text(graph: Graph) -> str:
    """A graph for people: a line a node, with dtype and shape."""
    lines = []
    for node in graph.nodes:
        found = node.meta.get("val")
        kind = f"{str(found.dtype)[6:]}{list(found.shape)} " if isinstance(found, torch.Tensor) else ""
        text = re.sub(r"^%(\S+) : \[[^]]*\] = ", r"\1 = ", node.format_node() or "return")
        lines.append(f"{kind}{text}")
    return "\n".join(lines) + "\n"
