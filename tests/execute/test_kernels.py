"""Kernels compiled for gfx950 and gfx942 and executed: they compute what the numerics contract says.

Every op in random valid configs, with each rounding, at real sizes; executed in other orders, with other poison and
at the ends of the documented error of approximations too.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunegen.codegen.render import render
from tunegen.configs import load_entries
from tunegen.evaluate.conformance import Case, candidates, fewest_lanes_per_row, make_args, mla_rope
from tunegen.evaluate.executor import Executor, execute_case
from tunegen.evaluate.interpreter import UNITS
from tunegen.execute.driver import Executed, executed
from tunegen.execute.machine import Options
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import Target, get_target

GFX950, GFX942 = get_target("gfx950"), get_target("gfx942")
ROWS_OPS = ("dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant")
ROPE_OPS = ("mla_rope_cache", "mla_rope_cache_")
# Every hidden size in every rounding; every number of heads in every rounding with several flags.
CONFIGS_EACH = {**dict.fromkeys(ROWS_OPS, 12), **dict.fromkeys(ROPE_OPS, 18)}
# The first is a model's; the others are cheaper to compile, and narrower than what lanes hold.
HIDDEN_SIZES = (7168, 1536, 512, 96)
HEADS = (128, 16, 5)
TOKENS = (1, 3, 17)
# LLVM takes ten seconds for a kernel of more segments; the full matrix has them.
MOST_SEGMENTS = 10

Work = tuple[Target, Case, Config]


def random_config(problem: Problem, target: Target, chooser: random.Random, full: bool) -> Config:
    family = get_family(problem.op)
    knobs = family.knobs(problem, target)
    while True:
        config = family.canonical({knob.name: chooser.choice(knob.choices) for knob in knobs})
        if family.valid(problem, target, config):
            segments = family.context(problem, target, config).get("segments", ())
            if full or len(segments) <= MOST_SEGMENTS:
                return config


def of_each_rounding(variants: list[Problem], index: int, full: bool) -> list[Problem]:
    """Of the variants of a problem one in turn, or one of each rounding, with other flags in turn."""
    roundings = list(dict.fromkeys(variant.rounding.partition(",")[0] for variant in variants))
    chosen = []
    for number, rounding in enumerate(roundings):
        alike = [variant for variant in variants if variant.rounding.partition(",")[0] == rounding]
        if full or number == index % len(roundings):
            chosen.append(alike[index // len(roundings) % len(alike)])
    return chosen


def work_of(op: str, target: Target, count: int, full: bool = False) -> list[Work]:
    """Random cases in as many random configs, every rounding and variant in turn, or all roundings of each config."""
    chooser = random.Random(f"{op} {target.name}")
    family = get_family(op)
    if op in ROWS_OPS:
        shapes = [{"hidden_size": size} for size in HIDDEN_SIZES]
    else:
        shapes = [{"num_heads": heads, "kv_lora_rank": 512, "rope_dim": 64} for heads in HEADS]
    variants = family.served(Problem.of(op, shapes[0]))
    if op in ROPE_OPS:
        more = [("none,neox,fp8", "act,fp8"), ("act,neox", "none,fp8", "none,pe_first,q_fp8", "act,fp8,q_fp8")]
        names = more[0] if op == "mla_rope_cache_" else tuple(itertools.chain(*more))
        variants = [*variants, *(Problem.of(op, shapes[0], name) for name in names)]
    work = []
    for index in range(count):
        shape = shapes[index % len(shapes)]
        config: Config | None = None
        for variant in of_each_rounding(variants, index, full):
            problem = family.canonical_problem(Problem.of(op, shape, variant.rounding))
            if config is None or not family.valid(problem, target, config):
                config = random_config(problem, target, chooser, full)
            cases = candidates([problem], [chooser.choice(TOKENS)], target)
            work.append((target, chooser.choice(cases), config))
    return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def failures(executor: Executor, folder: Path, work: list[Work], options: Options | None = None) -> list[str]:
    futures = [
        executor.submit(
            render(case.problem, target, config).write(folder),
            case,
            fewest_lanes_per_row(target, config),
            target,
            options,
        )
        for target, case, config in work
    ]
    return [
        f"{case}, {target.name}, {config}: {failure}"
        for (target, case, config), future in zip(work, futures, strict=True)
        for failure in future.result()
    ]


@pytest.mark.parametrize("op", [*ROWS_OPS, *ROPE_OPS])
def test_random_configs_conform_on_gfx950(op: str, executor: Executor, folder: Path, full_matrix: bool) -> None:
    assert failures(executor, folder, work_of(op, GFX950, CONFIGS_EACH[op], full_matrix)) == []


@pytest.mark.parametrize("op", [*ROWS_OPS, *ROPE_OPS])
def test_random_configs_conform_on_gfx942(op: str, executor: Executor, folder: Path) -> None:
    assert failures(executor, folder, work_of(op, GFX942, 4)) == []


@pytest.mark.parametrize("amd", [GFX950, GFX942], ids=lambda amd: amd.name)
def test_a_kernel_of_many_segments_conforms(amd: Target, executor: Executor, folder: Path) -> None:
    """More than random configs have."""
    problem = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168})
    family = get_family(problem.op)
    config = family.canonical({**family.default(problem, amd), "cover": "14x512", "num_warps": 2})
    assert family.valid(problem, amd, config)
    assert len(family.context(problem, amd, config)["segments"]) == 14 > MOST_SEGMENTS
    assert failures(executor, folder, [(amd, candidates([problem], [3], amd)[0], config)]) == []


def test_shipped_winners_conform_on_gfx950(executor: Executor, folder: Path, full_matrix: bool) -> None:
    """Every tuned config of gfx950 at the size that it was tuned for, each in another rounding, or in all of them.

    One tuned before a knob was there has the knob's default.
    """
    chooser = random.Random(0)
    work = []
    for entry in load_entries(tuned_configs_dir(), ["gfx950"]):
        family = get_family(entry.op)
        served = family.served(entry.problem)
        names = [knob.name for knob in family.knobs(entry.problem, GFX950)]
        tuned = [{name: value for name, value in b.config.items() if name in names} for b in entry.buckets]
        configs = {config_key(c): c for c in (family.resolve(entry.problem, GFX950, given) for given in tuned)}
        for index, config in enumerate(configs.values()):
            for problem in of_each_rounding(served, index, full_matrix):
                cases = candidates([problem], [chooser.choice((1, 3))], GFX950)
                work.append((GFX950, chooser.choice(cases), config))
    assert {case.problem.op for _, case, _ in work} >= set(ROWS_OPS)
    assert failures(executor, folder, work) == []


def default(op: str, rounding: str = "none", **sizes: int) -> tuple[Problem, Config]:
    problem = Problem.of(op, sizes or {"hidden_size": 7168}, rounding)
    return problem, get_family(op).default(problem, GFX950)


def outputs_of(
    problem: Problem, config: Config, folder: Path, options: Options, tokens: int = 3
) -> tuple[torch.Tensor, ...]:
    """What a kernel gives for random bf16 rows."""
    op = OPS[problem.op]
    kernel = executed(load_kernel(render(problem, GFX950, config).write(folder)), GFX950, options)
    args = op.inputs(problem.sizes, tokens, torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(0))
    outputs = op.allocate(*args)
    op.launch(kernel, UNITS, outputs, *args)
    return outputs


def test_the_outcome_does_not_depend_on_order_poison_or_preloading(folder: Path) -> None:
    """Waves one after another and pre-empted at random, registers with other garbage, arguments loaded by the code."""
    problem, config = default("rmsnorm_add_mxfp4_quant")
    expected = outputs_of(problem, config, folder, Options())
    for options in (
        Options(seed=1, shuffle=True),
        Options(seed=2, shuffle=True),
        Options(seed=3),
        Options(seed=4, preload=False),
    ):
        for one, other in zip(expected, outputs_of(problem, config, folder, options), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("ulps", [-1, 1])
def test_conforms_at_both_ends_of_the_error_of_approximations(ulps: int, executor: Executor, folder: Path) -> None:
    work = [(target, case, config) for target, case, config in work_of("rmsnorm_mxfp4_quant", GFX950, 4)]
    assert failures(executor, folder, work, Options(ulps=ulps)) == []


def test_conversion_to_fp8_at_both_ends(executor: Executor, folder: Path) -> None:
    """A division by the scale is exact whatever the reciprocal in it is."""
    problem = Problem.of("mla_rope_cache", {"num_heads": 5, "kv_lora_rank": 512, "rope_dim": 64}, "act,fp8,q_fp8")
    config = get_family(problem.op).default(problem, GFX950)
    cases = candidates([problem], [3], GFX950)
    for ulps in (-1, 1):
        assert failures(executor, folder, [(GFX950, cases[0], config)], Options(ulps=ulps)) == []


def test_fp16_keeps_the_sign_of_zero(folder: Path) -> None:
    """Of a product LLVM makes v_fma_mixlo_f16 with +0 to add, if the kernel does not bring the zero itself."""
    problem = Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 512}, "sum_norm_output")
    config = get_family(problem.op).default(problem, GFX942)
    case = next(
        case
        for case in candidates([problem], [17], GFX942)
        if case.dtype == "float16" and case.special and case.layout == "contiguous"
    )
    path = render(problem, GFX942, config).write(folder)
    lanes = fewest_lanes_per_row(GFX942, config)
    assert execute_case(path, case, lanes, "gfx942") == []
    source, plain = path.read_text(encoding="utf-8"), path.with_name(f"plain_{path.name}")
    plain.write_text(source.replace("tl.fma(a, b, minus_zero)", "a * b"), encoding="utf-8")
    (found,) = execute_case(plain, case, lanes, "gfx942")
    assert found.startswith("code signs: ")


@pytest.mark.parametrize("rounding", ["none", "act"])
def test_fp16_overflows_to_infinity_beside_fp8(rounding: str, folder: Path) -> None:
    """Triton sets MODE.FP16_OVFL in a kernel that converts to fp8; fp16 results would saturate with it."""
    problem = Problem.of("mla_rope_cache_", {"num_heads": 5, "kv_lora_rank": 512, "rope_dim": 64}, f"{rounding},fp8")
    case = mla_rope.Case(problem, 9, 9, 9, dtype="float16", special=True, seed=1)
    path = render(problem, GFX950, get_family(problem.op).default(problem, GFX950)).write(folder)
    assert execute_case(path, case, 64, "gfx950") == []
    source, plain = path.read_text(encoding="utf-8"), path.with_name(f"plain_{path.name}")
    plain.write_text(re.sub(r"tl.where\(tl.abs\(values\) < 65520.0, .*", "values", source), encoding="utf-8")
    (found,) = execute_case(plain, case, 64, "gfx950")
    assert "got 65504.0, allowed inf" in found


def test_a_launch_is_specialised_as_on_a_device(folder: Path) -> None:
    """Rows off their boundary compile to another listing than aligned ones."""
    problem, config = default("dynamic_mxfp4_quant", hidden_size=512)
    kernel = load_kernel(render(problem, GFX950, config).write(folder))
    listings: list[str] = []

    def keep(text: str) -> str:
        listings.append(text)
        return text

    function = Executed(kernel.function, GFX950, mutate=keep)
    op = OPS[problem.op]
    for case in candidates([problem], [3], GFX950):
        if case.dtype == "bfloat16" and case.layout in ("contiguous", "offset") and not case.special:
            args = make_args(case, torch.device("cpu"))
            op.launch(replace(kernel, function=function), UNITS, op.allocate(*args), *args)
    loads = [text.count("buffer_load_ushort") for text in listings]
    assert len(loads) == 2
    assert min(loads) == 0 < max(loads)
