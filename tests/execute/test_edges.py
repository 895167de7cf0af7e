"""gfx950's conversions at their edges, in the kernels: codes and scales are the reference's, bit for bit.

Each form (f32, bf16, f16), with the rule of zero blocks and without. What each edge is, docs/prediction.md lists.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render
from tunegen.execute.driver import executed
from tunegen.ops import Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.runtime.reference.mxfp4 import quantize_mxfp4
from tunegen.targets import get_target

GFX950 = get_target("gfx950")
# A power of two, so that the mean of rows of ones is 1 exactly.
HIDDEN_SIZE = 512
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
FORMS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def edge_rows(dtype: torch.dtype) -> torch.Tensor:
    """[6, HIDDEN_SIZE]: blocks with every code and tie at scales from the least to the largest, and special blocks."""
    generator = torch.Generator().manual_seed(0)
    info, bits = torch.finfo(dtype), BITS[dtype]
    least = torch.tensor(1, dtype=bits).view(dtype).double().log2()
    exponents = torch.linspace(float(least), float(torch.tensor(info.max).double().log2()) - 3, 64).round().double()
    grid = torch.randint(-55, 56, (64, 32), generator=generator).double() / 8
    blocks = torch.ldexp(grid, exponents[:, None].int()).to(dtype)
    special = torch.ldexp(grid[:32], torch.zeros(1, dtype=torch.int32)).to(dtype)
    nans = torch.tensor([info.max, float("inf")], dtype=dtype).view(bits)[1] + torch.tensor([1, 5], dtype=bits)
    zeros = torch.zeros(32, dtype=dtype)
    special[0] = zeros
    special[1], special[2] = -zeros, torch.where(torch.arange(32) % 3 > 0, zeros, -zeros)
    special[3][7], special[4][8] = float("inf"), -float("inf")
    special[5][31], special[6][0] = nans.view(dtype)
    special[7] = torch.full((32,), float("nan"), dtype=dtype)
    special[8][:2] = torch.tensor([info.max, -info.max], dtype=dtype)
    special[9] = torch.randint(0, 4, (32,), generator=generator, dtype=bits).view(dtype)
    special[10] = -special[9]
    # The last value below that at which a scale rounds up, and that value.
    special[11][3] = torch.tensor(7.0, dtype=dtype).view(bits).sub(1).view(dtype)
    special[12][4] = 7.0
    # Around 2^-64, below which a block of a norm is a zero block; 0 in fp16.
    special[13:15] = torch.ldexp(grid[:2], torch.tensor([-67], dtype=torch.int32)).to(dtype)
    special[13][0], special[14][0] = 2.0**-64, 2.0**-64 * 0.99
    return torch.cat([blocks, special]).reshape(-1, HIDDEN_SIZE)


@pytest.mark.parametrize("dtype", FORMS, ids=lambda dtype: FORMS[dtype])
def test_edges_of_final_values(dtype: torch.dtype, tmp_path: Path) -> None:
    problem = Problem.of("dynamic_mxfp4_quant", {"hidden_size": HIDDEN_SIZE})
    kernel = executed(load_kernel(render(problem, GFX950, default(problem)).write(tmp_path)), GFX950)
    x = edge_rows(dtype)
    outputs = OPS[problem.op].allocate(x)
    OPS[problem.op].launch(kernel, 4, outputs, x)
    expected = quantize_mxfp4(x.float(), zero_blocks=False)
    assert expected[1].max() == 255
    assert dtype == torch.float16 or {0, 253} <= set(expected[1].flatten().tolist())
    assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: FORMS[dtype])
@pytest.mark.parametrize("rounding", ["none", "output", "norm_output"])
def test_edges_behind_a_norm(dtype: torch.dtype, rounding: str, tmp_path: Path) -> None:
    """Rows of 1 and -1 have the norm 1, so that the weights are what is quantised, with other signs."""
    problem = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": HIDDEN_SIZE}, rounding)
    rendered = render(problem, GFX950, default(problem))
    form = "f32" if rounding == "none" else FORMS[dtype]
    listing = compile_kernel(rendered, str(dtype).removeprefix("torch.")).listing
    assert {text for text in FORMS.values() if f"v_cvt_scalef32_pk_fp4_{text} " in listing} == {form}
    kernel = executed(load_kernel(rendered.write(tmp_path)), GFX950)
    x = torch.where(torch.rand(2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0).to(dtype)
    for weight in edge_rows(dtype):
        args = (x, weight, 0.0)
        outputs = OPS[problem.op].allocate(*args)
        OPS[problem.op].launch(kernel, 4, outputs, *args)
        expected = quantize_mxfp4(x.float() * weight.float(), zero_blocks=True)
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


def default(problem: Problem) -> dict[str, int | str]:
    return get_family(problem.op).default(problem, GFX950)
