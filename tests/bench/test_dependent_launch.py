"""benchmarks/dependent_launch.py: what it puts into the sources of kernels, and that it compiles."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered, render
from tunegen.ops import Problem, get_family
from tunegen.targets import get_target

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dependent_launch.py"
NORM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
QUANT = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 512})
DUAL = Problem.of("dual_rmsnorm", {"hidden_size": 512, "second_size": 256})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dependent_launch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(problem: Problem, **changes: object) -> Rendered:
    target, family = get_target("sm90"), get_family(problem.op)
    return render(problem, target, family.canonical({**family.default(problem, target), **changes}))


@pytest.mark.parametrize("problem", [NORM, QUANT, DUAL], ids=lambda problem: problem.op)
@pytest.mark.parametrize("form", ["wait", "weights"])
def test_a_kernel_waits_before_it_loads_what_another_may_have_written(
    script: ModuleType, problem: Problem, form: str
) -> None:
    for changes in ({}, {"programs_per_unit": 4}):
        kernel = rendered(problem, **changes)
        source = script.dependent(kernel.source, form)
        if problem == QUANT and form == "weights":
            assert source is None
            return
        assert source.count("launch_pdl") == 1
        body = source[source.index("@triton.jit(do_not_specialize") :]
        assert body.count("gdc_wait()") == body.count("gdc_launch_dependents()") == 1
        wait = body.index("gdc_wait()")
        assert wait < body.index("load_row(x_row" if problem != QUANT else "x_0 = ")
        assert (form == "weights") == (0 < body.find("= load_row(weight_ptr") < wait)
        assert source.count("gdc_wait()") == (2 if problem == DUAL and form == "weights" else 1)
        without = [line for line in source.splitlines() if "gdc_" not in line]
        assert "\n".join(without).replace('"launch_pdl": True, ', "") + "\n" == kernel.source


def test_it_compiles(script: ModuleType) -> None:
    kernel = rendered(NORM)
    assembly = compile_kernel(replace(kernel, source=script.dependent(kernel.source, "weights"))).assembly
    assert assembly.count("griddepcontrol.wait") == assembly.count("griddepcontrol.launch_dependents") == 1
    assert "griddepcontrol" not in compile_kernel(kernel).assembly
