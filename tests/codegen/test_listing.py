"""Reading listings: instructions, ways through a kernel, and the time of a warp alone."""

from __future__ import annotations

import re

import pytest

from tunegen.codegen.listing import Instruction, Path, paths_of, read_amdgcn, read_sass
from tunegen.codegen.work import Work, work_of
from tunegen.limits import Rates, limits_of, rates_of, sources_of
from tunegen.targets import TARGETS, get_target

SM90, GFX950 = get_target("sm90"), get_target("gfx950")


def sass(*lines: str) -> list[Instruction]:
    """Instructions 0x10 bytes apart, as cuobjdump prints them."""
    text = "\n".join(
        f"        /*{16 * index:04x}*/                   {line} ;        /* 0x0 */\n        /* 0x1 */"
        for index, line in enumerate(lines)
    )
    return read_sass(text, "sm90")


def amdgcn(text: str) -> list[Instruction]:
    """Instructions of a fragment; labels stand at the beginning of a line."""
    return read_amdgcn("\n".join(re.sub(r"^ +", "\t", line) for line in text.split("\n")), "gfx950")


def whole(target_name: str, instructions: list[Instruction]) -> tuple[Work, Work]:
    (path,) = paths_of(instructions)
    return work_of(get_target(target_name), path)


def test_sass_instructions() -> None:
    load, store, multiply, wide, compare, shuffle, masked = sass(
        "LDG.E.EL.128 R4, desc[UR6][R2.64]",
        "STG.E.64 desc[UR6][R2.64+0x10], R8",
        "FFMA.SAT R1, R4, R5, R6",
        "IMAD.WIDE.U32 R10, R3, 0x4, R12",
        "ISETP.GE.AND P0, PT, R1, RZ, PT",
        "SHFL.BFLY PT, R7, R1, 0x10, 0x1f",
        "@!P0 STG.E.U8 desc[UR6][R2.64], R9",
    )[:7]
    assert (load.kind, load.width, load.writes) == ("global load", 16, ("R4", "R5", "R6", "R7"))
    assert {"R2", "R3", "UR6"} <= set(load.reads)
    assert (store.kind, store.width, store.writes) == ("global store", 8, ())
    assert {"R8", "R9", "R2", "R3"} <= set(store.reads)
    assert (multiply.unit, multiply.cycles, multiply.writes) == ("float", 1.0, ("R1",))
    assert (wide.unit, wide.cycles, wide.writes) == ("float", 2.0, ("R10", "R11"))
    assert (compare.unit, compare.cycles, compare.writes) == ("integer", 2.0, ("P0",))
    assert (shuffle.kind, shuffle.unit, shuffle.writes) == ("shuffle", "memory", ("R7",))
    assert masked.predicated
    assert "P0" in masked.reads
    assert masked.width == 1


def test_amdgcn_instructions() -> None:
    load, half, wait, convert, multiply, store, permute, quick = amdgcn(
        """
        buffer_load_dwordx4 v[2:5], v1, s[4:7], 0 offen offset:16 ; a comment
        global_load_short_d16_hi v6, v[8:9], off
        s_waitcnt vmcnt(1) lgkmcnt(0)
        v_cvt_scalef32_pk_fp4_f32 v10, v2, v3, v7 op_sel:[0,0,1,0]
        v_mul_lo_u32 v11, v2, s3
        buffer_store_dwordx2 v[10:11], v1, s[4:7], 0 offen
        ds_bpermute_b32 v12, v1, v2
        v_rsq_f32_e32 v13, v2
        """
    )
    assert (load.kind, load.width, load.writes) == ("global load", 16, ("v2", "v3", "v4", "v5"))
    assert (half.kind, half.width) == ("global load", 2)
    assert (wait.kind, wait.count, wait.shared_count) == ("wait", 1, 0)
    assert convert.writes == ("v10",)
    assert {"v10", "v2", "v3", "v7"} <= set(convert.reads)
    assert multiply.cycles == 4 * rates_of("gfx950").integer_clocks
    assert (store.kind, store.width, store.writes) == ("global store", 8, ())
    assert permute.kind == "shuffle"
    assert (quick.kind, quick.cycles) == ("transcendental", rates_of("gfx950").transcendental_clocks)


def test_kernels_end_before_their_padding() -> None:
    instructions = sass("FADD R1, R2, R3", "EXIT", "BRA 0x20", "NOP", "NOP")
    assert [i.opcode for i in instructions] == ["FADD", "EXIT"]


