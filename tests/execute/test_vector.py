"""VALU instructions against NumPy, Python integers and exact fractions, over edge values."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from bench_of_instructions import EDGES, edges, run, same_floats, set_exec, waves_of, words

from tunegen.execute.errors import ListingError
from tunegen.execute.small_floats import from_bfloat16, from_half

M32 = 0xFFFFFFFF


def signed(x: int) -> int:
    return x - 2**32 if x >> 31 else x


def unary_or_more(text: str, sources: int, function: Callable[..., int], seed: int = 0) -> None:
    """Runs ``text`` with v1, v2, v3 as sources and v0 as destination; ``function`` is of Python integers."""
    rng = np.random.default_rng(seed)
    waves = waves_of(4)
    inputs = [words(rng) for _ in range(sources)]
    for i, values in enumerate(inputs):
        waves.v[1 + i] = values
    run(waves, text)
    expected = [function(*(int(v[at]) for v in inputs)) & M32 for at in np.ndindex(4, 64)]
    assert waves.v[0].reshape(-1).tolist() == expected


INTEGERS: dict[str, Callable[..., int]] = {
    "v_add_u32_e32 v0, v1, v2": lambda a, b: a + b,
    "v_sub_u32_e32 v0, v1, v2": lambda a, b: a - b,
    "v_subrev_u32_e32 v0, v1, v2": lambda a, b: b - a,
    "v_add3_u32 v0, v1, v2, v3": lambda a, b, c: a + b + c,
    "v_mul_lo_u32 v0, v1, v2": lambda a, b: a * b,
    "v_mul_hi_u32 v0, v1, v2": lambda a, b: a * b >> 32,
    "v_mul_hi_i32 v0, v1, v2": lambda a, b: signed(a) * signed(b) >> 32,
    "v_mul_u32_u24_e32 v0, v1, v2": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mad_u32_u24 v0, v1, v2, v3": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_min_u32_e32 v0, v1, v2": min,
    "v_max_u32_e32 v0, v1, v2": max,
    "v_max3_u32 v0, v1, v2, v3": max,
    "v_min_i32_e32 v0, v1, v2": lambda a, b: min(signed(a), signed(b)),
    "v_max_i32_e32 v0, v1, v2": lambda a, b: max(signed(a), signed(b)),
    "v_max3_i32 v0, v1, v2, v3": lambda *x: max(map(signed, x)),
    "v_min3_i32 v0, v1, v2, v3": lambda *x: min(map(signed, x)),
    "v_med3_i32 v0, v1, v2, v3": lambda *x: sorted(map(signed, x))[1],
    "v_and_b32_e32 v0, v1, v2": lambda a, b: a & b,
    "v_or_b32_e32 v0, v1, v2": lambda a, b: a | b,
    "v_xor_b32_e32 v0, v1, v2": lambda a, b: a ^ b,
    "v_or3_b32 v0, v1, v2, v3": lambda a, b, c: a | b | c,
    "v_and_or_b32 v0, v1, v2, v3": lambda a, b, c: a & b | c,
    "v_xad_u32 v0, v1, v2, v3": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32 v0, v1, v2, v3": lambda a, b, c: a & b | ~a & c,
    "v_bfe_u32 v0, v1, v2, v3": lambda a, b, c: a >> (b & 31) & (1 << (c & 31)) - 1,
    "v_lshlrev_b32_e32 v0, v1, v2": lambda a, b: b << (a & 31),
    "v_lshrrev_b32_e32 v0, v1, v2": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32_e32 v0, v1, v2": lambda a, b: signed(b) >> (a & 31),
    "v_lshl_add_u32 v0, v1, v2, v3": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32 v0, v1, v2, v3": lambda a, b, c: (a + b & M32) << (c & 31),
    "v_lshl_or_b32 v0, v1, v2, v3": lambda a, b, c: a << (b & 31) | c,
    "v_alignbit_b32 v0, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_bfrev_b32_e32 v0, v1": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_not_b32_e32 v0, v1": lambda a: ~a,
    "v_bcnt_u32_b32 v0, v1, v2": lambda a, b: a.bit_count() + b,
    "v_mov_b32_e32 v0, v1": lambda a: a,
    "v_lshlrev_b16_e32 v0, v1, v2": lambda a, b: (b & 0xFFFF) << (a & 15) & 0xFFFF,
    "v_lshrrev_b16_e32 v0, v1, v2": lambda a, b: (b & 0xFFFF) >> (a & 15),
    "v_add_u16_e32 v0, v1, v2": lambda a, b: a + b & 0xFFFF,
    "v_pack_b32_f16 v0, v1, v2": lambda a, b: a & 0xFFFF | b << 16,
    "v_pack_b32_f16 v0, v1, v2 op_sel:[1,0,0]": lambda a, b: a >> 16 | b << 16,
    "v_bitop3_b32 v0, v1, v2, v3 bitop3:0xd8": lambda a, b, c: sum(
        (0xD8 >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32)
    ),
    "v_pk_add_u16 v0, v1, v2": lambda a, b: (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16,
    "v_add_u32_e64 v0, v1, v2 clamp": lambda a, b: min(a + b, M32),
    "v_sub_u32_e64 v0, v1, v2 clamp": lambda a, b: max(a - b, 0),
    "v_subrev_u32_e64 v0, v1, v2 clamp": lambda a, b: max(b - a, 0),
    "v_pk_add_u16 v0, v1, -1": lambda a: (a - 1 & 0xFFFF) | ((a >> 16) - 1 & 0xFFFF) << 16,
    # SDWA: selects, and where the result goes.
    "v_and_b32_sdwa v0, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:BYTE_3": lambda a, b: (
        a >> 16 & b >> 24
    ),
    "v_or_b32_sdwa v0, v1, v2 dst_sel:BYTE_1 dst_unused:UNUSED_PAD src0_sel:BYTE_0 src1_sel:DWORD": lambda a, b: (
        (a & 0xFF | b) << 8 & 0xFF00
    ),
    "v_add_u32_sdwa v0, v1, sext(v2) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:BYTE_2": lambda a, b: (
        a + ((b >> 16 & 0xFF) ^ 0x80) - 0x80
    ),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_integers(text: str) -> None:
    sources = INTEGERS[text].__code__.co_argcount if hasattr(INTEGERS[text], "__code__") else 0
    unary_or_more(text, sources or text.count("v") - 2 - text.count("_sdwa"), INTEGERS[text])


def test_perm() -> None:
    def perm(a: int, b: int, selector: int) -> int:
        data = b.to_bytes(4, "little") + a.to_bytes(4, "little")
        result = 0
        for i in range(4):
            s = selector >> 8 * i & 0xFF
            if s < 8:
                byte = data[s]
            elif s < 12:
                byte = 0xFF if data[2 * (s - 8) + 1] >> 7 else 0
            else:
                byte = 0 if s == 12 else 0xFF
            result |= byte << 8 * i
        return result

    rng = np.random.default_rng(0)
    waves = waves_of(4)
    selector = rng.integers(0, 15, (4, 64, 4)).astype(np.uint8).view(np.uint32)[..., 0]
    waves.v[1], waves.v[2], waves.v[3] = words(rng), words(rng), selector
    run(waves, "v_perm_b32 v0, v1, v2, v3")
    for at in np.ndindex(4, 64):
        assert waves.v[0][at] == perm(*(int(waves.v[i][at]) for i in (1, 2, 3)))


def test_carries_and_wide_integers() -> None:
    rng = np.random.default_rng(1)
    waves = waves_of(4)
    for i in range(1, 7):
        waves.v[i] = words(rng)
    run(waves, "v_add_co_u32_e32 v10, vcc, v1, v2", "s_nop 1", "v_addc_co_u32_e32 v11, vcc, v3, v4, vcc")
    run(waves, "v_sub_co_u32_e32 v12, vcc, v1, v2", "s_nop 1", "v_subb_co_u32_e32 v13, vcc, v3, v4, vcc")
    run(waves, "v_mad_u64_u32 v[14:15], s[0:1], v5, v6, v[1:2]", "v_lshl_add_u64 v[16:17], v[1:2], 3, v[3:4]")
    run(waves, "v_ashrrev_i64 v[18:19], 7, v[1:2]", "v_mad_i64_i32 v[20:21], s[2:3], v5, v6, v[1:2]")

    def wide(low: int, high: int) -> list[int]:
        return (waves.v[low].astype(object) + (waves.v[high].astype(object) << 32)).reshape(-1).tolist()

    x, y = wide(1, 3), wide(2, 4)
    assert wide(10, 11) == [(a + b) % 2**64 for a, b in zip(x, y, strict=True)]
    assert wide(12, 13) == [(a - b) % 2**64 for a, b in zip(x, y, strict=True)]
    c = wide(1, 2)
    five, six = waves.v[5].reshape(-1).tolist(), waves.v[6].reshape(-1).tolist()
    assert wide(14, 15) == [(a * b + z) % 2**64 for a, b, z in zip(five, six, c, strict=True)]
    sums = [signed(a) * signed(b) + z - (z >> 63 << 64) for a, b, z in zip(five, six, c, strict=True)]
    assert wide(20, 21) == [total % 2**64 for total in sums]
    assert waves.get_mask(2).reshape(-1).tolist() == [total < 0 for total in sums]
    assert wide(16, 17) == [((a << 3) + b) % 2**64 for a, b in zip(c, wide(3, 4), strict=True)]
    assert wide(18, 19) == [((a - (a >> 63 << 64)) >> 7) % 2**64 for a in c]


# --- fp32 ---


FLOATS: dict[str, Callable[..., Any]] = {
    "v_add_f32_e32 v0, v1, v2": lambda a, b: a + b,
    "v_sub_f32_e32 v0, v1, v2": lambda a, b: a - b,
    "v_mul_f32_e32 v0, v1, v2": lambda a, b: a * b,
    "v_mul_f32_e64 v0, -v1, |v2|": lambda a, b: -a * np.abs(b),
    "v_floor_f32_e32 v0, v1": np.floor,
    "v_rndne_f32_e32 v0, v1": np.rint,
    "v_trunc_f32_e32 v0, v1": np.trunc,
    "v_ldexp_f32 v0, v1, -3": lambda a: (a.astype(np.float64) * 0.125).astype(np.float32),
    "v_max_f32_e32 v0, v1, v2": np.fmax,
}


@pytest.mark.parametrize("text", FLOATS)
def test_floats(text: str) -> None:
    rng = np.random.default_rng(2)
    waves = waves_of(4)
    a, b = edges(rng), edges(rng)
    waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
    run(waves, text)
    with np.errstate(all="ignore"):
        expected = FLOATS[text](a, b) if "v2" in text else FLOATS[text](a)
    if "max" in text:
        signalling = [((x.view(np.uint32) & 0x400000) == 0) & np.isnan(x) for x in (a, b)]
        expected = np.where(signalling[0] | signalling[1], np.float32(np.nan), expected)
        zeros = (a == 0) & (b == 0)
        expected = np.where(zeros, np.where(np.signbit(a) & np.signbit(b), np.float32(-0.0), np.float32(0.0)), expected)
    assert same_floats(waves.v[0].view(np.float32), expected.astype(np.float32))


def round_fraction(value: Fraction, mantissa: int, lowest: int) -> Fraction:
    """To nearest even, of a format with ``mantissa`` bits behind the point and subnormals below 2^lowest."""
    if value == 0:
        return value
    exponent = lowest
    magnitude = abs(value)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - mantissa)
    return round(value / step) * step


@pytest.mark.parametrize("text", ["v_fma_f32 v0, v1, v2, v3", "v_pk_fma_f32 v[0:1], v[1:2], v[2:3], v[3:4]"])
def test_fma_is_rounded_once(text: str) -> None:
    rng = np.random.default_rng(3)
    # Products near the addend, ties, cancellation and subnormal results.
    a = (rng.integers(1, 2**24, (4, 64)) * 2.0 ** rng.integers(-80, -40, (4, 64))).astype(np.float32)
    b = (rng.integers(1, 2**12, (4, 64)) * 2.0 ** rng.integers(-90, -20, (4, 64))).astype(np.float32)
    near = (-a.astype(np.float64) * b * (1 + rng.integers(-3, 4, (4, 64)) * 2.0**-24)).astype(np.float32)
    halves = (2.0 ** rng.integers(-130, -60, (4, 64)) * (1 + rng.integers(0, 2**23, (4, 64)) * 2.0**-23)).astype(
        np.float32
    )
    c = np.where(rng.random((4, 64)) < 0.5, near, halves)
    waves = waves_of(4)
    waves.v[4] = waves.v[1]
    waves.v[1], waves.v[2], waves.v[3] = (x.view(np.uint32) for x in (a, b, c))
    run(waves, text)
    got = waves.v[0].view(np.float32)
    for at in np.ndindex(4, 64):
        exact = Fraction(float(a[at])) * Fraction(float(b[at])) + Fraction(float(c[at]))
        assert Fraction(float(got[at])) == round_fraction(exact, 23, -126)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("exponent", [0, -60, -126])
def test_fma_next_to_a_tie(sign: int, exponent: int) -> None:
    """The product is a little less than half an ulp of the addend: rounded to fp64 first, the sum is a tie."""
    up, down = np.float32(1 + 2.0**-23), np.float32(1 - 2.0**-23)
    half = np.float32(2.0 ** ((exponent - 24) // 2))
    addends = [2.0**exponent * (1 + 2.0**-23), 2.0**exponent * (1 + 3 * 2.0**-23)]
    # In the subnormals an ulp is what it is in the first binade of normal numbers.
    addends += [5 * 2.0**-149] if exponent == -126 else []
    for addend in addends:
        for direction in (np.float32(1), np.float32(-1)):
            a, b, c = up * half * direction, down * half * np.float32(sign), np.float32(addend * sign)
            waves = waves_of()
            for i, value in enumerate((a, b, c), 1):
                waves.v[i] = np.full((1, 64), value, np.float32).view(np.uint32)
            run(waves, "v_fma_f32 v4, v1, v2, v3")
            exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
            assert Fraction(float(waves.v[4].view(np.float32)[0, 0])) == round_fraction(exact, 23, -126)
            # The addend, which is odd, and not its even neighbour.
            assert waves.v[4][0, 0] == waves.v[3][0, 0]


def test_maximum3_keeps_nan_and_puts_plus_zero_above() -> None:
    rng = np.random.default_rng(12)
    waves = waves_of(4)
    a, b, c = values = [edges(rng) for _ in range(3)]
    for i, value in enumerate(values, 1):
        waves.v[i] = value.view(np.uint32)
    run(waves, "v_maximum3_f32 v4, v1, v2, v3", "v_maximum3_f32 v5, |v1|, -v2, v2")
    for register, one, two, three in ((4, a, b, c), (5, np.abs(a), -b, b)):
        got = waves.v[register].view("f4")
        for at in np.ndindex(4, 64):
            of = [float(x[at]) for x in (one, two, three)]
            if any(np.isnan(of)):
                assert np.isnan(got[at])
            else:
                largest = max(of, key=lambda x: (x, not np.signbit(x)))
                assert (got[at], np.signbit(got[at])) == (largest, np.signbit(largest))
    with pytest.raises(ListingError, match="does not know the opcode"):
        run(waves_of(arch="gfx942"), "v_maximum3_f32 v4, v1, v2, v3", arch="gfx942")


def test_min_max_med_of_nan() -> None:
    waves = waves_of()
    nan, snan = np.uint32(0x7FC00001), np.uint32(0x7F800001)
    one = np.float32(1).view(np.uint32)
    zero, negative = np.uint32(0), np.uint32(0x80000000)
    for v1, v2, maximum, minimum in (
        (nan, one, one, one),
        (one, nan, one, one),
        (snan, one, np.uint32(0x7FC00001), np.uint32(0x7FC00001)),
        (zero, negative, zero, negative),
        (negative, zero, zero, negative),
    ):
        waves.v[1], waves.v[2] = np.full((1, 64), v1), np.full((1, 64), v2)
        run(waves, "v_max_f32_e32 v3, v1, v2", "v_min_f32_e32 v4, v1, v2")
        assert (waves.v[3] == maximum).all()
        assert (waves.v[4] == minimum).all()
    waves.v[1], waves.v[2] = np.full((1, 64), nan), np.full((1, 64), one)
    waves.v[3] = np.full((1, 64), np.float32(5).view(np.uint32))
    run(waves, "v_med3_f32 v4, v1, v2, v3")
    assert (waves.v[4] == one).all()


def test_min_max_med_of_three_halves() -> None:
    rng = np.random.default_rng(13)
    waves = waves_of(4)
    for i in (1, 2, 3):
        with np.errstate(all="ignore"):
            waves.v[i] = edges(rng).astype(np.float16).view(np.uint16).astype(np.uint32)
    values = [waves.v[i].astype(np.uint16).view(np.float16).astype(np.float64) for i in (1, 2, 3)]
    numbers = ~np.isnan(values).any(axis=0)
    a, b, c = (np.abs(values[0]), values[1], values[2])
    for name, expected in (
        ("max3", np.max([a, b, c], axis=0)),
        ("min3", np.min([a, b, c], axis=0)),
        ("med3", np.sort([a, b, c], axis=0)[1]),
    ):
        run(waves, f"v_{name}_f16 v4, |v1|, v2, v3")
        got = (waves.v[4] & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float64)
        assert (got == expected)[numbers].all()


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_approximations_are_within_their_error(ulps: int) -> None:
    rng = np.random.default_rng(4)
    waves = waves_of(4, ulps=ulps)
    a = np.abs(edges(rng))
    waves.v[1] = a.view(np.uint32)
    names = {"rcp": lambda x: 1 / x, "rsq": lambda x: 1 / np.sqrt(x), "sqrt": np.sqrt, "log": np.log2, "exp": np.exp2}
    for name, function in names.items():
        run(waves, f"v_{name}_f32_e32 v2, v1")
        got = waves.v[2].view(np.float32)
        flushed = np.where(np.abs(a) < 2.0**-126, np.float32(0), a)
        with np.errstate(all="ignore"):
            exact = function(flushed.astype(np.float64))
            nearest = exact.astype(np.float32)
        ordinary = np.isfinite(nearest) & (np.abs(nearest) >= 2.0**-126) & np.isfinite(a)
        error = (got.astype(np.float64) - exact)[ordinary]
        ulp = np.spacing(np.abs(nearest[ordinary])).astype(np.float64)
        assert (np.abs(error) <= (0.5 + abs(ulps)) * ulp).all()
        shifted = got.view(np.uint32)[ordinary].astype(np.int64) - nearest.view(np.uint32)[ordinary]
        inexact = nearest[ordinary].astype(np.float64) != exact[ordinary]
        assert (shifted[inexact] == ulps).all()
        assert (shifted[~inexact] == 0).all()
    # Subnormals count as zero.
    waves.v[1] = np.full((4, 64), 1, np.uint32)
    run(waves, "v_rsq_f32_e32 v2, v1", "v_rcp_f32_e32 v3, v1")
    assert np.isposinf(waves.v[2].view(np.float32)).all()
    assert np.isposinf(waves.v[3].view(np.float32)).all()


DIVISION = """v_div_scale_f32 v10, s[0:1], v2, v2, v1
v_div_scale_f32 v11, vcc, v1, v2, v1
v_rcp_f32_e32 v12, v10
s_nop 0
v_fma_f32 v13, -v10, v12, 1.0
v_fmac_f32_e32 v12, v13, v12
v_mul_f32_e32 v14, v11, v12
v_fma_f32 v15, -v10, v14, v11
v_fmac_f32_e32 v14, v15, v12
v_fma_f32 v11, -v10, v14, v11
v_div_fmas_f32 v14, v11, v12, v14
v_div_fixup_f32 v0, v14, v2, v1"""


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_division_is_correctly_rounded(ulps: int) -> None:
    """The sequence that LLVM makes of a division, with the three instructions that scale, fix up and scale back."""
    rng = np.random.default_rng(5)
    waves = waves_of(4, ulps=ulps)
    a, b = edges(rng), edges(rng)
    waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
    run(waves, *DIVISION.splitlines())
    got = waves.v[0].view(np.float32)
    with np.errstate(all="ignore"):
        expected = a / b
    # A subnormal quotient is rounded twice, as on the hardware.
    small = (np.abs(expected) < 2.0**-126) & (expected != 0)
    assert same_floats(got[~small], expected[~small])
    assert (np.abs(got[small].astype(np.float64) - expected[small]) <= 2.0**-149).all()


# --- Conversions ---


def test_conversions_to_16_bits() -> None:
    rng = np.random.default_rng(6)
    waves = waves_of(4)
    a, b = edges(rng), edges(rng)
    waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
    run(waves, "v_cvt_pk_bf16_f32 v3, v1, v2", "v_cvt_pk_f16_f32 v4, v1, v2", "v_cvt_f16_f32_e32 v5, v1")
    run(waves, "v_cvt_pkrtz_f16_f32 v6, v1, v2", "v_cvt_f32_f16_e32 v7, v4")
    run(waves, "v_cvt_f32_f16_sdwa v8, v4 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1")

    def halves(register: int) -> tuple[np.ndarray, np.ndarray]:
        return waves.v[register] & 0xFFFF, waves.v[register] >> 16

    for values, got in zip((a, b), halves(3), strict=True):
        expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
        assert same_floats((got << 16).view(np.float32), expected)
    for values, got in zip((a, b), halves(4), strict=True):
        with np.errstate(all="ignore"):
            assert same_floats(got.astype(np.uint16).view(np.float16).astype("f4"), values.astype("f2").astype("f4"))
    assert (waves.v[5] == halves(4)[0]).all()
    assert same_floats(waves.v[7].view("f4"), halves(4)[0].astype(np.uint16).view("f2").astype("f4"))
    assert same_floats(waves.v[8].view("f4"), halves(4)[1].astype(np.uint16).view("f2").astype("f4"))
    for values, got in zip((a, b), halves(6), strict=True):
        half = got.astype(np.uint16).view(np.float16).astype(np.float64)
        finite = np.isfinite(values) & (np.abs(values) < 65536)
        assert (np.abs(half[finite]) <= np.abs(values[finite])).all()
        assert (
            np.abs(values - half)[finite]
            < np.maximum(np.spacing(np.abs(got.astype(np.uint16).view("f2")))[finite], 6e-8)
        ).all()


def test_overflow_of_fp16_saturates_with_the_mode_bit() -> None:
    waves = waves_of()
    waves.v[1] = np.full((1, 64), np.float32(1e6)).view(np.uint32)
    waves.v[2] = np.full((1, 64), np.float32(np.inf)).view(np.uint32)
    run(waves, "v_cvt_pk_f16_f32 v3, v1, v2")
    assert (waves.v[3] == 0x7C007C00).all()
    run(
        waves,
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1",
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 2, 2), 0",  # rounding of fp16: to nearest even, as it is
        "v_cvt_pk_f16_f32 v3, v1, v2",
        "v_add_f16_e32 v4, v3, v3",
    )
    assert (waves.v[3] == 0x7C007BFF).all()
    assert (waves.v[4] == 0x7BFF).all()


@pytest.mark.parametrize(("arch", "dtype"), [("gfx950", torch.float8_e4m3fn), ("gfx942", torch.float8_e4m3fnuz)])
def test_conversion_to_fp8(arch: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(7)
    largest = torch.finfo(dtype).max
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    finite = np.sort(codes[np.isfinite(codes)])
    ties = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([finite, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))])
    values = np.concatenate([values, rng.standard_normal(4 * 64 * 8).astype(np.float32)])[: 4 * 64 * 4].astype(
        np.float32
    )
    for chunk in values.reshape(-1, 4, 64):
        waves = waves_of(4, arch)
        waves.v[1], waves.v[2] = chunk.view(np.uint32), (-chunk).view(np.uint32)
        waves.v[3] = np.full((4, 64), 0xDEADBEEF, np.uint32)
        run(waves, "v_cvt_pk_fp8_f32 v3, v1, v2 op_sel:[0,0,1]", arch=arch)
        assert (waves.v[3] & 0xFFFF == 0xBEEF).all()
        for shift, source in ((16, chunk), (24, -chunk)):
            got = ((waves.v[3] >> np.uint32(shift)) & 0xFF).astype(np.uint8)
            expected = torch.from_numpy(source.copy()).to(dtype).view(torch.uint8).numpy()
            assert (got == expected).all()
    waves = waves_of(1, arch)
    waves.v[1] = np.full((1, 64), np.float32(largest * 4)).view(np.uint32)
    waves.v[2] = np.full((1, 64), np.float32(np.nan)).view(np.uint32)
    run(waves, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1", "v_cvt_pk_fp8_f32 v3, v1, v2", arch=arch)
    low = torch.tensor([int(waves.v[3][0, 0]) & 0xFF, int(waves.v[3][0, 0]) >> 8 & 0xFF], dtype=torch.uint8).view(dtype)
    assert float(low[0]) == largest
    assert bool(low.float()[1].isnan())


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@pytest.mark.parametrize("byte", range(4))
def test_conversion_to_fp4(byte: int) -> None:
    rng = np.random.default_rng(8)
    for exponent in (0, 1, 100, 127, 128, 200, 254):
        scale = np.float32(2.0 ** (exponent - 127)) if exponent else np.uint32(0).view(np.float32)
        a = (rng.choice(EDGES, (4, 64)) * scale).astype(np.float32)
        b = (rng.uniform(-8, 8, (4, 64)) * scale).astype(np.float32)
        waves = waves_of(4)
        waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
        # The mantissa and sign of the scale are ignored.
        waves.v[3] = np.full((4, 64), exponent << 23 | 0x80000000 | 0x123456, np.uint32)
        waves.v[4] = np.full((4, 64), 0x89ABCDEF, np.uint32)
        select = {0: "", 1: " op_sel:[0,0,1,0]", 2: " op_sel:[0,0,0,1]", 3: " op_sel:[0,0,1,1]"}[byte]
        run(waves, "v_cvt_scalef32_pk_fp4_f32 v4, v1, v2, v3" + select)
        others = ~(0xFF << 8 * byte) & M32
        assert (waves.v[4] & others == 0x89ABCDEF & others).all()
        got = waves.v[4] >> np.uint32(8 * byte) & 0xFF
        for at in np.ndindex(4, 64):
            for value, code in ((a[at], got[at] & 15), (b[at], got[at] >> 4)):
                if np.isfinite(value):
                    q = abs(Fraction(float(value))) / Fraction(2) ** (exponent - 127)
                    nearest = min(range(8), key=lambda i: (abs(Fraction(E2M1[i]) - q), i & 1))
                else:
                    nearest = 7
                assert code == nearest | (8 if np.signbit(value) else 0)


@pytest.mark.parametrize("form", ["bf16", "f16"])
def test_conversion_of_16_bits_to_fp4_is_that_of_the_same_fp32_values(form: str) -> None:
    pairs = np.random.default_rng(9).integers(0, 2**32, (4, 64), np.uint32)
    pairs[0, :16] = [0x80000000, 0x00018001, 0x7F80FF80, 0x7FC0FFC1, 0x7C00FC00, 0x7E01FE00, 0x3F803F40, 0x7F7F7BFF] * 2
    unpack = {"bf16": from_bfloat16, "f16": from_half}[form]
    for exponent in (0, 1, 120, 127, 200, 254):
        waves = waves_of(4)
        waves.v[1] = pairs
        waves.v[2], waves.v[3] = (unpack(half).view(np.uint32) for half in (pairs & 0xFFFF, pairs >> np.uint32(16)))
        waves.v[4] = np.full((4, 64), exponent << 23, np.uint32)
        waves.v[5] = waves.v[6] = np.zeros((4, 64), np.uint32)
        for select in (" op_sel:[0,0,1,0]", " op_sel:[0,0,1,1]"):
            run(waves, f"v_cvt_scalef32_pk_fp4_{form} v5, v1, v4{select}", "s_nop 0")
            run(waves, f"v_cvt_scalef32_pk_fp4_f32 v6, v2, v3, v4{select}", "s_nop 0")
        assert waves.v[5].any()
        assert (waves.v[5] == waves.v[6]).all()


def test_fp4_of_an_unusable_scale_and_from_bfloat16() -> None:
    waves = waves_of()
    waves.v[1] = np.full((1, 64), 0xC0403F80, np.uint32)  # bf16 1.0, -3.0
    waves.v[2] = np.full((1, 64), 0x7F800000, np.uint32)
    waves.v[3] = waves.v[4] = np.zeros((1, 64), np.uint32)
    run(waves, "v_cvt_scalef32_pk_fp4_bf16 v3, v1, 1.0", "v_cvt_scalef32_pk_fp4_bf16 v4, v1, v2")
    assert (waves.v[3] == 0xD2).all()
    assert (waves.v[4] == 0xF7).all()
    assert np.float32(EDGES[0]) == 0


# --- Comparisons, lanes, masks ---


def test_comparisons_and_selection_under_a_lane_mask() -> None:
    rng = np.random.default_rng(9)
    a, b = edges(rng), edges(rng)
    mask = 0x0F0F_1234_8001_FFFF
    lanes = np.array([mask >> i & 1 for i in range(64)], bool)
    conditions = {
        "lt": a < b, "eq": a == b, "gt": a > b, "lg": (a < b) | (a > b),
        "u": np.isnan(a) | np.isnan(b), "neq": a != b, "nlt": ~(a < b), "nge": ~(a >= b),
    }  # fmt: skip
    conditions["o"] = ~conditions["u"]
    for name, expected in conditions.items():
        waves = waves_of(4)
        waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
        waves.v[0] = np.full((4, 64), 7, np.uint32)
        set_exec(waves, mask)
        run(waves, f"v_cmp_{name}_f32_e64 s[4:5], v1, v2", "s_nop 1", "v_cndmask_b32_e64 v0, v1, v2, s[4:5]")
        bits = waves.get_s64(4)
        assert [int(x) for x in bits] == [
            sum(1 << i for i in range(64) if expected[w, i] and lanes[i]) for w in range(4)
        ]
        chosen = np.where(expected, waves.v[2], waves.v[1])
        assert (waves.v[0] == np.where(lanes, chosen, 7)).all()


def test_lane_reads() -> None:
    rng = np.random.default_rng(10)
    waves = waves_of(4)
    waves.v[1] = words(rng)
    set_exec(waves, 0xFF00)
    run(waves, "v_readfirstlane_b32 s4, v1", "v_readlane_b32 s5, v1, 63", "v_writelane_b32 v1, 17, 3")
    assert (waves.s[4] == waves.v[1][:, 8]).all()
    assert (waves.s[5] == waves.v[1][:, 63]).all()
    assert (waves.v[1][:, 3] == 17).all()
    set_exec(waves, 0)
    run(waves, "s_nop 0", "v_readfirstlane_b32 s4, v1")
    assert (waves.s[4] == waves.v[1][:, 0]).all()


@pytest.mark.parametrize(("name", "width"), [("v_permlane32_swap_b32_e32", 32), ("v_permlane16_swap_b32_e32", 16)])
def test_permlane_swap(name: str, width: int) -> None:
    waves = waves_of()
    waves.v[1], waves.v[2] = np.arange(64, dtype=np.uint32)[None], np.arange(100, 164, dtype=np.uint32)[None]
    run(waves, f"{name} v1, v2")
    one, two = list(range(64)), list(range(100, 164))
    for start in range(0, 64, 2 * width):
        for i in range(width):
            one[start + width + i], two[start + i] = two[start + i], one[start + width + i]
    assert waves.v[1][0].tolist() == one
    assert waves.v[2][0].tolist() == two


def dpp_source(control: str, lane: int) -> int | None:  # noqa: PLR0911 - one a control
    """What lane a lane reads, by the document's words; None outside."""
    row, at = divmod(lane, 16)
    name, _, text = control.partition(":")
    if name == "quad_perm":
        return lane // 4 * 4 + int(text.strip("[]").split(",")[lane % 4])
    if name == "row_shl":
        return lane + int(text) if at + int(text) < 16 else None
    if name == "row_shr":
        return lane - int(text) if at >= int(text) else None
    if name == "row_ror":
        return row * 16 + (at - int(text)) % 16
    if name == "row_mirror":
        return row * 16 + 15 - at
    if name == "row_half_mirror":
        return lane // 8 * 8 + 7 - lane % 8
    if control == "row_bcast:15":
        return row * 16 - 1 if row else None
    assert control == "row_bcast:31"
    return 31 if row >= 2 else None


