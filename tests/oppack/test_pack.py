"""An emitted pack: alone in a process, its tables, and on a GPU where there is one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from synthetic import ROPE_SIZES, make_entries, make_entry

from tunegen.evaluate.conformance import Arguments, Outputs, fewest_lanes_per_row, run_case
from tunegen.evaluate.conformance.mla_rope import WRITTEN, make_args
from tunegen.evaluate.conformance.mla_rope import Case as RopeCase
from tunegen.evaluate.conformance.rows import matrix
from tunegen.oppack import EmittedPack, emit_pack
from tunegen.ops import Problem
from tunegen.ops.mla_rope import MLA_ROPE
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4
from tunegen.runtime import dispatch
from tunegen.runtime.api import Pack
from tunegen.runtime.device import DeviceKey
from tunegen.runtime.dispatch import Dispatcher, Selector
from tunegen.runtime.families import OPS
from tunegen.runtime.forms import is_aligned
from tunegen.runtime.manifest import Entry, Manifest, read_manifest
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS
from tunegen.runtime.registration import PackConflictError
from tunegen.runtime.table import Table, TunegenPackWarning
from tunegen.targets import present_device

DYNAMIC, NORM, NORM_ADD = "dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
INSIDE = Path(__file__).with_name("inside_pack.py")
CHECKS = [line[4 : line.index("(")] for line in INSIDE.read_text().splitlines() if line.startswith("def check_")]
H100, H200 = DeviceKey("sm90", 132, 79), DeviceKey("sm90", 132, 140)
PCIE, MI350X, B200 = DeviceKey("sm90", 114, 79), DeviceKey("gfx950", 256, 288), DeviceKey("sm100", 148, 179)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> EmittedPack:
    return emit_pack(make_entries(), tmp_path_factory.mktemp("oppack") / "pack")


@pytest.fixture(scope="module")
def manifest(emitted: EmittedPack) -> Manifest:
    return read_manifest(emitted.package)


# --- Alone in a process ---


def rope_calls() -> list[dict[str, Any]]:
    """Calls of the ops that write their arguments, in every variant, with all that they write."""
    calls = []
    for name in MLA_ROPE.ops:
        for tuned in MLA_ROPE.tuned_variants(name):
            for problem in MLA_ROPE.served(Problem.of(name, ROPE_SIZES, tuned)):
                args = make_args(RopeCase(problem, 4, 5, 4, slots="negative"), torch.device("cpu"))
                after = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
                outputs = [*OPS[name].reference(*after), *(after[at] for at in WRITTEN[name])]
                calls.append({"op": name, "args": args, "written": WRITTEN[name], "outputs": outputs})
    return calls


@pytest.fixture(scope="module")
def inside(emitted: EmittedPack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of inside_pack.py by check."""
    calls = []
    for op in (OPS[name] for name in RMSNORM_MXFP4.ops):
        for hidden_size in (512, 96, 64):  # 64: not in the pack
            for tokens in (1, 33):
                generator = torch.Generator().manual_seed(tokens)
                args = op.inputs({"hidden_size": hidden_size}, tokens, torch.bfloat16, torch.device("cpu"), generator)
                for rounding in ROUNDINGS if isinstance(args[-1], str) else ("",):
                    given = (*args[:-1], rounding) if rounding else args
                    calls.append({"op": op.name, "args": given, "outputs": op.reference(*given)})
    expected = tmp_path_factory.mktemp("expected") / "calls.pt"
    torch.save(calls, expected)
    torch.save(rope_calls(), expected.with_name("rope.pt"))
    command = [sys.executable, INSIDE, emitted.path, expected]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=expected.parent)
    assert ran.returncode == 0, ran.stderr
    results: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("check", CHECKS)
def test_inside(inside: dict[str, str], check: str) -> None:
    assert not inside[check], inside[check]


def test_another_pack_of_the_same_name(emitted: EmittedPack, tmp_path: Path) -> None:
    first = emit_pack(make_entries(("sm90",)), tmp_path / "a", name="conflict_ops")
    Pack(first.package)
    Pack(first.package)
    other = emit_pack(make_entries(("gfx950",)), tmp_path / "b", name="conflict_ops")
    with pytest.raises(PackConflictError, match=first.version.replace("+", r"\+")):
        Pack(other.package)


# --- Tables ---


