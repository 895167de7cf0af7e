"""F2 in graphs: each way to write a norm, each quantiser; what must not match; and that outputs stay the same."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import foreign_ops
import pytest
import torch
from graphs import Compiled
from layers import by_vllm
from producers import ADD_PRODUCERS, PRODUCERS, added, functional, hugging_face
from torch import Tensor
from torch._inductor import config as inductor_config
from torch.fx import Graph

from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem
from tunegen.runtime.families import OpInputError
from tunegen.runtime.fusion.ops import mxfp4_gemm_reference
from tunegen.runtime.reference.mxfp4 import dequantize_mxfp4
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS, dynamic_mxfp4_quant

N = 96
NORM, ADD_NORM = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
TO_QUANT, ADD_TO_QUANT = "rms_norm -> dynamic_mxfp4_quant", "fused_add_rms_norm -> dynamic_mxfp4_quant"
TO_GEMM, ADD_TO_GEMM = "rms_norm -> gemm_with_dynamic_quant", "fused_add_rms_norm -> gemm_with_dynamic_quant"
QUANT = "fusion_ops::dynamic_mxfp4_quant"
# The reference adds a row up in an order of its own: every sum passes N additions at most.
LANES = 1
LARGE = 300
# Both dtypes, and both ways to have dynamic token counts: with dynamic=True epsilon is an input of the graph.
FORMS = pytest.mark.parametrize(
    ("dtype", "dynamic"), [(torch.bfloat16, True), (torch.float16, None)], ids=["bf16-dynamic", "fp16-marked"]
)


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
    model: Model,
    compiled: Compiled,
    op: str,
    rounding: str,
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    folded: str = "",
) -> None:
    """That a model's outputs are those of an op, as it is and compiled, where its rounding may be folded."""
    tensors = [normal(tokens, N, dtype=dtype, seed=tokens + i) for i in range(2 if op == ADD_NORM else 1)]
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_static(tensor, 1)
    args = (*tensors, model.weight, model.epsilon)
    before, after = model(*tensors), compiled(*tensors)
    assert wrong(op, rounding, args, before) == []
    ((_, call, _),) = [call for call in compiled.calls if "rmsnorm" in call[0]]
    assert call[-1] == rounding or call[-1] == folded
    rounding = call[-1]
    for outputs in (compiled.expected, after):
        assert wrong(op, rounding, args, outputs) == []
    if tokens == LARGE:  # another rounding gives other codes, which the contract does not allow
        assert all(wrong(op, other, args, after) for other in others(op, rounding))


@FORMS
@pytest.mark.parametrize("name", PRODUCERS)
def test_norm(pack: ModuleType, name: str, dtype: torch.dtype, dynamic: bool | None) -> None:
    producer = PRODUCERS[name]
    model = Model(producer.function, pack.dynamic_mxfp4_quant, dtype)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic)
    for tokens in (LARGE, 1, 33):
        check(model, compiled, NORM, producer.rounding, tokens, dtype, producer.folded)
    # With dynamic=True Python floats are inputs of the graph, unless an op cannot take them so.
    ops = compiled.ops()
    fused = {f"fusion_ops::{NORM}", f"fusion_ops::{NORM}_tensor_epsilon"}
    assert set(ops) - {"getitem", "aten::reshape"} <= fused, ops
    assert {(match.pattern, match.producer) for match in fusion.report().matches} == {(TO_QUANT, producer.whose)}
    assert fusion.report().misses == []


@FORMS
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


# --- The GEMM that quantises inside ---


@pytest.fixture(scope="module")
def weight() -> tuple[Tensor, Tensor]:
    """An MXFP4 weight of 64 outputs, with its scales transposed."""
    q, scales = dynamic_mxfp4_quant(normal(64, N, seed=3))
    return q, scales.T.contiguous()