@pytest.mark.parametrize(
    "control",
    [
        "quad_perm:[2,3,0,1]",
        "quad_perm:[1,1,0,3]",
        "row_shl:8",
        "row_shl:1",
        "row_shr:4",
        "row_shr:15",
        "row_ror:5",
        "row_mirror",
        "row_half_mirror",
        "row_bcast:15",
        "row_bcast:31",
    ],
)
@pytest.mark.parametrize("masks", [(0xF, 0xF), (0xA, 0xF), (0xF, 0x5)])
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("active", [2**64 - 1, 0x00FF_F0F0_3333_FFFE])
def test_dpp(control: str, masks: tuple[int, int], bound: bool, active: int) -> None:
    waves = waves_of()
    data, old = np.arange(1000, 1064, dtype=np.uint32), np.arange(2000, 2064, dtype=np.uint32)
    waves.v[1], waves.v[0] = data[None], old[None]
    set_exec(waves, active)
    row_and_bank = f"row_mask:{masks[0]:#x} bank_mask:{masks[1]:#x}"
    run(waves, f"v_mov_b32_dpp v0, v1 {control} {row_and_bank}{' bound_ctrl:1' if bound else ''}")
    for lane in range(64):
        source = dpp_source(control, lane)
        if source is not None and not active >> source & 1:
            source = None
        enabled = active >> lane & 1 and masks[0] >> lane // 16 & 1 and masks[1] >> lane % 16 // 4 & 1
        expected = old[lane]
        if enabled and (source is not None or bound):
            expected = data[source] if source is not None else 0
        assert waves.v[0][0, lane] == expected, lane


