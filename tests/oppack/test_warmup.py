"""What a warm-up compiles is what calls then ask for, as Triton tells kernels apart; no GPU is needed for that."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import ROPE_SIZES, make_entry, make_rope_entry
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from tunegen.evaluate.conformance.mla_rope import WRITTEN, Case, make_args
from tunegen.oppack import emit_pack
from tunegen.ops import Problem
from tunegen.ops.mla_rope import FUNCTIONAL, INPLACE
from tunegen.runtime.dispatch import Selector
from tunegen.runtime.families import OPS, mla_rope
from tunegen.runtime.families.recipe import RECIPES
from tunegen.runtime.forms import LARGE, is_aligned
from tunegen.runtime.manifest import Entry, read_manifest
from tunegen.runtime.table import Table
from tunegen.runtime.warmup import Wanted
from tunegen.runtime.warmup.jobs import LARGEST_EXAMPLE, jobs_of, misaligned
from tunegen.runtime.warmup.wanted import usual
from tunegen.targets import get_target

CPU = torch.device("cpu")
GPU_TARGETS = {"sm90": GPUTarget("cuda", 90, 32), "gfx950": GPUTarget("hip", "gfx950", 64)}
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of calls whose tables of cos and sin are quickly made; their length is nothing to Triton."""
    monkeypatch.setattr(mla_rope, "MAX_POSITION", 64)


def inputs(op: str, variant: str, dtype: torch.dtype = BFLOAT16) -> tuple[Any, ...]:
    return OPS[op].inputs(ROPE_SIZES, 1, dtype, CPU, torch.Generator().manual_seed(0), variant)


def large_storage() -> torch.Tensor:
    """More than 2 GiB, of which memory is taken only where it is written."""
    return torch.empty(LARGE + LARGEST_EXAMPLE, dtype=torch.uint8)


def is_paged(cache: torch.Tensor) -> bool:
    """A gap between one block and the next."""
    return cache.stride(0) != cache.shape[1] * cache.stride(1)


def is_large(cache: torch.Tensor) -> bool:
    return cache.untyped_storage().nbytes() >= LARGE


# --- Op.specialisations ---

# Of both ops, by position: positions, table, cache, and the scales that may be left out.
PLACES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {FUNCTIONAL: (4, 5, 6, (8, 9)), INPLACE: (0, 4, 7, ())}


