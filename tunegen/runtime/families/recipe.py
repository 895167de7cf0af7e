"""What the ops that take and return rows are put together from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..reference.activation import ACTIVATION_ROUNDINGS, ACTIVATIONS
from ..reference.quantisers import QUANTISERS, Quantiser
from ..reference.rmsnorm_mxfp4 import ROUNDINGS
from ._op import OpInputError, Shape


@dataclass(frozen=True)
class Variant:
    """What is resolved when rendering, beside the shape: ``"none"``, ``"output,shuffled"``.

    Attributes:
        rounding: What is rounded to the activation dtype on the way.
        layout: Of the scales; "rows" is not part of the text.
    """

    rounding: str = "none"
    layout: str = "rows"

    def __str__(self) -> str:
        return self.rounding if self.layout == "rows" else f"{self.rounding},{self.layout}"


@dataclass(frozen=True)
class Recipe:
    """One op: where the rows come from, what is done to them, and what becomes of them.

    Attributes:
        name: Op name.
        source: ``"plain"``: x as it is; ``"norm"``: its RMSNorm; or an activation: f(gate) * up of x = gate | up.
        quantiser: Name of the quantiser; empty: there is none, and the rows are returned themselves.
        residual: Adds a residual first, and returns the sum.
        output_norm: Also returns the rows that are quantised, in the activation dtype.
        second: Also normalises x2 with a weight and an epsilon of its own.
    """

    name: str
    source: str
    quantiser: str = ""
    residual: bool = False
    output_norm: bool = False
    second: bool = False

    @property
    def norm(self) -> bool:
        """True if the rows are normalised."""
        return self.source == "norm"

    @property
    def activation(self) -> str:
        """The activation; empty if there is none."""
        return self.source if self.source in ACTIVATIONS else ""

    @property
    def quant(self) -> Quantiser | None:
        """The quantiser, if any."""
        return QUANTISERS[self.quantiser] if self.quantiser else None

    @property
    def width_name(self) -> str:
        """Name of the size that is the width of an output row."""
        return "intermediate_size" if self.activation else "hidden_size"

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes that its kernels are rendered for."""
        return (self.width_name, "second_size") if self.second else (self.width_name,)

    @property
    def multiple(self) -> int:
        """What the width must be a multiple of."""
        return self.quant.multiple if self.quant else 32

    @property
    def roundings(self) -> tuple[str, ...]:
        """The roundings that a call may ask for, synonyms too."""
        return ACTIVATION_ROUNDINGS if self.activation else ROUNDINGS if self.norm else ("none",)

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts of the scales, the usual one first."""
        return self.quant.layouts if self.quant else ("rows",)

    def width(self, shape: Shape) -> int:
        """Width of an output row."""
        return shape[self.width_name]

    def parse(self, text: str) -> Variant:
        """The inverse of ``str(variant)``. Raises OpInputError."""
        rounding, _, layout = text.partition(",")
        variant = Variant(rounding, layout or "rows")
        if rounding not in ROUNDINGS + ACTIVATION_ROUNDINGS or variant.layout not in self.layouts or layout == "rows":
            layouts = f", then one of {', '.join(self.layouts[1:])} after a comma" if self.layouts[1:] else ""
            raise OpInputError(
                f"a variant of {self.name} is one of {', '.join(self.roundings)}{layouts}; got {text!r}."
            )
        return variant

    def canonical(self, variant: Variant) -> Variant:
        """The variant with a synonymous rounding replaced by the one that is rendered."""
        rounding = variant.rounding
        if self.source == "plain":
            rounding = "none"
        if self.norm and not self.residual:
            # There is no sum to round: x has the activation dtype already.
            rounding = rounding.removeprefix("sum_")
        if not self.quantiser and rounding == "output":
            rounding = "none"
        return replace(variant, rounding=rounding)

    def variants(self) -> list[str]:
        """Every variant that is rendered, the usual one first."""
        every = (Variant(rounding, layout) for layout in self.layouts for rounding in self.roundings)
        return list(dict.fromkeys(str(self.canonical(variant)) for variant in every))


def _norms(quantiser: str) -> list[Recipe]:
    return [
        Recipe(f"dynamic_{quantiser}_quant", "plain", quantiser),
        Recipe(f"rmsnorm_{quantiser}_quant", "norm", quantiser),
        Recipe(f"rmsnorm_add_{quantiser}_quant", "norm", quantiser, residual=True),
    ]


def _fused(second: bool, residual: bool, output_norm: bool) -> Recipe:
    name = f"{'dual_' if second else ''}rmsnorm_{'add_' if residual else ''}{'and_' if output_norm else ''}mxfp4_quant"
    return Recipe(name, "norm", "mxfp4", residual, output_norm, second)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *_norms("mxfp4"),
        *(Recipe(f"{activation}_mul_mxfp4_quant", activation, "mxfp4") for activation in ACTIVATIONS),
        *(_fused(False, residual, True) for residual in (False, True)),
        Recipe("dual_rmsnorm", "norm", second=True),
        *(_fused(True, residual, output_norm) for output_norm in (False, True) for residual in (False, True)),
        *(recipe for quantiser in QUANTISERS if quantiser != "mxfp4" for recipe in _norms(quantiser)),
    )
}
