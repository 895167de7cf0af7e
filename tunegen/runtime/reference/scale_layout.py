"""Where the scales of a quantised [T, N] lie in memory, in plain PyTorch.

rows      [T, B], contiguous: B blocks a row.
columns   [T, B] with strides (1, T), as AITER's dynamic_mxfp4_quant returns them.
padded    [ceil(T, 256), ceil(B, 8)], contiguous; what has no block holds 127, which is 1.
shuffled  the same size and padding, in the order in which AITER's preshuffled MXFP4 GEMM reads it: of each tile of 32
          rows and 8 blocks, the rows m and m + 16 and the blocks n and n + 4 together.
"""

from __future__ import annotations

import torch

LAYOUTS = ("rows", "columns", "padded", "shuffled")
PADDING = 127
ROWS_MULTIPLE = 256
BLOCKS_MULTIPLE = 8


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def empty_scales(tokens: int, blocks: int, layout: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised scales of ``tokens`` rows of ``blocks`` blocks."""
    if layout == "columns":
        return torch.empty((blocks, tokens), dtype=dtype, device=device).t()
    if layout == "rows":
        return torch.empty((tokens, blocks), dtype=dtype, device=device)
    size = (_ceil(tokens, ROWS_MULTIPLE), _ceil(blocks, BLOCKS_MULTIPLE))
    return torch.empty(size, dtype=dtype, device=device)


def place(scales: torch.Tensor, layout: str) -> torch.Tensor:
    """Scales [T, B] in a layout."""
    tokens, blocks = scales.shape
    placed = empty_scales(tokens, blocks, layout, scales.dtype, scales.device)
    if layout in ("rows", "columns"):
        return placed.copy_(scales)
    placed.fill_(PADDING)
    placed[:tokens, :blocks] = scales
    return _shuffle(placed) if layout == "shuffled" else placed


def unplace(scales: torch.Tensor, layout: str, tokens: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `place`: scales [T, B], and what is in the padding, flat."""
    if layout in ("rows", "columns"):
        return scales, scales.new_empty(0)
    if layout == "shuffled":
        scales = _unshuffle(scales)
    return scales[:tokens, :blocks], torch.cat((scales[:tokens, blocks:].flatten(), scales[tokens:].flatten()))


def _shuffle(padded: torch.Tensor) -> torch.Tensor:
    rows, blocks = padded.shape
    return padded.view(rows // 32, 2, 16, blocks // 8, 2, 4).permute(0, 3, 5, 2, 4, 1).reshape(rows, blocks)


def _unshuffle(shuffled: torch.Tensor) -> torch.Tensor:
    rows, blocks = shuffled.shape
    return shuffled.view(rows // 32, blocks // 8, 4, 16, 2, 2).permute(0, 5, 3, 1, 4, 2).reshape(rows, blocks)
