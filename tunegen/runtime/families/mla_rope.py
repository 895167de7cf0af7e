"""Host side of mla_rope_cache and mla_rope_cache_."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from ..kernel import Kernel
from ..reference import mla_rope as reference
from ._op import Op, OpInputError, Shape

ACT_DTYPES = (torch.bfloat16, torch.float16)
TABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8_CACHE_NAMES = ("fp8", "fp8_e4m3")
SIZES = ("kv_lora_rank", "num_heads", "rope_dim")
SIZE_MULTIPLE = 8
MAX_HEADS = 1024
INT32_END = 2**31

# Of `inputs`: a cache with room to spare, in pages as an engine has them, and angles as DeepSeek's.
BLOCK_SIZE = 64
MAX_POSITION = 16384
ROPE_BASE = 10000.0
QK_NOPE_DIM = 128


@dataclass(frozen=True)
class Variant:
    """What is resolved when rendering, beside the shape; as a string the rounding and the flags that are set.

    ``"none"`` and ``"act"`` have interleaved pairing, cache rows of kv_c and then k_pe, and the cache and q_out in
    the activation dtype; ``"act,neox,fp8"`` has NeoX pairing and an fp8 cache.

    Attributes:
        rounding: ``"none"`` or ``"act"``.
        neox: Pairs are (i, i + D/2), not (2i, 2i + 1).
        pe_first: Cache rows are k_pe and then kv_c.
        fp8: The cache is e4m3, as the target has it.
        q_fp8: q_out is.
    """

    rounding: str = "none"
    neox: bool = False
    pe_first: bool = False
    fp8: bool = False
    q_fp8: bool = False

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The inverse of ``str``; flags may come in any order. Raises OpInputError."""
        rounding, *flags = text.split(",")
        unknown = [flag for flag in flags if flag not in _FLAGS]
        if rounding not in reference.ROUNDINGS or unknown:
            raise OpInputError(
                f"a variant is one of {', '.join(reference.ROUNDINGS)}, then any of {', '.join(_FLAGS)}, with commas"
                f" between; got {text!r}."
            )
        return cls(rounding, **dict.fromkeys(flags, True))

    def __str__(self) -> str:
        return ",".join([self.rounding, *(flag for flag in _FLAGS if getattr(self, flag))])


_FLAGS = ("neox", "pe_first", "fp8", "q_fp8")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(_name(dtype) for dtype in dtypes)


def _check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if tuple(tensor.shape) != shape:
        raise OpInputError(f"{name} must have shape {list(shape)}; got {list(tensor.shape)}.")
    if tensor.dtype not in dtypes:
        raise OpInputError(f"{name} must be {_names(dtypes)}; got {_name(tensor.dtype)}. Cast it.")
    if tensor.device != device:
        raise OpInputError(f"{name} must be on {device}, where q_pe is; got {tensor.device}.")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise OpInputError(
            f"the last dimension of {name} must be contiguous (stride 1); got strides {tensor.stride()}."
            " Call .contiguous() where it is made."
        )


def _check_written(name: str, tensor: torch.Tensor) -> None:
    """That no two elements of a tensor that is written share memory through a stride of 0."""
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise OpInputError(f"{name} is written: its elements must not share memory; got strides {tensor.stride()}.")


def _check_sizes(q_pe: torch.Tensor, kv_c: torch.Tensor) -> None:
    if q_pe.dim() != 3 or kv_c.dim() != 2:
        raise OpInputError(
            f"q_pe must be [queries, heads, rope dim] and kv_c [tokens, rank]; got {list(q_pe.shape)} and"
            f" {list(kv_c.shape)}."
        )
    for name, size in (("rope dim", q_pe.shape[2]), ("kv_lora_rank", kv_c.shape[1])):
        if size % SIZE_MULTIPLE or not size:
            raise OpInputError(f"the {name} must be a multiple of {SIZE_MULTIPLE}; got {size}. Pad it.")
    if not 1 <= q_pe.shape[1] <= MAX_HEADS:
        raise OpInputError(f"there must be 1 to {MAX_HEADS} heads; q_pe has {q_pe.shape[1]}.")
    if q_pe.shape[0] > kv_c.shape[0]:
        raise OpInputError(
            f"the queries must be the first of the tokens: q_pe has {q_pe.shape[0]}, kv_c only {kv_c.shape[0]}."
        )


