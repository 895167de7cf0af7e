"""vLLM's ops as their schemas have them, in plain PyTorch, where no vLLM defines them.

What they compute is what vLLM's do (csrc/layernorm_kernels.cu; vllm/ir/ops/layernorm.py): ``_C`` rounds once, after
the weight, and normalises the rounded sum; ``vllm_ir`` rounds before the weight and normalises the sum in fp32.
"""

from __future__ import annotations

import functools

import torch
from producers import added_in_fp32, functional, hugging_face
from ropes import interleaved, neox
from torch import Tensor
from torch.library import Library, register_fake


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, variance_size: int | None = None) -> Tensor:
    return hugging_face(x, weight, epsilon)


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    return added_in_fp32(x, x_residual, weight, epsilon)


def _in_place(result: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    result.copy_(functional(input, weight, epsilon))


def _in_place_add(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    residual.add_(input)
    input.copy_(functional(residual, weight, epsilon))


def _rotary(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
    q, k = (neox if is_neox else interleaved)(positions, query, key, cos_sin_cache)
    query.copy_(q)
    key.copy_(k)


def _write_cache(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
    skip_scale: bool = False,
) -> None:
    from tunegen.runtime.fusion.ops import write_cache

    write_cache(kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, torch.ones(1) if skip_scale else scale)


OPS = {
    "_C::rotary_embedding": (
        "(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, bool is_neox) -> ()",
        _rotary,
        lambda *_: None,
    ),
    "_C_cache_ops::concat_and_cache_mla": (
        "(Tensor kv_c, Tensor k_pe, Tensor! kv_cache, Tensor slot_mapping, str kv_cache_dtype, Tensor scale,"
        " bool skip_scale=False) -> ()",
        _write_cache,
        lambda *_: None,
    ),
    "vllm_ir::rms_norm": (
        "(Tensor x, Tensor? weight, float epsilon, SymInt? variance_size=None) -> Tensor",
        _rms_norm,
        lambda x, *_: torch.empty_like(x),
    ),
    "vllm_ir::fused_add_rms_norm": (
        "(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, SymInt? variance_size=None) -> (Tensor, Tensor)",
        _fused_add_rms_norm,
        lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
    ),
    "_C::rms_norm": (
        "(Tensor! result, Tensor input, Tensor? weight, float epsilon) -> ()",
        _in_place,
        lambda *_: None,
    ),
    "_C::fused_add_rms_norm": (
        "(Tensor! input, Tensor! residual, Tensor? weight, float epsilon) -> ()",
        _in_place_add,
        lambda *_: None,
    ),
}


def _gemm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    rocm_use_aiter_fp4_asm_gemm: bool = False,
    out_dtype: torch.dtype | None = torch.bfloat16,
    x_scales: Tensor | None = None,
) -> Tensor:
    from tunegen.runtime.fusion.ops import mxfp4_gemm_reference
    from tunegen.runtime.reference.rmsnorm_mxfp4 import dynamic_mxfp4_quant

    assert not rocm_use_aiter_fp4_asm_gemm
    q, scales = dynamic_mxfp4_quant(x) if x_scales is None else (x, x_scales)
    return mxfp4_gemm_reference(q, scales, weight, weight_scale, out_dtype or torch.get_default_dtype())


GEMM_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor weight_scale, bool rocm_use_aiter_fp4_asm_gemm=False,"
    " ScalarType? out_dtype=15, Tensor? x_scales=None) -> Tensor"
)


@functools.cache
def define() -> list[Library]:
    """Defines those of the ops that nobody has defined."""
    libraries = []
    gemm = (GEMM_SCHEMA, _gemm, lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.bfloat16))
    for name, (schema, function, fake) in {**OPS, "vllm::gemm_with_dynamic_quant": gemm}.items():
        namespace, _, short = name.partition("::")
        if hasattr(getattr(torch.ops, namespace), short):
            continue
        library = Library(namespace, "FRAGMENT")
        library.define(short + schema)
        library.impl(short, function, "CPU")
        register_fake(name, fake, lib=library)
        libraries.append(library)
    return libraries
