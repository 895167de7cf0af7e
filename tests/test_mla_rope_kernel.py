"""Rendered mla_rope_cache and mla_rope_cache_ kernels do what the numerics contract says: in Triton's interpreter, or,
those for gfx950 and gfx942, executed on the CPU from their listings.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunegen.codegen.render import render
from tunegen.evaluate import interpreter
from tunegen.evaluate.conformance import fewest_lanes_per_row, pairwise
from tunegen.evaluate.conformance.mla_rope import WRITTEN, Case, candidates, case_factors, make_args, run_case
from tunegen.evaluate.executor import Executor, executable
from tunegen.ops import Config, Problem
from tunegen.ops.mla_rope import FUNCTIONAL, INPLACE, MLA_ROPE
from tunegen.runtime.families.mla_rope import Variant
from tunegen.runtime.kernel import load_kernel
from tunegen.runtime.reference import mla_rope as reference
from tunegen.targets import Target, get_target

TARGETS = ("sm90", "gfx950", "gfx942")
TOKENS = (0, 1, 3, 17, 64, 257)
DEEPSEEK = {"kv_lora_rank": 512, "rope_dim": 64}
SHAPES = (
    *({"num_heads": heads, **DEEPSEEK} for heads in (128, 64, 16, 5)),
    # Segments of several widths, in the copies and in the halves of the rotary part.
    {"num_heads": 3, "kv_lora_rank": 104, "rope_dim": 24},
)
# The interpreter takes 5 ms a token and segment, however long: 257 tokens come in tiles, 128 heads stop at 17 tokens.
MOST_PROGRAMS = 100
MOST_HEADS_OF_TOKENS = 16 * 257
MOST_TOKENS_IN_SEGMENTS = 17


def left_to_the_gpu(case: Case) -> bool:
    """True for what would take the interpreter long and show little."""
    heads_of_tokens = case.problem.sizes["num_heads"] * case.tokens
    segmented = case.problem.sizes["kv_lora_rank"] == SHAPES[-1]["kv_lora_rank"]
    return heads_of_tokens > MOST_HEADS_OF_TOKENS or (segmented and case.tokens > MOST_TOKENS_IN_SEGMENTS)


# --- In the interpreting processes ---


def interpret(path: Path, case: Case, twin: bool = False) -> list[str]:
    """What is wrong with a kernel on a case; also if it is not, to the bit, what the reference computes.

    Of a traffic twin, where it writes.
    """
    interpreter._prepare_worker()
    kernel = load_kernel(path)
    last: list[torch.Tensor] = []

    def launch(outputs: tuple[torch.Tensor, ...], args: tuple[Any, ...]) -> None:
        case.op.launch(kernel, 4, outputs, *args)
        last[:] = [*outputs, *(args[i].clone() for i in WRITTEN[case.op.name])]

    found = run_case(launch, case, torch.device("cpu"), judge_values=not twin)
    if case.tokens and not found and not twin and case.layout != "wide" and case.cache != "wide":
        args = make_args(case, torch.device("cpu"))
        right = [*(getattr(reference, case.op.name)(*args) or ()), *(args[i] for i in WRITTEN[case.op.name])]
        for i, (got, expected) in enumerate(zip(last, right, strict=True)):
            bits = [x.view(torch.uint8 if x.element_size() == 1 else torch.int16) for x in (got, expected)]
            both_nan = torch.isnan(got.to(torch.float32)) & torch.isnan(expected.to(torch.float32))
            if bool(((bits[0] != bits[1]) & ~both_nan).any()):
                found.append(f"{i}: not the reference's bits")
    return found


# --- Here ---


Work = tuple[Target, Case, Config]


@pytest.fixture(scope="module")
def pool(pytestconfig: pytest.Config) -> Iterator[ProcessPoolExecutor]:
    workers = 1 if hasattr(pytestconfig, "workerinput") else os.cpu_count() or 2
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=interpreter.start_worker) as executor:
        yield executor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def failures(pool: ProcessPoolExecutor, folder: Path, work: list[Work], executor: Executor | None = None) -> list[str]:
    futures = []
    for target, generic, config in work:
        path, case = render(generic.problem, target, config).write(folder), replace(generic, fp8=target.fp8)
        if executor is not None and executable(target):
            futures.append(executor.submit(path, case, fewest_lanes_per_row(target, config), target))
        else:
            futures.append(pool.submit(interpret, path, case))
    return [
        f"{case}, {target.name}, {config}: {failure}"
        for (target, case, config), future in zip(work, futures, strict=True)
        for failure in future.result()
    ]


def problems() -> list[Problem]:
    """Every op and variant at every shape."""
    made = []
    for op, sizes, rounding in itertools.product((FUNCTIONAL, INPLACE), SHAPES, reference.ROUNDINGS):
        for neox, pe_first, fp8, q_fp8 in itertools.product((False, True), repeat=4):
            if op == FUNCTIONAL or not (pe_first or q_fp8):
                made.append(Problem.of(op, sizes, str(Variant(rounding, neox, pe_first, fp8, q_fp8))))
    return made


def any_config(problem: Problem, target: Target, chooser: random.Random) -> Config:
    knobs = MLA_ROPE.knobs(problem, target)
    while True:
        config: Config = {knob.name: chooser.choice(knob.choices) for knob in knobs}
        if MLA_ROPE.valid(problem, target, config):
            return config


def config_factors(problem: Problem, target: Target, config: Config) -> tuple[Any, ...]:
    knobs = {**config, "waves_per_eu": 0}
    heads = problem.sizes["num_heads"] % int(knobs.pop("heads"))
    return (target.name, heads > 0, *knobs.values())


def test_kernels_conform(pool: ProcessPoolExecutor, folder: Path, executor: Executor) -> None:
    """Any two of op, sizes, tokens, variant, dtype, layouts, slots, target and values of knobs meet in a case."""
    chooser = random.Random(0)
    work: list[Work] = []
    for case in candidates(problems(), TOKENS):
        if left_to_the_gpu(case):
            continue
        target = get_target(chooser.choice(TARGETS))
        config = any_config(case.problem, target, chooser)
        if MLA_ROPE.grid(case.problem, config, case.tokens, 4)[1] <= MOST_PROGRAMS:
            work.append((target, case, config))
    chosen = pairwise(work, lambda item: (*case_factors(item[1]), *config_factors(item[1].problem, item[0], item[2])))
    met = {(case.problem.sizes["num_heads"], case.tokens) for _, case, _ in chosen}
    every = itertools.product((128, 64, 16, 5), TOKENS)
    assert met >= {(heads, tokens) for heads, tokens in every if heads * tokens <= MOST_HEADS_OF_TOKENS}
    assert failures(pool, folder, chosen, executor) == []


@pytest.mark.parametrize("op", [FUNCTIONAL, INPLACE])
def test_offsets_pass_2_to_the_31(op: str, pool: ProcessPoolExecutor, folder: Path, executor: Executor) -> None:
    problem = Problem.of(op, {"num_heads": 2, "kv_lora_rank": 64, "rope_dim": 16}, "act")
    case = Case(problem, 3, 3, 3)
    work = [
        (target, changed, {**MLA_ROPE.default(problem, target), "split": split})
        for target in map(get_target, ("sm90", "gfx950"))
        for changed in (replace(case, layout="wide"), replace(case, cache="wide"))
        for split in ("rows_apart", "together")
    ]
    assert failures(pool, folder, work, executor) == []


# What is done to a kernel's source, and in which case it must show.
SMALL = {"num_heads": 5, "kv_lora_rank": 64, "rope_dim": 16}
MUTATIONS = {
    "positions ignored": (r"position\.to\(tl\.uint32\)", "1 + 0 * position.to(tl.uint32)", "none", {}),
    "sin is cos": (r"sin = tl\.load\(row \+ 8 \+ pairs\)", "sin = tl.load(row + pairs)", "none", {}),
    "sin is empty": (r"sin = tl\.load\(row \+ 8 \+ pairs\)", "sin = 0 * tl.load(row + pairs)", "none", {}),
    "turned backwards": (
        r"x \* cos - y \* sin, y \* cos \+ x \* sin",
        "x * cos + y * sin, y * cos - x * sin",
        "none",
        {},
    ),
    "rounded once, not each product": (r"x_cos = \(x \* cos\)\.to\(ACT\)", "x_cos = (x * cos)", "act", {}),
    "rounded, not left in fp32": (r"return x \* cos - y \* sin", "return (x * cos).to(ACT) - y * sin", "none", {}),
    "table not rounded": (
        r"sin = tl\.load\(row \+ 8 \+ pairs\)\.to\(ACT\)",
        "sin = tl.load(row + 8 + pairs)",
        "act",
        {"table": "float32"},
    ),
    "negative slots written": (r"\(slot >= 0\) & ", "", "none", {"slots": "negative"}),
    "slots past the end written": (r" & \(slot < num_slots\)", "", "none", {"slots": "outside", "cache": "flat"}),
    "no end of the mapping": (r"mask=token < num_mapped", "mask=token >= 0", "none", {"mapped": 2}),
    "queries as many as tokens": (r"pid - row_programs\n", "(pid - row_programs) % 4\n", "none", {}),
    "k_pe one column early": (r"row \+ 64,", "row + 63,", "none", {}),
    "kv_c first anyway": (r"row \+ 16 \+ tl\.arange\(0, 64\)", "row + tl.arange(0, 64)", "none,pe_first", {}),
    "a head too many": (r"heads_left = 5", "heads_left = 6", "none", {}),
    "halves as pairs": (r"rows \+ 8 \+ pairs", "rows + 9 + pairs", "none,neox", {}),
    "stride of q_pe for q_nope": (r"token \* q_nope_token_stride", "token * q_pe_token_stride", "none", {}),
    "blocks without gaps": (
        r"block\.to\(tl\.int64\) \* block_stride",
        "block * (entry_stride * 4)",
        "none",
        {"cache": "gaps"},
    ),
    "not saturated": (
        r"tl\.clamp\(values\.to\(tl\.float32\), .*\)\n",
        "values.to(tl.float32)\n",
        "none,fp8",
        {"special": True},
    ),
    "scale ignored": (r"scale = tl\.load\(scale_ptr\)", "scale = tl.load(scale_ptr) * 0 + 1.0", "none,fp8", {}),
    "act before fp8": (r"to_fp8\(k_x_0,", "to_fp8(k_x_0.to(ACT),", "none,fp8", {}),
    "k_pe_out without rotation": (r"k_x_0\.to\(ACT\),", "k_y_0.to(ACT),", "none", {}),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_found_out(name: str, pool: ProcessPoolExecutor, folder: Path) -> None:
    pattern, replacement, variant, about = MUTATIONS[name]
    target = get_target("sm90")
    problem = Problem.of(FUNCTIONAL, SMALL, variant)
    case = replace(Case(problem, 9, 9, 9, layout="offset", seed=1), **about)  # type: ignore[arg-type]  # fields by name
    config = MLA_ROPE.resolve(problem, target, {"heads": 4})
    rendered = render(problem, target, config)
    assert failures(pool, folder, [(target, case, config)]) == []
    wrong, count = re.subn(pattern, replacement, rendered.source)
    assert count, "the kernel has no such line any more"
    path = replace(rendered, source=wrong).write(folder)
    assert pool.submit(interpret, path, case).result() != []


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"exists & inside_0,", "inside_0,", id="q_pe rotated"),
        # The first of the two stores of a rotated k_pe.
        pytest.param(r"(k_pe,\n.*\n.*\n +)exists,", r"\1None,", id="k_pe rotated"),
    ],
)
def test_tokens_without_a_slot_are_left_in_place(
    pattern: str, replacement: str, pool: ProcessPoolExecutor, folder: Path
) -> None:
    target = get_target("sm90")
    problem = Problem.of(INPLACE, {**SMALL, "rope_dim": 64}, "act")
    case = Case(problem, 9, 9, 7, slots="negative", seed=1)
    config = MLA_ROPE.resolve(problem, target, {"heads": 4, "num_warps": 1})
    rendered = render(problem, target, config)
    assert failures(pool, folder, [(target, case, config)]) == []
    wrong, count = re.subn(pattern, replacement, rendered.source)
    assert count, "the kernel has no such line any more"
    path = replace(rendered, source=wrong).write(folder)
    assert pool.submit(interpret, path, case).result() != []


@pytest.mark.parametrize("op", [FUNCTIONAL, INPLACE])
@pytest.mark.parametrize("flags", ["", ",fp8"])
@pytest.mark.parametrize("sizes", [SMALL, {"num_heads": 4, "kv_lora_rank": 104, "rope_dim": 24}])
def test_twins_write_what_kernels_write(
    op: str, flags: str, sizes: dict[str, int], pool: ProcessPoolExecutor, folder: Path
) -> None:
    target = get_target("sm90")
    variants = [flags, flags + ",pe_first,q_fp8"] if op == FUNCTIONAL else [flags]
    for variant in variants:
        problem = Problem.of(op, sizes, str(Variant.parse("none" + variant)))
        case = Case(problem, 5, 7, 6, slots="negative", cache="gaps" if flags else "flat", layout="contiguous")
        for config in MLA_ROPE.twin_configs(problem, target)[::5]:
            path = render(problem, target, config, twin=True).write(folder)
            assert pool.submit(interpret, path, case, True).result() == []
