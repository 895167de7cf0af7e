"""Every rendered kernel computes what the numerics contract says: on the GPU here; or executed on the CPU from its
listing, for gfx950 and gfx942; or in the interpreter.

Configs are paired with cases as the factors of a case are with each other: every config variant meets every op, hidden
size, rounding, token count, dtype and layout.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable

import pytest
import torch

from tunegen.evaluate.conformance import pairwise
from tunegen.evaluate.conformance.rows import Case, candidates, case_factors
from tunegen.evaluate.executor import executable
from tunegen.evaluate.interpreter import UNITS, interpretable, substituted
from tunegen.ops import Config, Problem, get_family
from tunegen.ops.rmsnorm_mxfp4 import MAX_SEGMENTS, RMSNORM_MXFP4, format_cover, greedy_cover, split_choices
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS
from tunegen.targets import Target, get_target, present_device

OPS = RMSNORM_MXFP4.ops
HIDDEN_SIZES = (7168, 5120, 2048, 1536, 512, 96)
TOKENS = (0, 1, 3, 17, 33, 256)
# The interpreter takes about 5 ms a segment of a program: what has more of them is left to the GPU. 17 tokens of the
# largest hidden size are within it in wide segments, and 256 of a small one in tiles of many rows.
SEGMENTS_INTERPRETED = 80
# The executor takes 2 ms a row of 7168, and LLVM seconds for a kernel of many segments. The full matrix has all of
# them; `test_256_tokens` has the largest token count at every size.
SEGMENTS_COMPILED = 10
ELEMENTS_EXECUTED = 33 * 7168
# Tests that share the cases of a target, so that test processes do.
PARTS = 3
# gfx942's kernels are gfx950's but for their conversions: a few variants show that. The full matrix has all.
VARIANTS_IN_CI = {"gfx942": ("default", "many rows, looping", "split")}


def problems(hidden_size: int) -> list[Problem]:
    """Every op and rounding of a hidden size."""
    return [Problem.of(op, {"hidden_size": hidden_size}, rounding) for op in OPS for rounding in ROUNDINGS]


def first_valid(problem: Problem, target: Target, *options: Config) -> Config:
    """The default config with the first of some changes that is valid."""
    family = get_family(problem.op)
    base = family.default(problem, target)
    for option in options:
        config = family.canonical({**base, **option})
        if family.valid(problem, target, config):
            return config
    pytest.fail(f"none of {options} is valid for {problem} on {target.name}")


def covers(hidden_size: int) -> list[str]:
    """Greedy covers of a hidden size, from one of the widest segments to the narrowest that a kernel may have."""
    greedy = (greedy_cover(hidden_size, 2**n) for n in range(12, 4, -1))
    return list(dict.fromkeys(format_cover(cover) for cover in greedy if len(cover) <= MAX_SEGMENTS))


def variants(problem: Problem, target: Target) -> dict[str, Config]:
    """Configs that between them take every branch of the template."""
    sizes = covers(problem.sizes["hidden_size"])
    # From most warps to fewest: lanes with two elements pack two codes a word, with four, four.
    warps = (16, 8, 4, 2, 1)
    tiled = [{"cover": cover, "num_warps": w} for w, cover in itertools.product(warps, sizes)]
    splits = split_choices(problem.sizes["hidden_size"])
    return {
        "default": first_valid(problem, target, {}),
        "widest": first_valid(problem, target, *({"cover": sizes[0], "num_warps": w} for w in warps[::-1])),
        "narrowest": first_valid(problem, target, *({"cover": sizes[-1], "num_warps": w} for w in warps)),
        "small packs": first_valid(problem, target, *({"num_warps": w} for w in warps)),
        "rows": first_valid(problem, target, *({**option, "rows": 2} for option in tiled)),
        "many rows, looping": first_valid(
            problem,
            target,
            *({**option, "rows": rows, "programs_per_unit": 1} for rows in (8, 4, 2) for option in tiled),
        ),
        "looping": first_valid(
            problem,
            target,
            {"programs_per_unit": 1, "num_stages": 2, "load_policy": "evict_first", "store_policy": "streaming"},
            {"programs_per_unit": 1, "num_stages": 2, "store_policy": "streaming"},
        ),
        "split": first_valid(problem, target, {"splits": splits[min(1, len(splits) - 1)]}),
        "split finely": first_valid(problem, target, *({"splits": count} for count in splits[::-1])),
    }


def left_out(target: Target, case: Case, config: Config, full_matrix: bool) -> bool:
    """True for what would take long without a GPU and show little."""
    segments = len(RMSNORM_MXFP4.context(case.problem, target, config)["segments"])
    if executable(target):
        elements = case.num_tokens * case.problem.sizes["hidden_size"]
        return not full_matrix and (segments > SEGMENTS_COMPILED or elements > ELEMENTS_EXECUTED)
    tiles, _ = RMSNORM_MXFP4.grid(case.problem, config, case.num_tokens, units=UNITS)
    return tiles * segments > SEGMENTS_INTERPRETED


@functools.cache
def pairs_of(target: Target, on_gpu: bool, full_matrix: bool) -> list[tuple[Case, Config]]:
    """Cases with configs, in which any two values of different factors meet."""
    names = VARIANTS_IN_CI.get(target.name) if not on_gpu and not full_matrix else None
    configs: dict[Problem, dict[str, Config]] = {}
    pairs = []
    for hidden_size in HIDDEN_SIZES:
        for case in candidates(problems(hidden_size), TOKENS, seed=hidden_size):
            if case.problem not in configs:
                configs[case.problem] = variants(case.problem, target)
            pairs += [
                (case, name)
                for name, config in configs[case.problem].items()
                if (names is None or name in names) and (on_gpu or not left_out(target, case, config, full_matrix))
            ]

    # The executor compiles every kernel: only the full matrix has each variant of each size meet everything.
    by_size = full_matrix or on_gpu or not executable(target)

    def factors(pair: tuple[Case, str]) -> tuple[Hashable, ...]:
        case, name = pair
        return (*case_factors(case), (case.problem.sizes["hidden_size"], name) if by_size else name)

    return [(case, configs[case.problem][name]) for case, name in pairwise(pairs, factors)]


@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_conform(target: Target, part: int, judge, on_gpu: bool, full_matrix: bool) -> None:
    assert judge(target, pairs_of(target, on_gpu, full_matrix)[part::PARTS]) == []


@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_256_tokens(hidden_size: int, judge, on_gpu: bool) -> None:
    """The largest op at the largest token count of the contract, in its default config on one target."""
    problem = Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": hidden_size}, "sum_output")
    target = get_target("gfx950")
    if on_gpu:
        device = present_device()
        assert device is not None
        target = device.target
    case = Case(problem, 256, "bfloat16", "contiguous", special=True, seed=hidden_size)
    assert judge(target, [(case, first_valid(problem, target, {}))]) == []


@pytest.mark.parametrize("op", OPS)
def test_offsets_pass_2_to_the_31(target: Target, op: str, judge, on_gpu: bool) -> None:
    if on_gpu and torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("the rows lie 2 GiB apart")
    problem = Problem.of(op, {"hidden_size": 512})
    case = Case(problem, 3, "bfloat16", "wide", special=False)
    configs = variants(problem, target)
    assert judge(target, [(case, configs[name]) for name in ("default", "rows", "looping", "split")]) == []


def test_conversions_by_instruction_are_substituted() -> None:
    problem = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 512})
    for name, expected in (("gfx950", True), ("sm100", True), ("gfx942", False), ("sm90", False)):
        target = get_target(name)
        config = get_family(problem.op).default(problem, target)
        rendered = interpretable(problem, target, config)
        assert substituted(problem, target, config) is expected
        assert rendered.target == name
        assert "def round_e2m1" in rendered.source
