"""The PyTorch reference of MXFP4, against hand-worked values and two slow oracles that share no code with it."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tunegen.runtime.reference.mxfp4 import (
    dequantize_mxfp4,
    e2m1_magnitude,
    e8m0_scale,
    pack_codes,
    quantize_mxfp4,
    unpack_codes,
)

GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Between two neighbours of the grid, and the even code of the two.
TIES = ((0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6))


def quantize_block(values: list[float], zero_blocks: bool = False) -> tuple[list[int], int]:
    """Codes and scale of up to 32 values; the rest of the block is zeros."""
    block = torch.zeros(32)
    block[: len(values)] = torch.tensor(values, dtype=torch.float32)
    q, scale = quantize_mxfp4(block.unsqueeze(0), zero_blocks)
    return unpack_codes(q)[0].tolist(), int(scale)


def float_of(bits: int) -> float:
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


# --- Oracles ---


def exact_oracle(values: np.ndarray) -> tuple[list[int], int]:
    """One finite block in exact arithmetic: the smallest scale that brings it under 7, then the nearest code.

    A value of significand m and exponent E is under 7 times 2^(E - 2) if m < 1.75, else under 7 times 2^(E - 1):
    that is the "even" rounding of the scale, said without bits.
    """
    exact = [Fraction(float(v)) for v in values]
    amax = max(map(abs, exact))
    e8 = 0
    while amax >= 7 * Fraction(2) ** (e8 - 127):
        e8 += 1
    codes = []
    for value, number in zip(values, exact, strict=True):
        scaled = abs(number) / Fraction(2) ** (e8 - 127)
        code = min(range(8), key=lambda c: (abs(scaled - Fraction(GRID[c])), c % 2))
        codes.append(code + 8 * int(np.signbit(value)))
    return codes, e8


def search_oracle(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of many blocks: nearest-value search in float64, in which every scaled value is exact."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = blocks.astype(np.float64)
    amax = np.abs(wide).max(axis=1)
    finite = np.isfinite(amax)
    limits = 7.0 * 2.0 ** (np.arange(254) - 127.0)
    e8 = np.searchsorted(limits, np.where(finite, amax, 0.0), side="right")
    scaled = np.abs(np.where(finite[:, None], wide, 0.0)) * 2.0 ** (127.0 - e8[:, None])
    distance = np.abs(scaled[..., None] - np.array(GRID))
    # Even codes first: argmin takes the first of equals.
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    codes = order[distance[..., order].argmin(axis=-1)] | (np.signbit(blocks) << 3)
    return np.where(finite[:, None], codes, 0), np.where(finite, e8, 255)


def dense_blocks(exponents: range | tuple[int, ...]) -> np.ndarray:
    """Blocks of every scale exponent given, with every tie, grid value and end of the range, +-2 ulp, both signs."""
    blocks = []
    for e8 in exponents:
        unit = 2.0 ** (e8 - 127)
        # The largest element sets the scale; scale 253 has no values above 4 units in fp32.
        amax = 6.0 * unit if e8 < 253 else float(np.finfo(np.float32).max)
        points = [0.0, 2.0**-149, 2.0**-126, *(v * unit for v in GRID), *(t * unit for t, _ in TIES)]
        points += [3.5 * unit, 6.96875 * unit, unit / 4096]
        bits = np.array([p for p in points if p <= amax], dtype=np.float32).view(np.int32)
        near = np.concatenate([bits + d for d in range(-2, 3)])
        near = near[(near >= 0) & (near < 0x7F800000)].view(np.float32)
        near = near[near < (7.0 * unit if e8 < 253 else np.inf)]
        near = np.concatenate([near, -near])
        near = np.pad(near, (0, -len(near) % 31)).reshape(-1, 31)
        blocks.append(np.concatenate([np.full((len(near), 1), amax, dtype=np.float32), near], axis=1))
    return np.concatenate(blocks).astype(np.float32)


# --- By hand ---


@pytest.mark.parametrize(("tie", "code"), TIES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ties_go_to_the_even_code(tie: float, code: int, sign: float) -> None:
    below, above = np.nextafter(np.float32(tie), np.float32(0)), np.nextafter(np.float32(tie), np.float32(9))
    lower = next(c for c in range(8) if GRID[c] < tie < GRID[c + 1])
    codes, scale = quantize_block([6.0, *(sign * float(v) for v in (below, tie, above))])
    bit = 8 if sign < 0 else 0
    assert scale == 127
    assert codes[:4] == [7, lower + bit, code + bit, lower + 1 + bit]


def test_grid_values_are_exact() -> None:
    codes, scale = quantize_block([*GRID, *(-v for v in GRID)])
    assert (codes[:16], scale) == ([*range(8), *range(8, 16)], 127)


def test_just_under_seven_is_six() -> None:
    codes, scale = quantize_block([float(np.nextafter(np.float32(7), np.float32(0)))])
    assert (codes[0], scale) == (7, 127)


def test_seven_takes_the_next_scale() -> None:
    assert quantize_block([7.0, 1.0]) == ([6, 1, *[0] * 30], 128)


def test_signed_zero_keeps_its_sign() -> None:
    codes, scale = quantize_block([1.0, -0.0, 0.0, -1e-30])
    assert (codes[:4], scale) == ([6, 8, 0, 8], 125)
    assert quantize_block([-0.0] * 32) == ([8] * 32, 0)
    assert quantize_block([-0.0] * 32, zero_blocks=True) == ([0] * 32, 0)


def test_subnormals_are_exact() -> None:
    # Scale 0 is 2^-127: fp32 subnormals are a half, a quarter, ... of the smallest normal number 2^-126.
    values = [2.0**-126, 2.0**-127, -(2.0**-128), 2.0**-129, 2.0**-129 + 2.0**-149, 2.0**-149]
    codes, scale = quantize_block(values)
    assert (codes[:6], scale) == ([4, 2, 9, 0, 1, 0], 0)


@pytest.mark.parametrize("bad", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("at", [0, 1, 31])
@pytest.mark.parametrize("zero_blocks", [False, True])
def test_a_bad_value_makes_its_block_nan(bad: int, at: int, zero_blocks: bool) -> None:
    rows = torch.ones(2, 96)
    rows.view(torch.int32)[0, 32 + at] = bad - (1 << 32) if bad >> 31 else bad
    rows[0, 32 + (at + 1) % 32] = -3e38
    q, scales = quantize_mxfp4(rows, zero_blocks)
    assert scales.tolist() == [[125, 255, 125], [125, 125, 125]]
    codes = unpack_codes(q)
    assert codes[0].tolist() == [6] * 32 + [0] * 32 + [6] * 32
    assert bool(torch.isnan(dequantize_mxfp4(q, scales)[0, 32:64]).all())


def test_zero_blocks_end_at_2_to_minus_64() -> None:
    limit = 2.0**-64
    under = float(np.nextafter(np.float32(limit), np.float32(0)))
    assert quantize_block([-limit, -0.0], zero_blocks=True) == ([14, 8, *[0] * 30], 61)
    assert quantize_block([-under, -0.0], zero_blocks=True) == ([0] * 32, 0)
    assert quantize_block([-under, -0.0]) == ([14, 8, *[0] * 30], 61)


def test_scale_of_every_exponent() -> None:
    """Field E of fp32 gives E - 2, or E - 1 from a significand of 1.75; 0 at least."""
    for field in range(255):
        under, at = float_of((field << 23) | 0x5FFFFF), float_of((field << 23) | 0x600000)
        smallest, largest = float_of(field << 23), float_of((field << 23) | 0x7FFFFF)
        scales = e8m0_scale(torch.tensor([smallest, under, at, largest], dtype=torch.float32)).tolist()
        assert scales == [max(field - 2, 0)] * 2 + [max(field - 1, 0)] * 2
    assert quantize_block([float(np.finfo(np.float32).max), 2.0**126])[1] == 253


def test_codes_are_packed_even_element_low() -> None:
    codes = torch.arange(32, dtype=torch.int32).reshape(1, 32) % 16
    packed = pack_codes(codes)
    assert packed.dtype == torch.uint8
    assert packed[0, :3].tolist() == [0x10, 0x32, 0x54]
    assert torch.equal(unpack_codes(packed), codes)
    q, _ = quantize_mxfp4(torch.tensor([[6.0, -0.5] + [0.0] * 30]), zero_blocks=False)
    assert int(q[0, 0]) == 0x97


# --- Against the oracles ---


def test_oracles_agree_and_hold_on_a_sample() -> None:
    blocks = dense_blocks((0, 1, 60, 127, 252, 253))
    codes, scales = search_oracle(blocks)
    for block, code, scale in zip(blocks, codes, scales, strict=True):
        assert (code.tolist(), int(scale)) == exact_oracle(block)


@pytest.mark.parametrize("first", range(0, 254, 64))
def test_every_scale_with_every_tie(first: int) -> None:
    blocks = dense_blocks(range(first, min(first + 64, 254)))
    codes, scales = search_oracle(blocks)
    q, got = quantize_mxfp4(torch.from_numpy(blocks), zero_blocks=False)
    assert np.array_equal(got.numpy().ravel(), scales)
    assert np.array_equal(unpack_codes(q).numpy(), codes)
    assert len(set(scales.tolist())) >= min(first + 64, 254) - first


def test_random_bit_patterns() -> None:
    """Any exponents together in a block, NaN and Inf in about a tenth of the blocks."""
    bits = np.random.default_rng(0).integers(0, 2**32, (20_000, 32), dtype=np.uint32)
    exponents = np.random.default_rng(1).integers(0, 255, (20_000, 1), dtype=np.uint32)
    # Half of the blocks within a few binades of each other, where codes other than 0 are common.
    near = (bits & 0x80FFFFFF) | (np.minimum(exponents + (bits >> 24) % 4, 255) << 23)
    blocks = np.where(np.arange(20_000)[:, None] % 2 == 0, bits, near).astype(np.uint32).view(np.float32)
    codes, scales = search_oracle(blocks)
    q, got = quantize_mxfp4(torch.from_numpy(blocks), zero_blocks=False)
    assert np.array_equal(got.numpy().ravel(), scales)
    assert np.array_equal(unpack_codes(q).numpy(), codes)


def test_magnitudes_of_every_small_pattern() -> None:
    """The 16-bit floats up to 7, each as it is and one fp32 ulp to either side: every tie is among them."""
    bits = torch.arange(0, 0x40E0, dtype=torch.int32) << 16
    near = torch.cat([bits, bits + 1, (bits - 1).clamp_min(0)])
    values = near.view(torch.float32)
    distance = (values.double().unsqueeze(-1) - torch.tensor(GRID, dtype=torch.float64)).abs()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    expected = order[distance[:, order].argmin(dim=-1)]
    assert torch.equal(e2m1_magnitude(values), expected.int())


# --- There and back ---


def test_dequantize_gives_the_values_of_the_codes() -> None:
    scales = torch.arange(254, dtype=torch.uint8).unsqueeze(1)
    codes = (torch.arange(32, dtype=torch.int32) % 16).expand(254, 32)
    values = dequantize_mxfp4(pack_codes(codes), scales)
    for row, column in itertools.product(range(254), range(32)):
        code = column % 16
        exact = Fraction(GRID[code % 8]) * Fraction(2) ** (row - 127)
        got = float(values[row, column])
        too_large = exact > Fraction(float(np.finfo(np.float32).max))
        assert math.isinf(got) if too_large else Fraction(abs(got)) == exact
        assert math.copysign(1, got) == (1 if code < 8 else -1)


def test_quantizing_again_changes_nothing() -> None:
    # Scale 253 is left out: its code 6 stands for 2^128, which fp32 has no value for.
    blocks = torch.from_numpy(dense_blocks(range(253)))
    q, scales = quantize_mxfp4(blocks, zero_blocks=False)
    again = quantize_mxfp4(dequantize_mxfp4(q, scales), zero_blocks=False)
    assert torch.equal(again[0], q)
    assert torch.equal(again[1], scales)


@pytest.mark.parametrize("zero_blocks", [False, True])
def test_no_tokens(zero_blocks: bool) -> None:
    q, scales = quantize_mxfp4(torch.empty(0, 64), zero_blocks)
    assert (q.shape, scales.shape) == ((0, 32), (0, 2))
