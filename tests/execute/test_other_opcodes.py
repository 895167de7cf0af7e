"""Opcodes that no other file here tests, against Python integers and NumPy; and that none is left out.

Three operands are v1, v2 and v3 (s2 and s3), the result is v0 (s0), unless the text says otherwise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_of_instructions import edges, run, same_floats, set_exec, waves_of, words

from tunegen.execute.isa import local, packed, scalar, vector

M16, M24, M32, M64 = 2**16 - 1, 2**24 - 1, 2**32 - 1, 2**64 - 1
LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


def signed(x: int, bits: int = 32) -> int:
    x &= 2**bits - 1
    return x - 2**bits if x >> bits - 1 else x


def leading(x: int, bits: int) -> int:
    return bits - x.bit_length() if x else -1


def lowest(x: int) -> int:
    return (x & -x).bit_length() - 1


def field(a: int, offset: int, width: int) -> int:
    found = signed(a) >> offset & 2**width - 1
    return signed(found, width) if width else 0


def pairs(function: Callable[[int, int], int], a: int, b: int) -> int:
    return function(a & M16, b & M16) & M16 | (function(a >> 16, b >> 16) & M16) << 16


# --- Scalar ---

SCALAR: dict[str, Callable[[int, int], tuple[int, bool | None]]] = {
    "s_absdiff_i32 s0, s2, s3": lambda a, b: (abs(signed(a - b)), a != b),
    "s_addk_i32 s2, 0x8000": lambda a, b: (a - 0x8000, signed(a) - 0x8000 < -(2**31)),
    "s_mulk_i32 s2, 0xffff": lambda a, b: (-a, None),
    "s_bfm_b32 s0, s2, s3": lambda a, b: ((1 << (a & 31)) - 1 << (b & 31), None),
    "s_bfe_i32 s0, s2, s3": lambda a, b: (
        x := field(a, b & 31, min(b >> 16 & 127, 32)) & M32,
        x != 0,
    ),
    "s_cmov_b32 s2, s3": lambda a, b: (b, None),
    "s_flbit_i32_b32 s0, s2": lambda a, b: (leading(a, 32), None),
    "s_lshl1_add_u32 s0, s2, s3": lambda a, b: ((a << 1) + b, (a << 1) + b > M32),
    "s_lshl3_add_u32 s0, s2, s3": lambda a, b: ((a << 3) + b, (a << 3) + b > M32),
    "s_lshl4_add_u32 s0, s2, s3": lambda a, b: ((a << 4) + b, (a << 4) + b > M32),
    "s_max_u32 s0, s2, s3": lambda a, b: (max(a, b), a > b),
    "s_min_i32 s0, s2, s3": lambda a, b: (min(signed(a), signed(b)), signed(a) < signed(b)),
    "s_pack_hh_b32_b16 s0, s2, s3": lambda a, b: (a >> 16 | b >> 16 << 16, None),
    "s_pack_lh_b32_b16 s0, s2, s3": lambda a, b: (a & M16 | b >> 16 << 16, None),
    "s_sext_i32_i8 s0, s2": lambda a, b: (signed(a, 8), None),
    "s_bitcmp0_b32 s2, s3": lambda a, b: (a, not a >> (b & 31) & 1),
    "s_nand_b32 s0, s2, s3": lambda a, b: (~(a & b), a & b != M32),
    "s_nor_b32 s0, s2, s3": lambda a, b: (~(a | b), a | b != M32),
    "s_orn2_b32 s0, s2, s3": lambda a, b: (a | ~b, (a | ~b) & M32 != 0),
    "s_xnor_b32 s0, s2, s3": lambda a, b: (~(a ^ b), a ^ b != M32),
}


@pytest.mark.parametrize("text", SCALAR)
def test_scalar(text: str) -> None:
    rng = np.random.default_rng(0)
    waves = waves_of(256)
    a, b = words(rng, (256,)), words(rng, (256,))
    waves.s[2], waves.s[3], waves.scc = a, b, np.ones(256, np.bool_)
    run(waves, text)
    expected = [SCALAR[text](int(x), int(y)) for x, y in zip(a, b, strict=True)]
    destination = 2 if text.split()[1] == "s2," else 0
    assert waves.s[destination].tolist() == [result & M32 for result, _ in expected]
    assert waves.scc.tolist() == [True if scc is None else scc for _, scc in expected]


@pytest.mark.parametrize("name", COMPARE)
def test_scalar_comparisons(name: str) -> None:
    """s_cmp_* and s_cmpk_* of u32, i32 and u64."""
    rng = np.random.default_rng(1)
    waves = waves_of(512)
    for i in (2, 3, 4, 5):
        waves.s[i] = words(rng, (512,))
    # Some are the same.
    waves.s[3] = np.where(rng.random(512) < 0.2, waves.s[2], waves.s[3])
    waves.s[2] = np.where(rng.random(512) < 0.2, np.uint32(0x8001), waves.s[2])
    waves.s[5] = np.where(rng.random(512) < 0.5, waves.s[3], waves.s[5])
    a, b, c, d = ([int(x) for x in waves.s[i]] for i in (2, 3, 4, 5))
    function = COMPARE[name]
    for text, got in (
        (f"s_cmp_{name}_u32 s2, s3", [function(x, y) for x, y in zip(a, b, strict=True)]),
        (f"s_cmp_{name}_i32 s2, s3", [function(signed(x), signed(y)) for x, y in zip(a, b, strict=True)]),
        (f"s_cmpk_{name}_u32 s2, 0x8001", [function(x, 0x8001) for x in a]),
        (f"s_cmpk_{name}_i32 s2, 0x8001", [function(signed(x), -0x7FFF) for x in a]),
    ):
        run(waves, text)
        assert waves.scc.tolist() == got, text
    if name in ("eq", "lg"):
        run(waves, f"s_cmp_{name}_u64 s[2:3], s[4:5]")
        wide = zip(a, b, c, d, strict=True)
        assert waves.scc.tolist() == [function(x | y << 32, z | w << 32) for x, y, z, w in wide]


def test_scalar_pairs_and_choices() -> None:
    rng = np.random.default_rng(2)
    waves = waves_of(256)
    for i in range(4, 8):
        waves.s[i] = np.where(rng.random(256) < 0.1, np.uint32(0), words(rng, (256,)))
    x = [int(a) | int(b) << 32 for a, b in zip(waves.s[4], waves.s[5], strict=True)]
    y = [int(a) | int(b) << 32 for a, b in zip(waves.s[6], waves.s[7], strict=True)]
    for name, function in LOGIC.items():
        run(waves, f"s_{name}_b64 s[0:1], s[4:5], s[6:7]")
        assert waves.get_s64(0).tolist() == [function(a, b) & M64 for a, b in zip(x, y, strict=True)], name
        assert waves.scc.tolist() == [function(a, b) & M64 != 0 for a, b in zip(x, y, strict=True)], name
    run(waves, "s_not_b64 s[0:1], s[4:5]", "s_flbit_i32_b64 s2, s[4:5]", "s_ff1_i32_b64 s3, s[4:5]")
    assert waves.get_s64(0).tolist() == [~a & M64 for a in x]
    assert waves.s[2].tolist() == [leading(a, 64) & M32 for a in x]
    assert waves.s[3].tolist() == [lowest(a) & M32 for a in x]
    run(waves, "s_bcnt1_i32_b64 s2, s[4:5]")
    assert waves.s[2].tolist() == [a.bit_count() for a in x]
    assert waves.scc.tolist() == [a != 0 for a in x]
    chosen = rng.random(256) < 0.5
    waves.scc = chosen
    waves.set_s64(8, waves.get_s64(4))
    waves.s[10] = waves.s[4]
    run(waves, "s_cselect_b64 s[0:1], s[4:5], s[6:7]", "s_cmov_b64 s[8:9], s[6:7]", "s_cmov_b32 s10, s6")
    assert waves.get_s64(0).tolist() == [a if c else b for a, b, c in zip(x, y, chosen, strict=True)]
    assert waves.get_s64(8).tolist() == [b if c else a for a, b, c in zip(x, y, chosen, strict=True)]
    assert waves.s[10].tolist() == [(b if c else a) & M32 for a, b, c in zip(x, y, chosen, strict=True)]


@pytest.mark.parametrize("name", ["and", "or", "xor", "andn2", "andn1", "orn2", "nand"])
def test_lane_masks_are_saved_and_changed(name: str) -> None:
    """s_*_saveexec_b64: EXEC becomes the source combined with EXEC."""
    function = (lambda a, b: ~a & b) if name == "andn1" else LOGIC[name]
    before, source = 0xFF00_FF00_0000_FFFF, 0xF0F0_0000_1234_00FF
    for active, given in ((before, source), (before, before), (before, 0), (M64, M64)):
        waves = waves_of(2)
        set_exec(waves, active)
        waves.set_s64(4, np.full(2, given, np.uint64))
        run(waves, f"s_{name}_saveexec_b64 s[2:3], s[4:5]")
        after = function(given, active) & M64
        assert waves.get_s64(2).tolist() == [active] * 2
        assert waves.get_s64(126).tolist() == [after] * 2
        assert waves.scc.tolist() == [after != 0] * 2


# --- Vector integers ---

INTEGERS: dict[str, Callable[..., int]] = {
    "v_add_i32 v0, v1, v2": lambda a, b: a + b,
    "v_sub_i32 v0, v1, v2": lambda a, b: a - b,
    "v_xnor_b32_e32 v0, v1, v2": lambda a, b: ~(a ^ b),
    "v_alignbyte_b32 v0, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_bfe_i32 v0, v1, v2, v3": lambda a, b, c: field(a, b & 31, c & 31),
    "v_bfm_b32 v0, v1, v2": lambda a, b: (1 << (a & 31)) - 1 << (b & 31),
    "v_ffbh_u32_e32 v0, v1": lambda a: leading(a, 32),
    "v_ffbl_b32_e32 v0, v1": lowest,
    "v_mad_i32_i24 v0, v1, v2, v3": lambda a, b, c: signed(a, 24) * signed(b, 24) + c,
    "v_mul_i32_i24_e32 v0, v1, v2": lambda a, b: signed(a, 24) * signed(b, 24),
    "v_mul_hi_u32_u24_e32 v0, v1, v2": lambda a, b: (a & M24) * (b & M24) >> 32,
    "v_med3_u32 v0, v1, v2, v3": lambda a, b, c: sorted((a, b, c))[1],
    "v_min3_u32 v0, v1, v2, v3": min,
    "v_sad_u32 v0, v1, v2, v3": lambda a, b, c: abs(a - b) + c,
    "v_sub_u16_e32 v0, v1, v2": lambda a, b: a - b & M16,
    "v_subrev_u16_e32 v0, v1, v2": lambda a, b: b - a & M16,
    "v_mul_lo_u16_e32 v0, v1, v2": lambda a, b: a * b & M16,
    "v_mad_legacy_u16 v0, v1, v2, v3": lambda a, b, c: a * b + c & M16,
    "v_ashrrev_i16_e32 v0, v1, v2": lambda a, b: signed(b, 16) >> (a & 15) & M16,
    "v_min_u16_e32 v0, v1, v2": lambda a, b: min(a & M16, b & M16),
    "v_max_u16_e32 v0, v1, v2": lambda a, b: max(a & M16, b & M16),
    "v_min_i16_e32 v0, v1, v2": lambda a, b: min(signed(a, 16), signed(b, 16)) & M16,
    "v_max_i16_e32 v0, v1, v2": lambda a, b: max(signed(a, 16), signed(b, 16)) & M16,
    "v_pk_add_i16 v0, v1, v2": lambda a, b: pairs(lambda x, y: x + y, a, b),
    "v_pk_sub_i16 v0, v1, v2": lambda a, b: pairs(lambda x, y: x - y, a, b),
    "v_pk_sub_u16 v0, v1, v2": lambda a, b: pairs(lambda x, y: x - y, a, b),
    "v_pk_mul_lo_u16 v0, v1, v2": lambda a, b: pairs(lambda x, y: x * y, a, b),
    "v_pk_min_u16 v0, v1, v2": lambda a, b: pairs(min, a, b),
    "v_pk_max_u16 v0, v1, v2": lambda a, b: pairs(max, a, b),
    "v_pk_lshlrev_b16 v0, v1, v2": lambda a, b: pairs(lambda x, y: y << (x & 15), a, b),
    "v_pk_lshrrev_b16 v0, v1, v2": lambda a, b: pairs(lambda x, y: y >> (x & 15), a, b),
    "v_pk_mad_u16 v0, v1, v2, v3": lambda a, b, c: (
        (a & M16) * (b & M16) + c & M16 | ((a >> 16) * (b >> 16) + (c >> 16) & M16) << 16
    ),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_vector_integers(text: str) -> None:
    rng = np.random.default_rng(3)
    waves = waves_of(4)
    count = len(re.findall(r"v[123]\b", text))
    inputs = [words(rng) for _ in range(count)]
    for i, values in enumerate(inputs):
        waves.v[1 + i] = values
    waves.v[0] = np.zeros((4, 64), np.uint32)
    run(waves, text)
    expected = [INTEGERS[text](*(int(v[at]) for v in inputs)) & M32 for at in np.ndindex(4, 64)]
    assert waves.v[0].reshape(-1).tolist() == expected


def test_wide_vector_moves_and_shifts_and_accumulation_registers() -> None:
    rng = np.random.default_rng(4)
    waves = waves_of(4)
    for i in (1, 2, 3):
        waves.v[i] = words(rng)
    run(waves, "v_lshlrev_b64 v[4:5], v3, v[1:2]", "v_lshrrev_b64 v[6:7], v3, v[1:2]", "v_mov_b64 v[8:9], v[1:2]")
    run(waves, "v_accvgpr_write_b32 a7, v1", "v_accvgpr_mov_b32 a8, a7", "v_accvgpr_read_b32 v10, a8")
    run(waves, "v_sub_co_u32_e32 v11, vcc, v1, v2", "s_nop 1", "v_subbrev_co_u32_e32 v12, vcc, v3, v2, vcc")
    run(waves, "v_subrev_co_u32_e32 v13, vcc, v1, v2")
    a, b, c = (waves.v[i].reshape(-1).astype(object) for i in (1, 2, 3))
    wide = a + b * 2**32

    def pair(index: int) -> list[int]:
        return [int(x) | int(y) << 32 for x, y in zip(waves.v[index].flat, waves.v[index + 1].flat, strict=True)]

    assert pair(4) == [x << (n & 63) & M64 for x, n in zip(wide, c, strict=True)]
    assert pair(6) == [x >> (n & 63) for x, n in zip(wide, c, strict=True)]
    assert pair(8) == list(wide)
    assert (waves.v[10] == waves.v[1]).all()
    borrows = [int(x < y) for x, y in zip(a, b, strict=True)]
    assert waves.v[12].reshape(-1).tolist() == [y - z - i & M32 for y, z, i in zip(b, c, borrows, strict=True)]
    assert waves.v[13].reshape(-1).tolist() == [y - x & M32 for x, y in zip(a, b, strict=True)]


def test_lanes_below_are_counted_whatever_is_active() -> None:
    waves = waves_of()
    set_exec(waves, 0xFFFF_0000_FFFF_00FF)
    waves.v[0] = waves.v[1] = np.zeros((1, 64), np.uint32)
    mask = 0xF00D_BEEF_1234_8765
    waves.set_s64(4, np.array([mask], np.uint64))
    run(waves, "v_mbcnt_lo_u32_b32 v0, s4, 7", "v_mbcnt_hi_u32_b32 v1, s5, v0")
    active = 0xFFFF_0000_FFFF_00FF
    expected = [7 + (mask & 2**lane - 1).bit_count() if active >> lane & 1 else 0 for lane in range(64)]
    assert waves.v[1][0].tolist() == expected


# --- Vector floats ---

FLOATS: dict[str, Callable[..., Any]] = {
    "v_subrev_f32_e32 v0, v1, v2": lambda a, b: b - a,
    "v_ceil_f32_e32 v0, v1": np.ceil,
    "v_cvt_f32_u32_e32 v0, v1": lambda a: a.view(np.uint32).astype(np.float64).astype(np.float32),
    "v_cvt_f32_i32_e32 v0, v1": lambda a: a.view(np.int32).astype(np.float64).astype(np.float32),
    **{
        f"v_cvt_f32_ubyte{i}_e32 v0, v1": lambda a, i=i: (a.view(np.uint32) >> 8 * i & 255).astype(np.float32)
        for i in range(4)
    },
}


@pytest.mark.parametrize("text", FLOATS)
def test_vector_floats(text: str) -> None:
    rng = np.random.default_rng(5)
    waves = waves_of(4)
    a, b = edges(rng), edges(rng)
    waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
    run(waves, text)
    with np.errstate(all="ignore"):
        expected = FLOATS[text](a, b) if "v2" in text else FLOATS[text](a)
    assert same_floats(waves.v[0].view(np.float32), expected)


def test_parts_of_floats() -> None:
    """v_fract, v_frexp_mant and v_frexp_exp; conversions to integers truncate and saturate, NaN is 0."""
    rng = np.random.default_rng(6)
    waves = waves_of(4)
    a = edges(rng)
    waves.v[1] = a.view(np.uint32)
    run(waves, "v_fract_f32_e32 v2, v1", "v_frexp_mant_f32_e32 v3, v1", "v_frexp_exp_i32_f32_e32 v4, v1")
    run(waves, "v_cvt_u32_f32_e32 v5, v1", "v_cvt_i32_f32_e32 v6, v1")
    fract, mantissa = waves.v[2].view(np.float32), waves.v[3].view(np.float32)
    exponent = waves.v[4].view(np.int32)
    for at in np.ndindex(4, 64):
        x = float(a[at])
        if np.isnan(x):
            assert int(waves.v[5][at]) == int(waves.v[6][at]) == 0
            continue
        saturated = min(max(x, -(2.0**40)), 2.0**40)
        assert int(waves.v[5][at]) == min(max(int(saturated), 0), M32)
        assert signed(int(waves.v[6][at])) == min(max(int(saturated), -(2**31)), 2**31 - 1)
        if np.isinf(x):
            assert mantissa[at] == a[at]
            assert exponent[at] == 0
            continue
        assert float(mantissa[at]) * 2.0 ** int(exponent[at]) == x
        assert x == 0 or 0.5 <= abs(float(mantissa[at])) < 1
        assert float(fract[at]) == min(float(np.float32(x - np.floor(x))), 1 - 2.0**-24)


def test_fused_with_a_constant_and_reciprocals_for_integers() -> None:
    """v_fmaak and v_fmamk, on numbers whose products are exact; v_rcp_iflag, to the nearest."""
    rng = np.random.default_rng(7)
    waves = waves_of(4)
    a, b = (rng.integers(-4096, 4096, (4, 64)).astype(np.float32) for _ in range(2))
    waves.v[1], waves.v[2] = a.view(np.uint32), b.view(np.uint32)
    run(waves, "v_fmaak_f32 v3, v1, v2, 0x40400000", "v_fmamk_f32 v4, v1, 0x40400000, v2", "v_rcp_iflag_f32_e32 v5, v1")
    assert same_floats(waves.v[3].view(np.float32), a * b + np.float32(3))
    assert same_floats(waves.v[4].view(np.float32), a * np.float32(3) + b)
    assert same_floats(waves.v[5].view(np.float32), (1 / a.astype(np.float64)).astype(np.float32))


def test_least_and_largest_of_three() -> None:
    rng = np.random.default_rng(8)
    waves = waves_of(4)
    values = [np.nan_to_num(edges(rng), nan=1.0, posinf=np.inf, neginf=-np.inf) for _ in range(3)]
    for i, value in enumerate(values, 1):
        waves.v[i] = value.view(np.uint32)
    run(waves, "v_min3_f32 v4, v1, v2, v3", "v_max3_f32 v5, v1, v2, v3", "v_min3_i32 v6, v1, v2, v3")
    assert (waves.v[4].view(np.float32) == np.min(values, axis=0)).all()
    assert (waves.v[5].view(np.float32) == np.max(values, axis=0)).all()
    assert (waves.v[6].view(np.int32) == np.min([value.view(np.int32) for value in values], axis=0)).all()


HALVES: dict[str, Callable[..., Any]] = {
    "v_sub_f16_e32 v0, v1, v2": lambda a, b, c: a - b,
    "v_subrev_f16_e32 v0, v1, v2": lambda a, b, c: b - a,
    "v_mul_f16_e32 v0, v1, v2": lambda a, b, c: a * b,
    "v_fma_f16 v0, v1, v2, v3": lambda a, b, c: a * b + c,
    "v_fmac_f16_e32 v0, v1, v2": lambda a, b, c: a * b + c,
    "v_min_f16_e32 v0, v1, v2": lambda a, b, c: np.minimum(a, b),
    "v_max_f16_e32 v0, v1, v2": lambda a, b, c: np.maximum(a, b),
    "v_pk_fma_f16 v0, v1, v2, v3": lambda a, b, c: a * b + c,
    "v_pk_min_f16 v0, v1, v2": lambda a, b, c: np.minimum(a, b),
    "v_pk_max_f16 v0, v1, v2": lambda a, b, c: np.maximum(a, b),
    "v_fma_mixhi_f16 v0, v1, v2, v3 op_sel_hi:[1,1,1]": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("text", HALVES)
def test_vector_halves(text: str) -> None:
    """Of 12 bits of precision at most a product and a sum with a third half are exact in fp64."""
    rng = np.random.default_rng(9)
    waves = waves_of(4)
    for i in (1, 2, 3):
        waves.v[i] = words(rng)
    waves.v[0] = waves.v[3] if "fmac" in text else np.full((4, 64), 0x12345678, np.uint32)
    halves = [waves.v[i].view(np.uint16).reshape(4, 64, 2).view(np.float16).astype(np.float64) for i in (1, 2, 3)]
    a, b, c = (half[..., 0] for half in halves)
    run(waves, text)
    with np.errstate(all="ignore"):
        results = [HALVES[text](a, b, c).astype(np.float16)]
        if "pk" in text:
            results.append(HALVES[text](*(half[..., 1] for half in halves)).astype(np.float16))
    high = "mixhi" in text
    if high:
        assert (waves.v[0] & M16 == 0x5678).all()
    for i, expected in enumerate(results):
        got = (waves.v[0] >> np.uint32(16 * (i + high)) & np.uint32(M16)).astype(np.uint16).view(np.float16)
        # What NaN does to the least and the largest has a test of its own.
        numbers = ~np.isnan(expected) & ~np.isnan(a) & ~np.isnan(b) if i == 0 else ~np.isnan(expected)
        if "min" in text or "max" in text:
            assert (got == expected)[numbers].all()
        else:
            assert same_floats(got.astype(np.float32), expected.astype(np.float32))


# --- LDS ---


@pytest.mark.parametrize(
    ("write", "read", "bytes_"),
    [
        ("ds_write_b96 v20, v[0:2]", "ds_read_b96 v[4:6], v20", 12),
        ("ds_write_b8_d16_hi v20, v0", "ds_read_i8 v4, v20", 1),
        ("ds_write_b16_d16_hi v20, v0", "ds_read_i16 v4, v20", 2),
        ("ds_write_b16_d16_hi v20, v0", "ds_read_u16_d16 v4, v20", 2),
        ("ds_write_b16_d16_hi v20, v0", "ds_read_u16_d16_hi v4, v20", 2),
        ("ds_write_b8_d16_hi v20, v0", "ds_read_u8_d16 v4, v20", 1),
        ("ds_write_b8_d16_hi v20, v0", "ds_read_u8_d16_hi v4, v20", 1),
    ],
)
def test_lds_of_other_widths(write: str, read: str, bytes_: int) -> None:
    waves = waves_of()
    rng = np.random.default_rng(10)
    for i in range(8):
        waves.v[i] = words(rng, (1, 64))
    old = waves.v[4]
    waves.v[20] = rng.permutation(64).astype(np.uint32)[None] * np.uint32(bytes_)
    run(waves, write, read, "s_waitcnt lgkmcnt(0)")
    if bytes_ == 12:
        for i in range(3):
            assert (waves.v[4 + i] == waves.v[i]).all()
        return
    for data, before, got in zip(waves.v[0][0].tolist(), old[0].tolist(), waves.v[4][0].tolist(), strict=True):
        value = data >> 16 & 2 ** (8 * bytes_) - 1
        if "_i" in read:
            value = signed(value, 8 * bytes_) & M32
        elif "d16_hi" in read:
            value = value << 16 | before & M16
        else:
            value |= before & ~M16 & M32
        assert got == value


# --- None is left out ---


def test_every_opcode_of_the_tables_is_tested() -> None:
    """By name in the text of a test here, or spelt together: comparisons, approximations."""
    texts = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    spelt = {f"s_{kind}_{name}_{bits}" for kind in ("cmp", "cmpk") for name in COMPARE for bits in ("u32", "i32")}
    spelt |= {f"s_{name}_b64" for name in LOGIC} | {f"s_cmp_{name}_u64" for name in ("eq", "lg")}
    spelt |= {f"s_{name}_saveexec_b64" for name in ("and", "or", "xor", "andn2", "andn1", "orn2", "nand")}
    spelt |= {f"v_{name}_f32" for name in ("rcp", "rsq", "sqrt", "log", "exp")}
    spelt |= {f"v_cvt_f32_ubyte{i}" for i in range(4)} | {f"v_{name}_f16" for name in ("max3", "min3", "med3")}
    tables: tuple[Any, ...] = (
        *(scalar.SCALAR, scalar.SAVE_EXEC, scalar.CONDITIONS, vector.VECTOR),
        *(packed.PACKED_F32, packed.PACKED_F16, packed.PACKED_U16, packed.MIXED),
        *(local.READS, local.WRITES),
    )
    names = set(itertools.chain(*tables))
    assert len(names) > 250
    missing = {name for name in names - spelt if not re.search(rf"\b{name}(_e32|_e64|_sdwa|_dpp)?\b", texts)}
    assert missing == set()
