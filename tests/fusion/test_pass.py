"""The pass itself: through torch.compile to the end, its uuid, its patterns, its report and its dumps."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graphs import Compiled
from packs import ask_for_h100, emit_for_tests
from producers import added, hugging_face
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache

from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem

N = 96
ADD = "fused_add_rms_norm -> dynamic_mxfp4_quant"
PLAIN = "rms_norm -> dynamic_mxfp4_quant"


class Model(torch.nn.Module):
    """A transposed product, so that the layout is not Inductor's to choose, a sum, a norm and a quantiser."""

    def __init__(self, pack: ModuleType, size: int = N) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(size).bfloat16(), requires_grad=False)
        self.pack = pack

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        y, total = added(hugging_face)((x.t() * 2).t() + 1, residual, self.weight, 1e-5)
        return *self.pack.dynamic_mxfp4_quant(y), total


def inputs(tokens: int, size: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x, residual = torch.randn(2, tokens, size, generator=generator).bfloat16()
    return x, residual


def test_through_inductor_to_the_end(pack: ModuleType) -> None:
    """Code for the CPU, for any number of tokens; the second time from Inductor's cache, without the pass."""
    model, fusion = Model(pack), pack.fusion.FusionPass()
    with fresh_cache(), inductor_config.patch(fx_graph_cache=True), torch.no_grad():
        for graphs in (1, 1):
            torch._dynamo.reset()
            compiled = torch.compile(model, dynamic=True, options={"post_grad_custom_post_pass": fusion})
            for tokens in (33, 70):
                x, residual = inputs(tokens)
                outputs = compiled(x, residual)
                args = ((x.float() * 2).bfloat16() + 1, residual, model.weight, 1e-5, "sum_norm_output")
                problem = Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": N}, "sum_norm_output")
                assert failures(problem, args, outputs, 1) == []
            assert fusion.report().graphs == graphs
    assert fusion.report().counts() == {ADD: 1}


def test_patterns_can_be_chosen(pack: ModuleType) -> None:
    x, residual = inputs(33)
    fusion = pack.fusion.FusionPass(patterns=[PLAIN])
    Compiled(Model(pack), fusion)(x, residual)
    assert fusion.report().counts() == {PLAIN: 1}
    fusion = pack.fusion.FusionPass(patterns=["rms_norm -> gemm_with_dynamic_quant"])
    with pytest.warns(pack.TunegenPackWarning, match="nothing to fuse"):
        Compiled(Model(pack), fusion)(x, residual)
    with pytest.raises(ValueError, match="Did you mean 'rms_norm -> dynamic_mxfp4_quant'"):
        pack.fusion.FusionPass(patterns=["rms_norm -> dynamic_mxfp4_qant"])


def test_uuid(pack: ModuleType, tmp_path: Path) -> None:
    """The same for the same pack and patterns, in another process too; another for other kernels or patterns."""
    uuid = pack.fusion.FusionPass().uuid()
    assert uuid == pack.fusion.FusionPass().uuid()
    assert pack.__version__ in uuid
    assert uuid != pack.fusion.FusionPass(patterns=[PLAIN]).uuid()
    project = Path(pack.__file__ or "").parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(project)!r}); import fusion_ops.fusion as f; print(f.FusionPass().uuid())"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == uuid
    sys.path.insert(0, str(emit_for_tests(tmp_path / "pack", "fusion_ops_b", programs_per_unit=1)))
    other = importlib.import_module("fusion_ops_b").fusion.FusionPass().uuid()
    assert other.partition(" ")[2] != uuid.partition(" ")[2]


def test_pickles(pack: ModuleType) -> None:
    fusion = pack.fusion.FusionPass(patterns=[PLAIN])
    again = pickle.loads(pickle.dumps(fusion))
    assert again.uuid() == fusion.uuid()
    Compiled(Model(pack), again)(*inputs(33))
    assert again.report().counts() == {PLAIN: 1}


