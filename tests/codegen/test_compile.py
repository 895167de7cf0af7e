"""Offline compilation for every target, and the resource report."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tunegen.codegen.compile import Compiled, compile_kernel
from tunegen.codegen.render import render
from tunegen.codegen.resources import disassemble
from tunegen.errors import CompileError
from tunegen.ops import Config, Problem, get_family
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4
from tunegen.targets import TARGETS, get_target


def compiled(op: str, hidden_size: int, target: str, config: Config, rounding: str = "none") -> Compiled:
    problem = Problem.of(op, {"hidden_size": hidden_size}, rounding)
    gpu = get_target(target)
    return compile_kernel(render(problem, gpu, get_family(op).resolve(problem, gpu, config)))


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("op", RMSNORM_MXFP4.ops)
def test_default_config_compiles_without_spills(op: str, name: str) -> None:
    resources = compiled(op, 7168, name, {}).resources
    assert resources.spills == 0
    assert 8 <= resources.registers <= get_target(name).registers
    assert resources.programs_per_unit >= 1
    assert 0 < resources.occupancy <= 1
    assert resources.vector_instructions > 100


def test_twins_compile() -> None:
    for target in TARGETS.values():
        for op in RMSNORM_MXFP4.ops:
            problem = Problem.of(op, {"hidden_size": 1536})
            for config in get_family(op).twin_configs(problem, target)[:2]:
                assert compile_kernel(render(problem, target, config, twin=True)).usage.spills == 0


def test_gfx950_uses_the_hardware_conversion_without_layout_changes() -> None:
    """28 conversions for 56 elements a lane; LDS for the row reduction alone; 16-byte loads."""
    kernel = compiled("rmsnorm_mxfp4_quant", 7168, "gfx950", {"cover": "3x2048+1024", "num_warps": 4})
    assert len(re.findall(r"v_cvt_scalef32_pk_fp4_f32", kernel.assembly)) == 14
    assert kernel.usage.shared_memory <= 64
    assert kernel.resources.barriers <= 2
    assert "buffer_load_dwordx4" in kernel.assembly
    assert "buffer_store_dword " in kernel.assembly


def test_gfx942_converts_in_software() -> None:
    kernel = compiled("rmsnorm_mxfp4_quant", 7168, "gfx942", {})
    assert "cvt_scalef32" not in kernel.assembly
    assert kernel.usage.shared_memory <= 64


@pytest.mark.parametrize("name", ["gfx950", "gfx942"])
def test_no_plus_zero_is_added_to_fp16_products(name: str) -> None:
    """LLVM rounds a product to fp16 by v_fma_mixlo_f16, and the zero that it adds must be the kernel's -0.0."""
    gpu = get_target(name)
    for problem in (
        Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512}, "norm_output"),
        Problem.of("mla_rope_cache", {"num_heads": 16, "kv_lora_rank": 512, "rope_dim": 64}, "act"),
    ):
        rendered = render(problem, gpu, get_family(problem.op).default(problem, gpu))
        listing = compile_kernel(rendered, "float16").listing
        assert not re.findall(r"v_fma_mix\w+ .*, 0(?: op_sel.*)?$", listing, re.MULTILINE)
    if name == "gfx942":
        plain = replace(rendered, source=rendered.source.replace("tl.fma(a, b, minus_zero)", "a * b"))
        listing = compile_kernel(plain, "float16").listing
        assert re.findall(r"v_fma_mix\w+ .*, 0(?: op_sel.*)?$", listing, re.MULTILINE)


def test_sm100_uses_the_hardware_conversion() -> None:
    assert "cvt.rn.satfinite.e2m1x2.f32" in compiled("dynamic_mxfp4_quant", 512, "sm100", {}).assembly


def test_sm90_has_wide_loads_and_no_layout_changes() -> None:
    kernel = compiled("rmsnorm_add_mxfp4_quant", 7168, "sm90", {"cover": "7x1024", "num_warps": 4})
    sass = disassemble(kernel.binary)
    assert len(re.findall(r"LDG\.E(?:\.EL)?\.128", sass)) == 21  # x, residual and weight, seven segments each
    assert len(re.findall(r"STG\.E\.128", sass)) == 7
    assert kernel.usage.shared_memory <= 64
    assert kernel.resources.barriers <= 2


