"""F2 in whole models: transformers' DeepSeek-V3 with MXFP4 linear layers."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import foreign_ops
import torch
from graphs import Compiled
from layers import by_pack, by_vllm, quantise_linears
from torch import Tensor

from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem

LAYERS = 2
HIDDEN, Q_RANK, KV_RANK = 128, 96, 64
NORM, ADD_NORM = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"


def deepseek(*applied: Any) -> torch.nn.Module:
    """DeepSeek-V3 with dense layers alone, embeddings in, hidden states out; each by a linear layer."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Model

    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=Q_RANK,
        kv_lora_rank=KV_RANK,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=512,
        attn_implementation="sdpa",
        use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(1)
    model = DeepseekV3Model(config).eval().to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    for layer, apply in zip(model.layers, applied, strict=True):
        quantise_linears(layer, apply)
    return model


def fused_calls(compiled: Compiled, pack: str) -> Counter[str]:
    """How often each fused op was called in the last run; every call is held against the contract."""
    counts: Counter[str] = Counter()
    for name, args, outputs in compiled.calls:
        namespace, _, op = name.partition("::")
        if namespace != pack or not op.startswith("rmsnorm"):
            continue
        op = op.removesuffix("_tensor_epsilon")
        *tensors, epsilon, rounding = args
        problem = Problem.of(op, {"hidden_size": tensors[0].shape[-1]}, rounding)
        assert failures(problem, (*tensors, float(epsilon), rounding), outputs, 1) == []
        counts[op] += 1
    return counts


def test_deepseek_v3(pack: ModuleType) -> None:
    """A layer that calls the pack's quantiser and then one that calls vLLM's GEMM."""
    foreign_ops.define()
    model = deepseek(by_pack(pack), by_vllm)
    fusion = pack.fusion.FusionPass()

    def forward(embeddings: Tensor) -> Tensor:
        result: Tensor = model(inputs_embeds=embeddings).last_hidden_state
        return result

    compiled = Compiled(forward, fusion, dynamic=None)
    for tokens in (40, 7):
        x = torch.randn(1, tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        torch._dynamo.mark_dynamic(x, 1)
        got = compiled(x)
        # Layer by layer: the norm of the input, of q's and of kv's latents, and after attention.
        assert fused_calls(compiled, pack.__name__) == {ADD_NORM: 2 * LAYERS - 1, NORM: 2 * LAYERS + 1}
        # The reference computes as the norm does, so that not a bit differs.
        assert torch.equal(got, compiled.expected[0])
    # The norm of the input feeds q_a and kv_a, that after attention gate and up; q_a's and kv_a's norms one each.
    # The first layer's input is no sum.
    assert fusion.report().counts() == {
        "rms_norm -> dynamic_mxfp4_quant": 4,
        "fused_add_rms_norm -> dynamic_mxfp4_quant": 2,
        "fused_add_rms_norm -> gemm_with_dynamic_quant": 4,
        "rms_norm -> gemm_with_dynamic_quant": 2,
    }
    assert fusion.report().misses == []
    # o_proj and down_proj
    assert fusion.report().others == {"dynamic_mxfp4_quant": 2, "gemm_with_dynamic_quant": 2}
    assert len(compiled.graphs) == 1
    ops = compiled.ops()
    assert ops[f"{pack.__name__}::dynamic_mxfp4_quant"] + ops["vllm::gemm_with_dynamic_quant"] == 2 * LAYERS