def _check_common(
    positions: torch.Tensor,
    q_pe: torch.Tensor,
    k_pe: torch.Tensor,
    kv_c: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cache_dtypes: tuple[torch.dtype, ...],
    rounding: str,
) -> None:
    _check_sizes(q_pe, kv_c)
    device, act = q_pe.device, (q_pe.dtype,)
    (tokens, rank), rope_dim = kv_c.shape, q_pe.shape[2]
    _check_tensor("q_pe", q_pe, tuple(q_pe.shape), ACT_DTYPES, device)
    _check_tensor("kv_c", kv_c, (tokens, rank), act, device)
    _check_tensor("k_pe", k_pe, (tokens, 1, rope_dim) if k_pe.dim() == 3 else (tokens, rope_dim), act, device)
    if positions.dim() != 1 or positions.shape[0] < tokens:
        raise OpInputError(f"positions must have one for each of the {tokens} tokens; got {list(positions.shape)}.")
    _check_tensor("positions", positions, tuple(positions.shape), (torch.int64, torch.int32), device)
    if cos_sin_cache.dim() != 2 or cos_sin_cache.shape[1] != rope_dim or not 0 < cos_sin_cache.shape[0] < INT32_END:
        raise OpInputError(
            f"cos_sin_cache must be [positions, {rope_dim}], each row cos and then sin of the {rope_dim // 2} angles;"
            f" got {list(cos_sin_cache.shape)}."
        )
    _check_tensor("cos_sin_cache", cos_sin_cache, tuple(cos_sin_cache.shape), TABLE_DTYPES, device)
    if slot_mapping.dim() != 1 or slot_mapping.shape[0] > tokens:
        raise OpInputError(
            f"slot_mapping must have at most one slot a token, {tokens}; got {list(slot_mapping.shape)}."
        )
    _check_tensor("slot_mapping", slot_mapping, tuple(slot_mapping.shape), (torch.int64,), device)
    width = rank + rope_dim
    if kv_cache.dim() not in (2, 3) or kv_cache.shape[-1] != width or kv_cache.shape[:-1].numel() >= INT32_END:
        raise OpInputError(
            f"kv_cache must be [slots, {width}] or [blocks, block size, {width}], with fewer than 2^31 slots;"
            f" got {list(kv_cache.shape)}."
        )
    _check_tensor("kv_cache", kv_cache, tuple(kv_cache.shape), cache_dtypes, device)
    _check_written("kv_cache", kv_cache)
    if rounding not in reference.ROUNDINGS:
        raise OpInputError(f"rounding must be one of {', '.join(reference.ROUNDINGS)}; got {rounding!r}.")


def _fp8_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The fp8 dtypes that a device's kernels write; on a CPU, where the reference does, both."""
    return (reference.native_fp8(device),) if device.type == "cuda" else reference.FP8_DTYPES


def _check_scale(name: str, scale: torch.Tensor, device: torch.device) -> None:
    if scale.numel() != 1 or scale.dtype != torch.float32 or scale.device != device:
        raise OpInputError(
            f"{name} must be a one-element float32 tensor on {device} (a tensor, so that a captured graph follows its"
            f" value); got {list(scale.shape)}, {_name(scale.dtype)}, {scale.device}."
        )