# --- Packed ---


def test_packed_fp32_selects_and_negates() -> None:
    rng = np.random.default_rng(11)
    waves = waves_of(4)
    values = [edges(rng) for _ in range(4)]
    for i, value in enumerate(values, 2):
        waves.v[i] = value.view(np.uint32)
    a, b, c, d = values
    with np.errstate(all="ignore"):
        for modifiers, low, high in (
            ("", a * c, b * d),
            (" op_sel:[1,0] op_sel_hi:[0,1]", b * c, a * d),
            (" op_sel_hi:[0,1]", a * c, a * d),
            (" neg_lo:[0,1] neg_hi:[1,0]", a * -c, -b * d),
        ):
            run(waves, f"v_pk_mul_f32 v[0:1], v[2:3], v[4:5]{modifiers}")
            assert same_floats(waves.v[0].view("f4"), low)
            assert same_floats(waves.v[1].view("f4"), high)
        run(
            waves,
            "v_pk_mul_f32 v[0:1], v[2:3], 2.0 op_sel_hi:[1,0]",
            "v_pk_mov_b32 v[6:7], v[2:3], v[4:5] op_sel:[1,0]",
            # How LLVM negates a pair.
            "v_pk_add_f32 v[8:9], v[2:3], 0 neg_lo:[1,1] neg_hi:[1,1]",
        )
    assert same_floats(waves.v[8].view("f4"), -a)
    assert same_floats(waves.v[9].view("f4"), -b)
    assert same_floats(waves.v[1].view("f4"), b * np.float32(2))
    assert (waves.v[6] == waves.v[3]).all()
    assert (waves.v[7] == waves.v[4]).all()


