"""What the compiler makes of the shipped gfx950 configs at hidden size 7168, read off the listing."""

from __future__ import annotations

import functools
import re

import pytest

from tunegen.codegen.compile import Compiled, compile_kernel
from tunegen.codegen.findings import findings_of
from tunegen.codegen.listing import read_amdgcn
from tunegen.codegen.listing.fp4 import CONVERSION, check_conversions
from tunegen.codegen.render import render
from tunegen.configs import load_entries
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.ops.rmsnorm_mxfp4 import DYNAMIC, NORM, NORM_ADD, parse_cover
from tunegen.paths import tuned_configs_dir
from tunegen.targets import get_target

GFX950 = get_target("gfx950")
HIDDEN_SIZE = 7168
MOST_LDS = 1024
# Whole rows from here on: below, programs that share a row trade arithmetic for latency.
TOKENS_OF_WHOLE_ROWS = 1024
# Vector instructions a lane at 4 and 8 waves; barriers a row.
MOST_VECTOR = {NORM: {4: 280, 8: 175}, NORM_ADD: {4: 360, 8: 215}}
MOST_BARRIERS = 4


@functools.cache
def compiled(op: str, key: str, rounding: str = "none", dtype: str = "bfloat16") -> Compiled:
    config: Config = dict(WINNERS[op][key])
    return compile_kernel(render(Problem.of(op, {"hidden_size": HIDDEN_SIZE}, rounding), GFX950, config), dtype)


def winners(op: str) -> dict[str, Config]:
    """Distinct configs that the shipped table has for gfx950, those of whole rows in one pass."""
    entries = load_entries(tuned_configs_dir(), ["gfx950"])
    entry = next(entry for entry in entries if entry.op == op and entry.shape == {"hidden_size": HIDDEN_SIZE})
    configs = [bucket.config for bucket in entry.buckets if bucket.tokens >= TOKENS_OF_WHOLE_ROWS]
    family, problem = get_family(op), Problem.of(op, {"hidden_size": HIDDEN_SIZE})
    default = family.default(problem, GFX950)
    # Tables and knobs change at different times; an entry of before is stale, and the freshness test says so.
    usable = [config for config in configs if set(config) == set(default) and family.valid(problem, GFX950, config)]
    return {config_key(config): config for config in [default, *usable]}


def plain(config: Config) -> bool:
    """True for a whole row a program, in one pass: loads and conversions can be counted."""
    return (config["rows"], config["splits"], config["programs_per_unit"]) == (1, 1, 0)


WINNERS = {op: winners(op) for op in (NORM, NORM_ADD, DYNAMIC)}
CASES = [(op, key) for op, configs in WINNERS.items() for key in configs]


@pytest.mark.parametrize(("op", "key"), CASES)
def test_winners_use_the_machine_as_meant(op: str, key: str) -> None:
    """No spills, few barriers and vector instructions, LDS for the row reduction alone, right codes."""
    kernel = compiled(op, key)
    config, used = WINNERS[op][key], kernel.resources
    assert used.spills == 0
    assert used.barriers <= MOST_BARRIERS
    assert "scratch" not in "".join(used.mix)
    assert used.shared_memory <= MOST_LDS
    assert not [kind for kind in used.mix if kind.startswith("shared") and not kind.endswith(" 4")]
    instructions = read_amdgcn(kernel.listing, "gfx950")
    assert not any("wide" in finding.what for finding in findings_of(GFX950, instructions))
    if plain(config):
        assert check_conversions(instructions) == []
    if config["rows"] == 1 and op in MOST_VECTOR:
        assert used.vector_instructions <= MOST_VECTOR[op].get(used.warps, used.vector_instructions)