def _check_values(
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    tokens: int,
    **scales: torch.Tensor | None,
) -> None:
    """Raises OpInputError for values that a kernel cannot report. Waits for the device."""
    positions = positions[:tokens]
    rows = cos_sin_cache.shape[0]
    outside = ((positions < 0) | (positions >= rows)).nonzero()
    if len(outside):
        token = int(outside[0])
        raise OpInputError(
            f"{len(outside)} positions are not in cos_sin_cache, which has {rows} rows: the first is"
            f" {int(positions[token])}, of token {token}. Its cos would be NaN."
        )
    num_slots = kv_cache.shape[:-1].numel()
    outside = (slot_mapping >= num_slots).nonzero()
    if len(outside):
        token = int(outside[0])
        raise OpInputError(
            f"{len(outside)} slots are not in kv_cache, which has {num_slots}: the first is"
            f" {int(slot_mapping[token])}, of token {token}. Its row would not be written."
        )
    slots, counts = slot_mapping[slot_mapping >= 0].unique(return_counts=True)
    if bool((counts > 1).any()):
        slot = int(slots[counts > 1][0])
        tokens_of_slot = (slot_mapping == slot).nonzero().flatten().tolist()
        raise OpInputError(
            f"{int((counts > 1).sum())} slots are given to more than one token: the first is {slot}, of tokens"
            f" {tokens_of_slot}. Its row would be one of theirs or parts of several."
        )
    for name, scale in scales.items():
        if scale is not None and not 0.0 < float(scale) < float("inf"):
            raise OpInputError(f"{name} must be positive and finite; got {float(scale)}.")


def _specialisations(
    args: tuple[Any, ...],
    everything: bool,
    large: torch.Tensor | None,
    positions_at: int,
    table_at: int,
    cache_at: int,
    scales_at: tuple[int, ...],
) -> list[tuple[Any, ...]]:
    """Flat and paged cache; if ``everything`` with positions and table of either dtype, and each scale or none."""
    table, cache = args[table_at], args[cache_at]
    tables = (table.dtype, torch.float32) if everything else (table.dtype,)
    integers = (torch.int64, torch.int32) if everything else (torch.int64,)
    blocks, *block = cache.shape
    longer = [cache.new_empty((2 * blocks, *block))]
    if large is not None:
        longer.append(large.view(cache.dtype)[: longer[0].numel()].view(longer[0].shape))
    # Its beginning, and every second block of it: without pages and with.
    caches = [view for whole in longer for view in (whole[:blocks], whole[::2])]
    scales = [(args[at], None) if everything and args[at] is not None else (args[at],) for at in scales_at]
    made = []
    for chosen, dtype, kv_cache, scaled in itertools.product(tables, integers, caches, itertools.product(*scales)):
        call = list(args)
        call[table_at], call[positions_at] = table.to(chosen), args[positions_at].to(dtype)
        call[cache_at] = kv_cache
        for at, scale in zip(scales_at, scaled, strict=True):
            call[at] = scale
        made.append(tuple(call))
    return made


