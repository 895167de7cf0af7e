"""mla_rope_cache and mla_rope_cache_ through an emitted pack, on a GPU."""

from __future__ import annotations

import importlib
import itertools
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from synthetic import ROPE_SIZES, make_rope_entries, make_rope_entry

from tunegen.configs import TunedEntry
from tunegen.evaluate.conformance import Arguments, Outputs, candidates, case_factors, pairwise, run_case
from tunegen.evaluate.conformance.mla_rope import WRITTEN, Case, make_args
from tunegen.oppack import emit_pack
from tunegen.ops import Problem
from tunegen.ops.mla_rope import FUNCTIONAL, INPLACE, MLA_ROPE
from tunegen.runtime.families import OPS
from tunegen.runtime.forms import is_aligned
from tunegen.targets import Device, present_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

TUNED = [(op, variant) for op in MLA_ROPE.ops for variant in MLA_ROPE.tuned_variants(op)]
# Beside them pairing, order and rounding of other calls: each is a kernel more to compile.
OTHERS = [(FUNCTIONAL, "act,neox,pe_first,fp8"), (FUNCTIONAL, "act,neox,pe_first,q_fp8"), (INPLACE, "none,neox")]
NAME = "tunegen_rope_gpu_ops"


def gpu() -> Device:
    device = present_device()
    assert device is not None
    return device


def imported(entries: list[TunedEntry], folder: Path, name: str) -> ModuleType:
    emit_pack(entries, folder / "pack", name=name)
    sys.path.insert(0, str(folder / "pack"))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A pack for the GPU here, imported and warm."""
    device = gpu()
    entries = make_rope_entries((device.target.name,), device.key, buckets=2)
    module = imported(entries, tmp_path_factory.mktemp("gpu"), NAME)
    module.warmup()
    return module


@pytest.fixture
def no_misses(pack: ModuleType) -> Iterator[None]:
    """Calls that are not served as tuned are errors; the class is the pack's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pack.TunegenPackWarning)
        yield


def make_case(op: str, variant: str, tokens: int, **about: Any) -> Case:
    case = Case(Problem.of(op, ROPE_SIZES, variant), tokens, tokens, tokens, layout="contiguous", fp8=gpu().target.fp8)
    return replace(case, **about)


def inputs(op: str, variant: str, tokens: int, **about: Any) -> list[Any]:
    return list(make_args(make_case(op, variant, tokens, **about), torch.device("cuda")))


