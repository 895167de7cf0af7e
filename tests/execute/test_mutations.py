"""A listing that is broken on purpose is found out: what is done to it, and by what it shows.

Dropped barriers and waits, swapped op_sel, wrong lane masks, offsets off by one, accesses past the end, missing wait
states, and registers and LDS that nobody wrote.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tunegen.codegen.render import render
from tunegen.evaluate.conformance import run_case
from tunegen.evaluate.conformance.rows import Case
from tunegen.evaluate.interpreter import UNITS
from tunegen.execute.driver import Executed
from tunegen.execute.errors import ExecutionError, ListingError
from tunegen.execute.launch import DEFAULTS
from tunegen.execute.machine import Options
from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import Kernel, load_kernel
from tunegen.targets import get_target

TARGET = get_target("gfx950")
PROBLEM = Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 7168})
CASE = Case(PROBLEM, 3, "bfloat16", "contiguous", special=False, seed=2)


@functools.cache
def kernel_in(folder: Path) -> Kernel:
    config = get_family(PROBLEM.op).default(PROBLEM, TARGET)
    return load_kernel(render(PROBLEM, TARGET, config).write(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def outcome(folder: Path, mutate: Callable[[str], str], options: Options = DEFAULTS) -> list[str]:
    """What is wrong with the mutated kernel: failures of the case, or the executor's error."""
    kernel = kernel_in(folder)
    op = OPS[PROBLEM.op]
    seeds = iter(range(options.seed, options.seed + 9))

    def launch(outputs: tuple[torch.Tensor, ...], args: tuple[object, ...]) -> None:
        function = Executed(kernel.function, TARGET, Options(next(seeds), options.shuffle), mutate)
        op.launch(Kernel(**{**vars(kernel), "function": function}), UNITS, outputs, *args)

    try:
        return run_case(launch, CASE, torch.device("cpu"), 512)
    except (ExecutionError, ListingError) as error:
        return [f"{type(error).__name__}: {error}"]


def dropped(pattern: str, number: int) -> Callable[[str], str]:
    """Takes out the line of an instruction, the ``number``-th that matches; a wait or barrier leaves its wait state."""
    left = "\ts_nop 0\n" if pattern.startswith(("s_barrier", "s_waitcnt")) else ""
    return replaced(rf"(?m)^[ \t]+{pattern}.*\n", left, number)


def replaced(pattern: str, by: str, number: int = 0) -> Callable[[str], str]:
    """Replaces the ``number``-th match; the listing must have it."""

    def mutate(text: str) -> str:
        body = text.index("@" + PROBLEM.op)
        matches = list(re.finditer(pattern, text[body:]))
        assert len(matches) > number, f"the listing has {len(matches)} of {pattern}"
        match = matches[number]
        start, end = body + match.start(), body + match.end()
        changed = text[:start] + match.expand(by) + text[end:]
        assert changed != text
        return changed

    return mutate


RACE = "no s_barrier"
WAIT = "may not have come: no s_waitcnt"
STATES = "wait states must stand there"
WRONG = r"code|scales|residual_out|output|guard|which of them stays"
OUTSIDE = "outside the buffers given"

