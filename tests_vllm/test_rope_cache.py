"""F3 in vLLM: its graph's RoPE and cache update, its own fused op, and the layer route."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from graphs import Compiled
from packs import ask_for_h100
from ropes import interleaved
from test_pass import config_with, managed, run_all
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2
from torch._inductor import config as inductor_config
from vllm.compilation.passes.fusion import mla_rope_kvcache_cat_fusion  # noqa: F401 - defines the fused op
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers import mla
from vllm.utils.torch_utils import _encode_layer_name

from tunegen.runtime.fusion.ops import write_cache

NAME = "vllm_test_ops"
H, NOPE, R, D, POSITIONS, BLOCK, HIDDEN = 4, 16, 32, 16, 64, 4, 96
UPDATE = "rope + unified_mla_kv_cache_update -> mla_rope_cache_"
FUNCTIONALIZED = (auto_functionalized, auto_functionalized_v2)
WRAPPER = mla.MultiHeadLatentAttentionWrapper.__name__
FUSED_UPDATE = "fused_rope_unified_mla_kv_cache_update -> mla_rope_cache_"


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Layer:
    """What vLLM's ops want of an attention layer: a cache, and how it is written."""

    def __init__(self) -> None:
        self.kv_cache = normal(12, BLOCK, R + D, seed=3)
        self.kv_cache_dtype, self._k_scale, self.layer_name = "auto", torch.ones(1), "model.layers.0.attn"
        self.num_heads, self.use_direct_call, self.hisparse_cache = H, False, None

    def prepare_kv_cache_update(self, metadata: Any) -> None:
        pass

    def update_kv_cache(self, kv_c: Tensor, k_pe: Tensor, cache: Tensor, slots: Tensor, *_: Any) -> None:
        write_cache(kv_c, k_pe, cache, slots, "auto", torch.ones(1))


def in_forward_context(layer: Layer, slots: Tensor) -> Any:
    """vLLM's forward context with one layer."""
    context = ForwardContext(
        no_compile_layers={layer.layer_name: layer},
        attn_metadata=None,
        slot_mapping={layer.layer_name: slots},
    )
    return override_forward_context(context)


def model(kv: Tensor, q: Tensor, positions: Tensor, table: Tensor, name: Any, scale: Tensor) -> tuple[Tensor, ...]:
    """vLLM's MLA layer between its projections and attention."""
    q = q.view(-1, H, NOPE + D)
    kv_c, k_pe = kv.split([R, D], dim=-1)
    q[..., NOPE:], k_pe = interleaved(positions, q[..., NOPE:], k_pe.unsqueeze(1), table)
    written = torch.ops.vllm.unified_mla_kv_cache_update(kv_c, k_pe, name, "auto", scale)
    return q * 2, k_pe.squeeze(1) * 2, written


def run(compiled: Any, slots: Tensor, tokens: int) -> tuple[tuple[Tensor, ...], Tensor]:
    layer = Layer()
    positions = torch.randint(0, POSITIONS, (tokens,), generator=torch.Generator().manual_seed(tokens))
    with in_forward_context(layer, slots):
        args = (normal(tokens, R + D, seed=1), normal(tokens, H * (NOPE + D), seed=2) * 1, positions)
        name = _encode_layer_name(layer.layer_name)
        outputs = compiled(*args, normal(POSITIONS, D, seed=4), name, layer._k_scale)
    return outputs, layer.kv_cache


def check_outputs(compiled: Any, tokens: int) -> None:
    """Against the model as it is; tokens without a slot are padding, whose q and k the fused op leaves."""
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(tokens))[:tokens]
    slots[-2:] = -1
    (expected, cache), (got, fused_cache) = run(model, slots, tokens), run(compiled, slots, tokens)
    assert torch.equal(fused_cache, cache)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours[: tokens - 2], theirs[: tokens - 2])