def test_packed_fp16_and_mixed() -> None:
    rng = np.random.default_rng(12)
    waves = waves_of(4)
    a, b = (rng.integers(0, 2**16, (4, 64, 2)).astype(np.uint16) for _ in range(2))
    waves.v[1], waves.v[2] = a.view(np.uint32)[..., 0], b.view(np.uint32)[..., 0]
    c = edges(rng)
    waves.v[3] = c.view(np.uint32)
    waves.v[6] = np.full((4, 64), 0xABCD1234, np.uint32)
    run(waves, "v_pk_add_f16 v4, v1, v2", "v_pk_mul_f16 v5, v1, v2 op_sel:[1,0] op_sel_hi:[0,0] neg_hi:[0,1]")
    run(
        waves,
        "v_fma_mixlo_f16 v6, v1, v3, 1.0 op_sel:[1,0,0] op_sel_hi:[1,0,0]",
        "v_fma_mix_f32 v7, |v1|, -v3, v3 op_sel_hi:[1,0,0]",
    )
    x, y = a.view(np.float16).astype(np.float64), b.view(np.float16).astype(np.float64)

    def same_halves(got: np.ndarray, expected: np.ndarray) -> bool:
        with np.errstate(all="ignore"):
            return same_floats(got.astype(np.uint16).view("f2").astype("f4"), expected.astype("f2").astype("f4"))

    with np.errstate(all="ignore"):
        assert same_halves(waves.v[4] & 0xFFFF, x[..., 0] + y[..., 0])
        assert same_halves(waves.v[4] >> 16, x[..., 1] + y[..., 1])
        assert same_halves(waves.v[5] & 0xFFFF, x[..., 1] * y[..., 0])
        assert same_halves(waves.v[5] >> 16, x[..., 0] * -y[..., 0])
        assert (waves.v[6] >> 16 == 0xABCD).all()
        got = (waves.v[6] & 0xFFFF).astype(np.uint16).view("f2").astype(np.float64)
        mixed = waves.v[7].view(np.float32)
    for at in np.ndindex(4, 64):
        if np.isfinite(c[at]) and np.isfinite(x[(*at, 1)]) and np.isfinite(got[at]):
            exact = Fraction(x[(*at, 1)]) * Fraction(float(c[at])) + 1
            assert Fraction(got[at]) == round_fraction(exact, 10, -14)
        if np.isfinite(c[at]) and np.isfinite(x[(*at, 0)]) and np.isfinite(mixed[at]):
            exact = -abs(Fraction(x[(*at, 0)])) * Fraction(float(c[at])) + Fraction(float(c[at]))
            assert Fraction(float(mixed[at])) == round_fraction(exact, 23, -126)


