"""`tunegen emit` and `tunegen verify` of a part of the tuned configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.cli._options import part
from tunegen.models import get_model, problems_of
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir

NORM, ADD, QUANT = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant", "dynamic_mxfp4_quant"
ROPE, ROPE_INPLACE = "mla_rope_cache", "mla_rope_cache_"


def emitted(folder: Path, *options: str) -> tuple[set[tuple[str, int]], str]:
    """Op and hidden size or heads of every entry of a pack of what ships, and what was said on standard error."""
    out = folder / "pack"
    arguments = ["emit", "--configs", str(tuned_configs_dir()), "--target", "sm90", "--out", str(out), *options]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "tunegen_ops" / "manifest.json").read_text(encoding="utf-8"))
    shapes = [(entry["op"], entry["shape"]) for entry in manifest["entries"]]
    return {(op, shape.get("hidden_size") or shape["num_heads"]) for op, shape in shapes}, done.stderr


def test_a_pack_of_a_model(tmp_path: Path) -> None:
    found, said = emitted(tmp_path, "--model", "deepseek-r1")
    norms = {(op, size) for op in (QUANT, NORM) for size in (7168, 1536, 512)}
    assert found == norms | {(ADD, 7168), (ROPE, 128), (ROPE_INPLACE, 128)}
    assert said == ""


def test_what_a_model_lacks_is_said(tmp_path: Path) -> None:
    found, said = emitted(tmp_path, "--model", "kimi-k2", "--tp", "8", "--op", ADD, "--op", ROPE)
    assert found == {(ADD, 7168)}
    assert said.splitlines() == [
        "not tuned for sm90: mla_rope_cache (kv_lora_rank 512, num_heads 8, rope_dim 64); `tunegen tune` does"
    ]


def test_a_target_that_lacks_all_is_said(tmp_path: Path) -> None:
    shutil.copytree(tuned_configs_dir() / "sm90", tmp_path / "tuned" / "sm90")
    shutil.copytree(tuned_configs_dir() / "gfx950", tmp_path / "tuned" / "gfx950")
    (tmp_path / "tuned" / "gfx950" / f"{ADD}.json").unlink()
    arguments = ["emit", "--configs", str(tmp_path / "tuned"), "--out", str(tmp_path / "p"), "--model", "deepseek-r1"]
    done = CliRunner().invoke(cli, [*arguments, "--op", ADD, "--op", "dual_rmsnorm"], catch_exceptions=False)
    assert done.stderr.splitlines() == [
        f"not tuned for gfx950: {ADD} (hidden_size 7168); `tunegen tune` does",
        "not tuned for gfx950: dual_rmsnorm (hidden_size 1536, second_size 512); `tunegen tune` does",
        "not tuned for sm90: dual_rmsnorm (hidden_size 1536, second_size 512); `tunegen tune` does",
    ]


def test_sizes_of_several_ops_and_a_model(tmp_path: Path) -> None:
    found, said = emitted(tmp_path, "--op", NORM, "--op", ROPE_INPLACE, "--hidden-size", "5120", "--num-heads", "16")
    assert found == {(NORM, 5120), (ROPE_INPLACE, 16)}
    assert said == ""


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({}, {(NORM, 512), (NORM, 5120), (ADD, 512), (ADD, 7168)}),
        ({"model": "deepseek-r1"}, {(NORM, 512), (ADD, 7168)}),
        ({"model": "deepseek-r1", "hidden_size": (5120,)}, {(NORM, 512), (ADD, 7168), (NORM, 5120)}),
        ({"model": "deepseek-r1", "ops": [NORM]}, {(NORM, 512)}),
        ({"hidden_size": (512, 7168)}, {(NORM, 512), (ADD, 512), (ADD, 7168)}),
        ({"num_heads": (16,)}, set()),
        ({"num_heads": (16,), "hidden_size": (7168,)}, {(ADD, 7168)}),
    ],
)
def test_which_problems_are_meant(options: dict[str, object], meant: set[tuple[str, int]]) -> None:
    given = {name: value for name, value in options.items() if name not in ("model", "ops")}
    chosen = part(options.get("model"), 1, options.get("ops", ()), given)  # type: ignore[arg-type]  # options of a test
    every = [(NORM, 512), (NORM, 5120), (ADD, 512), (ADD, 7168)]
    assert {(op, size) for op, size in every if chosen(Problem.of(op, {"hidden_size": size}))} == meant


def test_a_model_means_all_that_tune_tunes_of_it() -> None:
    chosen = part("deepseek-v2-lite", 2, (), {})
    assert all(map(chosen, problems_of(get_model("deepseek-v2-lite"), None, 2)))
    assert not any(chosen(problem) for problem in problems_of(get_model("deepseek-v2-lite"), [ROPE], 1))
