"""A pack with mla_rope_cache and mla_rope_cache_: what it holds, which entry serves what, and its ops on the CPU.

`test_gpu_mla_rope.py` has what needs a GPU.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from synthetic import ROPE_SIZES, make_rope_entries, make_rope_entry

from tunegen.evaluate.conformance import Arguments, Outputs, candidates, case_factors, pairwise, run_case
from tunegen.evaluate.conformance.mla_rope import TABLE_ROWS, WRITTEN, Case, make_args
from tunegen.oppack import EmittedPack, emit_pack
from tunegen.ops import Problem
from tunegen.ops.mla_rope import FUNCTIONAL, INPLACE, MLA_ROPE
from tunegen.runtime import dispatch
from tunegen.runtime.device import DeviceKey
from tunegen.runtime.dispatch import Dispatcher
from tunegen.runtime.families import OPS
from tunegen.runtime.manifest import Bucket, Entry, Manifest, read_manifest
from tunegen.runtime.table import Table, TunegenPackWarning
from tunegen.targets import get_target

CPU = torch.device("cpu")
SM90 = get_target("sm90")
H100, H200, B200 = DeviceKey("sm90", 132, 79), DeviceKey("sm90", 132, 140), DeviceKey("sm100", 148, 179)
SERVED = {
    (op, variant): [p.rounding for p in MLA_ROPE.served(Problem.of(op, ROPE_SIZES, variant))]
    for op in MLA_ROPE.ops
    for variant in MLA_ROPE.tuned_variants(op)
}
EVERY = [(op, variant) for (op, _), variants in SERVED.items() for variant in variants]
NAME = "tunegen_rope_ops"


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> EmittedPack:
    return emit_pack(make_rope_entries(), tmp_path_factory.mktemp("rope") / "pack", name=NAME)


@pytest.fixture(scope="module")
def manifest(emitted: EmittedPack) -> Manifest:
    return read_manifest(emitted.package)


@pytest.fixture(scope="module")
def pack(emitted: EmittedPack) -> ModuleType:
    """The emitted pack, imported."""
    sys.path.insert(0, str(emitted.path))
    module = importlib.import_module(NAME)
    assert Path(str(module.__file__)).parent == emitted.package
    return module


def inputs(op: str, variant: str, tokens: int = 6, seed: int = 3) -> list[Any]:
    case = Case(Problem.of(op, ROPE_SIZES, variant), tokens, tokens, tokens, layout="contiguous", seed=seed)
    return list(make_args(case, CPU))


def cloned(args: Arguments | list[Any]) -> list[Any]:
    return [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that begins one element after an aligned address."""
    return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view(tensor.shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit: a cache of random bits holds NaN."""
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))


# --- What is emitted ---


def test_an_entry_has_kernels_of_what_it_serves(emitted: EmittedPack, manifest: Manifest) -> None:
    assert len(manifest.entries) == 2 * len(SERVED)
    for entry in manifest.entries:
        variants = SERVED[entry.op, entry.variant]
        assert sorted(entry.variants) == sorted(variants)
        assert entry.variants[0] == entry.variant
        for bucket in entry.buckets:
            assert sorted(bucket.kernels) == sorted(variants)
            for variant, path in bucket.kernels.items():
                name = f"k64_n4_r16_{variant.replace(',', '-')}_"
                assert path.startswith(f"kernels/{entry.target}/{entry.op}/{name}")
                source = (emitted.package / path).read_text()
                assert f"# rounding  {variant}\n" in source
                assert f"\ndef {entry.op}(\n" in source
                assert all(f"{key}={value}" in source.splitlines()[6] for key, value in bucket.config.items())
    # Three configs of every variant, for two targets.
    assert emitted.kernels == 2 * 3 * len(EVERY)


def test_no_variant_is_of_two_entries(manifest: Manifest) -> None:
    for op, target in itertools.product(MLA_ROPE.ops, ("sm90", "gfx950")):
        entries = [entry for entry in manifest.entries if (entry.op, entry.target) == (op, target)]
        assert [entry.variant for entry in entries] == sorted(MLA_ROPE.tuned_variants(op))
        variants = [variant for entry in entries for variant in entry.variants]
        assert len(variants) == len(set(variants)) == (32 if op == FUNCTIONAL else 8)


def test_readme_tells_entries_of_other_variants_apart(emitted: EmittedPack) -> None:
    rows = [line for line in (emitted.path / "README.md").read_text().splitlines() if line.startswith("| `mla_rope")]
    assert len(rows) == len(set(rows)) == 2 * len(SERVED)


# --- Which entry serves what ---


def entry_with(manifest: Manifest, op: str, variant: str, target: str) -> Entry:
    """The entry that has kernels of a variant."""
    (found,) = (e for e in manifest.entries if (e.op, e.target) == (op, target) and variant in e.variants)
    return found


@pytest.mark.parametrize("name", ["sm90", "gfx950"])
def test_each_variant_is_served_by_the_entry_that_has_it(manifest: Manifest, name: str) -> None:
    table = Table(manifest)
    device = get_target(name).device
    for op, variant in EVERY:
        match = table.match(op, ROPE_SIZES, variant, device)
        assert match.entry == entry_with(manifest, op, variant, name)
        assert match.miss == ""
        config = match.entry.buckets[0].config
        assert config["load_policy"] == ("evict_first" if "fp8" in variant else "default")
    assert len(table.entries(FUNCTIONAL, device)) == 3
    assert len(table.entries(INPLACE, device)) == 2
    assert sorted(table.variants(FUNCTIONAL, ROPE_SIZES)) == sorted(v for op, v in EVERY if op == FUNCTIONAL)


def test_the_entry_tuned_for_the_very_variant_goes_first(tmp_path: Path) -> None:
    own = make_rope_entry(FUNCTIONAL, "act", SM90, evidence="predicted")
    other = make_rope_entry(FUNCTIONAL, "none", SM90)
    manifest = read_manifest(emit_pack([own, other], tmp_path / "pack").package)
    for entries in (manifest.entries, manifest.entries[::-1]):
        table = Table(replace(manifest, entries=entries))
        for variant, tuned in (("act", "act"), ("none", "none"), ("act,neox", "none")):
            entry = table.match(FUNCTIONAL, ROPE_SIZES, variant, H100).entry
            assert entry is not None
            assert entry.variant == tuned
            # A device of which there is neither: the nearest, and by the same rule.
            assert table.match(FUNCTIONAL, ROPE_SIZES, variant, H200).entry == entry


def said(table: Table, variant: str, device: DeviceKey) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table.serve(FUNCTIONAL, ROPE_SIZES, variant, device)
    assert all(warning.category is TunegenPackWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_missing_variant_is_said_once(manifest: Manifest) -> None:
    only = entry_with(manifest, FUNCTIONAL, "none", "sm90")
    table = Table(replace(manifest, entries=[only]))
    assert said(table, "act,neox,pe_first", H100) == []
    for variant in ("none,fp8", "none,fp8,q_fp8"):
        (message,) = said(table, variant, H100)
        assert f"{NAME} has no kernels of variant '{variant}' of mla_rope_cache, num_heads 4" in message
        assert "the reference in PyTorch serves it, right but slow" in message
        # Emitting again makes no kernels of what was not tuned.
        command = "tunegen tune --op mla_rope_cache --num-heads 4 --kv-lora-rank 64 --rope-dim 16"
        assert f"run `{command}` on it and emit the pack again" in message
        assert said(table, variant, H100) == []
    # Of an architecture that the pack does not have at all, whatever the variant.
    assert len(said(table, "none", B200)) == 1
    assert said(table, "none,fp8", B200) == []
    # Kernels of another device's entry serve, and that is said once for all variants.
    assert len(said(table, "none", H200)) == 1
    assert said(table, "act", H200) == []


def make_dispatcher(manifest: Manifest, root: Path, op: str) -> Dispatcher:
    return Dispatcher(root, Table(manifest), OPS[op], torch._C.parse_schema(f"test::{op}{OPS[op].schema}"))


@pytest.mark.parametrize("op", MLA_ROPE.ops)
def test_a_call_launches_the_kernel_of_its_variant_and_bucket(
    op: str, emitted: EmittedPack, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[Path, bool]] = []
    monkeypatch.setattr(dispatch, "device_key", lambda _: H100)
    monkeypatch.setattr(dispatch, "load_form", lambda path, aligned: (path, aligned))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of the CPU's only device
    monkeypatch.setattr(type(OPS[op]), "launch", lambda self, kernel, *_: launched.append(kernel))
    dispatcher = make_dispatcher(manifest, emitted.package, op)
    for variant in dict.fromkeys(variant for served, variant in EVERY if served == op):
        buckets: list[Bucket] = entry_with(manifest, op, variant, "sm90").buckets
        for tokens, bucket in ((1, 0), (2, 0), (3, 1), (16, 1), (17, 2)):
            args = inputs(op, variant, tokens)
            dispatcher.cuda(*args)
            assert launched.pop() == (emitted.package / buckets[bucket].kernels[variant], True)
            kv_c = 2 if op == FUNCTIONAL else 3
            args[kv_c] = shifted(args[kv_c])
            dispatcher.cuda(*args)
            assert launched.pop() == (emitted.package / buckets[-1].kernels[variant], False)
        dispatcher.cuda(*inputs(op, variant, 0))
    assert launched == []


def test_what_is_not_there_takes_the_reference(
    emitted: EmittedPack, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "device_key", lambda _: H100)
    for op, variant in ((FUNCTIONAL, "act,fp8,q_fp8"), (INPLACE, "none,fp8")):
        monkeypatch.setattr(type(OPS[op]), "launch", lambda *_: pytest.fail("a kernel was launched"))
        entries = [entry for entry in manifest.entries if "fp8" not in entry.variant]
        dispatcher = make_dispatcher(replace(manifest, entries=entries), emitted.package, op)
        args = inputs(op, variant)
        right = cloned(args)
        expected = OPS[op].reference(*right)
        with pytest.warns(TunegenPackWarning, match="no kernels of variant"):
            outputs = dispatcher.cuda(*args) or ()
        assert len(outputs) == len(expected)
        assert all(map(equal, outputs, expected))
        assert all(equal(args[i], right[i]) for i in WRITTEN[op])


# --- The ops on the CPU ---


def test_the_ops_conform(pack: ModuleType) -> None:
    def launch(outputs: Outputs, args: Arguments) -> None:
        for output, result in zip(outputs, getattr(pack, case.problem.op)(*args) or (), strict=True):
            bits(output).copy_(bits(result))

    problems = [Problem.of(op, ROPE_SIZES, variant) for op, variant in EVERY]
    cases = pairwise(candidates(problems, (0, 1, 3, 17), SM90), case_factors)
    assert {case.num_tokens for case in cases} == {0, 1, 3, 17}
    for case in cases:
        assert run_case(launch, case, CPU, 1) == [], str(case)
        if not case.num_tokens:
            launch(case.op.allocate(*make_args(case, CPU)), make_args(case, CPU))


def test_what_the_ops_return(pack: ModuleType) -> None:
    assert pack.mla_rope_cache_(*inputs(INPLACE, "act")) is None
    for variant, dtype in (("none", torch.bfloat16), ("none,q_fp8", torch.float8_e4m3fn)):
        for tokens in (0, 3):
            q_out, k_pe_out = pack.mla_rope_cache(*inputs(FUNCTIONAL, variant, tokens))
            assert (q_out.shape, q_out.dtype) == ((tokens, 4, 80), dtype)
            assert (k_pe_out.shape, k_pe_out.dtype) == ((tokens, 16), torch.bfloat16)


def test_defaults_may_be_left_out(pack: ModuleType) -> None:
    args, spelt = inputs(FUNCTIONAL, "none"), inputs(FUNCTIONAL, "none")
    for output, expected in zip(pack.mla_rope_cache(*args[:8]), pack.mla_rope_cache(*spelt), strict=True):
        assert equal(output, expected)
    args, spelt = inputs(INPLACE, "act"), inputs(INPLACE, "act")
    pack.mla_rope_cache_(*args[:-1])
    pack.mla_rope_cache_(*spelt)
    assert all(equal(args[i], spelt[i]) for i in WRITTEN[INPLACE])


def with_bytes(op: str, args: list[Any]) -> list[Any]:
    """The call with an fp8 cache as uint8, which ops take too: opcheck compares no fp8."""
    cache = WRITTEN[op][-1]
    if args[cache].element_size() == 1:
        args[cache] = args[cache].view(torch.uint8)
    return args


@pytest.mark.parametrize("op", MLA_ROPE.ops)
def test_opcheck(pack: ModuleType, op: str) -> None:
    function = getattr(getattr(torch.ops, NAME), op).default
    for variant in (variant for served, variant in EVERY if served == op):
        args = tuple(with_bytes(op, inputs(op, variant)))
        torch.library.opcheck(function, args, test_utils=("test_schema", "test_faketensor"))
    # Slower ones; only inputs that require grad make test_autograd_registration do something.
    for variant in MLA_ROPE.tuned_variants(op):
        args = tuple(with_bytes(op, inputs(op, variant)))
        torch.library.opcheck(function, args, test_utils="test_aot_dispatch_dynamic")
    kv_c = 2 if op == FUNCTIONAL else 3
    args = tuple(arg.requires_grad_() if i == kv_c else arg for i, arg in enumerate(args))
    torch.library.opcheck(function, args, test_utils="test_autograd_registration")


def test_fake_outputs_are_like_real_ones(pack: ModuleType) -> None:
    """Strides too, which opcheck compares for the calls of `Op.inputs` alone: q_nope has those of a product by head."""
    for fp8, fewer in itertools.product((False, True), (False, True)):
        args = inputs(FUNCTIONAL, "none,q_fp8" if fp8 else "none", 5)
        if fewer:
            args[0], args[1] = args[0][:2], args[1][:2]
        meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
        for real, fake in zip(
            pack.mla_rope_cache(*args), torch.ops.tunegen_rope_ops.mla_rope_cache(*meta), strict=True
        ):
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("fp8", [False, True])
def test_torch_compile(pack: ModuleType, fp8: bool) -> None:
    """Both ops in one graph, whose mutations are made functional; a graph for 0, for 1 and for more tokens."""
    from torch._dynamo.testing import CompileCounterWithBackend

    variants = {FUNCTIONAL: "none,fp8" if fp8 else "none", INPLACE: "act,fp8" if fp8 else "act"}

    def model(first: list[Any], second: list[Any]) -> tuple[torch.Tensor, ...]:
        q_nope, q_pe, *rest = first
        q_out, k_pe_out = pack.mla_rope_cache(q_nope * 2, q_pe + 1, *rest)
        positions, q, *others = second
        pack.mla_rope_cache_(positions, q, *others)
        # Reads of what was written, after it was: they must not be moved before it.
        return q_out.float() + 1, k_pe_out, q * 2, others[0] + 1, rest[4].view(torch.uint8).float().sum(-1)

    def calls(tokens: int) -> list[list[Any]]:
        made = []
        for op, variant in variants.items():
            args, cache = inputs(op, variant, tokens), WRITTEN[op][-1]
            args[cache] = inputs(op, variant, 40)[cache]  # a server's has one size
            made.append(args)
        return made

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    for tokens, compilations in ((3, 1), (17, 1), (1, 2), (0, 3), (33, 3)):
        given, expected = calls(tokens), calls(tokens)
        for output, right in zip(compiled(*given), model(*expected), strict=True):
            assert equal(output, right)
        for op, args, right, untouched in zip(variants, given, expected, calls(tokens), strict=True):
            for i in WRITTEN[op]:
                assert equal(args[i], right[i])
                assert equal(args[i], untouched[i]) == (tokens == 0)
        assert counter.frame_count <= compilations, (tokens, counter.frame_count)


# --- debug ---


def put(at: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor(at), value)


BAD_VALUES: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("positions", put(2, TABLE_ROWS), "positions are not in cos_sin_cache, .* 512, of token 2"),
    ("positions", put(1, -1), "positions are not in cos_sin_cache"),
    ("slot_mapping", put(3, 12), "slots are not in kv_cache, which has 12: the first is 12, of token 3"),
    ("slot_mapping", lambda x: x.index_fill(0, torch.tensor([1, 4]), 7), r"the first is 7, of tokens \[1, 4\]"),
    ("scale", lambda x: x * 0, "must be positive and finite; got 0.0"),
    ("scale", lambda x: x * float("nan"), "must be positive and finite; got nan"),
]


@pytest.mark.parametrize("op", MLA_ROPE.ops)
@pytest.mark.parametrize(("name", "spoil", "message"), BAD_VALUES)
def test_debug_refuses_values(
    pack: ModuleType, op: str, name: str, spoil: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    error = importlib.import_module(f"{NAME}.runtime.families").OpInputError
    names = [argument.name for argument in torch._C.parse_schema(op + OPS[op].schema).arguments]
    if name == "scale":
        name = "k_scale" if op == FUNCTIONAL else "kv_cache_scale"
    args = inputs(op, "none,fp8")
    getattr(pack, op)(*cloned(args), debug=True)
    at = names.index(name)
    args[at] = spoil(args[at])
    before = cloned(args)
    with pytest.raises(error, match=message):
        getattr(pack, op)(*args, debug=True)
    assert all(equal(args[i], before[i]) for i in WRITTEN[op])
    getattr(pack, op)(*args)


def test_debug_checks_the_scale_of_q(pack: ModuleType) -> None:
    args = inputs(FUNCTIONAL, "none,q_fp8")
    args[9] = torch.tensor([-0.5])
    with pytest.raises(ValueError, match=r"q_scale must be positive and finite; got -0\.5"):
        pack.mla_rope_cache(*args, debug=True)


@pytest.mark.parametrize("op", MLA_ROPE.ops)
def test_without_debug_no_value_is_asked_for(pack: ModuleType, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that makes the host wait for a device: reading a value, and shapes that depend on values."""

    def waits(*_: Any) -> Any:
        raise AssertionError("waits for the device")

    args = inputs(op, "none,fp8", 9)
    for name in (
        "item",
        "tolist",
        "nonzero",
        "unique",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "masked_select",
    ):
        monkeypatch.setattr(torch.Tensor, name, waits)
    with pytest.raises(AssertionError, match="waits"):
        getattr(pack, op)(*args, debug=True)
    getattr(pack, op)(*args)


# --- supports and explain ---


def key(pack: ModuleType, device: DeviceKey) -> Any:
    """The key as the pack's own class."""
    own = importlib.import_module(f"{pack.__name__}.runtime.device").DeviceKey
    return own(device.arch, device.units, device.memory_gib)


@pytest.fixture
def short_tables(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of calls whose tables of cos and sin are quickly made."""
    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.runtime.families.mla_rope"), "MAX_POSITION", 64)


@pytest.mark.usefixtures("short_tables")
def test_supports(pack: ModuleType) -> None:
    for op, variant in EVERY:
        assert pack.supports(op, device=key(pack, H100), variant=variant, **ROPE_SIZES)
    assert pack.supports(
        FUNCTIONAL, device=key(pack, H100), variant="act,q_fp8,neox", **ROPE_SIZES
    )  # flags in another order
    assert pack.supports(INPLACE, device=key(pack, H100), **ROPE_SIZES)
    assert not pack.supports(INPLACE, device=key(pack, B200), **ROPE_SIZES)
    assert not pack.supports(INPLACE, device="cpu", **ROPE_SIZES)
    assert not pack.supports(FUNCTIONAL, device=key(pack, H100), **{**ROPE_SIZES, "num_heads": 5})


def test_explain(pack: ModuleType, emitted: EmittedPack) -> None:
    usual = pack.explain(FUNCTIONAL, 16, device=key(pack, H100), **ROPE_SIZES)
    assert (usual.variant, usual.entry.variant, usual.bucket.tokens) == ("none", "none", 8)
    assert pack.explain(INPLACE, 1, device=key(pack, H100), **ROPE_SIZES).variant == "act"
    fp8 = pack.explain(FUNCTIONAL, 17, device=key(pack, H100), variant="act,neox,fp8", **ROPE_SIZES)
    assert (fp8.variant, fp8.entry.variant, fp8.bucket.tokens) == ("act,neox,fp8", "none,fp8", 64)
    assert fp8.kernel.startswith("kernels/sm90/mla_rope_cache/k64_n4_r16_act-neox-fp8_")
    assert (emitted.package / fp8.kernel).is_file()
    for part in ("num_heads 4", "variant act,neox,fp8", fp8.kernel, "load_policy=evict_first", "measured"):
        assert part in str(fp8)
    # Arguments of the op say the same as the variant.
    spelt = pack.explain(
        FUNCTIONAL, 17, device=key(pack, H100), variant="none,fp8", is_neox=True, rounding="act", **ROPE_SIZES
    )
    assert spelt == fp8
    q_fp8 = pack.explain(FUNCTIONAL, 1, device=key(pack, H100), q_out_dtype=torch.float8_e4m3fn, **ROPE_SIZES)
    assert (q_fp8.variant, q_fp8.entry.variant) == ("none,q_fp8", "none,fp8,q_fp8")
    nowhere = pack.explain(FUNCTIONAL, 17, device=key(pack, B200), variant="none,fp8", **ROPE_SIZES)
    assert nowhere.kernel is None
    assert "the reference in PyTorch" in str(nowhere)


@pytest.mark.parametrize(
    ("op", "about", "message"),
    [
        ("mla_rope_cach", ROPE_SIZES, r"There is no op 'mla_rope_cach'\. Did you mean 'mla_rope_cache'\?"),
        (FUNCTIONAL, {"num_heads": 4}, r"must be given its sizes: kv_lora_rank=\.\.\., rope_dim=\.\.\.\."),
        (INPLACE, {}, r"kv_lora_rank=\.\.\., num_heads=\.\.\., rope_dim=\.\.\."),
        (FUNCTIONAL, {**ROPE_SIZES, "heads": 4}, "no size of mla_rope_cache 'heads'. Did you mean 'num_heads'"),
        (FUNCTIONAL, {**ROPE_SIZES, "hidden_size": 512}, "There is no size of mla_rope_cache 'hidden_size'"),
        (FUNCTIONAL, {**ROPE_SIZES, "num_heads": 0}, "num_heads must be a positive integer; got 0"),
        (FUNCTIONAL, {**ROPE_SIZES, "rope_dim": -16}, "rope_dim must be a positive integer; got -16"),
        (FUNCTIONAL, {**ROPE_SIZES, "rope_dim": 12}, "rope dim must be a multiple of 8; got 12"),
        (FUNCTIONAL, {**ROPE_SIZES, "variant": "none,fp4"}, "a variant is one of none, act.*'none,fp4'"),
        (INPLACE, {**ROPE_SIZES, "variant": "act,q_fp8"}, "no variants pe_first and q_fp8.*'act,q_fp8'"),
        (INPLACE, {**ROPE_SIZES, "variant": "act,pe_first"}, "no variants pe_first and q_fp8.*'act,pe_first'"),
    ],
)
def test_names_that_are_not_known(pack: ModuleType, op: str, about: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack.supports(op, device=key(pack, H100), **about)
    with pytest.raises(ValueError, match=message):
        pack.explain(op, 1, device=key(pack, H100), **about)


def test_explain_refuses_arguments_that_the_op_does(pack: ModuleType) -> None:
    with pytest.raises(ValueError, match="rounding must be one of none, act; got 'output'"):
        pack.explain(FUNCTIONAL, 1, device=key(pack, H100), rounding="output", **ROPE_SIZES)
    with pytest.raises(ValueError, match="kv_cache_dtype must be auto, fp8 or fp8_e4m3"):
        pack.explain(INPLACE, 1, device=key(pack, H100), kv_cache_dtype="fp8_e5m2", **ROPE_SIZES)