def make_manifest(manifest: Manifest, *devices: tuple[DeviceKey, str]) -> Manifest:
    """A manifest with one norm entry a device."""
    base = next(entry for entry in manifest.entries if entry.op == NORM and entry.shape == {"hidden_size": 512})
    entries = [replace(base, device=device, evidence=evidence) for device, evidence in devices]
    return replace(manifest, entries=entries)


def match(table: Table, device: DeviceKey) -> tuple[Entry | None, str]:
    found = table.match(NORM, {"hidden_size": 512}, "none", device)
    return found.entry, found.miss


def test_nearest_device_serves(manifest: Manifest) -> None:
    table = Table(make_manifest(manifest, (PCIE, "measured"), (H100, "predicted"), (H200, "measured")))

    entry, miss = match(table, DeviceKey("sm90", 132, 80))  # a driver's rounding away from H100
    assert entry is not None
    assert (entry.device, entry.evidence, miss) == (H100, "predicted", "")

    entry, miss = match(table, DeviceKey("sm90", 132, 96))  # the units of both, the memory of neither
    assert entry is not None
    assert entry.device == H100
    assert "sm90, 132 units, 96 GiB" in miss
    assert f"the kernels for {H100}" in miss
    assert "tunegen tune --op rmsnorm_mxfp4_quant --hidden-size 512" in miss

    entry, miss = match(table, DeviceKey("sm90", 100, 140))
    assert entry is not None
    assert entry.device == PCIE
    assert miss

    entry, miss = match(table, B200)
    assert entry is None
    assert "the reference" in miss
    assert table.match(NORM, {"hidden_size": 544}, "none", H100).entry is None
    assert table.match(NORM_ADD, {"hidden_size": 512}, "none", H100).entry is None


def test_measured_goes_before_predicted(manifest: Manifest) -> None:
    for devices in ([(H100, "predicted"), (H100, "measured")], [(H100, "measured"), (H100, "predicted")]):
        entry, _ = match(Table(make_manifest(manifest, *devices)), H100)
        assert entry is not None
        assert entry.evidence == "measured"