@pytest.mark.parametrize(("op", "key"), [(op, key) for op, key in CASES if plain(WINNERS[op][key])])
def test_winners_load_16_bytes_at_a_time(op: str, key: str) -> None:
    """Wherever a segment gives a lane as much; each element is converted once."""
    kernel = compiled(op, key)
    config, used = WINNERS[op][key], kernel.resources
    expected: dict[str, int] = {}
    inputs = {NORM: 2, NORM_ADD: 3, DYNAMIC: 1}[op]
    for width in parse_cover(str(config["cover"])):
        per_lane = 2 * width // (64 * used.warps)
        name = f"global load {min(per_lane, 16)}"
        expected[name] = expected.get(name, 0) + inputs * max(per_lane // 16, 1)
    assert {kind: count for kind, count in used.mix.items() if kind.startswith("global load")} == expected
    conversions = [line for line in kernel.listing.split("\n") if line.lstrip().startswith(CONVERSION)]
    assert len(conversions) == HIDDEN_SIZE // (64 * used.warps) // 2


@pytest.mark.parametrize("op", MOST_VECTOR)
@pytest.mark.parametrize(("warps", "cover"), [(4, "3x2048+1024"), (8, "4096+2048+1024")])
def test_vector_instructions_at_4_and_8_waves(op: str, warps: int, cover: str) -> None:
    """Whatever the winners are."""
    problem = Problem.of(op, {"hidden_size": HIDDEN_SIZE})
    config = get_family(op).resolve(problem, GFX950, {"num_warps": warps, "cover": cover})
    assert compile_kernel(render(problem, GFX950, config)).resources.vector_instructions <= MOST_VECTOR[op][warps]


def listing_of_default() -> str:
    return compiled(NORM, next(iter(WINNERS[NORM]))).listing


def conversion_lines(listing: str) -> list[str]:
    return [line for line in listing.split("\n") if line.lstrip().startswith(CONVERSION)]


def test_swapped_nibbles_are_found() -> None:
    listing = listing_of_default()
    line = conversion_lines(listing)[1]
    swapped = re.sub(r"(f32 v\d+), (v\d+), (v\d+)", r"\1, \3, \2", line)
    assert swapped != line
    found = check_conversions(read_amdgcn(listing.replace(line, swapped), "gfx950"))
    # Every text names a nibble: without a match this raises.
    assert [re.search(r"the (\w+) nibble", text)[1] for text in found] == ["low", "high"]  # type: ignore[index]  # None fails


@pytest.mark.parametrize(("op", "rounding"), [(DYNAMIC, "none"), (NORM, "output"), (NORM_ADD, "sum_norm_output")])
def test_values_of_16_bits_are_converted_as_such(op: str, rounding: str) -> None:
    """The conversion of bf16 takes a word, as it was loaded or rounded; swapped halves of one are found."""
    kernel = compiled(op, next(iter(WINNERS[op])), rounding)
    assert {line.split()[0] for line in conversion_lines(kernel.listing)} == {CONVERSION + "bf16"}
    assert kernel.usage.shared_memory <= MOST_LDS
    assert check_conversions(read_amdgcn(kernel.listing, "gfx950")) == []
    if op != DYNAMIC:
        rounded = [line for line in kernel.listing.split("\n") if line.lstrip().startswith("v_cvt_pk_bf16_f32")][-1]
        swapped = re.sub(r"(v\d+), (v\d+)$", r"\2, \1", rounded)
        assert swapped != rounded
        before, _, after = kernel.listing.rpartition(rounded)
        found = check_conversions(read_amdgcn(before + swapped + after, "gfx950"))
        assert [re.search(r"the (\w+) nibble", text)[1] for text in found] == ["low", "high"]  # type: ignore[index]  # None fails


def test_a_wrong_byte_is_found() -> None:
    listing = listing_of_default()
    line = next(line for line in conversion_lines(listing) if "op_sel:[0,0,1,0]" in line)
    moved = line.replace("op_sel:[0,0,1,0]", "op_sel:[0,0,0,1]")
    found = check_conversions(read_amdgcn(listing.replace(line, moved), "gfx950"))
    assert any("byte 2" in text for text in found)


def test_a_missing_wait_state_is_found() -> None:
    """Whatever stands between a write of a byte and the next one is taken out."""
    listing = listing_of_default()
    lines = listing.split("\n")
    instructions = read_amdgcn(listing, "gfx950")
    at, following = next(
        (index, other)
        for index, first in enumerate(instructions)
        if first.opcode.startswith(CONVERSION) and "op_sel:[0,0,1,0]" in first.text
        for other, second in enumerate(instructions)
        if other > index and second.opcode.startswith(CONVERSION) and second.writes == first.writes
    )
    assert following > at + 1
    for between in instructions[at + 1 : following]:
        lines[between.line - 1] = ""
    found = check_conversions(read_amdgcn("\n".join(lines), "gfx950"))
    assert any("needs a wait state" in text for text in found)