def _stride(tensor: torch.Tensor, dim: int, otherwise: int) -> int:
    # The stride of a dimension of size 1 is arbitrary; a fixed one keeps Triton from compiling anew for it.
    return tensor.stride(dim) if tensor.shape[dim] > 1 else otherwise


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """fp8 as bytes, which is how kernels take it."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


@dataclass(frozen=True)
class _CacheLayout:
    """Where slots are, as kernels take it; a cache whose blocks follow one another has no pages."""

    num_slots: int
    block_size: int
    block_stride: int
    entry_stride: int
    paged: bool

    @classmethod
    def of(cls, kv_cache: torch.Tensor) -> _CacheLayout:
        width = kv_cache.shape[-1]
        num_slots = kv_cache.shape[:-1].numel()
        if kv_cache.dim() == 2:
            return cls(num_slots, 1, 0, _stride(kv_cache, 0, width), False)
        blocks, block_size, _ = kv_cache.shape
        entry_stride = _stride(kv_cache, 1, width)
        block_stride = _stride(kv_cache, 0, block_size * entry_stride)
        if block_size == 1:
            return cls(num_slots, 1, 0, block_stride, False)
        if blocks == 1 or block_stride == block_size * entry_stride:
            return cls(num_slots, 1, 0, entry_stride, False)
        return cls(num_slots, block_size, block_stride, entry_stride, True)


def _grid(kernel: Kernel, queries: int, tokens: int) -> tuple[int]:
    """Programs for the heads of the queries and the cache rows of the tokens, as the kernel divides them."""
    constants = kernel.constants
    tile = constants["TOKENS"]
    head_tiles, row_tiles = -(-queries // tile), -(-tokens // tile)
    # Without programs of their own, cache rows are written by a tile's first program; some tiles have no queries.
    rows = row_tiles if constants["ROW_PROGRAMS"] else row_tiles - head_tiles
    return (head_tiles * constants["HEAD_PROGRAMS"] + rows,)


def _counts(q_pe: torch.Tensor, kv_c: torch.Tensor, slot_mapping: torch.Tensor, table: torch.Tensor) -> tuple[int, ...]:
    return q_pe.shape[0], kv_c.shape[0], slot_mapping.shape[0], table.shape[0]


def _random_inputs(
    shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator, cache: torch.dtype
) -> dict[str, torch.Tensor]:
    """Arguments as a model has them: q_nope by head (a batched product made it), q_pe, k_pe and kv_c as slices."""
    heads, rank, rope_dim = shape["num_heads"], shape["kv_lora_rank"], shape["rope_dim"]

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.float32, device=device, generator=generator).to(dtype)

    frequencies = ROPE_BASE ** (-torch.arange(0, rope_dim, 2, dtype=torch.float32, device=device) / rope_dim)
    angles = torch.arange(MAX_POSITION, dtype=torch.float32, device=device)[:, None] * frequencies
    blocks = -(-2 * tokens // BLOCK_SIZE) + 1
    slots = torch.randperm(blocks * BLOCK_SIZE, device=device, generator=generator)[:tokens]
    bits = torch.randint(
        0, 256, (blocks, BLOCK_SIZE, (rank + rope_dim) * cache.itemsize), device=device, generator=generator
    )
    return {
        "q_nope": normal(heads, tokens, rank).transpose(0, 1),
        "q_pe": normal(tokens, heads, QK_NOPE_DIM + rope_dim)[..., QK_NOPE_DIM:],
        "kv_c": normal(tokens, rank),
        "k_pe": normal(tokens, rank + rope_dim)[:, rank:],
        "positions": torch.randint(0, MAX_POSITION, (tokens,), device=device, generator=generator),
        "cos_sin_cache": torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype),
        "kv_cache": bits.to(torch.uint8).view(cache),
        "slot_mapping": slots,
        "k_scale": torch.full((1,), 0.03, device=device),
        "q_scale": torch.full((1,), 0.04, device=device),
    }


class MlaRopeCache(Op):
    """Functional in q: returns (q_out [B, H, R + D], k_pe_out [S, D]); kv_cache is written in place."""

    name = "mla_rope_cache"
    schema = (
        "(Tensor q_nope, Tensor q_pe, Tensor kv_c, Tensor k_pe, Tensor positions, Tensor cos_sin_cache,"
        " Tensor(a!) kv_cache, Tensor slot_mapping, Tensor? k_scale=None, Tensor? q_scale=None,"
        ' ScalarType? q_out_dtype=None, bool is_neox=False, bool pe_first=False, str rounding="none")'
        " -> (Tensor, Tensor)"
    )
    sizes = SIZES

    def check(self, *args: Any) -> None:
        q_nope, q_pe, kv_c, k_pe, positions, table, kv_cache, slots, k_scale, q_scale, q_out_dtype, *_, rounding = args
        fp8 = _fp8_dtypes(q_pe.device)
        cache_dtypes = (q_pe.dtype, *fp8, torch.uint8)
        _check_common(positions, q_pe, k_pe, kv_c, table, slots, kv_cache, cache_dtypes, rounding)
        queries, heads, _ = q_pe.shape
        _check_tensor("q_nope", q_nope, (queries, heads, kv_c.shape[1]), (q_pe.dtype,), q_pe.device)
        if q_out_dtype not in (None, q_pe.dtype, *fp8):
            raise OpInputError(f"q_out_dtype must be one of {_names((q_pe.dtype, *fp8))}; got {_name(q_out_dtype)}.")
        for name, scale in (("k_scale", k_scale), ("q_scale", q_scale)):
            if scale is not None:
                _check_scale(name, scale, q_pe.device)
        if q_scale is not None and q_out_dtype not in fp8:
            raise OpInputError(
                f"q_scale is for an fp8 q_out alone; q_out_dtype is {q_out_dtype}. Leave one of them out."
            )

    def check_values(self, *args: Any) -> None:
        """Raises OpInputError for positions, slots or scales that are out of range; waits for the device."""
        _, _, kv_c, _, positions, table, kv_cache, slots, k_scale, q_scale, *_ = args
        _check_values(positions, table, slots, kv_cache, kv_c.shape[0], k_scale=k_scale, q_scale=q_scale)

    def num_tokens(self, *args: Any) -> int:
        return int(args[2].shape[0])

    def shape(self, *args: Any) -> Shape:
        _, q_pe, kv_c, *_ = args
        return {"num_heads": q_pe.shape[1], "kv_lora_rank": kv_c.shape[1], "rope_dim": q_pe.shape[2]}

    def variant(self, *args: Any) -> str:
        kv_cache, q_out_dtype, is_neox, pe_first, rounding = args[6], *args[10:]
        return str(
            Variant(rounding, is_neox, pe_first, kv_cache.element_size() == 1, q_out_dtype in reference.FP8_DTYPES)
        )

    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        q_nope, q_pe, kv_c, *_ = args
        queries, heads, rope_dim = q_pe.shape
        tokens, rank = kv_c.shape
        q_out = q_nope.new_empty((queries, heads, rank + rope_dim), dtype=args[10] or q_pe.dtype)
        return q_out, q_pe.new_empty((tokens, rope_dim))

    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        q_nope, q_pe, kv_c, k_pe, positions, table, kv_cache, slots, k_scale, q_scale, *_ = args
        q_out, k_pe_out = outputs
        cache = _CacheLayout.of(kv_cache)
        (queries, heads, rope_dim), rank = q_pe.shape, kv_c.shape[1]
        scales = [k_scale] if kv_cache.element_size() == 1 else []
        scales += [q_scale] if q_out.element_size() == 1 else []
        return kernel.function[_grid(kernel, queries, kv_c.shape[0])](
            *(q_nope, q_pe, kv_c, k_pe, positions, table, slots, _bits(kv_cache)),
            *scales,
            *(_bits(q_out), k_pe_out),
            *_counts(q_pe, kv_c, slots, table),
            *(cache.num_slots, cache.block_size),
            *(_stride(q_nope, 0, heads * rank), _stride(q_nope, 1, rank)),
            *(_stride(q_pe, 0, heads * rope_dim), _stride(q_pe, 1, rope_dim)),
            *(_stride(kv_c, 0, rank), _stride(k_pe, 0, rope_dim), _stride(table, 0, rope_dim)),
            *(cache.block_stride, cache.entry_stride, cache.paged),
            **kernel.options,
        )

    def specialisations(
        self, args: tuple[Any, ...], everything: bool, large: torch.Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        return _specialisations(args, everything, large, positions_at=4, table_at=5, cache_at=6, scales_at=(8, 9))

    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        return reference.mla_rope_cache(*args)

    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "none",
    ) -> tuple[Any, ...]:
        chosen = Variant.parse(variant)
        fp8 = reference.native_fp8(device)
        made = _random_inputs(shape, num_tokens, dtype, device, generator, fp8 if chosen.fp8 else dtype)
        names = ("q_nope", "q_pe", "kv_c", "k_pe", "positions", "cos_sin_cache", "kv_cache", "slot_mapping")
        return (
            *(made[name] for name in names),
            made["k_scale"] if chosen.fp8 else None,
            made["q_scale"] if chosen.q_fp8 else None,
            fp8 if chosen.q_fp8 else None,
            *(chosen.neox, chosen.pe_first, chosen.rounding),
        )


class MlaRopeCacheInplace(Op):
    """In place on q_pe, k_pe and kv_cache, with the arguments of vLLM's ``concat_and_cache_mla_rope_fused``.

    Tokens without a slot are left as they are. Nothing is returned.
    """

    name = "mla_rope_cache_"
    schema = (
        "(Tensor positions, Tensor(a!) q_pe, Tensor(b!) k_pe, Tensor kv_c, Tensor cos_sin_cache, bool is_neox,"
        " Tensor slot_mapping, Tensor(c!) kv_cache, str kv_cache_dtype, Tensor kv_cache_scale,"
        ' str rounding="act") -> ()'
    )
    sizes = SIZES

    def check(self, *args: Any) -> None:
        positions, q_pe, k_pe, kv_c, table, _, slots, kv_cache, kv_cache_dtype, scale, rounding = args
        if kv_cache_dtype not in ("auto", *FP8_CACHE_NAMES):
            raise OpInputError(
                f"kv_cache_dtype must be auto, {' or '.join(FP8_CACHE_NAMES)}; got {kv_cache_dtype!r}. Others"
                " (fp8_e5m2, fp8_ds_mla, ...) have layouts that this op does not write."
            )
        fp8 = kv_cache_dtype != "auto"
        cache_dtypes = (torch.uint8, *_fp8_dtypes(q_pe.device)) if fp8 else (q_pe.dtype,)
        _check_common(positions, q_pe, k_pe, kv_c, table, slots, kv_cache, cache_dtypes, rounding)
        _check_written("q_pe", q_pe)
        _check_written("k_pe", k_pe)
        if fp8:
            _check_scale("kv_cache_scale", scale, q_pe.device)

    def check_values(self, *args: Any) -> None:
        """Raises OpInputError for positions, slots or scales that are out of range; waits for the device."""
        positions, _, _, kv_c, table, _, slots, kv_cache, kv_cache_dtype, scale, _ = args
        scales = {} if kv_cache_dtype == "auto" else {"kv_cache_scale": scale}
        _check_values(positions, table, slots, kv_cache, kv_c.shape[0], **scales)

    def num_tokens(self, *args: Any) -> int:
        return int(args[3].shape[0])

    def shape(self, *args: Any) -> Shape:
        _, q_pe, _, kv_c, *_ = args
        return {"num_heads": q_pe.shape[1], "kv_lora_rank": kv_c.shape[1], "rope_dim": q_pe.shape[2]}

    def variant(self, *args: Any) -> str:
        *_, is_neox, _, kv_cache, _, _, rounding = args
        return str(Variant(rounding, is_neox, fp8=kv_cache.element_size() == 1))

    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        return ()

    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        positions, q_pe, k_pe, kv_c, table, _, slots, kv_cache, _, scale, _ = args
        cache = _CacheLayout.of(kv_cache)
        (queries, heads, rope_dim), rank = q_pe.shape, kv_c.shape[1]
        return kernel.function[_grid(kernel, queries, kv_c.shape[0])](
            *(q_pe, kv_c, k_pe, positions, table, slots, _bits(kv_cache)),
            *([scale] if kv_cache.element_size() == 1 else []),
            *_counts(q_pe, kv_c, slots, table),
            *(cache.num_slots, cache.block_size),
            *(_stride(q_pe, 0, heads * rope_dim), _stride(q_pe, 1, rope_dim)),
            *(_stride(kv_c, 0, rank), _stride(k_pe, 0, rope_dim), _stride(table, 0, rope_dim)),
            *(cache.block_stride, cache.entry_stride, cache.paged),
            **kernel.options,
        )

    def specialisations(
        self, args: tuple[Any, ...], everything: bool, large: torch.Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        return _specialisations(args, everything, large, positions_at=0, table_at=4, cache_at=7, scales_at=())

    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        reference.mla_rope_cache_(*args)
        return ()

    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "act",
    ) -> tuple[Any, ...]:
        chosen = Variant.parse(variant)
        if chosen.pe_first or chosen.q_fp8:
            raise OpInputError(f"{self.name} has no variants pe_first and q_fp8: it is vLLM's op; got {variant!r}.")
        cache = reference.native_fp8(device) if chosen.fp8 else dtype
        made = _random_inputs(shape, num_tokens, dtype, device, generator, cache)
        del made["q_nope"]
        return (
            *(made[name] for name in ("positions", "q_pe", "k_pe", "kv_c", "cos_sin_cache")),
            chosen.neox,
            *(made[name] for name in ("slot_mapping", "kv_cache")),
            "fp8" if chosen.fp8 else "auto",
            made["k_scale"],
            chosen.rounding,
        )