@pytest.fixture
def _h100(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is asked what it has for an H100: kernels of the norms, and none of RoPE."""
    ask_for_h100(NAME, monkeypatch)


def test_rope_and_update(pack: ModuleType) -> None:
    manager = managed(config_with(pack, "name"))
    report = pack.vllm_plugin.report()
    report.matches.clear()
    compiled = Compiled(model, run_all(manager), dynamic=None)
    compiled.run_before = False  # it would write the cache too
    for tokens in (33, 6):
        check_outputs(compiled, tokens)
    assert set(report.counts()) == {UPDATE}
    ops = compiled.ops()
    assert ops[f"{NAME}::fused_rope_mla_kv_cache_update"] == len(compiled.graphs)
    assert not {"vllm::unified_mla_kv_cache_update", "aten::index", "aten::neg"} & set(ops), ops


def fused_by_vllm(
    kv: Tensor, q: Tensor, positions: Tensor, table: Tensor, name: Any, scale: Tensor, cache_dtype: str = "auto"
) -> tuple[Tensor, ...]:
    """What vLLM's own pass makes of `model`."""
    q = q.view(-1, H, NOPE + D).clone()
    kv_c, k_pe = kv.split([R, D], dim=-1)
    k_pe, q_pe = k_pe.clone(), q[..., NOPE:]
    op = torch.ops.vllm.fused_rope_unified_mla_kv_cache_update
    written = op(positions, q_pe, k_pe, kv_c, table, False, cache_dtype, scale, name)
    return q * 2, k_pe * 2, written


@pytest.mark.parametrize("version", [1, 2])
def test_vllms_own_fused_op(pack: ModuleType, version: int) -> None:
    """The op is exchanged, with all its arguments, among them a part of q that it writes."""
    fusion = pack.fusion.FusionPass()
    with inductor_config.patch(enable_auto_functionalized_v2=version == 2):
        compiled = Compiled(fused_by_vllm, fusion, dynamic=None)
        compiled.run_before = False
        check_outputs(compiled, 33)
    assert fusion.report().counts() == {FUSED_UPDATE: 1}
    assert compiled.ops()["vllm::fused_rope_unified_mla_kv_cache_update"] == 0


def vllm_calls(compiled: Compiled) -> list[str]:
    """The ops of vLLM and of the pack in the graphs, functionalised or not."""
    targets = [node.args[0] if node.target in FUNCTIONALIZED else node.target for node in compiled.nodes()]
    names = [target._schema.name for target in targets if isinstance(target, torch._ops.OpOverload)]
    return [name for name in names if name.startswith(("vllm::", f"{NAME}::"))]


@pytest.mark.usefixtures("_h100")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("graph", "pattern"), [(model, UPDATE), (fused_by_vllm, FUSED_UPDATE)], ids=["rope", "fused"])
def test_no_kernels_for_a_layer(pack: ModuleType, graph: Any, pattern: str, version: int) -> None:
    """vLLM's kernels are faster than the reference in PyTorch: the graph stays as it is, unless that is asked for."""
    args = (normal(9, R + D), normal(9, H * (NOPE + D)), torch.arange(9), normal(POSITIONS, D))
    args += (_encode_layer_name(Layer().layer_name), torch.ones(1))

    def compiled_with(fusion: Any) -> Compiled:
        with inductor_config.patch(enable_auto_functionalized_v2=version == 2):
            compiled = Compiled(graph, fusion, dynamic=None, run=False)
            compiled(*args)
        return compiled

    careful, willing = pack.fusion.FusionPass(), pack.fusion.FusionPass(allow_reference=True)
    with pytest.warns(pack.TunegenPackWarning, match="no pattern matched"):
        left = compiled_with(careful)
    (miss,) = careful.report().misses
    assert miss.pattern == pattern
    assert f"no kernels of mla_rope_cache_, num_heads {H}, kv_lora_rank {R}, rope_dim {D}, variant act" in miss.reason
    assert left.ops() == compiled_with(None).ops()
    assert vllm_calls(left) == ["vllm::" + pattern.split()[0 if pattern == FUSED_UPDATE else 2]]
    assert vllm_calls(compiled_with(willing)) == [f"{NAME}::fused_rope_mla_kv_cache_update"]
    assert willing.report().counts() == {pattern: 1}
    assert careful.uuid() != willing.uuid()


def test_a_cache_that_the_op_does_not_write(pack: ModuleType) -> None:
    fusion = pack.fusion.FusionPass()
    args = (normal(9, R + D), normal(9, H * (NOPE + D)), torch.arange(9), normal(POSITIONS, D))
    args += (_encode_layer_name(Layer().layer_name), torch.ones(1))
    with pytest.warns(pack.TunegenPackWarning, match="the cache is fp8_ds_mla"):
        Compiled(lambda *given: fused_by_vllm(*given, "fp8_ds_mla"), fusion, dynamic=None, run=False)(*args)
    assert fusion.report().matches == []


