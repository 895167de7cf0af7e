"""vLLM's MLA layer with RoPE and the cache write in one op: the route to F3 that needs no graph pass.

`vllm.model_executor.layers.mla.MultiHeadLatentAttentionWrapper` rotates q_pe and k_pe, and its attention layer then
writes the cache; the layer here has the pack's op do both between the projections and attention.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from ..api import Pack
from ..families.mla_rope import FP8_CACHE_NAMES, Variant
from ..fusion.nodes import NoMatchError
from ..fusion.support import Support
from ..table import Table, TunegenPackWarning
from .adapter import NAME

WRAPPER = "MultiHeadLatentAttentionWrapper"


def register(pack: Pack) -> bool:
    """Has vLLM make the pack's layer for its own, once; True if it does. Only layers made later are affected.

    Raises:
        RuntimeError: Another package has registered a layer of its own there, or vLLM has no such layer.
    """
    try:
        from vllm.model_executor.custom_op import op_registry_oot
        from vllm.model_executor.layers.mla import MultiHeadLatentAttentionWrapper
    except ImportError as error:
        raise RuntimeError(f"The MLA layer is for vLLM 0.33, which cannot be imported here: {error}.") from error
    present = op_registry_oot.get(WRAPPER)
    if present is None:
        MultiHeadLatentAttentionWrapper.register_oot(make_layer(pack))
    elif present is not make_layer(pack):
        raise RuntimeError(
            f"{present.__module__}.{present.__qualname__} takes the place of vLLM's {WRAPPER} already, and vLLM takes"
            " one. Leave one of them out."
        )
    return True


def why_not(layer: Any, pack_table: Table) -> str:  # noqa: PLR0911 - one return a reason
    """Why a layer of vLLM's cannot have its RoPE and cache write fused with the kernels of a pack; empty if it can."""
    rope, attention = layer.rotary_emb, layer.mla_attn
    table = getattr(rope, "cos_sin_cache", None)
    if table is None or table.shape[-1] != layer.qk_rope_head_dim:
        return "its RoPE has no table of cos and sin of its rope dimension"
    if layer.is_sparse or layer.indexer is not None:
        return "it is sparse"
    if layer.fuse_qkv_rmsnorm or layer.dcp_q_replicate or layer.g_proj is not None:
        return "its projections are of a kind that the layer here does not make"
    if attention.use_direct_call or getattr(attention, "use_pcp", False):
        return "its attention does not go through vLLM's op, or is context parallel"
    if getattr(attention, "hisparse_cache", None) is not None:
        return "its cache is of several levels"
    if attention.kv_cache_dtype not in ("auto", "bfloat16", *FP8_CACHE_NAMES):
        return f"its cache is {attention.kv_cache_dtype}"
    variant = Variant("act", rope.is_neox_style, fp8=attention.kv_cache_dtype in FP8_CACHE_NAMES)
    sizes = {"num_heads": layer.num_heads, "kv_lora_rank": layer.kv_lora_rank, "rope_dim": layer.qk_rope_head_dim}
    try:
        Support(pack_table).check("mla_rope_cache_", str(variant), table.device, **sizes)
    except NoMatchError as error:
        return str(error)
    return ""


@functools.cache
def make_layer(pack: Pack) -> type:
    """The layer's class, of vLLM's; the same one every time."""
    name_of_pack = pack.manifest.pack
    from vllm.model_executor.layers.mla import MultiHeadLatentAttentionWrapper

    class MlaRopeCacheAttention(MultiHeadLatentAttentionWrapper):  # type: ignore[misc]  # vllm has no types here
        """vLLM's layer, with RoPE of q_pe and k_pe and the cache row in one op of the pack."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.not_fused_because = why_not(self, pack.table)
            if self.not_fused_because:
                text = f"{name_of_pack}: an MLA layer stays vLLM's: {self.not_fused_because}"
                warnings.warn(text, TunegenPackWarning, stacklevel=2)

        def forward(
            self,
            positions: torch.Tensor,
            hidden_states: torch.Tensor,
            llama_4_scaling: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if self.not_fused_because or llama_4_scaling is not None:
                result: torch.Tensor = super().forward(positions, hidden_states, llama_4_scaling)
                return result
            q, latent = self._projected(hidden_states)
            kv_c, k_pe = latent.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
            return self._attend(positions, q, self.kv_a_layernorm(kv_c), k_pe)

        def _projected(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """q [tokens, heads, head dim] and the latent of k and v [tokens, rank + rope dim]."""
            if self.q_lora_rank is None:
                q, latent = self.q_proj(hidden_states)[0], self.kv_a_proj_with_mqa(hidden_states)[0]
            else:
                both = self.fused_qkv_a_proj(hidden_states)[0]
                q_c, latent = both.tensor_split([self.q_lora_rank], dim=-1)
                q = self.q_b_proj(self.q_a_layernorm(q_c))[0]
            return q.view(-1, self.num_heads, self.qk_head_dim), latent

        def _attend(
            self, positions: torch.Tensor, q: torch.Tensor, kv_c: torch.Tensor, k_pe: torch.Tensor
        ) -> torch.Tensor:
            from vllm.utils.torch_utils import _encode_layer_name

            attention, name = self.mla_attn, _encode_layer_name(self.mla_attn.layer_name)
            k_pe = k_pe.contiguous()  # written in place: not into the projection's output
            written = getattr(getattr(torch.ops, name_of_pack), NAME)(
                positions,
                q[..., self.qk_nope_head_dim :],
                k_pe,
                kv_c,
                self.rotary_emb.cos_sin_cache.to(q.dtype),
                self.rotary_emb.is_neox_style,
                "auto" if attention.kv_cache_dtype == "bfloat16" else attention.kv_cache_dtype,
                attention._k_scale,
                name,
                "act",
            )
            output = q.new_empty(q.shape[0], self.num_heads * self.v_head_dim)
            torch.ops.vllm.unified_mla_attention_with_output(
                q, kv_c, k_pe.unsqueeze(1), output, name, kv_cache_dummy_dep=written
            )
            projected: torch.Tensor = self.o_proj(output)[0]
            return projected

    return MlaRopeCacheAttention
