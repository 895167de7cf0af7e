"""Calls of mla_rope_cache and mla_rope_cache_, and the judgement of what they write, in their arguments too."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tunegen.evaluate.conformance._buffers import POISONS, SNAPSHOT_BYTES, Guarded, difference
from tunegen.evaluate.conformance._call import Arguments, Launch
from tunegen.evaluate.truth.mla_rope import failures
from tunegen.ops import Problem
from tunegen.runtime.families import OPS, Op
from tunegen.runtime.families.mla_rope import Variant
from tunegen.runtime.reference.mla_rope import FP8_DTYPES

Layout = Literal["slices", "contiguous", "offset", "wide"]
CacheLayout = Literal["flat", "paged", "gaps", "wide"]
Slots = Literal["shuffled", "negative", "outside"]

# Arguments, by position, that an op writes.
WRITTEN = {"mla_rope_cache": (6,), "mla_rope_cache_": (1, 2, 7)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

BLOCK_SIZE = 4
# Positions that a test may have; cos and sin differ in all of them, and in all pairs.
TABLE_ROWS = 512
# Elements between rows of the "wide" layouts: the third row lies past 2^31 elements.
WIDE_STRIDE = 2**30 + 64
CACHE_GUARD_BYTES = 4096
SCALES = (0.03, 1 / 3, 0.0071, 2.0)


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        problem: Op, sizes and variant.
        queries: q tokens, at most ``tokens``.
        tokens: k tokens.
        mapped: Length of slot_mapping, at most ``tokens``.
        dtype: Activation dtype.
        layout: Of q_nope, q_pe, kv_c and k_pe. ``"slices"``: of larger tensors, as in a model; ``"offset"``: odd
            strides from a base that is aligned to an element and no more; ``"wide"``: token strides that take the
            third token past 2^31 elements.
        cache: ``"flat"``: [slots, W]; ``"paged"``: [blocks, block size, W]; ``"gaps"``: the same with gaps between
            blocks and between slots; ``"wide"``: flat with slots 2^30 elements apart.
        table: Dtype of cos_sin_cache: ``"act"``, the activation dtype, or ``"float32"``.
        int32_positions: Positions are int32, not int64.
        k_pe_3d: k_pe is [S, 1, D].
        slots: ``"shuffled"``: a slot each, permuted; ``"negative"``: for every third token a negative one;
            ``"outside"``: for every third one past the cache's end.
        scaled: fp8 comes with scales; without, k_scale and q_scale are None (the in-place op always has one).
        special: NaN, Inf, signed zeros, tiny and huge values among the random ones.
        fp8: Dtype that the kernel's target has for e4m3.
        seed: Of the random values.
    """

    problem: Problem
    queries: int
    tokens: int
    mapped: int
    dtype: str = "bfloat16"
    layout: Layout = "slices"
    cache: CacheLayout = "paged"
    table: str = "act"
    int32_positions: bool = False
    k_pe_3d: bool = False
    slots: Slots = "shuffled"
    scaled: bool = True
    special: bool = False
    fp8: str = "float8_e4m3fn"
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """k tokens."""
        return self.tokens

    @property
    def op(self) -> Op:
        """The op that is called."""
        return OPS[self.problem.op]

    def __str__(self) -> str:
        return (
            f"{self.problem}, {self.queries} of {self.tokens} tokens ({self.mapped} mapped),"
            f" {self.dtype}, {self.layout}, cache {self.cache}, table {self.table}, slots {self.slots},"
            f" {'special' if self.special else 'plain'}, seed {self.seed}"
        )


# --- Arguments ---


def make_args(case: Case, device: torch.device) -> Arguments:
    """The op's arguments; the same values on every device."""
    fp8: torch.dtype = getattr(torch, case.fp8)
    sizes, variant = case.problem.sizes, Variant.parse(case.problem.rounding)
    heads, rank, rope_dim = sizes["num_heads"], sizes["kv_lora_rank"], sizes["rope_dim"]
    act = DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(case.seed)

    def values(*size: int) -> torch.Tensor:
        made = torch.randn(size, generator=generator).to(act)
        return _make_special(made, case.seed) if case.special else made

    q_nope = _lay_out(values(case.queries, heads, rank), case.layout, 0, device)
    q_pe = _lay_out(values(case.queries, heads, rope_dim), case.layout, 1, device)
    kv_c = _lay_out(values(case.tokens, rank), case.layout, 2, device)
    k_pe = _lay_out(values(case.tokens, rope_dim), case.layout, 3, device)
    if case.k_pe_3d:
        k_pe = k_pe.unsqueeze(1)
    table = (torch.rand((TABLE_ROWS, rope_dim), generator=generator) * 2 - 1).to(
        torch.float32 if case.table == "float32" else act
    )
    positions = torch.randint(0, TABLE_ROWS, (case.tokens,), generator=generator)
    positions = positions.to(torch.int32 if case.int32_positions else torch.int64)
    cache = _make_cache(case, rank + rope_dim, fp8 if variant.fp8 else act, device, generator)
    slot_mapping = _make_slots(case, cache.shape[:-1].numel(), generator)
    k_scale, q_scale = (
        torch.tensor([SCALES[(case.seed + i) % len(SCALES)]], dtype=torch.float32, device=device) for i in range(2)
    )
    positions, table, slot_mapping = (tensor.to(device) for tensor in (positions, table, slot_mapping))
    if case.problem.op == "mla_rope_cache_":
        named = "fp8" if variant.fp8 else "auto"
        return (
            *(positions, q_pe, k_pe, kv_c, table, variant.neox, slot_mapping, cache, named, k_scale),
            variant.rounding,
        )
    return (
        *(q_nope, q_pe, kv_c, k_pe, positions, table, cache, slot_mapping),
        k_scale if case.scaled and variant.fp8 else None,
        q_scale if case.scaled and variant.q_fp8 else None,
        fp8 if variant.q_fp8 else None,
        *(variant.neox, variant.pe_first, variant.rounding),
    )


