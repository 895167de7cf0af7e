"""Times what computes an op, interleaved in one process, after checking that it does compute it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunegen.bench.agreement import LANES_PER_ROW, RopeOutputs, mxfp4_agreement, rope_failures
from tunegen.bench.baselines import ROPE, ROPE_INPLACE, Baseline, is_f2
from tunegen.bench.line import Line
from tunegen.errors import BenchError
from tunegen.evaluate.measure import Replay, Timing, empty_kernel_replay, time_interleaved
from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Config, Problem

ROUNDS = 41


@dataclass(frozen=True)
class Ratio:
    """How many times longer one takes than another.

    Attributes:
        value: Median of the ratios of samples that were taken one after the other.
        spread: Their interquartile range.
        within_noise: It differs from 1 by no more than a kernel differs from itself.
    """

    value: float
    spread: float
    within_noise: bool

    def __str__(self) -> str:
        return f"{self.value:.2f}±{self.spread / 2:.2f}{'~' if self.within_noise else ''}"


@dataclass(frozen=True)
class Row:
    """Times of one problem at one token count.

    Attributes:
        problem: The op at one shape.
        tokens: Token count.
        bytes: Bytes that a call must move.
        config: The tuned config; None if the problem is not tuned for this device.
        timings: By name: empty, twin, default, default_again, tuned, tuned_again, compiled, unfused, aiter, ...
        undefined_scales: By name of a baseline, the share of its scales that are undefined on this GPU and wrong.
        wrong: By name of a baseline that does not compute what the op does, and so was not timed: what is wrong.
    """

    problem: Problem
    tokens: int
    bytes: int
    config: Config | None
    timings: dict[str, Timing]
    undefined_scales: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> str:
        """What the op runs: the tuned kernel, or the default one."""
        return "tuned" if "tuned" in self.timings else "default"

    @property
    def noise(self) -> float:
        """Relative difference that is no difference: of our kernel with itself, or half its spread."""
        timing, again = self.timings[self.ours], self.timings[f"{self.ours}_again"]
        return max(abs(timing.median / again.median - 1), timing.spread / timing.median / 2)

    def us(self, name: str) -> float | None:
        """Median of one, in microseconds; None if it was not timed."""
        return self.timings[name].median if name in self.timings else None

    def ratio(self, over: str, under: str | None = None) -> Ratio | None:
        """``over``'s time by ``under``'s, our kernel's if not given; None if one was not timed."""
        under = under or self.ours
        if over not in self.timings or under not in self.timings:
            return None
        pairs = zip(self.timings[over].samples, self.timings[under].samples, strict=True)
        timing = Timing.of([a / b for a, b in pairs])
        noise = max(self.noise, timing.spread / 2)
        return Ratio(timing.median, timing.spread, abs(timing.median - 1) <= noise)

    @property
    def gb_per_s(self) -> float:
        """Bytes that must be moved by our kernel's time."""
        return self.bytes / self.timings[self.ours].median / 1e3


