"""A knob changes the compiled code wherever it is offered; one that did not would be searched for nothing."""

from __future__ import annotations

import functools

import pytest

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render
from tunegen.codegen.resources import read_listing
from tunegen.ops import Config, Knob, Problem, config_key, get_family
from tunegen.targets import TARGETS, Target

# Small, so that they compile fast; with room for every knob.
PROBLEMS = {
    "rmsnorm_add_mxfp4_quant": Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 512}),
    "mla_rope_cache": Problem.of("mla_rope_cache", {"num_heads": 8, "kv_lora_rank": 256, "rope_dim": 32}),
}
# Where a knob has an effect only together with another.
TOGETHER: dict[str, dict[str, Config]] = {
    "rmsnorm_add_mxfp4_quant": {
        "num_stages": {"programs_per_unit": 1},
        "waves_per_eu": {"rows": 8, "num_warps": 1},
        "max_registers": {"rows": 4, "num_warps": 1},
    },
    "mla_rope_cache": {"waves_per_eu": {"heads": 8}},
}


@functools.cache
def code(
    problem: Problem, target: Target, key: str, config_of_key: tuple[tuple[str, int | str], ...]
) -> tuple[str, ...]:
    """The instructions of a config's kernel."""
    kernel = compile_kernel(render(problem, target, dict(config_of_key)))
    return tuple(instruction.text for instruction in read_listing(target, kernel.listing))


def code_of(problem: Problem, target: Target, config: Config) -> tuple[str, ...]:
    return code(problem, target, config_key(config), tuple(config.items()))


def cases() -> list[tuple[str, str, Knob]]:
    found = []
    for op, problem in PROBLEMS.items():
        for target in TARGETS.values():
            offered = get_family(op).knobs(problem, target)
            found += [(op, target.name, knob) for knob in offered if len(knob.choices) > 1]
    return found


@pytest.mark.parametrize(("op", "name", "knob"), cases(), ids=lambda value: getattr(value, "name", value))
def test_knob_changes_the_code(op: str, name: str, knob: Knob) -> None:
    problem, target, family = PROBLEMS[op], TARGETS[name], get_family(op)
    default = family.default(problem, target)
    base = {**default, **TOGETHER[op].get(knob.name, {})}
    without_effect, with_effect = [], 0
    for choice in knob.choices[::-1]:
        config = family.canonical({**base, knob.name: choice})
        if config[knob.name] == base[knob.name] or not family.valid(problem, target, config):
            continue
        if code_of(problem, target, config) == code_of(problem, target, base):
            without_effect.append(choice)
        else:
            with_effect += 1
            if not knob.name.endswith("policy"):
                break
    # Of numbers one that matters is enough: what they ask for may be what the compiler does anyway. A policy names
    # an instruction's bits.
    failing = without_effect if knob.name.endswith("policy") or not with_effect else []
    assert not failing, f"{knob.name} = {failing} leaves the code of {base} as it is on {name}: do not offer it there"