@pytest.mark.parametrize("warps", [4, 8])
def test_sm90_asks_for_the_weight_before_it_waits_for_the_row(warps: int) -> None:
    """With a limit, which is a knob: without one, ptxas asks for part of it later, to get by with fewer registers."""
    config: Config = {"cover": "7x1024", "num_warps": warps, "max_registers": 128 if warps == 8 else 0}
    sass = disassemble(compiled("rmsnorm_mxfp4_quant", 7168, "sm90", config).binary)
    # There is arithmetic: without a match this raises.
    before_arithmetic = sass[: re.search(r"\bF(?:MUL|ADD|FMA)\b", sass).start()]  # type: ignore[union-attr]  # fails if there is none
    assert len(re.findall(r"\bLDG\.", sass)) == 14
    assert len(re.findall(r"\bLDG\.", before_arithmetic)) >= 12


@pytest.mark.parametrize("op", ["rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"])
def test_segments_of_two_widths_are_summed_at_once(op: str) -> None:
    """Two barriers, as with one width, and no exchange of values through shared memory."""
    resources = compiled(op, 7168, "sm90", {"cover": "3x2048+1024", "num_warps": 8}).resources
    assert resources.barriers <= 2
    assert resources.shared_memory <= 64


def test_sm90_rounds_an_element_by_two_multiply_adds_and_one_minimum() -> None:
    sass = disassemble(compiled("dynamic_mxfp4_quant", 4096, "sm90", {"cover": "4x1024", "num_warps": 4}).binary)
    elements = 4096 // (4 * 32)
    assert len(re.findall(r"\bFFMA\b", sass)) == 2 * elements
    assert len(re.findall(r"\bVIMNMX\b.*, PT ;", sass)) == elements


@pytest.mark.parametrize("op", ["rmsnorm_mxfp4_quant", "rmsnorm_mxfp8_quant", "rmsnorm_nvfp4_quant"])
def test_sm90_takes_the_larger_magnitude_of_two_values_and_nan_wins(op: str) -> None:
    """By one instruction for two values, of which the interpreter cannot show that NaN wins: it always lets it."""
    sass = disassemble(compiled(op, 4096, "sm90", {"cover": "4x1024", "num_warps": 4}).binary)
    maxima = re.findall(r"\bFMNMX\S* \S+, \|R\d+\|(?:\.reuse)?, \|R\d+\|(?:\.reuse)?, !PT", sass)
    assert len(maxima) == len(re.findall(r"\bFMNMX\.NAN\b", sass)) == 4096 // (4 * 32) // 2


def test_a_register_limit_reaches_the_assembler() -> None:
    config: Config = {"cover": "7x1024", "num_warps": 4}
    free = compiled("rmsnorm_mxfp4_quant", 7168, "sm90", config).resources
    limited = compiled("rmsnorm_mxfp4_quant", 7168, "sm90", {**config, "max_registers": 64}).resources
    assert limited.registers <= 64 < free.registers


def test_occupancy_falls_with_registers() -> None:
    small = compiled("dynamic_mxfp4_quant", 512, "sm90", {}).resources
    large = compiled("rmsnorm_mxfp4_quant", 7168, "sm90", {"num_warps": 2, "cover": "14x512"}).resources
    assert small.registers < large.registers
    assert small.occupancy > large.occupancy
    assert large.limiter == "registers"


def test_refused_kernel_is_a_clear_error() -> None:
    problem = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 512})
    gpu = get_target("sm90")
    rendered = render(problem, gpu, get_family(problem.op).default(problem, gpu))
    broken = type(rendered)(
        rendered.problem, rendered.target, rendered.config, rendered.source.replace("tl.max(", "tl.maxx(")
    )
    with pytest.raises(CompileError, match=r"dynamic_mxfp4_quant \(hidden_size 512\) for sm90"):
        compile_kernel(broken)