MUTATIONS: dict[str, tuple[Callable[[str], str], str]] = {
    **{f"barrier {i} dropped": (dropped("s_barrier", i), RACE) for i in range(2)},
    **{
        f"wait for LDS {i} dropped": (dropped(r"s_waitcnt lgkmcnt\(0\)", i), f"{RACE}|{WAIT}")
        for i in (2, 3, 4)
    },
    "wait for the arguments dropped": (dropped(r"s_waitcnt lgkmcnt\(0\)", 1), WAIT),
    **{f"wait for memory {i} dropped": (dropped(r"s_waitcnt vmcnt", i), WAIT) for i in (0, 1)},
    "wait for memory one too few": (
        replaced(r"s_waitcnt vmcnt\((\d)\)", r"s_waitcnt vmcnt(9)", 0),
        WAIT,
    ),
    **{
        f"op_sel of the conversion swapped, {i}": (
            replaced(r"op_sel:\[0,0,1,0\]", "op_sel:[0,0,0,1]", i),
            WRONG,
        )
        for i in range(2)
    },
    "op_sel of the conversion left out": (replaced(r" op_sel:\[0,0,0,1\]", "", 0), WRONG),
    "sources of the conversion swapped": (
        replaced(r"(v_cvt_scalef32_pk_fp4_f32 v\d+), (v\d+), (v\d+)", r"\1, \3, \2", 3),
        WRONG,
    ),
    "parts of a word written back to back": (
        replaced(
            r"(\tv_cvt_scalef32_pk_fp4_f32 (v\d+), v\d+, v\d+, v\d+ op_sel:\[0,0,1,0\]\n)",
            r"\1\tv_mov_b32_e32 \2, \2\n",
        ),
        STATES,
    ),
    "wait states before DPP dropped": (dropped("s_nop 1", 1), STATES),
    "approximation used at once": (
        replaced(r"(v_rsq_f32_e32 (v\d+), v\d+\n)", r"\1\tv_add_f32_e32 \2, 0, \2\n"),
        STATES,
    ),
    "lane mask: first wave's lanes for the first lane's": (
        replaced(r"v_cmp_gt_u32_e32 vcc, 8, v0", r"v_cmp_gt_u32_e32 vcc, 7, v0"),
        WRONG,
    ),
    "lane mask: never restored": (replaced(r"s_or_b64 exec, exec, s\[\d+:\d+\]", "s_nop 0", 0), f"{WRONG}|{RACE}"),
    "lane mask: not applied": (
        replaced(r"s_and_saveexec_b64 (s\[\d+:\d+\]), vcc", r"s_mov_b64 \1, exec", 1),
        "bytes of LDS",
    ),
    "row mask of DPP": (replaced("row_bcast:31 row_mask:0xf", "row_bcast:31 row_mask:0x7", 0), WRONG),
    "bank mask of DPP": (
        replaced("row_shr:4 row_mask:0xf bank_mask:0xa", "row_shr:4 row_mask:0xf bank_mask:0x2", 1),
        WRONG,
    ),
    "lanes shifted by one too few": (replaced("row_shr:8", "row_shr:7", 0), WRONG),
    "load one element late": (
        replaced(r"(buffer_load_dwordx4 v\[\d+:\d+\], v\d+, s\[\d+:\d+\], 0 offen)", r"\1 offset:2", 0),
        f"{WRONG}|{OUTSIDE}",
    ),
    "load past the end": (
        replaced(r"(buffer_load_dword v\d+, v\d+, s\[\d+:\d+\], 0 offen)", r"\1 offset:512", 0),
        OUTSIDE,
    ),
    "store one byte late": (
        replaced(r"(buffer_store_dword v\d+, v\d+, s\[\d+:\d+\], 0 offen)", r"\1 offset:1", 0),
        f"{WRONG}|{OUTSIDE}",
    ),
    "offset of a row": (
        replaced(r"s_mul_i32 (s\d+), (s\d+), 0x1c00", r"s_mul_i32 \1, \2, 0x1c02"),
        f"{WRONG}|{OUTSIDE}",
    ),
    "store dropped": (dropped("buffer_store_byte", 0), "not written"),
    "LDS address of another wave": (replaced(r"s_and_b32 (s\d+), \1, 28", r"s_and_b32 \1, \1, 24"), f"{RACE}|stays"),
    "register never written": (
        replaced(r"v_maximum3_f32 (v\d+), (v\d+), v\d+, v\d+", r"v_maximum3_f32 \1, \2, v255, v255", 1),
        WRONG,
    ),
    "LDS never written": (dropped("ds_write_b32", 0), WRONG),
    "scalar register never written": (
        replaced(r"s_mul_i32 (s\d+), (s\d+), 0x1c00", r"s_mul_i32 \1, \2, s101"),
        f"{WRONG}|{OUTSIDE}",
    ),
    "store past the end": (
        replaced(r"(buffer_store_dword v\d+, v\d+, s\[\d+:\d+\], 0 offen)", r"\1 offset:512", 0),
        OUTSIDE,
    ),
    "scalar used too soon by a vector instruction": (
        replaced(
            r"(v_cmp_lg_f32_e64 (s\[\d+:\d+\]), .*\n)", r"\1\tv_cndmask_b32_e64 v250, 0, 1, \2\n"
        ),
        STATES,
    ),
    "an instruction that is not known": (
        replaced(r"v_maximum3_f32", "v_maximum4_f32", 0),
        "does not know the opcode v_maximum4_f32",
    ),
}  # fmt: skip


def test_the_kernel_itself_passes(folder: Path) -> None:
    assert outcome(folder, lambda text: text) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_found(name: str, folder: Path) -> None:
    mutate, shows = MUTATIONS[name]
    found = outcome(folder, mutate)
    assert found, f"{name}: nothing was found"
    assert re.search(shows, found[0]), found


def test_a_missing_barrier_shows_in_the_values_too_where_waves_run_in_any_order(folder: Path) -> None:
    """Without the check of LDS, waves that run one after another, pre-empted at random, would give it away."""
    from unittest.mock import patch

    from tunegen.execute.lds import LocalMemory

    with patch.object(LocalMemory, "_conflict", lambda *args: None):
        assert outcome(folder, dropped("s_barrier", 0), Options(shuffle=True)) != []
        assert outcome(folder, lambda text: text, Options(shuffle=True)) == []