@pytest.mark.parametrize("shape", [(33,), (3, 11)], ids=["rows", "batch"])
@pytest.mark.parametrize("residual", [False, True], ids=["norm", "add and norm"])
def test_gemm(pack: ModuleType, weight: tuple[Tensor, Tensor], residual: bool, shape: tuple[int, ...]) -> None:
    model = Model(added(hugging_face) if residual else hugging_face, lambda y: (by_vllm(y.view(-1, N), *weight),))
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic=None)
    tensors = [normal(*shape, N, seed=seed) for seed in range(1 + residual)]
    got = compiled(*tensors)
    for output, expected in zip(got, compiled.expected, strict=True):
        assert torch.equal(output, expected)
    op = ADD_NORM if residual else NORM
    assert [name for name, _, _ in compiled.calls] == [f"fusion_ops::{op}", "fusion_ops::mxfp4_gemm"]
    ((_, args, outputs), (_, gemm, _)) = compiled.calls
    assert wrong(op, args[-1], args[:-1], outputs) == []
    assert gemm[:2] == outputs[:2]
    assert fusion.report().counts() == {ADD_TO_GEMM if residual else TO_GEMM: 1}
    assert set(compiled.ops()) <= {f"fusion_ops::{op}", "fusion_ops::mxfp4_gemm", "getitem", "aten::reshape"}


def test_gemm_reference_is_the_product_of_what_codes_stand_for(weight: tuple[Tensor, Tensor]) -> None:
    q, scales = dynamic_mxfp4_quant(normal(5, N, seed=4))
    got = mxfp4_gemm_reference(q, scales, *weight, torch.float32)
    rows, columns = dequantize_mxfp4(q, scales).double(), dequantize_mxfp4(weight[0], weight[1].T.contiguous()).double()
    # N products, exact in fp32 (three bits by three), and N - 1 additions: N units of half an ulp of the largest sum.
    bound = N * 2.0**-24 * (rows.abs() @ columns.abs().T)
    assert ((got.double() - rows @ columns.T).abs() <= bound).all()
    for wrong_scale, message in ((weight[1].T, "Transpose it"), (weight[1][:1], "weight_scale must be")):
        with pytest.raises(OpInputError, match=message):
            mxfp4_gemm_reference(q, scales, weight[0], wrong_scale, torch.bfloat16)


# --- Several users ---


def test_all_quantisers_of_a_norm_share_one_op(pack: ModuleType, weight: tuple[Tensor, Tensor]) -> None:
    def then(y: Tensor) -> Any:
        q, scales = pack.dynamic_mxfp4_quant(y)
        return q, scales, by_vllm(y, *weight), *pack.dynamic_mxfp4_quant(y.view(-1, 3, N).reshape(-1, N))

    model = Model(added(functional), then)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic=None)
    got = compiled(normal(33, N), normal(33, N, seed=1))
    assert all(map(torch.equal, got, compiled.expected))
    assert [name for name, _, _ in compiled.calls] == [f"fusion_ops::{ADD_NORM}", "fusion_ops::mxfp4_gemm"]
    assert fusion.report().counts() == {ADD_TO_QUANT: 2, ADD_TO_GEMM: 1}


def test_layers_in_a_row(pack: ModuleType) -> None:
    """Each layer's sum is the next one's residual, and is used by other nodes before the fused op's place."""

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(normal(N, seed=i) for i in range(3))

        def forward(self, x: Tensor) -> Any:
            outputs, residual = [], x
            for weight in self.weights:
                residual = residual + x
                outputs.append(residual.sum())
                q, scales = pack.dynamic_mxfp4_quant(hugging_face(residual, weight, 1e-6))
                outputs += [q, scales]
                x = (residual * q.float().mean(-1, keepdim=True)).to(x.dtype)
            return *outputs, residual

    fusion = pack.fusion.FusionPass()
    compiled = Compiled(Layers(), fusion, dynamic=None)
    got = compiled(normal(33, N))
    assert all(map(torch.equal, got, compiled.expected))
    assert fusion.report().counts() == {ADD_TO_QUANT: 3}
    for name, args, outputs in compiled.calls:
        assert wrong(name.partition("::")[2], args[-1], args[:-1], outputs) == []