def test_dependent_loads_take_a_round_trip_each() -> None:
    apart = sass("LDG.E R4, desc[UR6][R2.64]", "LDG.E R6, desc[UR6][R8.64]", "FADD R5, R4, R6", "EXIT")
    chained = sass("LDG.E.64 R4, desc[UR6][R2.64]", "LDG.E R6, desc[UR6][R4.64]", "FADD R5, R6, R6", "EXIT")
    unused = sass("LDG.E R4, desc[UR6][R2.64]", "FADD R5, R1, R1", "EXIT")
    trips = [whole("sm90", instructions)[0].round_trips for instructions in (unused, apart, chained)]
    assert trips == pytest.approx([0.0, 1.0, 2.0], abs=0.02)


def test_amd_waits_for_what_the_counter_says() -> None:
    later = "buffer_load_dword v2, v1, s[4:7], 0 offen\n s_waitcnt vmcnt({})\n v_add_f32_e32 v3, v2, v2"
    first = "buffer_load_dword v9, v1, s[4:7], 0 offen\n s_waitcnt vmcnt(0)\n"
    trips = [
        whole("gfx950", amdgcn("\n " + text))[0].round_trips
        for text in (later.format(1), later.format(0), first + " " + later.format(0))
    ]
    assert trips == pytest.approx([0.0, 1.0, 2.0], abs=0.02)


def test_a_pipelined_loop_hides_its_copies() -> None:
    """A copy that is waited for a turn later costs what is left of its latency after the turn's arithmetic."""
    arithmetic = ["FADD R1, R1, R2"] * 100
    body = ["LDGSTS.E.BYPASS.128 [R25], desc[UR6][R8.64]", "LDGDEPBAR", *arithmetic, "DEPBAR.LE SB0, {}", "@P0 BRA 0x0"]
    late, soon = (sass(*(line.format(left) for line in body), "EXIT") for left in ("0x1", "0x0"))
    _, hidden = whole("sm90", late)
    _, waited = whole("sm90", soon)
    assert hidden.round_trips < 0.5 < waited.round_trips
    assert waited.loaded == 16 * 32
    assert hidden.scheduler_clocks == pytest.approx(102, abs=2)


def test_loops_and_kinds_of_programs() -> None:
    other_kind = ["FADD R1, R1, R2"] * 30
    branching = sass(
        "@P0 BRA 0x210",
        *other_kind,
        "STG.E desc[UR6][R2.64], R1",
        "EXIT",
        "LDG.E R4, desc[UR6][R2.64]",
        "@P1 BRA 0x240",
        "STG.E desc[UR6][R2.64], R4",
        "EXIT",
    )
    paths = paths_of(branching)
    assert sorted(len(path.instructions) for path in paths) == [5, 33]
    loop = paths_of(sass("MOV R1, R2", "FADD R1, R1, R2", "FADD R3, R1, R2", "@P0 BRA 0x10", "EXIT"))
    assert [path.loops for path in loop] == [[(1, 3)]]
    once, turn = work_of(SM90, loop[0])
    assert (once.issued, turn.issued) == (2, 3)
    # The second addition waits for the first; it and the branch are issued after it, one a clock.
    assert turn.alone == rates_of("sm90").arithmetic_latency + 2


def test_clocks_by_unit() -> None:
    once, _ = whole("sm90", sass(*["LOP3.LUT R1, R2, R3, RZ, 0xc0, !PT"] * 10, *["FMUL R4, R5, R6"] * 7, "EXIT"))
    assert once.clocks == {"integer": 20.0, "float": 7.0}
    assert once.scheduler_clocks == 20
    assert once.unit_clocks == 0
    loads, _ = whole("sm90", sass("LDG.E.128 R4, desc[UR6][R2.64]", "LDG.E.U8 R8, desc[UR6][R2.64]", "EXIT"))
    assert loads.unit_clocks == 16 * 32 / rates_of("sm90").global_bytes + 1
    assert loads.loaded == 17 * 32


def test_empty_ways() -> None:
    assert work_of(GFX950, Path())[0].issued == 0


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_constant_has_a_source(name: str) -> None:
    sources = sources_of(name)
    assert set(Rates.__dataclass_fields__) <= set(sources)
    assert all(len(text) > 5 for text in sources.values())
    assert all(value > 0 for value in vars(rates_of(name)).values())
    if name != "sm100":
        assert all(value > 0 for value in vars(limits_of(name)).values())
