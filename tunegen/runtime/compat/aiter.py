"""AITER's fused functions on the ops of a pack: argument names, defaults and returns are AITER's.

`Aiter` has those of releases from 0.1.8 on, as 0.1.20 has them, `Aiter017` those of 0.1.7. What these functions compute
is what the pack's ops compute; where that differs from AITER's, docs/ops.md says in what and why.
"""

from __future__ import annotations

from typing import Any

import torch

from ..families._op import OpInputError

Mxfp4 = tuple[torch.Tensor, torch.Tensor]


class Aiter:
    """The functions as AITER has them from 0.1.8 on.

    Args:
        ops: What has the pack's ops as attributes: ``torch.ops.<pack>``.
    """

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def dynamic_mxfp4_quant(self, x: torch.Tensor, scaling_mode: str = "even") -> Mxfp4:
        """x [M, N] -> (codes uint8 [M, N / 2], scales uint8 [M, N / 32] with strides (1, M))."""
        if scaling_mode != "even":
            raise OpInputError(f"scaling_mode must be 'even', the one that AITER has; got {scaling_mode!r}.")
        q, scales = self._ops.dynamic_mxfp4_quant(x, "columns")
        return q, scales

    def fused_rms_mxfp4_quant(
        self,
        x1: torch.Tensor,
        x1_weight: torch.Tensor,
        x1_epsilon: float,
        x2: torch.Tensor | None = None,
        x2_weight: torch.Tensor | None = None,
        x2_epsilon: float = 0.0,
        res1: torch.Tensor | None = None,
        shuffle: bool | None = False,
        scale_shuffle_padding: bool | None = False,
        output_unquantized_inp1: bool = False,
        inargs: str = "auto",
    ) -> tuple[Mxfp4, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """RMSNorm of x1 [M, N1] (+ res1), quantised, and of x2 [M, N2] in the same launch.

        Returns:
            (codes [M, N1 / 2], scales [M, N1 / 32], or [ceil(M, 256), ceil(N1 / 32, 8)] if ``shuffle`` or
            ``scale_shuffle_padding``), the norm of x1 if ``output_unquantized_inp1``, that of x2 if there is one, and
            x1 + res1 if there is a res1.
        """
        if inargs not in ("auto", "gluon", "triton"):
            raise OpInputError(f"inargs must be auto, gluon or triton (it chooses nothing here); got {inargs!r}.")
        args: list[Any] = [x1]
        name = "rmsnorm_"
        if res1 is not None:
            name += "add_"
            args.append(res1)
        args += [x1_weight, x1_epsilon]
        if output_unquantized_inp1:
            name += "and_"
        if x2 is not None:
            name = f"dual_{name}"
            if x2_weight is None:
                raise OpInputError("x2_weight must be given where x2 is; got None.")
            args += [x2, x2_weight, x2_epsilon]
        layout = "shuffled" if shuffle else "padded" if scale_shuffle_padding else "rows"
        q, scales, *rest = getattr(self._ops, f"{name}mxfp4_quant")(*args, "none", layout)
        residual_out = rest.pop(0) if res1 is not None else None
        unquantised = rest.pop(0) if output_unquantized_inp1 else None
        return (q, scales), unquantised, rest.pop(0) if rest else None, residual_out

    def fused_qk_rope_cat_and_cache_mla(
        self,
        q_nope: torch.Tensor,
        q_pe: torch.Tensor,
        k_nope: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        pos: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_scale: torch.Tensor | None,
        is_neox: bool,
        num_decode_toks_for_zeros: int = 0,
        apply_scale: bool = True,
        q_out: torch.Tensor | None = None,
        decode_q_pe_out: torch.Tensor | None = None,
        k_pe_out: torch.Tensor | None = None,
        q_out_dtype: torch.dtype | None = None,
        shuffled_kv_cache: bool = False,
        upcast_operand: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotates q_pe and k_pe, joins q, writes the cache rows.

        Args:
            q_nope, q_pe: [B, H, R], [B, H, D].
            k_nope, k_pe: [S, 1, R], [S, 1, D], S >= B.
            kv_cache: [slots, 1, R + D], in the activation dtype or e4m3.
            slot_mapping, pos: int64, at most S; S.
            cos, sin: [positions, D / 2], or [positions, D] with every angle twice, as the pairing has them.
            k_scale: One fp32, which an e4m3 cache is divided by; unused if not ``apply_scale``.
            is_neox: The pairing.
            num_decode_toks_for_zeros: Tokens whose rotated q_pe, and as many zeros, are returned besides.
            q_out, decode_q_pe_out, k_pe_out: Where to put the outputs; copied to.
            q_out_dtype: Of q_out; default: that of ``q_out``, or else of q_nope.
            shuffled_kv_cache: Must be False.
            upcast_operand: Rotate in fp32; else products and sums are rounded to the activation dtype.

        Returns:
            q_out [B, H, R + D], decode_q_pe_out [n, H, D], k_pe_out [S, 1, D] and zeros [n, H, R].
        """
        if shuffled_kv_cache:
            raise OpInputError("shuffled_kv_cache must be False: the pack's op writes rows as they are; got True.")
        if kv_cache.dim() != 3 or kv_cache.shape[1] != 1:
            raise OpInputError(f"kv_cache must be [slots, 1, R + D]: MLA has one key; got {list(kv_cache.shape)}.")
        tokens, rank = k_nope.shape[0], q_nope.shape[-1]
        table = _table(cos, sin, q_pe.shape[-1], is_neox)
        rounding = "none" if upcast_operand else "act"
        dtype = q_out_dtype or (q_out.dtype if q_out is not None else None)
        keys = (k_nope.reshape(tokens, rank), k_pe.reshape(tokens, -1), pos, table)
        scale = k_scale if apply_scale else None
        made, k_rotated = self._ops.mla_rope_cache(
            q_nope, q_pe, *keys, kv_cache[:, 0], slot_mapping, scale, None, dtype, is_neox, False, rounding
        )
        decoded = num_decode_toks_for_zeros
        decode_q_pe = made[:decoded, :, rank:]
        if decode_q_pe.dtype != q_pe.dtype:
            # q_out is e4m3: rotated once more, without a slot for any token.
            first = tuple(part[:decoded] for part in (q_nope, q_pe, *keys[:3]))
            again = self._ops.mla_rope_cache(
                *first, table, kv_cache[:, 0], slot_mapping[:0], scale, None, None, is_neox, False, rounding
            )
            decode_q_pe = again[0][..., rank:]
        zeros = q_nope.new_zeros((decoded, q_nope.shape[1], rank))
        outputs = ((made, q_out), (decode_q_pe.contiguous(), decode_q_pe_out), (k_rotated.unsqueeze(1), k_pe_out))
        placed = (output if place is None else place.copy_(output) for output, place in outputs)
        return (*placed, zeros)  # type: ignore[return-value]  # three of them


class Aiter017(Aiter):
    """The functions as AITER 0.1.7 has them: fewer arguments, and other returns."""

    # What mypy is told to overlook is the point of the class.

    def fused_rms_mxfp4_quant(  # type: ignore[override]  # of another arity, as in that release
        self,
        x1: torch.Tensor,
        x1_weight: torch.Tensor,
        x1_epsilon: float,
        x2: torch.Tensor | None = None,
        x2_weight: torch.Tensor | None = None,
        x2_epsilon: float = 0.0,
        res1: torch.Tensor | None = None,
        shuffle: bool | None = False,
        scale_shuffle_padding: bool | None = False,
    ) -> tuple[Mxfp4, torch.Tensor | None, torch.Tensor | None]:
        """As `Aiter.fused_rms_mxfp4_quant`; returns (codes, scales), the norm of x2, and x1 + res1."""
        norms = (x1, x1_weight, x1_epsilon, x2, x2_weight, x2_epsilon)
        quantised, _, second, residual_out = super().fused_rms_mxfp4_quant(*norms, res1, shuffle, scale_shuffle_padding)
        return quantised, second, residual_out

    def fused_qk_rope_cat_and_cache_mla(  # type: ignore[override]  # the same
        self,
        q_nope: torch.Tensor,
        q_pe: torch.Tensor,
        k_nope: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        pos: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_scale: torch.Tensor | None,
        is_neox: bool,
        num_decode_toks_for_zeros: int = 0,
        apply_scale: bool = True,
        q_out: torch.Tensor | None = None,
        decode_q_pe_out: torch.Tensor | None = None,
        k_pe_out: torch.Tensor | None = None,
        q_out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """As `Aiter.fused_qk_rope_cat_and_cache_mla`; returns q_out, decode_q_pe_out, k_pe_out, kv_cache, and zeros if
        ``num_decode_toks_for_zeros``.
        """
        tensors = (q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale)
        outputs = (q_out, decode_q_pe_out, k_pe_out, q_out_dtype)
        *given, zeros = super().fused_qk_rope_cat_and_cache_mla(
            *tensors, is_neox, num_decode_toks_for_zeros, apply_scale, *outputs
        )
        return (*given, kv_cache, zeros) if num_decode_toks_for_zeros else (*given, kv_cache)


def _table(cos: torch.Tensor, sin: torch.Tensor, rope_dim: int, is_neox: bool) -> torch.Tensor:
    """cos | sin [positions, D] of the two tables: a view, if they are the halves of one."""
    cos, sin = (table.reshape(table.shape[0], table.shape[-1]) for table in (cos, sin))
    half = rope_dim // 2
    if cos.shape != sin.shape or cos.shape[1] not in (half, rope_dim):
        raise OpInputError(
            f"cos and sin must be [positions, {half}] or [positions, {rope_dim}]; got {list(cos.shape)} and"
            f" {list(sin.shape)}."
        )
    if cos.shape[1] == rope_dim:
        cos, sin = (table[:, :half] if is_neox else table[:, ::2] for table in (cos, sin))
    one_storage = cos.untyped_storage().data_ptr() == sin.untyped_storage().data_ptr()
    beside = sin.storage_offset() == cos.storage_offset() + half
    if one_storage and beside and cos.stride() == sin.stride() == (cos.stride(0), 1) and cos.stride(0) >= rope_dim:
        return cos.as_strided((cos.shape[0], rope_dim), cos.stride())
    return torch.cat((cos, sin), dim=-1)