def served(table: Table, shape: int, variant: str, device: DeviceKey) -> tuple[Entry | None, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entry = table.serve(NORM, {"hidden_size": shape}, variant, device)
    assert all(issubclass(warning.category, TunegenPackWarning) for warning in caught)
    return entry, [str(warning.message) for warning in caught]


def test_each_miss_is_said_once(manifest: Manifest) -> None:
    table = Table(make_manifest(manifest, (H100, "measured")))
    assert served(table, 512, "none", H100)[1] == []
    for device, text in ((H200, "perhaps slower"), (B200, "right but slow")):
        for variant, said in (("none", 1), ("none", 0), ("output", 0)):
            messages = served(table, 512, variant, device)[1]
            assert len(messages) == said
            assert all(text in message for message in messages)
    assert len(served(table, 544, "none", H100)[1]) == 1
    assert len(served(table, 576, "none", H100)[1]) == 1


def test_predicted_is_said_once_a_device(manifest: Manifest) -> None:
    table = Table(manifest=replace(manifest, entries=[replace(e, evidence="predicted") for e in manifest.entries]))
    entry, messages = served(table, 512, "none", H100)
    assert entry is not None
    assert len(messages) == 1
    assert "predicted, not measured" in messages[0]
    assert served(table, 96, "output", H100)[1] == []
    assert len(served(table, 96, "output", MI350X)[1]) == 1


def test_missing_variant_falls_back(manifest: Manifest) -> None:
    table = Table(make_manifest(manifest, (H100, "measured")))
    entry, messages = served(table, 512, "sideways", H100)
    assert entry is None
    assert "no kernels of variant 'sideways'" in messages[0]


def test_bucket_edges(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_manifest(manifest, (H100, "measured")).entries[0]
    loads = []

    def load_form(path: Path, aligned: bool) -> tuple[Path, bool]:
        loads.append(path)
        return path, aligned

    monkeypatch.setattr(dispatch, "load_form", load_form)
    selector = Selector(Path("/pack"), entry, "output", 132)
    paths = [Path("/pack") / bucket.kernels["output"] for bucket in entry.buckets]
    assert len(set(paths)) == 3
    for tokens, bucket in ((1, 0), (2, 0), (3, 1), (16, 1), (17, 2), (64, 2), (10**6, 2)):
        assert selector.aligned(tokens) == (paths[bucket], True)
    assert loads == paths
    assert selector.general() == (paths[-1], False)


def make_dispatcher(manifest: Manifest, root: Path, op: str) -> Dispatcher:
    schema = torch._C.parse_schema(f"test::{op}{OPS[op].schema}")
    return Dispatcher(root, Table(manifest), OPS[op], schema)


def test_unknown_shape_and_device_take_the_reference(
    emitted: EmittedPack, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(type(OPS[NORM]), "launch", forbidden)
    for device, hidden_size in ((B200, 512), (H100, 544)):
        monkeypatch.setattr(dispatch, "device_key", lambda _, device=device: device)
        dispatcher = make_dispatcher(manifest, emitted.package, NORM)
        args = OPS[NORM].inputs({"hidden_size": hidden_size}, 5, torch.bfloat16, torch.device("cpu"), torch.Generator())
        expected = OPS[NORM].reference(*args)
        with pytest.warns(TunegenPackWarning, match="the reference in PyTorch serves it"):
            outputs = dispatcher.cuda(*args[:-1])  # the default rounding left out, as the dispatcher does
        assert all(map(torch.equal, outputs, expected))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dispatcher.cuda(*args)


def test_no_tokens_launch_nothing(emitted: EmittedPack, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "device_key", lambda _: pytest.fail("a device was asked for"))
    x = torch.empty(0, 512, dtype=torch.bfloat16)
    q, scales = make_dispatcher(manifest, emitted.package, DYNAMIC).cuda(x)
    assert (q.shape, scales.shape) == ((0, 256), (0, 16))


def test_alignment() -> None:
    flat = torch.zeros(64 * 100, dtype=torch.bfloat16)
    assert flat.data_ptr() % 16 == 0
    x = flat.view(100, 64)
    cases = {
        "whole": (x, True),
        "later rows": (x[3:], True),
        "left part of rows": (x[:, :32], True),
        "odd start": (flat[1:65].view(1, 64), False),
        "eight bytes on": (flat[4:68].view(1, 64), False),
        "odd rows": (flat[: 65 * 8].view(8, 65)[:, :64], False),
        "a single odd row": (flat[: 65 * 8].view(8, 65)[:1, :64], True),
        "no tensor": (1e-6, True),
    }
    for name, (arg, aligned) in cases.items():
        assert is_aligned((x, arg, "none")) == aligned, name


# --- On a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def gpu_pack(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A pack for the GPU here, imported."""
    device = present_device()
    assert device is not None
    out = tmp_path_factory.mktemp("gpu") / "pack"
    emit_pack(make_entries((device.target.name,), device.key), out, name="tunegen_gpu_ops")
    sys.path.insert(0, str(out))
    return importlib.import_module("tunegen_gpu_ops")


def inputs(op: str, tokens: int, rounding: str = "none", hidden_size: int = 512, seed: int = 0) -> tuple[Any, ...]:
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(seed)
    args = OPS[op].inputs({"hidden_size": hidden_size}, tokens, torch.bfloat16, device, generator)
    return (*args[:-1], rounding) if isinstance(args[-1], str) else args


@needs_gpu
@pytest.mark.parametrize("op", RMSNORM_MXFP4.ops)
@pytest.mark.parametrize("hidden_size", [512, 96])
def test_gpu_conforms_at_unseen_token_counts(gpu_pack: ModuleType, op: str, hidden_size: int) -> None:
    def launch(outputs: Outputs, args: Arguments) -> None:
        for output, result in zip(outputs, getattr(gpu_pack, op)(*args), strict=True):
            output.copy_(result)

    problems = [Problem.of(op, {"hidden_size": hidden_size}, rounding) for rounding in ROUNDINGS]
    # There is a device: the test needs a GPU.
    target = present_device().target  # type: ignore[union-attr]  # there is one, or it is skipped
    lanes = fewest_lanes_per_row(target, make_entry(op, hidden_size, target).buckets[0].config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gpu_pack.TunegenPackWarning)
        for case in matrix(problems, tokens=(0, 1, 2, 3, 15, 17, 33, 300)):
            assert not run_case(launch, case, torch.device("cuda"), lanes), case


@needs_gpu
@pytest.mark.parametrize("op", RMSNORM_MXFP4.ops)
def test_gpu_graph_capture(gpu_pack: ModuleType, op: str) -> None:
    gpu_pack.warmup()
    static, fresh = inputs(op, 17, seed=1), inputs(op, 17, seed=2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = getattr(gpu_pack, op)(*static)
    for old, new in zip(static, fresh, strict=True):
        if isinstance(old, torch.Tensor):
            old.copy_(new)
    graph.replay()
    assert all(map(torch.equal, outputs, getattr(gpu_pack, op)(*fresh)))


@needs_gpu
def test_gpu_nothing_is_compiled_after_warmup(tmp_path: Path) -> None:
    device = present_device()
    assert device is not None
    emit_pack(make_entries((device.target.name,), device.key), tmp_path / "pack", name="tunegen_warm_ops")
    sys.path.insert(0, str(tmp_path / "pack"))
    pack = importlib.import_module("tunegen_warm_ops")
    load_form = importlib.import_module("tunegen_warm_ops.runtime.forms").load_form
    # Without being asked for everything, a warm-up leaves the other layouts of the scales out: -padded, -shuffled, ...
    files = [path for path in (tmp_path / "pack").rglob("kernels/*/*/*.py") if "-" not in path.stem]
    assert files

    def compiled() -> int:
        index = torch.cuda.current_device()
        functions = [load_form(path, aligned).function for path in files for aligned in (True, False)]
        return sum(len(function.device_caches[index][0]) for function in functions)

    # Of each kernel the aligned form in both dtypes; of one in three (the last bucket's) the general form, which
    # loads bfloat16 in words or not.
    warmed = pack.warmup(dtypes=(torch.bfloat16, torch.float16))
    assert compiled() == warmed.kernels == len(files) * 2 + len(files) // 3 * 3
    for op in RMSNORM_MXFP4.ops:
        for rounding in ROUNDINGS:
            for tokens in (1, 2, 5, 17, 100):
                for dtype in (torch.bfloat16, torch.float16):
                    args = [
                        arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in inputs(op, tokens, rounding)
                    ]
                    getattr(pack, op)(*args)
                    x = args[0]
                    for start, width in ((0, 544), (8, 544), (1, 513), (2, 514), (1, 1024)):
                        wide = torch.zeros(tokens, width + 16, dtype=dtype, device="cuda")
                        args[0] = wide[:, start : start + 512].copy_(x)
                        getattr(pack, op)(*args)
    assert compiled() == warmed.kernels


@needs_gpu
def test_gpu_unknown_shape_takes_the_reference(gpu_pack: ModuleType) -> None:
    warning = importlib.import_module("tunegen_gpu_ops.runtime.table").TunegenPackWarning
    args = inputs(DYNAMIC, 5, hidden_size=544)
    with pytest.warns(warning, match="the reference in PyTorch serves it"):
        outputs = gpu_pack.dynamic_mxfp4_quant(*args)
    assert all(map(torch.equal, outputs, OPS[DYNAMIC].reference(*args)))
    assert not gpu_pack.supports(DYNAMIC, hidden_size=544)
    assert gpu_pack.supports(DYNAMIC, hidden_size=512)


@needs_gpu
@pytest.mark.parametrize("op", RMSNORM_MXFP4.ops)
def test_gpu_opcheck(gpu_pack: ModuleType, op: str) -> None:
    torch.library.opcheck(getattr(torch.ops.tunegen_gpu_ops, op).default, inputs(op, 17))


@needs_gpu
def test_gpu_torch_compile(gpu_pack: ModuleType) -> None:
    def model(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gpu_pack.rmsnorm_add_mxfp4_quant(x * 2, residual, weight, 1e-6, "sum_output"))

    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    for tokens in (3, 17, 33):
        args = inputs(NORM_ADD, tokens)[:3]
        assert all(map(torch.equal, compiled(*args), model(*args)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU here")
def test_gpu_other_than_the_current_one(gpu_pack: ModuleType) -> None:
    args = inputs(NORM, 17)
    moved = [arg.to("cuda:1") if isinstance(arg, torch.Tensor) else arg for arg in args]
    outputs = gpu_pack.rmsnorm_mxfp4_quant(*moved)
    assert torch.cuda.current_device() == 0
    assert all(output.device == torch.device("cuda:1") for output in outputs)
    assert all(
        map(torch.equal, (output.cpu() for output in outputs), (o.cpu() for o in gpu_pack.rmsnorm_mxfp4_quant(*args)))
    )
