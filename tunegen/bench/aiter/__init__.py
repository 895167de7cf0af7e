"""AITER's Triton kernels, called as AITER's users call them, as baselines and as an oracle.

On ROCm through AITER itself where it imports; elsewhere its Triton kernels alone (see `tunegen.bench.aiter._modules`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunegen.bench.aiter import _modules
from tunegen.errors import UsageError


class RmsMxfp4(NamedTuple):
    """What `Aiter.fused_rms_mxfp4_quant` returns, M rows.

    Attributes:
        q: Codes, uint8 [M, N / 2].
        scales: uint8 [M, N / 32], or as ``shuffle`` and ``scale_shuffle_padding`` lay them out.
        unquantised: The norm itself [M, N], if asked for by ``output_unquantized_inp1``.
        second: The norm of x2, if there is one.
        residual_out: x1 + res1 [M, N], if there is a res1.
    """

    q: torch.Tensor
    scales: torch.Tensor
    unquantised: torch.Tensor | None
    second: torch.Tensor | None
    residual_out: torch.Tensor | None


class RopeCache(NamedTuple):
    """What `Aiter.fused_qk_rope_cat_and_cache_mla` returns; the cache is written in place.

    Attributes:
        q_out: [B, H, R + D].
        decode_q_pe_out: Rotated q_pe of the first ``num_decode_toks_for_zeros`` tokens, [that, H, D].
        k_pe_out: [S, 1, D]; rows of tokens without a slot are not written.
        q_nope_zeros: Zeros [num_decode_toks_for_zeros, H, R], or None where that is 0.
    """

    q_out: torch.Tensor
    decode_q_pe_out: torch.Tensor
    k_pe_out: torch.Tensor
    q_nope_zeros: torch.Tensor | None


@dataclass(frozen=True)
class Aiter:
    """AITER's functions with the same return in all releases; their arguments are AITER's.

    Attributes:
        version: The release; "unknown" for a source tree.
        origin: Where the functions come from and how they were imported, for a person to read.
        functions: AITER's own functions by name.
    """

    version: str
    origin: str
    functions: _modules.Functions

    def fused_rms_mxfp4_quant(
        self, x1: torch.Tensor, x1_weight: torch.Tensor, x1_epsilon: float, **options: Any
    ) -> RmsMxfp4:
        """(x1 + ``res1``) normalised and quantised. Raises UsageError if it returns what no known release does."""
        returned = self.functions["fused_rms_mxfp4_quant"](x1, x1_weight, x1_epsilon, **options)
        # Until 0.1.8 without the norm itself.
        if len(returned) == 3:
            (q, scales), second, residual_out = returned
            return RmsMxfp4(q, scales, None, second, residual_out)
        self._check_arity("fused_rms_mxfp4_quant", len(returned), (3, 4))
        (q, scales), unquantised, second, residual_out = returned
        return RmsMxfp4(q, scales, unquantised, second, residual_out)

    def dynamic_mxfp4_quant(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [M, N] -> (codes uint8 [M, N / 2], scales uint8 [M, N / 32] with strides (1, M))."""
        q, scales = self.functions["dynamic_mxfp4_quant"](x)
        return q, scales

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
        **options: Any,
    ) -> RopeCache:
        """Rotates q_pe and k_pe, joins q, writes the cache rows: q_nope [B, H, R], q_pe [B, H, D], k_nope [S, 1, R],
        k_pe [S, 1, D], kv_cache [slots, 1, R + D], cos and sin [positions, D / 2]. Raises as the one above.
        """
        returned = self.functions["fused_qk_rope_cat_and_cache_mla"](
            *(q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale, is_neox), **options
        )
        self._check_arity("fused_qk_rope_cat_and_cache_mla", len(returned), (4, 5))
        q_out, decode_q_pe_out, k_pe_out, *rest = returned
        # Earlier releases return the cache fourth, and the zeros after it if there are any; later ones the zeros.
        zeros = rest[-1]
        if zeros is kv_cache or not zeros.shape[0]:
            zeros = None
        return RopeCache(q_out, decode_q_pe_out, k_pe_out, zeros)

    def _check_arity(self, name: str, got: int, known: tuple[int, ...]) -> None:
        if got not in known:
            raise UsageError(
                f"AITER's {name} must return {' or '.join(map(str, known))} values; that of AITER {self.version}"
                f" returned {got}. Releases 0.1.7 to 0.1.20 are known; take one of them."
            )


def load_aiter(root: Path | None = None) -> Aiter:
    """AITER's kernels on this machine.

    Args:
        root: Folder of an unpacked wheel or source tree (aiter/ lies in it), where AITER is not installed.

    Raises:
        UsageError: It is not there, it is another package of the name, or its kernels do not import.
    """
    location = _modules.find(root)
    note = "its Triton kernels alone"
    if root is None and torch.version.hip is not None:
        try:
            return Aiter(location.version, f"aiter {location.version}", _modules.import_real_functions(location))
        except (ImportError, OSError, RuntimeError) as error:
            # An AITER that is built for another ROCm, say; that the kernels come without it is said in the origin.
            note += f", since `import aiter` failed: {error}"
    functions = _modules.import_functions(location)
    return Aiter(location.version, f"aiter {location.version} in {location.folder}: {note}", functions)