def cloned(args: list[Any]) -> list[Any]:
    return [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit: a cache of random bits holds NaN."""
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))


def call(pack: ModuleType, op: str, args: list[Any]) -> list[torch.Tensor]:
    """Everything that a call writes: its outputs, and then its arguments."""
    outputs = getattr(pack, op)(*args) or ()
    return [*outputs, *(args[i] for i in WRITTEN[op])]


@pytest.mark.usefixtures("no_misses")
@pytest.mark.parametrize("op", MLA_ROPE.ops)
def test_conforms_at_unseen_token_counts(pack: ModuleType, op: str) -> None:
    def launch(outputs: Outputs, args: Arguments) -> None:
        for output, result in zip(outputs, getattr(pack, op)(*args) or (), strict=True):
            bits(output).copy_(bits(result))

    problems = [Problem.of(named, ROPE_SIZES, variant) for named, variant in TUNED + OTHERS if named == op]
    cases = pairwise(candidates(problems, (0, 1, 2, 3, 17, 300), gpu().target), case_factors)
    assert {case.num_tokens for case in cases} == {0, 1, 2, 3, 17, 300}
    for case in cases:
        assert run_case(launch, case, torch.device("cuda"), 1) == [], str(case)
        if not case.num_tokens:
            assert all(
                output.numel() == 0 for output in getattr(pack, op)(*make_args(case, torch.device("cuda"))) or ()
            )


def test_supports_and_explains_the_gpu_here(pack: ModuleType) -> None:
    for op, variant in TUNED + OTHERS:
        assert pack.supports(op, variant=variant, **ROPE_SIZES)
        explanation = pack.explain(op, 17, variant=variant, **ROPE_SIZES)
        assert (explanation.variant, explanation.note) == (variant, "")
        assert explanation.bucket.max_tokens is None


@pytest.mark.usefixtures("no_misses")
@pytest.mark.parametrize(("op", "variant"), TUNED)
def test_graph_capture(pack: ModuleType, op: str, variant: str) -> None:
    static, fresh = inputs(op, variant, 17, seed=1), inputs(op, variant, 17, seed=2)
    getattr(pack, op)(*cloned(static))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = getattr(pack, op)(*static) or ()
    for old, new in zip(static, fresh, strict=True):
        if isinstance(old, torch.Tensor):
            bits_of(old).copy_(bits_of(new))
    graph.replay()
    torch.cuda.synchronize()
    written = [*outputs, *(static[i] for i in WRITTEN[op])]
    assert all(map(equal, written, call(pack, op, fresh)))


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """A view of an fp8 tensor as bytes, which can be copied; any other as it is."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


@pytest.mark.parametrize(("op", "variant"), [(FUNCTIONAL, "none,fp8,q_fp8"), (INPLACE, "act")])
def test_the_reference_is_captured_too(pack: ModuleType, op: str, variant: str) -> None:
    """A call that there is no kernel for: another number of heads."""
    problem = Problem.of(op, {**ROPE_SIZES, "num_heads": 3}, variant)
    static = inputs(op, variant, 9, problem=problem, mapped=7, slots="negative", seed=1)
    fresh = inputs(op, variant, 9, problem=problem, mapped=7, slots="outside", seed=2)
    with pytest.warns(pack.TunegenPackWarning, match="the reference in PyTorch serves it"):
        getattr(pack, op)(*cloned(static))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = getattr(pack, op)(*static) or ()
    for old, new in zip(static, fresh, strict=True):
        if isinstance(old, torch.Tensor):
            bits_of(old).copy_(bits_of(new))
    graph.replay()
    torch.cuda.synchronize()
    written = [*outputs, *(static[i] for i in WRITTEN[op])]
    assert all(map(equal, written, call(pack, op, fresh)))


def spoilt(args: list[Any], op: str) -> list[Any]:
    """A position that the table does not have, and a slot that the cache does not have."""
    names = [argument.name for argument in torch._C.parse_schema(op + OPS[op].schema).arguments]
    for name in ("positions", "slot_mapping"):
        args[names.index(name)][0] = 2**20
    return args


@pytest.mark.parametrize(("op", "variant"), TUNED)
def test_only_debug_waits_for_the_device(pack: ModuleType, op: str, variant: str) -> None:
    error = importlib.import_module(f"{NAME}.runtime.families").OpInputError
    args = spoilt(inputs(op, variant, 9), op)
    with pytest.raises(error, match="positions are not in cos_sin_cache"):
        getattr(pack, op)(*args, debug=True)
    getattr(pack, op)(*args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(pack, op)(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compiled_kernels(module: ModuleType) -> int:
    """Kernels that Triton holds of a pack's files, in both forms."""
    root = Path(str(module.__file__)).resolve().parent
    load_form = importlib.import_module(f"{module.__name__}.runtime.forms").load_form
    index = torch.cuda.current_device()
    functions = [
        load_form(path, aligned).function for path in root.rglob("kernels/*/*/*.py") for aligned in (True, False)
    ]
    return sum(len(function.device_caches[index][0]) for function in functions)


def calls(op: str, variant: str, tokens: int, **about: Any) -> Iterator[list[Any]]:
    """Aligned and not, in flat and in paged caches of several blocks, with as many queries and slots and with fewer."""
    for layout, cache, few in itertools.product(("contiguous", "slices", "offset"), ("flat", "gaps"), (False, True)):
        fewer = {"queries": tokens // 2, "mapped": tokens // 2} if few else {}
        args = inputs(op, variant, tokens, layout=layout, cache=cache, **fewer, **about)
        args[WRITTEN[op][-1]] = inputs(op, variant, 200, cache=cache, dtype=about.get("dtype", "bfloat16"))[
            WRITTEN[op][-1]
        ]
        yield args


def test_nothing_is_compiled_after_warmup(tmp_path: Path) -> None:
    device = gpu()
    tuned = [(FUNCTIONAL, "none,fp8"), (INPLACE, "act")]
    entries = [make_rope_entry(op, variant, device.target, device.key, buckets=2) for op, variant in tuned]
    pack = imported(entries, tmp_path, "tunegen_rope_warm_ops")
    warmed = pack.warmup()
    # Both roundings of both entries: two kernels aligned and one in the general form, each flat and paged; on ROCm
    # each for a cache of less than 2 GiB and for a larger one.
    assert compiled_kernels(pack) == warmed.kernels == 2 * 2 * 3 * 2 * (2 if torch.version.hip else 1)
    seen = set()
    for (op, tuned_with), rounding, tokens in itertools.product(tuned, ("none", "act"), (1, 2, 5, 17, 100)):
        variant = ",".join([rounding, *tuned_with.split(",")[1:]])
        for args in calls(op, variant, tokens):
            seen.add(is_aligned(tuple(args)))
            getattr(pack, op)(*args)
    torch.cuda.synchronize()
    assert seen == {True, False}
    assert compiled_kernels(pack) == warmed.kernels
    # The count does tell: a pairing that was not warmed is compiled.
    getattr(pack, INPLACE)(*inputs(INPLACE, "act,neox", 3))
    assert compiled_kernels(pack) == warmed.kernels + 1


def test_nothing_is_compiled_after_warming_everything(tmp_path: Path) -> None:
    device = gpu()
    pack = imported(
        [make_rope_entry(INPLACE, "act", device.target, device.key, buckets=1)], tmp_path, "tunegen_rope_all_ops"
    )
    warmed = pack.warmup(dtypes=(torch.float16,), everything=True)
    # Four variants in two forms, flat and paged, with positions and tables of two dtypes.
    assert compiled_kernels(pack) == warmed.kernels == 4 * 2 * 2 * 4 * (2 if torch.version.hip else 1)
    for variant, int32, table in itertools.product(("act", "none", "act,neox"), (False, True), ("act", "float32")):
        for tokens in (1, 17):
            for args in calls(INPLACE, variant, tokens, dtype="float16", int32_positions=int32, table=table):
                pack.mla_rope_cache_(*args)
    torch.cuda.synchronize()
    assert compiled_kernels(pack) == warmed.kernels


@pytest.mark.parametrize(("op", "variant"), TUNED)
def test_opcheck(pack: ModuleType, op: str, variant: str) -> None:
    args = inputs(op, variant, 17)
    cache = WRITTEN[op][-1]
    args[cache] = bits_of(args[cache])  # as uint8, which ops take too: opcheck compares no fp8
    torch.library.opcheck(getattr(getattr(torch.ops, NAME), op).default, tuple(args))


@pytest.mark.usefixtures("no_misses")
@pytest.mark.parametrize("fp8", [False, True])
def test_torch_compile(pack: ModuleType, fp8: bool) -> None:
    variants = {FUNCTIONAL: "none,fp8" if fp8 else "none", INPLACE: "act,fp8" if fp8 else "act"}

    def model(first: list[Any], second: list[Any]) -> tuple[torch.Tensor, ...]:
        q_nope, q_pe, *rest = first
        q_out, k_pe_out = pack.mla_rope_cache(q_nope * 2, q_pe + 1, *rest)
        positions, q, *others = second
        pack.mla_rope_cache_(positions, q, *others)
        return q_out, k_pe_out, q * 2, others[0] + 1

    def arguments(tokens: int) -> list[list[Any]]:
        made = []
        for op, variant in variants.items():
            args, cache = inputs(op, variant, tokens), WRITTEN[op][-1]
            args[cache] = inputs(op, variant, 40)[cache]  # a server's has one size
            made.append(args)
        return made

    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    for tokens in (3, 17, 1, 0):
        given, expected = arguments(tokens), arguments(tokens)
        assert all(map(equal, compiled(*given), model(*expected)))
        for op, args, right in zip(variants, given, expected, strict=True):
            assert all(equal(args[i], right[i]) for i in WRITTEN[op])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU here")
@pytest.mark.parametrize(("op", "variant"), [(FUNCTIONAL, "none,fp8"), (INPLACE, "act")])
def test_other_than_the_current_gpu(pack: ModuleType, op: str, variant: str) -> None:
    args = inputs(op, variant, 17)
    moved = [arg.to("cuda:1") if isinstance(arg, torch.Tensor) else arg for arg in args]
    there = call(pack, op, moved)
    assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda:1") for tensor in there)
    assert all(equal(a.cpu(), b.cpu()) for a, b in zip(there, call(pack, op, args), strict=True))
