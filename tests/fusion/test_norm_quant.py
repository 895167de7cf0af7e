"""F2 in graphs: each way to write a norm, each quantiser; what must not match; and that outputs stay the same."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import foreign_ops
import pytest
import torch
from graphs import Compiled
from producers import ADD_PRODUCERS, PRODUCERS
from torch import Tensor

from tunegen.evaluate.truth import failures
from tunegen.ops import Problem
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS

N = 96
NORM, ADD_NORM = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
TO_QUANT, ADD_TO_QUANT = "rms_norm -> dynamic_mxfp4_quant", "fused_add_rms_norm -> dynamic_mxfp4_quant"
TO_GEMM, ADD_TO_GEMM = "rms_norm -> gemm_with_dynamic_quant", "fused_add_rms_norm -> gemm_with_dynamic_quant"
QUANT = "fusion_ops::dynamic_mxfp4_quant"
# The reference adds a row up in an order of its own: every sum passes N additions at most.
LANES = 1
LARGE = 300


@pytest.fixture(scope="module", autouse=True)
def _foreign() -> None:
    foreign_ops.define()


def normal(*size: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wrong(op: str, rounding: str, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> list[str]:
    """What the contract finds wrong with outputs; it must find something for at least one other rounding."""
    problem = Problem.of(op, {"hidden_size": N}, rounding)
    return failures(problem, (*args, rounding), outputs, LANES)


def others(op: str, rounding: str) -> list[str]:
    same = {"none": ("none",), "output": ("output", "sum_output"), "norm_output": ("norm_output", "sum_norm_output")}
    if op == ADD_NORM:
        return [name for name in ROUNDINGS if name != rounding]
    return [name for name in ROUNDINGS if name not in same.get(rounding.removeprefix("sum_"), ())]


class Model(torch.nn.Module):
    """A norm, with or without a sum before it, and what takes its output.

    Args:
        norm: Spelling of the norm, or of the sum and the norm.
        then: What takes the norm's output; its results are returned, and then the sum.
    """

    def __init__(self, norm: Any, then: Any, dtype: torch.dtype = torch.bfloat16, epsilon: float = 3e-5) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(normal(N, dtype=dtype, seed=7) + 1, requires_grad=False)
        self.epsilon = epsilon
        self.norm, self.then = norm, then

    def forward(self, *tensors: Tensor) -> Any:
        made = self.norm(*tensors, self.weight, self.epsilon)
        y, *total = made if isinstance(made, tuple) else (made,)
        return (*self.then(y), *total)


def check(
    model: Model, compiled: Compiled, op: str, rounding: str, tokens: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    """That a model's outputs are those of an op, as it is and compiled."""
    tensors = [normal(tokens, N, dtype=dtype, seed=tokens + i) for i in range(2 if op == ADD_NORM else 1)]
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_static(tensor, 1)
    args = (*tensors, model.weight, model.epsilon)
    before, after = model(*tensors), compiled(*tensors)
    assert wrong(op, rounding, args, before) == []
    assert wrong(op, rounding, args, after) == []
    if tokens == LARGE:  # another rounding gives other codes, which the contract does not allow
        assert all(wrong(op, other, args, after) for other in others(op, rounding))


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "marked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", PRODUCERS)
def test_norm(pack: ModuleType, name: str, dtype: torch.dtype, dynamic: bool | None) -> None:
    producer = PRODUCERS[name]
    model = Model(producer.function, pack.dynamic_mxfp4_quant, dtype)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic)
    for tokens in (LARGE, 1, 33):
        check(model, compiled, NORM, producer.rounding, tokens, dtype)
    # With dynamic=True Python floats are inputs of the graph, unless an op cannot take them so.
    ops = compiled.ops()
    fused = {f"fusion_ops::{NORM}", f"fusion_ops::{NORM}_tensor_epsilon"}
    assert set(ops) - {"getitem", "aten::reshape"} <= fused, ops
    assert {(match.pattern, match.producer, match.rounding) for match in fusion.report().matches} == {
        (TO_QUANT, producer.whose, producer.rounding)
    }
    assert fusion.report().misses == []


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "marked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ADD_PRODUCERS)
def test_add_and_norm(pack: ModuleType, name: str, dtype: torch.dtype, dynamic: bool | None) -> None:
    producer = ADD_PRODUCERS[name]
    model = Model(producer.function, pack.dynamic_mxfp4_quant, dtype)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic)
    for tokens in (LARGE, 1, 33):
        check(model, compiled, ADD_NORM, producer.rounding, tokens, dtype)
    ops = compiled.ops()
    fused = {f"fusion_ops::{ADD_NORM}", f"fusion_ops::{ADD_NORM}_tensor_epsilon"}
    assert set(ops) - {"getitem", "aten::reshape"} <= fused, ops
    assert {(match.pattern, match.producer, match.rounding) for match in fusion.report().matches} == {
        (ADD_TO_QUANT, producer.whose, producer.rounding)
    }
    assert fusion.report().misses == []
