"""Ops that only rewritten graphs call, beside those of `families`; registered with them, in the pack's namespace.

mxfp4_gemm(q, scales, weight, weight_scale, out_dtype): y = dequantised rows times dequantised weight, transposed
<norm op>_tensor_epsilon: the norm op with epsilon as a 0-dimensional CPU tensor
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library, register_fake

from ..families import OPS
from ..families._op import OpInputError
from ..families.mla_rope import FP8_CACHE_NAMES
from ..reference.mla_rope import existing_slots, write_mla_cache
from ..reference.mxfp4 import BLOCK, dequantize_mxfp4

GEMM = "mxfp4_gemm"
TENSOR_EPSILON = "_tensor_epsilon"
NORM_OPS = ("rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant")
GEMM_SCHEMA = "(Tensor q, Tensor scales, Tensor weight, Tensor weight_scale, ScalarType out_dtype) -> Tensor"
VLLM_GEMM = "vllm::gemm_with_dynamic_quant"
CACHE = "concat_and_cache_mla"
CACHE_SCHEMA = (
    "(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache, Tensor slot_mapping, str kv_cache_dtype, Tensor scale) -> ()"
)


def register_graph_ops(library: Library, pack: str) -> None:
    """Defines the ops of this module in a pack's namespace."""
    tags = (torch.Tag.pt2_compliant_tag,)
    library.define(GEMM + GEMM_SCHEMA, tags=tags)
    library.impl(GEMM, _gemm_cuda, "CUDA")
    library.impl(GEMM, mxfp4_gemm_reference, "CPU")
    register_fake(f"{pack}::{GEMM}", _gemm_fake, lib=library)
    library.define(CACHE + CACHE_SCHEMA, tags=tags)
    library.impl(CACHE, write_cache, "CUDA")
    library.impl(CACHE, write_cache, "CPU")
    register_fake(f"{pack}::{CACHE}", _no_output, lib=library)
    for name in NORM_OPS:
        schema = OPS[name].schema.replace("float epsilon", "Tensor epsilon")
        library.define(name + TENSOR_EPSILON + schema, tags=tags)
        library.impl(name + TENSOR_EPSILON, _with_number(pack, name), "CompositeExplicitAutograd")
        register_fake(f"{pack}::{name}{TENSOR_EPSILON}", _fake_without_epsilon(name), lib=library)


def _no_output(*_: Any) -> None:
    return None


def write_cache(
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache_dtype: str,
    scale: torch.Tensor,
) -> None:
    """Writes the row (kv_c, k_pe) of each token to its slot of an MLA cache; a negative slot is none.

    Args:
        kv_c: [S, R].
        k_pe: [S, D] or [S, 1, D], rotated.
        kv_cache: [slots, R + D] or [blocks, block size, R + D].
        slot_mapping: int64, at most S.
        kv_cache_dtype: ``"auto"`` (the dtype of the rows), ``"fp8"`` or ``"fp8_e4m3"``.
        scale: One element; fp8 rows are divided by it.
    """
    tokens, width = kv_c.shape[0], kv_c.shape[1] + k_pe.shape[-1]
    if kv_cache.dim() not in (2, 3) or kv_cache.shape[-1] != width:
        raise OpInputError(
            f"kv_cache must be [slots, {width}] or [blocks, block size, {width}], as kv_c and k_pe ask; got"
            f" {list(kv_cache.shape)}."
        )
    if kv_cache_dtype not in ("auto", *FP8_CACHE_NAMES):
        raise OpInputError(f"kv_cache_dtype must be auto, {' or '.join(FP8_CACHE_NAMES)}; got {kv_cache_dtype!r}.")
    with torch.no_grad():
        write_mla_cache(
            kv_cache,
            existing_slots(slot_mapping, kv_cache, tokens),
            kv_c,
            k_pe.reshape(tokens, -1),
            None if kv_cache_dtype == "auto" else scale,
            False,
        )


def _with_number(pack: str, name: str) -> Callable[..., Any]:
    op = getattr(getattr(torch.ops, pack), name).default
    place = [argument.name for argument in op._schema.arguments].index("epsilon")

    def call(*args: Any) -> Any:
        return op(*args[:place], float(args[place]), *args[place + 1 :])

    return call


def _fake_without_epsilon(name: str) -> Callable[..., Any]:
    op = OPS[name]

    def fake(*args: Any) -> tuple[torch.Tensor, ...]:
        return op.allocate(*args)

    return fake


def _check_gemm(q: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
    tokens, packed = q.shape
    blocks = 2 * packed // BLOCK
    if weight.dim() != 2 or weight.shape[1] != packed:
        raise OpInputError(f"weight must be [outputs, {packed}], as q [tokens, {packed}]; got {list(weight.shape)}.")
    if tuple(scales.shape) != (tokens, blocks):
        raise OpInputError(f"scales must be [{tokens}, {blocks}]; got {list(scales.shape)}.")
    if tuple(weight_scale.shape) != (blocks, weight.shape[0]):
        raise OpInputError(
            f"weight_scale must be [{blocks}, {weight.shape[0]}], one row a block of inputs, as vLLM's kernel has it;"
            f" got {list(weight_scale.shape)}. Transpose it."
        )


def _gemm_fake(
    q: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return q.new_empty((q.shape[0], weight.shape[0]), dtype=out_dtype)


def mxfp4_gemm_reference(
    q: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """``dequantised(q, scales) @ dequantised(weight, weight_scale.T).T`` in fp32, then rounded.

    Args:
        q: Codes of the rows, uint8 [T, K/2].
        scales: Their E8M0 scales, uint8 [T, K/32].
        weight: Codes of the weight, uint8 [N, K/2].
        weight_scale: Its scales, uint8 [K/32, N].
        out_dtype: dtype of the result [T, N].
    """
    _check_gemm(q, scales, weight, weight_scale)
    bytes_of = (tensor.contiguous().view(torch.uint8) for tensor in (q, scales, weight, weight_scale.T))
    q, scales, weight, weight_scale = bytes_of
    with torch.no_grad():
        product = dequantize_mxfp4(q, scales) @ dequantize_mxfp4(weight, weight_scale).T
    return product.to(out_dtype)


def _gemm_cuda(
    q: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """By vLLM's op where it is registered (AITER with vLLM's settings), else AITER's kernel, else the reference."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(VLLM_GEMM, "CUDA"):
        result: torch.Tensor = torch.ops.vllm.gemm_with_dynamic_quant(q, weight, weight_scale, False, out_dtype, scales)
        return result
    kernel = _aiter_gemm()
    if kernel is None:
        return mxfp4_gemm_reference(q, scales, weight, weight_scale, out_dtype)
    _check_gemm(q, scales, weight, weight_scale)
    result = torch.empty((q.shape[0], weight.shape[0]), dtype=out_dtype, device=q.device)
    kernel(q, weight, scales, weight_scale.T, out_dtype, result)
    return result


@functools.cache
def _aiter_gemm() -> Callable[..., Any] | None:
    """AITER's Triton GEMM of two MXFP4 matrices; None where AITER cannot be imported."""
    if not torch.version.hip:
        return None
    try:  # present is not importable: AITER fails without its ROCm libraries, and not only with ImportError
        from aiter.ops.triton.gemm_afp4wfp4 import gemm_afp4wfp4
    except (ImportError, OSError, RuntimeError):
        return None
    kernel: Callable[..., Any] = gemm_afp4wfp4
    return kernel
