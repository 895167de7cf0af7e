"""The layer of examples/decoder_layer.py: F2 and F3 in one model, bit for bit, at small sizes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import foreign_ops
import pytest
import torch
from graphs import Compiled

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def test_decoder_layer(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example, cpu = importlib.import_module("decoder_layer"), torch.device("cpu")
    foreign_ops.define()  # kept by other tests
    gemm = example.define_gemm()
    assert example.define_cache_write() is None
    torch.manual_seed(0)
    layer = example.DecoderLayer(pack, example.SMALL, cpu)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(layer, fusion, dynamic=None)
    for tokens in (16, 5):
        given, same = (example.make_inputs(example.SMALL, tokens, cpu) for _ in range(2))
        got, expected = [*compiled(*given), given[4]], [*layer(*same), same[4]]
        assert all(map(torch.equal, got, compiled.expected))
        rows = tokens * 2 + example.SMALL.slots
        assert example.difference(got, expected) == {"rows": rows, "different_rows": 0, "distance": 0.0}
        got[0][0, 0] += 1
        assert example.difference(got, expected)["different_rows"] == 1
    assert fusion.report().counts() == {
        "fused_add_rms_norm -> dynamic_mxfp4_quant": 2,
        "rms_norm -> dynamic_mxfp4_quant": 1,
        "rope + cat + concat_and_cache_mla -> mla_rope_cache": 1,
    }
    assert fusion.report().misses == []
    ops = compiled.ops()
    assert ops["fusion_ops::dynamic_mxfp4_quant"] == 2  # of attention's output and of the activation function's
    assert not {"_C_cache_ops::concat_and_cache_mla", "auto_functionalized"} & set(ops)
    del gemm
