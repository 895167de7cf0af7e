"""The quantisers that an op may end in; each has a macro in templates/lib/ and a judge in tunegen.evaluate.truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .fp8 import quantize_fp8, quantize_mxfp8
from .mla_rope import FP8_DTYPES
from .mxfp4 import quantize_mxfp4
from .nvfp4 import NV_BLOCK, quantize_nvfp4
from .scale_layout import LAYOUTS


@dataclass(frozen=True)
class Quantiser:
    """A format of codes and scales.

    Attributes:
        name: In the names of ops.
        block: Values a scale; 0: a whole row.
        codes: Codes a byte.
        scale_dtype: Of the scales.
        layouts: Of the scales, the usual one first.
        zero_blocks: Has a rule for blocks below 2^-64 in ops that normalise.
        native: Codes are the e4m3 of the device; else OCP's, or E2M1.
    """

    name: str
    block: int
    codes: int
    scale_dtype: torch.dtype
    layouts: tuple[str, ...]
    zero_blocks: bool = False
    native: bool = False

    @property
    def multiple(self) -> int:
        """What a row must be a multiple of: whole blocks, and whole words."""
        return max(self.block, 32)

    def blocks(self, hidden_size: int) -> int:
        """Scales a row."""
        return hidden_size // self.block if self.block else 1

    def q_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """Of the codes; ``dtype``: the e4m3 that is asked for, or that of the device."""
        if self.codes == 2:
            return torch.uint8
        return dtype if self.native and dtype is not None else torch.float8_e4m3fn

    def quantize(
        self,
        y: torch.Tensor,
        normalised: bool,
        dtype: torch.dtype | None = None,
        global_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales (in rows) of fp32 [T, N]; ``normalised``: the rule of zero blocks holds."""
        if self.name == "mxfp4":
            return quantize_mxfp4(y, zero_blocks=normalised)
        if self.name == "mxfp8":
            return quantize_mxfp8(y, zero_blocks=normalised)
        if self.name == "nvfp4":
            return quantize_nvfp4(y, global_scale)
        return quantize_fp8(y, self.block or y.shape[-1], self.q_dtype(dtype))


QUANTISERS: dict[str, Quantiser] = {
    quantiser.name: quantiser
    for quantiser in (
        Quantiser("mxfp4", 32, 2, torch.uint8, LAYOUTS, zero_blocks=True),
        Quantiser("mxfp8", 32, 1, torch.uint8, ("rows", "columns"), zero_blocks=True),
        Quantiser("fp8_group", 128, 1, torch.float32, ("rows", "columns"), native=True),
        Quantiser("fp8_token", 0, 1, torch.float32, ("rows",), native=True),
        Quantiser("nvfp4", NV_BLOCK, 2, torch.float8_e4m3fn, ("rows",)),
    )
}

__all__ = ["FP8_DTYPES", "QUANTISERS", "Quantiser"]
