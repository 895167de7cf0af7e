"""RoPE and the cache write of one of vLLM's MLA layers as an op of the pack.

vLLM's graphs name a layer; its cache and the slots of the tokens are in the forward context. The op has the arguments
of vLLM's own ``vllm::fused_rope_unified_mla_kv_cache_update``, with the rounding at the end, and calls the pack's
``mla_rope_cache_``. It returns vLLM's token of ordering: an empty tensor that attention takes.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.library import Library, register_fake

NAME = "fused_rope_mla_kv_cache_update"
SCHEMA = (
    "(Tensor positions, Tensor(a!) q_pe, Tensor(b!) k_pe, Tensor kv_c, Tensor cos_sin_cache, bool is_neox,"
    " str kv_cache_dtype, Tensor kv_cache_scale, {layer_name} layer_name, str rounding) -> Tensor"
)
# Of a process: an op goes when its library does.
_LIBRARIES: dict[str, Library] = {}


def register(pack: str) -> bool:
    """Defines the op in a pack's namespace; True if it is there afterwards, False where vLLM is not installed."""
    if pack in _LIBRARIES or hasattr(getattr(torch.ops, pack), NAME):
        return True
    if importlib.util.find_spec("vllm") is None:
        return False
    from vllm.utils import torch_utils

    # Where torch has opaque types, vLLM hands a layer's name as one, so that layers share compiled code.
    opaque = getattr(torch_utils, "_USE_LAYERNAME", False)
    kind = torch._library.opaque_object.get_opaque_type_name(torch_utils.LayerName) if opaque else "str"
    library = Library(pack, "FRAGMENT")
    library.define(NAME + SCHEMA.format(layer_name=kind))
    library.impl(NAME, _implementation(pack), "CompositeExplicitAutograd")
    register_fake(f"{pack}::{NAME}", _fake, lib=library)
    _LIBRARIES[pack] = library
    return True


def _fake(positions: torch.Tensor, q_pe: torch.Tensor, k_pe: torch.Tensor, kv_c: torch.Tensor, *_: Any) -> torch.Tensor:
    return kv_c.new_empty(0)


def _implementation(pack: str) -> Any:
    rope_and_write = getattr(torch.ops, pack).mla_rope_cache_.default

    def update(
        positions: torch.Tensor,
        q_pe: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        is_neox: bool,
        kv_cache_dtype: str,
        kv_cache_scale: torch.Tensor,
        layer_name: Any,
        rounding: str,
    ) -> torch.Tensor:
        from vllm.model_executor.layers.attention.attention import get_attention_context
        from vllm.utils.torch_utils import _resolve_layer_name

        metadata, layer, kv_cache, slots = get_attention_context(_resolve_layer_name(layer_name))
        layer.prepare_kv_cache_update(metadata)
        if slots is not None and kv_cache.numel():
            cache = kv_cache.squeeze(1) if kv_cache.dim() == 4 else kv_cache
            rope_and_write(
                positions,
                q_pe,
                k_pe,
                kv_c,
                cos_sin_cache,
                is_neox,
                slots.flatten(),
                cache,
                kv_cache_dtype,
                kv_cache_scale,
                rounding,
            )
        return kv_c.new_empty(0)

    return update