def _lay_out(values: torch.Tensor, layout: Layout, order: int, device: torch.device) -> torch.Tensor:
    """The values [tokens, (heads,) columns] in a layout; what lies between them is NaN, to be seen if it is read."""
    if layout == "contiguous":
        return values.to(device)
    *outer, columns = values.shape
    # Each tensor has strides of its own: a kernel that takes one for another is found out.
    if layout == "slices":
        row, offset = columns + 16 * (order + 1), 16 * (order + 1)
    elif layout == "offset":
        row, offset = columns + 3 + 2 * order, 1
    else:
        row, offset = columns, 0
    strides = [row]
    for size in reversed(outer[1:]):
        strides.insert(0, strides[0] * size + (17 if layout == "offset" else 0))
    if layout == "wide":
        strides[0] = WIDE_STRIDE + 64 * order
    elif layout == "slices" and order == 0:
        # By head, as a batched product makes the absorbed query.
        strides = [row, row * max(outer[0], 1)]
    size = offset + sum((n - 1) * stride for n, stride in zip(outer, strides, strict=True) if n) + columns
    storage = torch.empty(size, dtype=values.dtype, device=device)
    if layout != "wide":  # the gaps of "wide" are never touched: on a CPU they then take no memory
        storage.fill_(float("nan"))
    view = storage.as_strided((*outer, columns), (*strides, 1), offset)
    view.copy_(values)
    return view


def _make_cache(
    case: Case, width: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """A cache of random bits inside a larger buffer of them: the guard zones."""
    slots = -(-max(case.tokens + case.tokens // 2, 3) // BLOCK_SIZE) * BLOCK_SIZE
    itemsize = dtype.itemsize
    if case.cache == "wide":
        shape: tuple[int, ...] = (slots, width)
        strides: tuple[int, ...] = (WIDE_STRIDE, 1)
    elif case.cache == "flat":
        shape, strides = (slots, width), (width, 1)
    else:
        # The gap between blocks is not a multiple of a slot, which no division by a flat stride survives.
        entry = width + 16 if case.cache == "gaps" else width
        block = BLOCK_SIZE * entry + (48 if case.cache == "gaps" else 0)
        shape, strides = (slots // BLOCK_SIZE, BLOCK_SIZE, width), (block, entry, 1)
    guard = CACHE_GUARD_BYTES // itemsize
    size = 2 * guard + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if case.cache == "wide":
        buffer = torch.empty(size, dtype=dtype, device=device)
        cache = buffer.as_strided(shape, strides, guard)
        cache.view(torch.uint8).zero_() if itemsize == 1 else cache.zero_()
        return cache
    bits = torch.randint(0, 256, (size * itemsize,), generator=generator).to(torch.uint8)
    return bits.view(dtype).to(device).as_strided(shape, strides, guard)


def _make_slots(case: Case, num_slots: int, generator: torch.Generator) -> torch.Tensor:
    # The mapping is the beginning of a longer tensor of slots that exist: reading past its end shows.
    slots = torch.randperm(num_slots, generator=generator)[: case.tokens]
    odd = {
        "shuffled": (),
        "negative": (-1, -2, -num_slots, -(2**40)),
        "outside": (num_slots, num_slots + 1, num_slots + 2, 2**40),
    }[case.slots]
    for i, token in enumerate(range(0, case.mapped if odd else 0, 3)):
        slots[token] = odd[i % 4]
    return slots[: case.mapped]


def _make_special(values: torch.Tensor, seed: int) -> torch.Tensor:
    """Every eighth element or so is a value with a rule of its own."""
    info = torch.finfo(values.dtype)
    kinds = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), info.tiny, -info.tiny / 2, info.max, 448.0, 1e-3)
    special = torch.tensor(kinds, dtype=torch.float64).to(values.dtype)
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 8 * len(kinds), values.shape, generator=generator)
    return torch.where(kind < len(kinds), special[kind % len(kinds)], values)


# --- One case ---


def run_case(
    launch: Launch, case: Case, device: torch.device, lanes_per_row: int = 0, judge_values: bool = True
) -> list[str]:
    """What is wrong with a kernel on one case; empty if nothing is.

    It runs twice, on outputs poisoned with different bytes, and on what it writes in place as it was before.

    Args:
        launch: Runs the kernel on outputs and arguments. It is not called for 0 tokens, as `Op.launch` is not.
        case: The call.
        device: Where the tensors are made.
        lanes_per_row: Of no effect: there are no reductions here.
        judge_values: Judge what was written, not only where: false for a traffic twin.
    """
    op = case.op
    args = make_args(case, device)
    op.check(*args)
    if op.variant(*args) != case.problem.rounding or op.shape(*args) != case.problem.sizes:
        return [f"the call is of {op.shape(*args)}, {op.variant(*args)}"]
    allocated = op.allocate(*args)
    if case.tokens == 0:
        return [f"output {i} is not empty" for i, output in enumerate(allocated) if output.numel()]
    written = WRITTEN[op.name]
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    before = [arg.clone() if i in written else arg for i, arg in enumerate(args)]
    snapshots = {i: _storage(args[i]).clone() for i in tensors}
    found: list[str] = []
    runs = []
    for poison in POISONS:
        for i in written:
            _bits(args[i]).copy_(_bits(before[i]))
        guarded = [Guarded(output, poison) for output in allocated]
        launch(tuple(g.output for g in guarded), args)
        runs.append([*(g.output.clone() for g in guarded), *(args[i].clone() for i in written)])
        found += [f"output {i}: {wrong}" for i, g in enumerate(guarded) if (wrong := g.overwritten()) is not None]
    names = [*(f"output {i}" for i in range(len(allocated))), *(f"argument {i}" for i in written)]
    for name, first, second in zip(names, *runs, strict=True):
        found += difference(name, first, second)
    after = list(args)
    for i, value in zip(written, runs[0][len(allocated) :], strict=True):
        after[i] = value
    for i in written:
        _bits(args[i]).copy_(_bits(before[i]))
    found += [
        f"argument {i}: written outside of it" for i in tensors if not torch.equal(_storage(args[i]), snapshots[i])
    ]
    if judge_values:
        found += failures(case.problem, before, after, runs[0][: len(allocated)])
    return list(dict.fromkeys(found))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8 if tensor.dtype in FP8_DTYPES else torch.int16)