def test_a_mixed_product_with_zero_added_loses_the_sign_of_zero() -> None:
    """LLVM makes this of a product of fp16 and fp32 that is rounded to fp16; -0 becomes +0."""
    waves = waves_of()
    waves.v[1] = np.full((1, 64), 0x8000, np.uint32)
    waves.v[2] = np.full((1, 64), np.float32(3)).view(np.uint32)
    waves.v[0] = np.zeros((1, 64), np.uint32)
    run(waves, "v_fma_mixlo_f16 v0, v1, v2, 0 op_sel_hi:[1,0,0]")
    assert (waves.v[0] == 0).all()


# --- What is not known ---


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]", "does not know the opcode v_mfma_f32_32x32x8"),
        ("v_add_f32_e64 v0, v1, v2 mul:2", "mul"),
        ("v_mov_b32_dpp v0, v1 row_xmask:3 row_mask:0xf bank_mask:0xf", "row_xmask"),
        ("v_pk_mul_f32 v[0:1], v[2:3], 2.0", "high half of a constant"),
        ("v_add_u32_e32 v0, -v1, v2", "negation is not modelled"),
        ("v_add_f32_e32 v0, v1, v[2:3]", "registers"),
        ("v_mul_f32_e32 v0, v1", "2 sources are due"),
        ("v_mov_b32_e32 v256, v1", "256 registers"),
        ("s_mov_b64 s[0:1], 0x80000000", "not modelled"),
        ("buffer_load_dword v0, v1, s[0:3], 0 idxen", "idxen"),
    ],
)
def test_what_is_not_modelled_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ListingError, match=r"line 1: .*") as raised:
        run(waves_of(), text)
    assert says in str(raised.value)
    assert text.split(maxsplit=1)[0] in str(raised.value)


def test_what_only_gfx950_has_is_not_known_on_gfx942() -> None:
    with pytest.raises(ListingError, match="does not know the opcode v_cvt_pk_bf16_f32 on gfx942"):
        run(waves_of(arch="gfx942"), "v_cvt_pk_bf16_f32 v0, v1, v2", arch="gfx942")