def test_report(pack: ModuleType) -> None:
    class Both(Model):
        def forward(self, x: Tensor, residual: Tensor) -> Any:
            y = hugging_face(x, self.weight, 1e-6)
            silu = self.pack.dynamic_mxfp4_quant(torch.nn.functional.silu(x) * residual)
            return *super().forward(x, residual), *self.pack.dynamic_mxfp4_quant(y), y, *silu

    fusion = pack.fusion.FusionPass()
    Compiled(Both(pack), fusion)(*inputs(33))
    report = fusion.report()
    assert report.counts() == {ADD: 1}
    assert report.others == {"dynamic_mxfp4_quant": 1}
    lines = str(report).splitlines()
    assert lines[:2] == ["1 matches in 1 graph", f"  1 x {ADD}, of pytorch, rounding sum_norm_output"]
    assert lines[2] == "1 candidates left alone"
    assert lines[3].startswith(f"  1 x {PLAIN}: output")
    assert "uses the norm too" in lines[3]
    assert lines[4:] == ["1 x dynamic_mxfp4_quant of something other than a norm"]


def test_nothing_to_fuse_is_said(pack: ModuleType) -> None:
    with pytest.warns(pack.TunegenPackWarning, match="no quantiser of MXFP4 and no cache write in it"):
        Compiled(lambda x: x + 1, pack.fusion.FusionPass())(torch.ones(3))
    silu = torch.nn.functional.silu
    with pytest.warns(pack.TunegenPackWarning, match="none of its 1 quantisers has a norm for input"):
        Compiled(lambda x: pack.dynamic_mxfp4_quant(silu(x)), pack.fusion.FusionPass())(torch.ones(3, 32).bfloat16())


def test_dump(pack: ModuleType, tmp_path: Path) -> None:
    Compiled(Model(pack), pack.fusion.FusionPass(dump=tmp_path / "dump"))(*inputs(33))
    before, after = (tmp_path / "dump" / f"graph0_{stage}.txt" for stage in ("before", "after"))
    assert "rsqrt" in before.read_text()
    assert "dynamic_mxfp4_quant" in before.read_text()
    assert "rsqrt" not in after.read_text()
    assert "rmsnorm_add_mxfp4_quant" in after.read_text()
    assert f"bfloat16[s77, {N}]" in after.read_text() or f", {N}]" in after.read_text()


def test_no_kernels_for_a_size(pack: ModuleType) -> None:
    """On a GPU a size that the pack was not tuned for is left alone: the reference would be slower."""
    support = importlib.import_module("fusion_ops.runtime.fusion.support")
    device_key = importlib.import_module("fusion_ops.runtime.device").DeviceKey
    check = support.Support(pack._pack.table)
    h100 = device_key("sm90", 132, 79)
    for op in ("rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"):
        check.check_key(op, "output", h100, hidden_size=N)
        with pytest.raises(support.NoMatchError, match=r"no kernels of rmsnorm.*hidden_size 128"):
            check.check_key(op, "output", h100, hidden_size=128)
        with pytest.raises(support.NoMatchError, match="gfx942"):
            check.check_key(op, "output", device_key("gfx942", 304, 192), hidden_size=N)
    with pytest.raises(support.NoMatchError, match="of type xpu"):
        check.check("rmsnorm_mxfp4_quant", "none", torch.device("xpu"), hidden_size=N)
    support.Support(pack._pack.table, True).check("rmsnorm_mxfp4_quant", "none", torch.device("xpu"), hidden_size=N)


def test_a_graph_without_kernels_is_left_alone(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for_h100("fusion_ops", monkeypatch)
    for size, allowed, counts in ((N, False, {ADD: 1}), (128, False, {}), (128, True, {ADD: 1})):
        fusion = pack.fusion.FusionPass(allow_reference=allowed)
        compiled = Compiled(Model(pack, size), fusion)
        with nullcontext() if counts else pytest.warns(pack.TunegenPackWarning, match="no kernels of rmsnorm"):
            compiled(*inputs(33, size))
        assert fusion.report().counts() == counts
        assert (compiled.ops()["aten::rsqrt"] == 0) == bool(counts)
    assert pack.fusion.FusionPass().uuid() != fusion.uuid()
