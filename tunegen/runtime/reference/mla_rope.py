"""MLA RoPE, concatenation of the absorbed query and write of the KV-cache row in plain PyTorch."""

from __future__ import annotations

import torch

from ..device import device_key

ROUNDINGS = ("none", "act")
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def native_fp8(device: torch.device) -> torch.dtype:
    """The e4m3 that a device's instructions have, which a uint8 cache holds: fnuz on gfx942, OCP elsewhere."""
    if device.type == "cuda" and torch.version.hip:
        index = torch.cuda.current_device() if device.index is None else device.index
        if device_key(index).arch == "gfx942":
            return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn


def to_fp8(values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """values / scale as e4m3: to nearest even, saturated, NaN kept. No scale is 1."""
    values = values.to(torch.float32)
    if scale is not None:
        values = values / scale.reshape(())
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


def load_angles(
    positions: torch.Tensor, cos_sin_cache: torch.Tensor, rounding: str, act: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin at each position as fp32 [T, D/2].

    ``act`` rounds them to the activation dtype first, as vLLM's rotary layer casts its table. A position that the
    table does not have gives NaN.
    """
    known = (positions >= 0) & (positions < cos_sin_cache.shape[0])
    rows = cos_sin_cache[torch.where(known, positions, 0)]
    if rounding == "act":
        rows = rows.to(act)
    cos, sin = rows.to(torch.float32).chunk(2, dim=-1)
    return torch.where(known.unsqueeze(-1), cos, float("nan")), sin


def split_pairs(values: torch.Tensor, is_neox: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Both values of each pair: halves (NeoX), or even and odd elements."""
    if is_neox:
        x, y = values.chunk(2, dim=-1)
        return x, y
    return values[..., 0::2], values[..., 1::2]


def join_pairs(x: torch.Tensor, y: torch.Tensor, is_neox: bool) -> torch.Tensor:
    """The inverse of `split_pairs`."""
    return torch.cat((x, y), dim=-1) if is_neox else torch.stack((x, y), dim=-1).flatten(-2)


def rotate(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, is_neox: bool, rounding: str) -> torch.Tensor:
    """Values [..., D] turned by the angles, as fp32: with rounding ``none`` still to be rounded, once."""
    x, y = split_pairs(values.to(torch.float32), is_neox)

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.to(values.dtype).to(torch.float32) if rounding == "act" else value

    first = rounded(rounded(x * cos) - rounded(y * sin))
    second = rounded(rounded(y * cos) + rounded(x * sin))
    return join_pairs(first, second, is_neox)


def existing_slots(slot_mapping: torch.Tensor, kv_cache: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The slot of each token; negative where it has none: its slot is, or lies past the cache, or is not mapped."""
    slots = slot_mapping.new_full((num_tokens,), -1)
    slots[: slot_mapping.shape[0]] = slot_mapping
    return torch.where(slots < kv_cache.shape[:-1].numel(), slots, -1)


def write_rows(kv_cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Puts the rows of tokens that have a slot into a cache ``[slots, W]`` or ``[blocks, block_size, W]``."""
    if not kv_cache.numel() or not slots.numel():
        return
    if kv_cache.element_size() == 1:
        kv_cache, rows = kv_cache.view(torch.uint8), rows.view(torch.uint8)
    # Choosing rows by a mask would wait for the device, which a captured graph cannot. A token without a slot writes
    # the row of one that has a slot once more; if none has, slot 0 what it holds.
    kept = slots >= 0
    source = torch.where(kept, torch.arange(slots.shape[0], device=slots.device), kept.to(torch.uint8).argmax())
    slots, rows = slots[source].clamp(min=0), rows[source]
    block_size = kv_cache.shape[1] if kv_cache.dim() == 3 else 1
    index = (slots // block_size, slots % block_size) if kv_cache.dim() == 3 else (slots,)
    kv_cache.index_put_(index, torch.where(kept.any(), rows, kv_cache[index]))


def mla_rope_cache(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    q_scale: torch.Tensor | None = None,
    q_out_dtype: torch.dtype | None = None,
    is_neox: bool = False,
    pe_first: bool = False,
    rounding: str = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates q_pe and k_pe, writes kv_cache, and returns (q_out [B, H, R + D], k_pe_out [S, D]).

    The q tokens are the first B of the S tokens. Tokens without a slot (see `existing_slots`) are rotated and not
    written.
    """
    act = q_pe.dtype
    queries, tokens = q_pe.shape[0], kv_c.shape[0]
    k_pe = k_pe.reshape(tokens, k_pe.shape[-1])
    cos, sin = load_angles(positions[:tokens], cos_sin_cache, rounding, act)
    q_rotated = rotate(q_pe, cos[:queries, None], sin[:queries, None], is_neox, rounding)
    k_rotated = rotate(k_pe, cos, sin, is_neox, rounding)
    _write_cache(kv_cache, existing_slots(slot_mapping, kv_cache, tokens), kv_c, k_rotated, k_scale, pe_first)
    if q_out_dtype in FP8_DTYPES:
        parts = (to_fp8(q_nope, q_scale, q_out_dtype), to_fp8(q_rotated, q_scale, q_out_dtype))
        q_out = torch.cat([part.view(torch.uint8) for part in parts], dim=-1).view(q_out_dtype)
    else:
        q_out = torch.cat((q_nope, q_rotated.to(act)), dim=-1)
    return q_out, k_rotated.to(act)


def mla_rope_cache_(
    positions: torch.Tensor,
    q_pe: torch.Tensor,
    k_pe: torch.Tensor,
    kv_c: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_cache_dtype: str,
    kv_cache_scale: torch.Tensor,
    rounding: str = "act",
) -> None:
    """Rotates q_pe and k_pe in place and writes kv_cache; tokens without a slot are left as they are."""
    queries, tokens = q_pe.shape[0], kv_c.shape[0]
    slots = existing_slots(slot_mapping, kv_cache, tokens)
    kept = slots >= 0
    cos, sin = load_angles(positions[:tokens], cos_sin_cache, rounding, q_pe.dtype)
    q_rotated = rotate(q_pe, cos[:queries, None], sin[:queries, None], is_neox, rounding)
    k_rows = k_pe.view(tokens, k_pe.shape[-1]) if k_pe.dim() == 2 else k_pe[:, 0]
    k_rotated = rotate(k_rows, cos, sin, is_neox, rounding)
    scale = None if kv_cache_dtype == "auto" else kv_cache_scale
    _write_cache(kv_cache, slots, kv_c, k_rotated, scale, False)
    q_pe.copy_(torch.where(kept[:queries, None, None], q_rotated.to(q_pe.dtype), q_pe))
    k_rows.copy_(torch.where(kept[:, None], k_rotated.to(k_pe.dtype), k_rows))


def _write_cache(
    kv_cache: torch.Tensor,
    slots: torch.Tensor,
    kv_c: torch.Tensor,
    k_rotated: torch.Tensor,
    scale: torch.Tensor | None,
    pe_first: bool,
) -> None:
    if kv_cache.element_size() == 1:
        dtype = native_fp8(kv_cache.device) if kv_cache.dtype == torch.uint8 else kv_cache.dtype
        parts = [to_fp8(part, scale, dtype).view(torch.uint8) for part in (kv_c, k_rotated)]
    else:
        parts = [kv_c, k_rotated.to(kv_c.dtype)]
    write_rows(kv_cache, slots, torch.cat(parts[::-1] if pe_first else parts, dim=-1))
