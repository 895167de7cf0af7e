"""What a graph without a fused form runs: a compiled norm or gate, a quantiser, a compiled copy of the scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunegen.bench.agreement import LANES_PER_ROW, Mxfp4Agreement, mxfp4_agreement
from tunegen.bench.baselines import add_norm, norm
from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem
from tunegen.runtime.families.recipe import RECIPES, Recipe, Variant
from tunegen.runtime.reference.activation import activate
from tunegen.runtime.reference.scale_layout import place, unplace

Outputs = tuple[torch.Tensor, ...]
# Rows [T, N] to their codes and scales.
Quantise = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Form:
    """A fused form: its problem, and that of the quantiser that its unfused sequence ends in, if any."""

    problem: Problem
    quantiser: Problem | None

    @property
    def recipe(self) -> Recipe:
        """What the form is put together from."""
        return RECIPES[self.problem.op]

    @property
    def layout(self) -> str:
        """Of the scales."""
        return self.recipe.parse(self.problem.rounding).layout


def gated(x: torch.Tensor, activation: str) -> torch.Tensor:
    """f(gate) * up rounded to the activation dtype once."""
    gate, up = x.to(torch.float32).chunk(2, dim=-1)
    return (activate(gate, activation) * up).to(x.dtype)


class Unfused:
    """The compiled parts of all unfused sequences."""

    def __init__(self) -> None:
        # Whole graphs alone: past its limit of sizes, Dynamo would go on uncompiled.
        compiled: list[Callable[..., Any]] = [torch.compile(f, fullgraph=True) for f in (norm, add_norm, gated, place)]
        self._norm, self._add_norm, self._gated, self._place = compiled
        torch._dynamo.config.recompile_limit = 64

    def first(self, form: Form, args: Sequence[Any]) -> tuple[torch.Tensor, Outputs]:
        """The rows that are quantised, and what the form returns after codes and scales."""
        recipe = form.recipe
        others: list[torch.Tensor] = []
        _mark(*args)
        if recipe.activation:
            return self._gated(args[0], recipe.activation), ()
        count = 4 if recipe.residual else 3
        if recipe.residual:
            rows, total = self._add_norm(*args[:count])
            others.append(total)
        else:
            rows = self._norm(*args[:count])
        if recipe.output_norm or not recipe.quantiser:
            others.append(rows)
        if recipe.second:
            others.append(self._norm(*args[count : count + 3]))
        return rows, tuple(others)

    def run(self, form: Form, args: Sequence[Any], quantise: Quantise | None) -> Outputs:
        """The whole sequence: the outputs of the form, in its order.

        Args:
            form: What is computed.
            args: The op's arguments in schema order.
            quantise: The second step; None for a form that does not quantise.
        """
        rows, others = self.first(form, args)
        if quantise is None:
            return others
        q, scales = quantise(rows)
        if form.layout != "rows":
            _mark(scales)
            scales = self._place(scales, form.layout)
        return (q, scales, *others)


def _mark(*args: Any) -> None:
    """Has Inductor compile for any number of tokens but 1, and for the width that there is."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.dim() == 2:
            torch._dynamo.mark_static(arg, 1)
            if arg.shape[0] > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)


def wrong_in(form: Form, args: Sequence[Any], rows: torch.Tensor, outputs: Outputs) -> list[str]:
    """What is wrong with what a sequence with this project's quantiser returned; empty if nothing is.

    Of a gate what follows it is judged, bit for bit: the bounds for an activation are those of the kernels' formulas.

    Args:
        form: What was computed.
        args: The op's arguments in schema order.
        rows: What the quantiser was given.
        outputs: The form's.
    """
    if form.recipe.activation and form.quantiser:
        return failures(form.quantiser, (rows,), outputs, LANES_PER_ROW)
    variant = form.recipe.canonical(Variant("output", form.layout))
    return failures(Problem(form.problem.op, form.problem.shape, str(variant)), args, outputs, LANES_PER_ROW)


def aiters_agreement(form: Form, rows: torch.Tensor, outputs: Outputs) -> Mxfp4Agreement:
    """The codes and scales that a sequence with AITER's quantiser returned, against those of the rows it was given.

    What is the same in both sequences is judged by `wrong_in`.
    """
    q, placed = outputs[:2]
    tokens, columns = rows.shape
    assert form.recipe.quant
    scales, _ = unplace(placed, form.layout, tokens, form.recipe.quant.blocks(columns))
    return mxfp4_agreement((rows,), "none", (q, scales), undefined_scales_allowed=torch.version.hip is None)