@pytest.mark.parametrize("version", [1, 2])
def test_functionalised_calls_of_both_versions(pack: ModuleType, version: int) -> None:
    """In-place norms one after another, of one residual, which is an input of the graph."""

    def model(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
        first, second = x * 2, x * 3
        torch.ops._C.fused_add_rms_norm(first, residual, weight, 2e-5)
        outputs = pack.dynamic_mxfp4_quant(first)
        torch.ops._C.fused_add_rms_norm(second, residual, weight, 2e-5)
        return *outputs, *pack.dynamic_mxfp4_quant(second), residual * 2

    fusion = pack.fusion.FusionPass()
    x, residual, weight = normal(33, N), normal(33, N, seed=1), normal(N, seed=2)
    eager_residual = residual.clone()
    eager = model(x, eager_residual, weight)
    with inductor_config.patch(enable_auto_functionalized_v2=version == 2):
        compiled = Compiled(model, fusion, dynamic=None)
        got = compiled(x, residual, weight)
    assert all(map(torch.equal, got, eager))
    assert torch.equal(residual, eager_residual)  # the model writes it, and so must the compiled one
    assert fusion.report().counts() == {ADD_TO_QUANT: 2}
    assert {match.rounding for match in fusion.report().matches} == {"sum_output"}
    assert "_C::fused_add_rms_norm" not in compiled.ops()


# --- What is left alone ---


def relu_between(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.relu(hugging_face(x, weight, epsilon))


def other_axis(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(0, keepdim=True) + epsilon)).to(x.dtype) * weight


def by_head(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return hugging_face(x.view(-1, 3, N // 3), weight[: N // 3], epsilon).view(x.shape)


def layer_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    y = y - y.mean(-1, keepdim=True)
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


def other_statistics(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y[:, : N // 2].pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


def wrong_count(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) / (N - 1) + epsilon)).to(x.dtype) * weight


def clamped(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True).clamp_min(epsilon))).to(x.dtype) * weight


def all_in_bf16(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def fp32_weight(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return hugging_face(x.float(), weight.float() * 1.1, epsilon).to(x.dtype)


def no_weight(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, (N,), None, epsilon)


def scaled(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon) * y[:, :1].exp()).to(x.dtype) * weight


def transposed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return hugging_face(x.clone().as_strided((N, N), (1, N)), weight, epsilon).contiguous()


def through_a_slice(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = torch.empty(x.shape[0], 2 * N, dtype=x.dtype)
    torch.ops._C.rms_norm(wide[:, :N], x, weight, epsilon)
    return wide[:, :N].clone()


def written_back(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.clone()
    torch.ops._C.rms_norm(x, y, weight, epsilon)
    return x


def part_of_the_row(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    result: Tensor = torch.ops.vllm_ir.rms_norm(x, weight, epsilon, N // 2)
    return result


LEFT_ALONE = {
    relu_between: "stands between the norm and the quantiser",
    other_axis: r"the mean is over dimensions \[0\], not over the last one",
    by_head: "stands between the norm and the quantiser",
    layer_norm: "neither bfloat16 nor float16",
    other_statistics: "what is normalised is not",
    wrong_count: "is not divided by the hidden size, 96",
    clamped: "is not a mean of squares plus epsilon",
    all_in_bf16: "the statistics are computed in torch.bfloat16",
    fp32_weight: "the weight is torch.float32",
    no_weight: "it has no weight",
    scaled: "is multiplied before the norm is rounded",
    transposed: "the rows of x are not contiguous",
    through_a_slice: "",
    written_back: "uses the norm too",
    part_of_the_row: "a part of the row",
}


@pytest.mark.parametrize("norm", LEFT_ALONE, ids=lambda norm: norm.__name__)
def test_left_alone(pack: ModuleType, norm: Any) -> None:
    model = Model(norm, pack.dynamic_mxfp4_quant)
    fusion = pack.fusion.FusionPass()
    tokens = N if norm is transposed else 33
    with pytest.warns(pack.TunegenPackWarning, match="no pattern matched") as caught:
        compiled = Compiled(model, fusion, dynamic=None)
        got = compiled(normal(tokens, N))
    assert len(caught) == 1
    assert all(map(torch.equal, got, compiled.expected))
    with_none = Compiled(model, None, dynamic=None)
    with_none(normal(tokens, N))
    assert compiled.ops() == with_none.ops()
    report, reason = fusion.report(), LEFT_ALONE[norm]
    assert report.matches == []
    assert len(report.misses) == bool(reason)
    if reason:
        assert re.search(reason, report.misses[0].reason)
        assert report.misses[0].reason in str(caught[0].message)
    else:
        assert report.others == {"dynamic_mxfp4_quant": 1}


@pytest.mark.parametrize("layout", ["columns", "padded", "shuffled"])
def test_scales_of_another_layout_are_left_alone(pack: ModuleType, layout: str) -> None:
    model = Model(hugging_face, lambda y: pack.dynamic_mxfp4_quant(y, layout))
    with pytest.warns(pack.TunegenPackWarning, match=f"its scales are laid out as {layout}"):
        compiled = Compiled(model, pack.fusion.FusionPass(), dynamic=None)
        got = compiled(normal(33, N))
    assert all(map(torch.equal, got, compiled.expected))
    assert compiled.ops()[QUANT] == 1


def test_a_norm_with_another_user_is_left_alone(pack: ModuleType) -> None:
    """As before a router: the fused op does not give the norm unquantised too, and nothing is computed twice."""
    router = normal(N, 8)
    model = Model(added(hugging_face), lambda y: (*pack.dynamic_mxfp4_quant(y), y @ router))
    fusion = pack.fusion.FusionPass()
    with pytest.warns(pack.TunegenPackWarning, match="would be computed twice"):
        compiled = Compiled(model, fusion, dynamic=None)
        got = compiled(normal(33, N), normal(33, N, seed=1))
    assert all(map(torch.equal, got, compiled.expected))
    assert compiled.ops()["aten::rsqrt"] == 1
    assert [miss.pattern for miss in fusion.report().misses] == [ADD_TO_QUANT]


def test_an_fp32_sum_that_is_used_is_left_alone(pack: ModuleType) -> None:
    def model(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
        total = x.float() + residual.float()
        y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
        return *pack.dynamic_mxfp4_quant(y.to(x.dtype)), total * 3

    fusion = pack.fusion.FusionPass()
    with pytest.warns(pack.TunegenPackWarning, match="a part of the norm"):
        compiled = Compiled(model, fusion, dynamic=None)
        got = compiled(normal(33, N), normal(33, N, seed=1), normal(N))
    assert all(map(torch.equal, got, compiled.expected))


def test_a_weight_made_after_the_sum_is_used(pack: ModuleType) -> None:
    """The sum cannot come from the fused op then, and need not."""

    def model(x: Tensor, residual: Tensor) -> Any:
        total = x + residual
        weight = (total.float().mean(0) + 1).to(x.dtype)
        return *pack.dynamic_mxfp4_quant(hugging_face(total, weight, 1e-6)), total

    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic=None)
    got = compiled(normal(33, N), normal(33, N, seed=1))
    assert all(map(torch.equal, got, compiled.expected))
    assert fusion.report().counts() == {TO_QUANT: 1}


@pytest.mark.parametrize(
    ("given", "reason"),
    [((True,), "shuffled scales"), ((False, None), "out_dtype is not given")],
    ids=["assembly", "no dtype"],
)
def test_gemms_left_alone(pack: ModuleType, weight: tuple[Tensor, Tensor], given: Any, reason: str) -> None:
    gemm = torch.ops.vllm.gemm_with_dynamic_quant
    norm_weight = normal(N)
    nodes = Graph()
    x, w, q, scale = (nodes.placeholder(name) for name in ("x", "w", "q", "scale"))
    for node, tensor in ((x, normal(33, N)), (w, norm_weight), (q, weight[0]), (scale, weight[1])):
        node.meta["val"] = tensor.to("meta")
    norm = nodes.call_function(torch.ops.vllm_ir.rms_norm.default, (x, w, 1e-6))
    norm.meta["val"] = x.meta["val"]
    nodes.output(nodes.call_function(gemm.default, (norm, q, scale, *given)))
    fusion = pack.fusion.FusionPass()
    with pytest.warns(pack.TunegenPackWarning, match=reason):
        fusion(nodes)
    assert fusion.report().matches == []