class Linear(torch.nn.Module):
    """As vLLM's: the result, and a bias or None."""

    def __init__(self, size: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.weight = torch.nn.Buffer(normal(size, outputs, seed=seed) / size**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self.weight, None


class Rope(torch.nn.Module):
    """As vLLM's DeepSeek layers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.cos_sin_cache, self.is_neox_style = torch.nn.Buffer(normal(POSITIONS, D, seed=4)), False

    def forward(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return interleaved(positions, q, k, self.cos_sin_cache)


class Attention(torch.nn.Module):
    """In place of vLLM's MLAAttention: its two ops with a sum for attention."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.__dict__.update(vars(Layer()))

    def forward(self, q: Tensor, kv_c: Tensor, k_pe: Tensor, output_shape: Any, **_: Any) -> Tensor:
        name = _encode_layer_name(self.layer_name)
        written = torch.ops.vllm.unified_mla_kv_cache_update(kv_c, k_pe, name, "auto", self._k_scale)
        output = torch.empty(output_shape, dtype=q.dtype)
        torch.ops.vllm.unified_mla_attention_with_output(q, kv_c, k_pe, output, name, kv_cache_dummy_dep=written)
        return output

    prepare_kv_cache_update, update_kv_cache = Layer.prepare_kv_cache_update, Layer.update_kv_cache

    def forward_impl(
        self, q: Tensor, kv_c: Tensor, k_pe: Tensor, cache: Tensor, metadata: Any, output: Tensor, **_: Any
    ) -> None:
        assert k_pe.shape == (q.shape[0], 1, D)
        output.copy_((q.sum(-1) + k_pe.sum(-1) + kv_c.sum(-1, keepdim=True)).repeat_interleave(NOPE, dim=1))


def make_wrapper(q_rank: int | None) -> Any:
    modules = SimpleNamespace(
        kv_a_layernorm=torch.nn.RMSNorm(R).bfloat16(),
        kv_b_proj=None,
        rotary_emb=Rope(),
        o_proj=Linear(H * NOPE, HIDDEN, 5),
        fused_qkv_a_proj=Linear(HIDDEN, (q_rank or 0) + R + D, 6) if q_rank else None,
        kv_a_proj_with_mqa=None if q_rank else Linear(HIDDEN, R + D, 6),
        q_a_layernorm=torch.nn.RMSNorm(q_rank).bfloat16() if q_rank else None,
        q_b_proj=Linear(q_rank, H * (NOPE + D), 7) if q_rank else None,
        q_proj=None if q_rank else Linear(HIDDEN, H * (NOPE + D), 7),
        indexer=None,
        is_sparse=False,
        topk_indices_buffer=None,
        indexer_rotary_emb=None,
        g_proj=None,
        index_group_builder=None,
    )
    sizes = (HIDDEN, H, 1.0, NOPE, D, NOPE, q_rank, R)
    return mla.MultiHeadLatentAttentionWrapper(*sizes, modules)


@pytest.mark.parametrize("q_rank", [None, 64])
def test_layer(pack: ModuleType, monkeypatch: pytest.MonkeyPatch, q_rank: int | None) -> None:
    monkeypatch.setattr(mla, "MLAAttention", Attention)
    monkeypatch.setitem(op_registry_oot, WRAPPER, None)  # for after the test
    del op_registry_oot[WRAPPER]
    theirs = make_wrapper(q_rank)
    assert type(theirs) is mla.MultiHeadLatentAttentionWrapper
    for _ in range(2):
        pack.vllm_plugin.register_mla_layer()
    ours = make_wrapper(q_rank)
    assert type(ours).__name__ == "MlaRopeCacheAttention"
    assert ours.not_fused_because == ""
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:9]
    x, positions = normal(9, HIDDEN, seed=8), torch.arange(9)
    outputs = []
    for wrapper in (theirs, ours):
        layer = wrapper.mla_attn
        with in_forward_context(layer, slots), torch.no_grad():
            outputs.append((wrapper(positions, x), layer.kv_cache))
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)
    monkeypatch.setitem(op_registry_oot, WRAPPER, type("Other", (), {}))
    with pytest.raises(RuntimeError, match="takes the place of vLLM's MultiHeadLatentAttentionWrapper already"):
        pack.vllm_plugin.register_mla_layer()


def test_layers_that_stay_vllms(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    in_pack = importlib.import_module(f"{NAME}.runtime.vllm.layer")
    why_not = functools.partial(in_pack.why_not, pack_table=pack._pack.table)
    monkeypatch.setattr(mla, "MLAAttention", Attention)
    wrapper = make_wrapper(64)
    assert why_not(wrapper) == ""
    for name, value, reason in (
        ("is_sparse", True, "sparse"),
        ("fuse_qkv_rmsnorm", True, "projections"),
        ("rotary_emb", None, "no table"),
    ):
        before = getattr(wrapper, name)
        setattr(wrapper, name, value)
        assert reason in why_not(wrapper)
        setattr(wrapper, name, before)
    wrapper.mla_attn.kv_cache_dtype = "fp8_ds_mla"
    assert "fp8_ds_mla" in why_not(wrapper)
    request.getfixturevalue("_h100")
    monkeypatch.setitem(op_registry_oot, WRAPPER, in_pack.make_layer(pack._pack))
    with pytest.warns(pack.TunegenPackWarning, match="an MLA layer stays vLLM's: .* no kernels of mla_rope_cache_"):
        assert make_wrapper(64).not_fused_because
