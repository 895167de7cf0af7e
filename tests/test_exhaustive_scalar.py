"""All 2^32 fp32 patterns through the conversion of a rendered kernel, against the reference, bit for bit.

Takes half a minute of a GPU: `pytest --exhaustive tests/test_exhaustive_scalar.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunegen.codegen.render import render
from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.runtime.reference.mxfp4 import quantize_mxfp4
from tunegen.targets import present_device

HIDDEN_SIZE = 4096
BLOCKS = HIDDEN_SIZE // 32
CHUNK = 1 << 22
BELOW_SEVEN = 0x40E00000  # bits of 7.0: the conversion sees magnitudes below it
SIX = 0x40C00000

Quantise = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@pytest.fixture
def quantise(exhaustive: bool, tmp_path: Path) -> Quantise:
    if not exhaustive:
        pytest.skip("opt in with --exhaustive")
    device = present_device()
    assert device is not None, "the exhaustive check needs a GPU"
    op = OPS["dynamic_mxfp4_quant"]
    problem = Problem.of(op.name, {"hidden_size": HIDDEN_SIZE})
    config = get_family(op.name).default(problem, device.target)
    kernel = load_kernel(render(problem, device.target, config).write(tmp_path))

    def run(bits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = bits.view(torch.float32).view(-1, HIDDEN_SIZE)
        outputs = op.allocate(x)
        for output in outputs:
            output.fill_(0xA5)
        op.launch(kernel, device.key.units, outputs, x)
        return outputs

    return run


def patterns(start: int, count: int) -> torch.Tensor:
    """int32 bit patterns start, start + 1, ..., wrapped into the signed range."""
    values = torch.arange(start, start + count, dtype=torch.int64, device="cuda")
    return torch.where(values >= 1 << 31, values - (1 << 32), values).to(torch.int32)


def test_every_scaled_value(quantise: Quantise) -> None:
    """Every |q| < 7, either sign: beside a 6.0 the scale of a block is 1, and the code is that of the value."""
    per_row = 31 * BLOCKS
    rows = 1 << 11
    for sign in (0, 1 << 31):
        for start in range(0, BELOW_SEVEN, per_row * rows):
            wanted = torch.arange(start, start + per_row * rows, dtype=torch.int64, device="cuda")
            wanted = wanted.clamp_max(BELOW_SEVEN - 1) + sign
            wanted = torch.where(wanted >= 1 << 31, wanted - (1 << 32), wanted).to(torch.int32)
            bits = torch.full((rows * BLOCKS, 32), SIX, dtype=torch.int32, device="cuda")
            bits[:, 1:] = wanted.view(-1, 31)
            q, scales = quantise(bits)
            expected_q, expected_scales = quantize_mxfp4(bits.view(torch.float32).view(rows, -1), zero_blocks=False)
            assert torch.equal(scales, expected_scales)
            assert bool((scales == 127).all())
            assert torch.equal(q, expected_q), hex(start)


def test_every_block_maximum(quantise: Quantise) -> None:
    """Every one of the 2^32 patterns, NaN and Inf among them, as the largest value of a block of its own."""
    bits = torch.zeros((CHUNK, 32), dtype=torch.int32, device="cuda")
    for start in range(0, 1 << 32, CHUNK):
        bits[:, 5] = patterns(start, CHUNK)
        q, scales = quantise(bits)
        expected_q, expected_scales = quantize_mxfp4(bits.view(torch.float32), zero_blocks=False)
        assert torch.equal(scales.view(-1), expected_scales.view(-1)), hex(start)
        assert torch.equal(q.view(CHUNK, 16), expected_q), hex(start)