def _storage(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage, gaps too, or nothing if it is very large."""
    storage = tensor.untyped_storage()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty if storage.nbytes() > SNAPSHOT_BYTES else empty.set_(storage)


# --- Which cases ---


def candidates(
    problems: Sequence[Problem], tokens: Sequence[int], fp8: str = "float8_e4m3fn", seed: int = 0
) -> list[Case]:
    """Combinations to choose from with `tunegen.evaluate.conformance.pairwise`; each has a seed of its own."""
    cases = []
    rest = itertools.product(
        ("bfloat16", "float16"),
        ("slices", "contiguous", "offset"),
        ("flat", "paged", "gaps"),
        ("act", "float32"),
        ("shuffled", "negative", "outside"),
        (False, True),
    )
    options = list(rest)
    chooser = random.Random(seed)
    for problem, count in itertools.product(problems, tokens):
        for dtype, layout, cache, table, slots, special in chooser.sample(options, 5):
            mixed = chooser.random() < 0.4
            queries = chooser.randint(0, count) if mixed else count
            mapped = chooser.randint(0, count) if mixed else count
            flags = (chooser.random() < 0.5, chooser.random() < 0.5, slots, chooser.random() < 0.7, special)
            # mypy cannot match what is unpacked with the fields.
            case = Case(problem, queries, count, mapped, dtype, layout, cache, table, *flags)  # type: ignore[arg-type]  # drawn as text
            cases.append(replace(case, fp8=fp8, seed=chooser.randrange(2**20)))
    return cases


def first_case(problem: Problem, fp8: str) -> Case:
    """What a config is tried on before anything else: few tokens, of which one has no slot, and odd values."""
    return Case(problem, 6, 7, 6, slots="negative", special=True, fp8=fp8)


def large_cases(problem: Problem, fp8: str) -> list[Case]:
    """Calls whose offsets pass 2^31 elements."""
    case = Case(problem, 3, 3, 3, fp8=fp8)
    return [replace(case, layout="wide"), replace(case, cache="wide")]


def case_factors(case: Case) -> tuple[Hashable, ...]:
    """What of a case is paired."""
    variant = Variant.parse(case.problem.rounding)
    fewer = (case.queries < case.tokens, case.mapped < case.tokens)
    return (
        *(case.problem.op, case.problem.shape, case.tokens, variant.rounding, variant.neox, variant.pe_first),
        *(variant.fp8, variant.q_fp8, case.dtype, case.layout, case.cache, case.table, case.int32_positions),
        *(case.k_pe_3d, case.slots, case.scaled, case.special, fewer),
    )