class Judge:
    """Checks outputs on a line's first input set.

    Args:
        line: What is compared.

    Raises:
        BenchError: From `check`, if outputs are wrong: a time of them would be one of something else.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self.undefined_scales: dict[str, float] = {}

    def check(self, name: str, call: Callable[[Sequence[Any], Sequence[torch.Tensor]], Any], rounding: str,
              undefined: bool = False) -> None:  # fmt: skip
        """Calls once, on copies of what is written, and judges what is left."""
        line = self._line
        rope = line.problem.op in (ROPE, ROPE_INPLACE)
        judged = self._mxfp4 if is_f2(line.problem) else self._rope if rope else self._rows
        found = judged(name, call, rounding, undefined)
        if found:
            raise BenchError(
                f"{line.problem}, {line.tokens} tokens: {name} does not compute what the op does:"
                f" {'; '.join(found)}. Its time is worth nothing until it does."
            )

    def _fresh(self) -> list[torch.Tensor]:
        """Outputs in which nothing is right yet."""
        made = [torch.empty_like(output) for output in self._line.workload.outputs[0]]
        for output in made:
            # Scales may lie column by column.
            (output if output.stride(-1) == 1 else output.t()).view(torch.uint8).fill_(0xA5)
        return made

    def _mxfp4(self, name: str, call: Callable[..., Any], rounding: str, undefined: bool) -> list[str]:
        args = self._line.workload.inputs[0]
        found = mxfp4_agreement(args, rounding, call(args, self._fresh()), undefined)
        if undefined:
            self.undefined_scales[name] = found.undefined_scales / found.blocks
        return found.failures

    def _rows(self, name: str, call: Callable[..., Any], rounding: str, undefined: bool) -> list[str]:
        args = self._line.workload.inputs[0]
        return failures(self._line.problem, args, call(args, self._fresh()), LANES_PER_ROW)

    def _rope(self, name: str, call: Callable[..., Any], rounding: str, undefined: bool) -> list[str]:
        args = list(self._line.workload.inputs[0])
        inplace = self._line.problem.op == ROPE_INPLACE
        cache_at = 7 if inplace else 6
        cache = args[cache_at]
        width = cache.shape[-1]
        args[cache_at] = cache.clone()
        if inplace:
            before = _functional(args)
            args[1], args[2] = args[1].clone(), args[2].clone()
            call(args, [])
            left = _functional(args)
            q_out = torch.cat((before[0], left[1]), dim=-1)
            outputs = RopeOutputs(q_out, left[3].reshape(left[2].shape[0], -1), left[6].view(-1, width))
            return rope_failures(before, cache.view(-1, width), outputs)
        q_out, k_pe_out = call(args, self._fresh())
        return rope_failures(args, cache.view(-1, width), RopeOutputs(q_out, k_pe_out, args[6].view(-1, width)))


def _functional(args: Sequence[Any]) -> list[Any]:
    """Arguments of mla_rope_cache that do what a call of mla_rope_cache_ does, with zeros for the q that it lacks."""
    positions, q_pe, k_pe, kv_c, table, is_neox, slots, cache, _, scale, rounding = args
    q_nope = q_pe.new_zeros((*q_pe.shape[:2], kv_c.shape[1]))
    scale = scale if cache.element_size() == 1 else None
    return [q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots, scale, None, None, is_neox, False, rounding]


def time_all(graphs: Mapping[str, Replay]) -> dict[str, Timing]:
    """Times graphs interleaved, by name."""
    return dict(zip(graphs, time_interleaved(list(graphs.values()), ROUNDS), strict=True))


def compare(line: Line, tuned: Config | None, baselines: Sequence[Baseline]) -> Row:
    """Checks and times everything there is for a line.

    Args:
        line: The problem at one token count.
        tuned: The tuned config; None: the default one is all there is.
        baselines: What else. One named ``"tuned"`` takes the place of the tuned kernel. One that is wrong is not timed.

    Raises:
        BenchError: What the op itself computes is wrong.
    """
    workload, judge = line.workload, Judge(line)
    default = line.family.default(line.problem, line.target)
    configs = {"default": default, **({"tuned": tuned} if tuned else {})}
    taken = {baseline.name for baseline in baselines}
    for name, config in configs.items():
        kernel = line.kernel(config)

        def launch(args: Sequence[Any], outputs: Sequence[torch.Tensor], kernel: Any = kernel) -> Sequence[Any]:
            workload.op.launch(kernel, workload.units, tuple(outputs), *args)
            return outputs

        judge.check(name, launch, line.problem.rounding)
    wrong: dict[str, str] = {}
    for baseline in baselines:
        try:
            judge.check(baseline.name, baseline.call, baseline.rounding, baseline.undefined_scales)
        except BenchError as error:
            if baseline.name in ("tuned", "default"):  # the op itself, of a pack
                raise
            judge.undefined_scales.pop(baseline.name, None)
            wrong[baseline.name] = str(error)
    graphs = {"empty": empty_kernel_replay(), "twin": line.best_twin(*configs.values())}
    own = line.family.twin_of(line.problem, line.target, tuned or default)
    if own is not None:
        graphs["twin_same_launch"] = line.replay(own, twin=True)
    for name, config in configs.items():
        if name not in taken:
            graphs |= {name: line.replay(config), f"{name}_again": line.replay(config)}
    for baseline in [baseline for baseline in baselines if baseline.name not in wrong]:

        def call(index: int, baseline: Baseline = baseline) -> Any:
            return baseline.call(workload.inputs[index], workload.outputs[index])

        graphs[baseline.name] = line.replay_baseline(call)
        if baseline.name in ("tuned", "default"):
            graphs[f"{baseline.name}_again"] = line.replay_baseline(call)
    timings = time_all(graphs)
    return Row(line.problem, line.tokens, workload.bytes, tuned, timings, judge.undefined_scales, wrong)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return statistics.geometric_mean(values)
