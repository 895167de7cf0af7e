"""Families: covers, default rule, search space, bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunegen.errors import ConfigError, ShapeError
from tunegen.models import MODELS, get_model, heads_of_rank, problems_of
from tunegen.ops import FAMILIES, Problem, config_key, get_family
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4, format_cover, greedy_cover, parse_cover
from tunegen.targets import TARGETS, get_target

HIDDEN_SIZES = st.integers(1, 512).map(lambda blocks: 32 * blocks)


@given(HIDDEN_SIZES, st.sampled_from([32, 256, 1024, 4096, 16384]))
def test_greedy_cover_is_exact(hidden_size: int, largest: int) -> None:
    cover = greedy_cover(hidden_size, largest)
    assert sum(cover) == hidden_size
    assert all(width >= 32 and width & (width - 1) == 0 and width <= largest for width in cover)
    assert cover == sorted(cover, reverse=True)
    assert parse_cover(format_cover(cover)) == cover


@pytest.mark.parametrize("text", ["", "x1024", "1024+", "7*1024", "-1024", "1024 + 512"])
def test_malformed_cover(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_cover(text)


@given(HIDDEN_SIZES)
def test_default_is_valid_everywhere(hidden_size: int) -> None:
    for target in TARGETS.values():
        for op in RMSNORM_MXFP4.ops:
            family = get_family(op)
            problem = Problem.of(op, {"hidden_size": hidden_size})
            config = family.default(problem, target)
            family.check(problem, target, config)
            assert family.resolve(problem, target, {}) == config


def test_default_rule_on_known_shapes() -> None:
    """The documented rule: a row a program, 64 (AMD: 32) elements a lane, half of that with a residual."""

    def launch(op: str, hidden_size: int, target: str) -> tuple[str, int]:
        config = get_family(op).default(Problem.of(op, {"hidden_size": hidden_size}), get_target(target))
        return str(config["cover"]), int(config["num_warps"])

    assert launch("rmsnorm_mxfp4_quant", 7168, "sm90") == ("7x1024", 4)
    assert launch("rmsnorm_add_mxfp4_quant", 7168, "sm90") == ("3x2048+1024", 8)
    assert launch("rmsnorm_mxfp4_quant", 7168, "gfx950") == ("3x2048+1024", 4)
    assert launch("rmsnorm_mxfp4_quant", 512, "sm90") == ("2x256", 1)
    assert launch("rmsnorm_mxfp4_quant", 96, "sm90") == ("64+32", 1)


@pytest.mark.parametrize(("name", "hidden_size"), [("gfx950", 7168), ("sm90", 512)])
def test_space_is_distinct_valid_and_holds_the_default(name: str, hidden_size: int) -> None:
    for op in RMSNORM_MXFP4.ops:
        family, gpu = get_family(op), get_target(name)
        problem = Problem.of(op, {"hidden_size": hidden_size})
        space = list(family.space(problem, gpu))
        keys = {config_key(config) for config in space}
        assert len(keys) == len(space) >= 40
        assert config_key(family.default(problem, gpu)) in keys
        assert all(config["num_stages"] == 1 for config in space if not config["programs_per_unit"])


def test_complexity_prefers_the_plain_config() -> None:
    family, gpu = get_family("rmsnorm_mxfp4_quant"), get_target("sm90")
    problem = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168})
    plain = family.default(problem, gpu)
    looped = {**plain, "programs_per_unit": 4, "num_stages": 2}
    assert family.complexity(problem, gpu, plain) < family.complexity(problem, gpu, looped)


def test_bytes_moved() -> None:
    """16 tokens of 512: x in, codes and scales out, the weight once, and with a residual two more tensors."""
    a_row = 2 * 512 + 256 + 16
    expected = {
        "dynamic_mxfp4_quant": 16 * a_row,
        "rmsnorm_mxfp4_quant": 16 * a_row + 1024,
        "rmsnorm_add_mxfp4_quant": 16 * (a_row + 4 * 512) + 1024,
    }
    for op, count in expected.items():
        problem = Problem.of(op, {"hidden_size": 512})
        assert get_family(op).bytes_moved(problem, 16) == count
        assert get_family(op).bytes_moved(problem, 0) == 0


def test_grid() -> None:
    family = get_family("rmsnorm_mxfp4_quant")
    problem = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
    config = family.default(problem, get_target("sm90"))
    assert family.grid(problem, config, 17, 132) == (17, 17)
    assert family.grid(problem, {**config, "rows": 4}, 17, 132) == (5, 5)
    assert family.grid(problem, {**config, "programs_per_unit": 2}, 4096, 132) == (4096, 264)


def test_models() -> None:
    assert [p.sizes["hidden_size"] for p in problems_of(get_model("deepseek-r1"), ["rmsnorm_mxfp4_quant"])] == [
        7168,
        1536,
        512,
    ]
    assert heads_of_rank(MODELS["deepseek-r1"], 8) == 16
    # The residual stream alone has something to add.
    assert [p.sizes for p in problems_of(get_model("deepseek-r1"), ["rmsnorm_add_mxfp4_quant"])] == [
        {"hidden_size": 7168}
    ]
    assert len(problems_of(get_model("deepseek-v2-lite"), list(RMSNORM_MXFP4.ops))) == 5
    rank = problems_of(get_model("deepseek-r1"), ["mla_rope_cache", "mla_rope_cache_"], tensor_parallel=8)
    assert {p.sizes["num_heads"] for p in rank} == {16}
    assert [p.rounding for p in rank] == ["none", "none,fp8", "none,fp8,q_fp8", "act", "act,fp8"]
    with pytest.raises(ShapeError, match="must divide the 128 heads"):
        problems_of(get_model("deepseek-r1"), tensor_parallel=3)


def test_every_tuned_variant_serves_itself_and_all_variants_are_served() -> None:
    for family in FAMILIES:
        for op in family.ops:
            sizes = dict.fromkeys(family.sizes, 64)
            served = [
                problem.rounding
                for variant in family.tuned_variants(op)
                for problem in family.served(Problem.of(op, sizes, variant))
            ]
            assert set(family.tuned_variants(op)) <= set(served)
            assert len(served) == len(set(served))
    assert len(served) == 8  # of mla_rope_cache_: rounding, pairing, cache dtype