def described(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What of a call `specialisations` varies."""
    positions, table, cache, scales = PLACES[op]
    given = tuple(args[at] is not None for at in scales)
    return (args[positions].dtype, args[table].dtype, is_paged(args[cache]), is_large(args[cache]), given)


@pytest.mark.parametrize(
    ("op", "variant", "scales"),
    [
        (FUNCTIONAL, "none", [(False, False)]),
        (FUNCTIONAL, "none,fp8", [(True, False), (False, False)]),
        (FUNCTIONAL, "none,q_fp8", [(False, True), (False, False)]),
        (FUNCTIONAL, "none,fp8,q_fp8", [(True, True), (True, False), (False, True), (False, False)]),
        (INPLACE, "act", [()]),
        (INPLACE, "act,fp8", [()]),
    ],
)
def test_specialisations(op: str, variant: str, scales: list[tuple[bool, ...]]) -> None:
    args = inputs(op, variant, FLOAT16)
    large = large_storage()
    integers, tables = (torch.int64, torch.int32), (FLOAT16, torch.float32)
    for everything, storage in itertools.product((False, True), (None, large)):
        calls = OPS[op].specialisations(args, everything, storage)
        expected = itertools.product(
            integers if everything else integers[:1],
            tables if everything else tables[:1],
            (False, True),
            (False, True) if storage is not None else (False,),
            scales if everything else scales[:1],
        )
        got = [described(op, call) for call in calls]
        assert len(got) == len(set(got))
        assert set(got) == set(expected)
        for call in calls:
            OPS[op].check(*call)
            assert OPS[op].variant(*call) == variant
            assert OPS[op].shape(*call) == ROPE_SIZES
            cache = call[PLACES[op][2]]
            assert cache.shape == args[PLACES[op][2]].shape
            assert is_large(cache) <= (cache.untyped_storage().data_ptr() == large.data_ptr())


def test_other_ops_have_one() -> None:
    op = OPS["rmsnorm_mxfp4_quant"]
    args = op.inputs({"hidden_size": 96}, 1, BFLOAT16, CPU, torch.Generator())
    assert op.specialisations(args, True, None) == [args]


# --- Misaligned arguments, and which variants are usual ---


@pytest.mark.parametrize("num_bytes", [2, 4])
@pytest.mark.parametrize("variant", ["none", "none,fp8,q_fp8"])
def test_misaligned_calls_are_of_the_same_kind(variant: str, num_bytes: int) -> None:
    calls = OPS[FUNCTIONAL].specialisations(inputs(FUNCTIONAL, variant), False, large_storage())
    assert {(is_paged(call[6]), is_large(call[6])) for call in calls} == set(itertools.product((False, True), repeat=2))
    for args in calls:
        assert is_aligned(args)
        moved = misaligned(args, num_bytes)
        OPS[FUNCTIONAL].check(*moved)
        assert described(FUNCTIONAL, moved) == described(FUNCTIONAL, args)
        for old, new in zip(args, moved, strict=True):
            if not isinstance(old, torch.Tensor):
                assert new is old
                continue
            assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
            assert new.data_ptr() % 16 == max(num_bytes, old.element_size())
            if not is_large(old):
                assert torch.equal(new.contiguous().view(torch.uint8), old.contiguous().view(torch.uint8))


def made_up(variant: str) -> Entry:
    """An entry of which only the variant counts."""
    return Entry(
        FUNCTIONAL, {}, variant, get_target("sm90").device, "sm90", "bfloat16", "measured", {}, "", False, 1, []
    )


@pytest.mark.parametrize(
    ("tuned", "some", "others"),
    [
        ("none", ("none", "act"), ("none,neox", "act,pe_first")),
        ("act,fp8", ("none,fp8", "act,fp8"), ("none", "act", "act,neox,fp8", "none,pe_first,fp8")),
        ("none,fp8,q_fp8", ("none,fp8,q_fp8", "act,fp8,q_fp8"), ("none,q_fp8", "none,fp8", "act,neox,fp8,q_fp8")),
        ("none", ("none", "output", "sum_norm_output"), ()),  # roundings of the other family
    ],
)
def test_variants_of_other_roundings_alone_are_usual(
    tuned: str, some: tuple[str, ...], others: tuple[str, ...]
) -> None:
    entry = made_up(tuned)
    assert all(usual(entry, variant) for variant in some)
    assert not any(usual(entry, variant) for variant in others)


# --- What Triton tells apart ---

# A kernel file, its form, and what Triton compiles anew for.
Key = tuple[str, bool, tuple[Any, ...]]
# What Triton calls for that at each launch, by function and target.
BINDERS: dict[tuple[int, str], Any] = {}


@dataclass
class Recorder:
    """In the place of a kernel's function: instead of launching, takes up what Triton would look up or compile."""

    function: Any
    target: str
    took: Callable[[tuple[Any, ...]], None]

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        known = (id(self.function), self.target)  # a loaded kernel stays
        if known not in BINDERS:
            backend = make_backend(GPU_TARGETS[self.target])
            BINDERS[known] = create_function_from_signature(self.function.signature, self.function.params, backend)
        bind = BINDERS[known]
        # What is compiled stays with the function: another one of the same file would be compiled anew.
        return lambda *args, **options: self.took((id(self.function), *bind(*args, **options)[1]))


class Packed:
    """An emitted pack, and the keys of kernels that a warm-up and that calls ask for on a target's device."""

    def __init__(self, root: Path, target: str) -> None:
        self.root = root
        self.target = target
        self.table = Table(read_manifest(root))
        self.device = get_target(target).device
        self.large = large_storage() if target == "gfx950" else None

    def warmed(self, dtypes: tuple[torch.dtype, ...] | None, everything: bool) -> set[Key]:
        keys: set[Key] = set()
        for job in jobs_of(self.root, self.table, self.device, CPU, dtypes, Wanted(everything=everything)):

            def took(key: tuple[Any, ...], name: str = job.path.name, aligned: bool = job.aligned) -> None:
                keys.add((name, aligned, key))

            job.run(lambda function, took=took: Recorder(function, self.target, took), 4)
        return keys

    def asked(self, args: tuple[Any, ...], op: str) -> Key:
        """Of a call, by the way that `Dispatcher.cuda` takes."""
        the_op, keys = OPS[op], []
        shape, variant, tokens = the_op.shape(*args), the_op.variant(*args), the_op.num_tokens(*args)
        entry = self.table.match(op, shape, variant, self.device).entry
        assert entry is not None
        selector = Selector(self.root, entry, variant, 4)
        aligned = is_aligned(args)
        kernel = selector.aligned(tokens) if aligned else selector.general()
        kernel = replace(kernel, function=Recorder(kernel.function, self.target, keys.append))
        the_op.launch(kernel, 4, the_op.allocate(*args), *args)
        bucket = entry.buckets[[*(tokens <= edge for edge in entry.edges), True].index(True) if aligned else -1]
        return Path(bucket.kernels[variant]).name, aligned, keys[0]


def calls(op: str, variant: str, tokens: int, dtypes: tuple[str, ...], everything: bool) -> Iterator[tuple[Any, ...]]:
    """Calls in all layouts, with fewer queries and slots than tokens too; with rare dtypes and no scales if asked."""
    base = Case(Problem.of(op, ROPE_SIZES, variant), tokens, tokens, tokens)
    layouts, caches = ("slices", "contiguous", "offset"), ("flat", "paged", "gaps")
    for dtype, layout, cache in itertools.product(dtypes, layouts, caches):
        # mypy cannot match what is unpacked with the fields.
        case = replace(base, dtype=dtype, layout=layout, cache=cache)  # type: ignore[arg-type]  # drawn as text
        others = replace(case, k_pe_3d=True, queries=tokens // 2, mapped=0)
        for chosen in (case, others):
            for table, int32 in itertools.product(("act", "float32"), (False, True)):
                if everything or (table, int32) == ("act", False):
                    args = list(make_args(replace(chosen, table=table, int32_positions=int32), CPU))
                    # A cache of several blocks, however few the tokens.
                    args[PLACES[op][2]] = make_args(replace(case, tokens=20, mapped=20), CPU)[PLACES[op][2]]
                    yield from scaled(tuple(args), op, everything)


def scaled(args: tuple[Any, ...], op: str, everything: bool) -> Iterator[tuple[Any, ...]]:
    scales = PLACES[op][3]
    for left_out in itertools.product((False, True), repeat=len(scales)) if everything else [(False,) * len(scales)]:
        dropped = {at for at, drop in zip(scales, left_out, strict=True) if drop}
        yield tuple(None if at in dropped else arg for at, arg in enumerate(args))


def put_in(large: torch.Tensor, args: tuple[Any, ...], op: str) -> tuple[Any, ...]:
    """The call with its cache in a large storage."""
    cache = args[WRITTEN[op][-1]]
    last = sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
    moved = large.view(cache.dtype)[: last + 1].as_strided(cache.shape, cache.stride())
    return tuple(moved if arg is cache else arg for arg in args)


def asked_of(pack: Packed, op: str, variant: str, *about: Any) -> set[Key]:
    asked = set()
    for args in calls(op, variant, *about):
        asked.add(pack.asked(args, op))
        if pack.large is not None:
            asked.add(pack.asked(put_in(pack.large, args, op), op))
    return asked


@pytest.mark.parametrize("name", ["sm90", "gfx950"])
def test_calls_ask_for_what_was_compiled(name: str, tmp_path: Path) -> None:
    """No more and no less, for calls of all kinds that `Pack.warmup` lists, at token counts of all buckets."""
    tuned = ((FUNCTIONAL, "none"), (FUNCTIONAL, "none,fp8,q_fp8"), (INPLACE, "act,fp8"))
    entries = [make_rope_entry(op, variant, get_target(name)) for op, variant in tuned]
    pack = Packed(emit_pack(entries, tmp_path / "pack").package, name)
    asked: set[Key] = set()
    for (op, variant), tokens in itertools.product(tuned, (1, 2, 3, 17)):
        for rounding in (variant, other_rounding(variant)):
            asked |= asked_of(pack, op, rounding, tokens, ("bfloat16", "float16"), False)
    assert asked == pack.warmed((BFLOAT16, FLOAT16), everything=False)
    bfloat16 = pack.warmed(None, everything=False)
    assert bfloat16 == {key for key in asked if ("*fp16" not in str(key))}


@pytest.mark.parametrize("name", ["sm90", "gfx950"])
def test_rare_calls_ask_for_what_was_compiled(name: str, tmp_path: Path) -> None:
    """The same of `Pack.warmup` with everything: of all variants, and of all kinds of calls of some."""
    tuned = ((FUNCTIONAL, "none,fp8"), (INPLACE, "act"))
    entries = [make_rope_entry(op, variant, get_target(name), buckets=1) for op, variant in tuned]
    pack = Packed(emit_pack(entries, tmp_path / "pack").package, name)
    warmed = pack.warmed(None, everything=True)
    for op, variant in ((FUNCTIONAL, "act,neox,pe_first,fp8"), (INPLACE, "none,neox")):
        asked = asked_of(pack, op, variant, 3, ("bfloat16",), True)
        files = {file for file, *_ in asked}
        assert len(files) == 1
        assert asked == {key for key in warmed if key[0] in files}
    assert {file for file, *_ in warmed} == {path.name for path in pack.root.rglob("kernels/*/*/*.py")}


def other_rounding(variant: str) -> str:
    rounding, *flags = variant.split(",")
    return ",".join(["act" if rounding == "none" else "none", *flags])


# Between them all that a recipe has: each source and quantiser, a residual, a second norm, the norm as an output.
SOME_RECIPES = (
    *("dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_nvfp4_quant", "gelu_mul_mxfp4_quant"),
    *("dual_rmsnorm", "dual_rmsnorm_add_and_mxfp4_quant", "rmsnorm_fp8_group_quant", "dynamic_fp8_token_quant"),
    "dynamic_mxfp8_quant",
)


@pytest.mark.parametrize("op", SOME_RECIPES)
def test_calls_of_ops_that_take_rows_ask_for_what_was_compiled(op: str, tmp_path: Path) -> None:
    """With a bucket each of one and of five tokens; bfloat16 is loaded in words where rows begin on four bytes."""
    recipe, sm90 = RECIPES[op], get_target("sm90")
    size = max(96, recipe.multiple)
    entry = make_entry(op, size, sm90)
    entry = replace(entry, buckets=[entry.buckets[0], replace(entry.buckets[1], max_tokens=None)])
    pack = Packed(emit_pack([entry], tmp_path / "p").package, "sm90")
    for everything in (False, True):
        asked = set()
        variants = [variant for variant in recipe.variants() if everything or usual(read_entry(pack), variant)]
        for variant, dtype, tokens in itertools.product(variants, (BFLOAT16, FLOAT16), (1, 5)):
            given = OPS[op].inputs(entry.shape, tokens, dtype, CPU, torch.Generator(), variant)
            for call in OPS[op].specialisations(given, everything):
                for start, more in ((0, 16), (8, 16), (1, 17), (2, 18), (1, 16)):
                    args = tuple(begun(arg, start, more) if is_rows(arg) else arg for arg in call)
                    asked.add(pack.asked(args, op))
        assert asked == pack.warmed((BFLOAT16, FLOAT16), everything)


def read_entry(pack: Packed) -> Entry:
    (entry,) = read_manifest(pack.root).entries
    return entry


def is_rows(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and arg.dim() == 2


def begun(rows: torch.Tensor, start: int, more: int) -> torch.Tensor:
    """Rows of that shape that begin so many elements after an aligned one's, and lie in others that are wider."""
    tokens, width = rows.shape
    return torch.zeros(tokens, width + more + 16, dtype=rows.dtype)[:, start : start + width]
