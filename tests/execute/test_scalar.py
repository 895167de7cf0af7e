"""Scalar instructions against Python integers: results and SCC."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bench_of_instructions import run, waves_of, words

M32, M64 = 2**32 - 1, 2**64 - 1


def signed(x: int, bits: int = 32) -> int:
    return x - 2**bits if x >> bits - 1 else x


def overflows(x: int) -> bool:
    return not -(2**31) <= x < 2**31


# Operands a and b (s2, s3) to the result (s0), and SCC where the instruction writes it.
CASES: dict[str, Callable[[int, int], tuple[int, bool | None]]] = {
    "s_add_u32 s0, s2, s3": lambda a, b: (a + b, a + b > M32),
    "s_sub_u32 s0, s2, s3": lambda a, b: (a - b, b > a),
    "s_addc_u32 s0, s2, s3": lambda a, b: (a + b + 1, a + b + 1 > M32),
    "s_subb_u32 s0, s2, s3": lambda a, b: (a - b - 1, b + 1 > a),
    "s_add_i32 s0, s2, s3": lambda a, b: (a + b, overflows(signed(a) + signed(b))),
    "s_sub_i32 s0, s2, s3": lambda a, b: (a - b, overflows(signed(a) - signed(b))),
    "s_mul_i32 s0, s2, s3": lambda a, b: (a * b, None),
    "s_mul_hi_u32 s0, s2, s3": lambda a, b: (a * b >> 32, None),
    "s_mul_hi_i32 s0, s2, s3": lambda a, b: (signed(a) * signed(b) >> 32, None),
    "s_and_b32 s0, s2, s3": lambda a, b: (a & b, a & b != 0),
    "s_or_b32 s0, s2, s3": lambda a, b: (a | b, a | b != 0),
    "s_xor_b32 s0, s2, s3": lambda a, b: (a ^ b, a ^ b != 0),
    "s_andn2_b32 s0, s2, s3": lambda a, b: (a & ~b, a & ~b != 0),
    "s_lshl_b32 s0, s2, s3": lambda a, b: (a << (b & 31), a << (b & 31) & M32 != 0),
    "s_lshr_b32 s0, s2, s3": lambda a, b: (a >> (b & 31), a >> (b & 31) != 0),
    "s_ashr_i32 s0, s2, s3": lambda a, b: (signed(a) >> (b & 31), signed(a) >> (b & 31) != 0),
    "s_min_u32 s0, s2, s3": lambda a, b: (min(a, b), a < b),
    "s_max_i32 s0, s2, s3": lambda a, b: (max(signed(a), signed(b)), signed(a) > signed(b)),
    "s_abs_i32 s0, s2": lambda a, b: (abs(signed(a)), a != 0),
    "s_brev_b32 s0, s2": lambda a, b: (int(f"{a:032b}"[::-1], 2), None),
    "s_not_b32 s0, s2": lambda a, b: (~a, ~a & M32 != 0),
    "s_bcnt1_i32_b32 s0, s2": lambda a, b: (a.bit_count(), a != 0),
    "s_ff1_i32_b32 s0, s2": lambda a, b: ((a & -a).bit_length() - 1, None),
    "s_bfe_u32 s0, s2, 0x50003": lambda a, b: (a >> 3 & 31, a >> 3 & 31 != 0),
    "s_bfe_i32 s0, s2, 0x50003": lambda a, b: ((a >> 3 & 31 ^ 16) - 16, a >> 3 & 31 != 0),
    "s_lshl2_add_u32 s0, s2, s3": lambda a, b: ((a << 2) + b, (a << 2) + b > M32),
    "s_pack_ll_b32_b16 s0, s2, s3": lambda a, b: (a & 0xFFFF | b << 16, None),
    "s_sext_i32_i16 s0, s2": lambda a, b: (signed(a & 0xFFFF, 16), None),
    "s_cselect_b32 s0, s2, s3": lambda a, b: (a, None),
    "s_bitset1_b32 s2, s3": lambda a, b: (a | 1 << (b & 31), None),
    "s_bitset0_b32 s2, s3": lambda a, b: (a & ~(1 << (b & 31)), None),
    "s_movk_i32 s0, 0xe400": lambda a, b: (-0x1C00, None),
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "s_cmp_lt_i32 s2, s3": lambda a, b: signed(a) < signed(b),
    "s_cmp_ge_u32 s2, s3": lambda a, b: a >= b,
    "s_cmp_lg_u32 s2, s3": lambda a, b: a != b,
    "s_cmp_eq_u64 s[2:3], s[4:5]": lambda a, b: False,
    "s_cmpk_lt_u32 s2, 0x8000": lambda a, b: a < 0x8000,
    "s_cmpk_gt_i32 s2, 0x8000": lambda a, b: signed(a) > -0x8000,
    "s_bitcmp1_b32 s2, 31": lambda a, b: a >> 31 == 1,
}


@pytest.mark.parametrize("text", CASES)
def test_results_and_scc(text: str) -> None:
    rng = np.random.default_rng(0)
    waves = waves_of(256)
    a, b = words(rng, (256,)), words(rng, (256,))
    waves.s[2], waves.s[3] = a, b
    waves.scc = np.ones(256, np.bool_)
    run(waves, text)
    expected = [CASES[text](int(x), int(y)) for x, y in zip(a, b, strict=True)]
    destination = 2 if text.split()[1] == "s2," else 0
    assert waves.s[destination].tolist() == [result & M32 for result, _ in expected]
    assert waves.scc.tolist() == [True if scc is None else scc for _, scc in expected]


@pytest.mark.parametrize("text", COMPARISONS)
def test_comparisons(text: str) -> None:
    rng = np.random.default_rng(1)
    waves = waves_of(256)
    a, b = words(rng, (256,)), words(rng, (256,))
    waves.s[2], waves.s[3] = a, b
    waves.s[4], waves.s[5] = a ^ np.uint32(1), b
    run(waves, text)
    assert waves.scc.tolist() == [COMPARISONS[text](int(x), int(y)) for x, y in zip(a, b, strict=True)]


def test_pairs() -> None:
    rng = np.random.default_rng(2)
    waves = waves_of(256)
    for i in range(4, 9):
        waves.s[i] = words(rng, (256,))
    x = [int(a) | int(b) << 32 for a, b in zip(waves.s[4], waves.s[5], strict=True)]
    y = [int(a) | int(b) << 32 for a, b in zip(waves.s[6], waves.s[7], strict=True)]
    shift = [int(c) & 63 for c in waves.s[8]]
    for text, expected in (
        ("s_and_b64 s[0:1], s[4:5], s[6:7]", [a & b for a, b in zip(x, y, strict=True)]),
        ("s_andn2_b64 s[0:1], s[4:5], s[6:7]", [a & ~b for a, b in zip(x, y, strict=True)]),
        ("s_lshl_b64 s[0:1], s[4:5], s8", [a << n & M64 for a, n in zip(x, shift, strict=True)]),
        ("s_lshr_b64 s[0:1], s[4:5], s8", [a >> n for a, n in zip(x, shift, strict=True)]),
        ("s_ashr_i64 s[0:1], s[4:5], s8", [signed(a, 64) >> n & M64 for a, n in zip(x, shift, strict=True)]),
        ("s_mov_b64 s[0:1], -1", [M64] * 256),
    ):
        waves.scc = np.zeros(256, np.bool_)
        run(waves, text)
        assert [int(v) for v in waves.get_s64(0)] == expected, text
        if "mov" not in text:
            assert waves.scc.tolist() == [value != 0 for value in expected]


def test_exec_is_saved_and_followed() -> None:
    waves = waves_of(2)
    waves.set_s64(4, np.array([0xFF, 0], np.uint64))
    run(waves, "s_and_saveexec_b64 s[2:3], s[4:5]")
    assert waves.get_s64(2).tolist() == [M64, M64]
    assert waves.mask.sum(axis=1).tolist() == [8, 0]
    assert waves.scc.tolist() == [True, False]
    waves.v[0] = np.zeros((2, 64), np.uint32)
    run(waves, "v_mov_b32_e32 v0, 1", "s_or_b64 exec, exec, s[2:3]", "v_mov_b32_e32 v1, 2")
    assert waves.v[0].sum(axis=1).tolist() == [8, 0]
    assert (waves.v[1] == 2).all()
    assert waves.full


def test_conditions_of_branches() -> None:
    from tunegen.execute.isa.scalar import CONDITIONS

    waves = waves_of(2)
    waves.scc = np.array([True, False])
    waves.set_s64(106, np.array([0, 1 << 40], np.uint64))
    waves.set_s64(126, np.array([0, 1], np.uint64))
    outcome = {name: condition(waves).tolist() for name, (condition, _) in CONDITIONS.items()}
    assert outcome == {
        "s_cbranch_scc0": [False, True],
        "s_cbranch_scc1": [True, False],
        "s_cbranch_vccz": [True, False],
        "s_cbranch_vccnz": [False, True],
        "s_cbranch_execz": [True, False],
        "s_cbranch_execnz": [False, True],
    }
