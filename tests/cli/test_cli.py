"""The command line: what a user sees, errors first of all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.codegen.render import template_hash
from tunegen.configs import TunedBucket, TunedEntry, load_entries, save_entries
from tunegen.errors import TunegenError
from tunegen.ops import Problem
from tunegen.ops.mla_rope import MLA_ROPE
from tunegen.paths import tuned_configs_dir
from tunegen.targets import get_target

TUNEGEN = [sys.executable, "-m", "tunegen"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def error(*arguments: str) -> str:
    """The message of the error that a command ends with."""
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, TunegenError), (result.output, result.exception)
    return str(result.exception)


def test_help_answers_at_once() -> None:
    """It imports neither torch nor triton nor optuna; the best of five is what this machine can do."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([*TUNEGEN, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "tunegen tune --model deepseek-r1" in done.stdout
    loaded = "import sys, tunegen.cli; print({'torch', 'triton', 'optuna', 'jinja2', 'rich'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_errors_end_with_status_1_and_no_traceback() -> None:
    done = subprocess.run(
        [*TUNEGEN, "render", "rmsnorm", "--hidden-size", "512"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no op 'rmsnorm'.")
    assert "Traceback" not in done.stderr


def test_lists() -> None:
    assert "deepseek-r1" in run("models")
    assert "rmsnorm_add_mxfp4_quant(Tensor x, Tensor residual" in run("ops").replace("\n", "")
    assert "gfx950" in run("targets")
    shown = run("show", "--target", "sm90", "--op", "rmsnorm_mxfp4_quant")
    assert "measured" in shown
    assert "predicted," not in shown
    assert "predicted" in run("show", "--target", "gfx950")


def test_local_configs_come_before_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tunegen tune` wrote here is what the other commands read here."""
    (own,) = (
        e
        for e in load_entries(tuned_configs_dir(), ["gfx950"])
        if str(e.problem) == "rmsnorm_mxfp4_quant (hidden_size 512)"
    )
    monkeypatch.chdir(tmp_path)
    assert "hidden_size 7168" in run("show", "--target", "gfx950")
    save_entries(Path("tuned_configs"), [own])
    shown = run("show", "--target", "gfx950")
    assert "rmsnorm_mxfp4_quant (hidden_size 512)" in shown
    assert "hidden_size 7168" not in shown


def test_lists_have_the_second_family() -> None:
    shown = " ".join(run("ops").split())
    assert "mla_rope (templates/mla_rope_cache.py.jinja)" in shown
    assert "mla_rope_cache(Tensor q_nope, Tensor q_pe, Tensor kv_c" in shown
    assert "mla_rope_cache_(Tensor positions, Tensor(a!) q_pe" in shown
    assert "choices of mla_rope_cache (kv_lora_rank 512, num_heads 128," in shown
    assert "rows_apart, together, rope_apart" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in run("models").splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["deepseek-v2-lite"]] == ["2048", "-", "512", "64", "16"]
    assert [cell.strip() for cell in rows["kimi-k2"]] == ["7168", "1536", "512", "64", "64"]


def test_show_tells_variants_apart(tmp_path: Path) -> None:
    target, sizes = get_target("sm90"), {"num_heads": 16, "kv_lora_rank": 512, "rope_dim": 64}
    fields = {"median_us": 2.25, "default_us": 3.5, "twin_us": 1.75}
    entries = []
    for variant in ("none", "none,fp8"):
        problem = Problem.of("mla_rope_cache", sizes, variant)
        bucket = TunedBucket(1, None, {**MLA_ROPE.default(problem, target), "split": "together"}, fields)
        entry = TunedEntry(
            op="mla_rope_cache",
            target="sm90",
            device=target.device,
            shape=sizes,
            variant=variant,
            dtype="bfloat16",
            evidence="measured",
            template_hash=template_hash(MLA_ROPE.template),
            environment={"device_name": target.device_name},
            trials=7,
            buckets=[bucket],
        )
        entries.append(entry)
    save_entries(tmp_path, entries)
    assert load_entries(tmp_path) == entries
    shown = " ".join(run("show", "--configs", str(tmp_path), "--op", "mla_rope_cache").split())
    shape = "mla_rope_cache (kv_lora_rank 512, num_heads 16, rope_dim 64"
    assert f"{shape}) on {target.device_name}" in shown
    assert f"{shape}, none,fp8) on {target.device_name}" in shown
    assert shown.count("measured, 7 configs tried") == 2
    assert "2.25 │ 3.50 │ 1.75" in shown
    assert "split=together" in shown
    assert run("show", "--configs", str(tmp_path), "--op", "mla_rope_cache_").strip() == ""


def test_render_of_a_variant() -> None:
    render = ("render", "mla_rope_cache", "--num-heads", "16", "--target", "sm90")
    usual, fp8 = run(*render), run(*render, "--variant", "act,fp8")
    assert "# shape     kv_lora_rank=512, num_heads=16, rope_dim=64\n# rounding  none\n" in usual
    assert "# rounding  act,fp8\n" in fp8
    assert "k_scale_ptr" not in usual
    assert "k_scale_ptr" in fp8
    compile(fp8, "kernel", "exec")
    assert run(*render, "--rounding", "act,fp8") == fp8
    # Flags have an order of their own, in which kernels are named.
    assert run(*render, "--variant", "none,q_fp8,neox") == run(*render, "--variant", "none,neox,q_fp8")
    inplace = run("render", "mla_rope_cache_", "--num-heads", "16", "--target", "sm90", "--set", "heads=16")
    assert "# rounding  act\n" in inplace
    assert "heads=16" in inplace


def test_render() -> None:
    source = run("render", "rmsnorm_mxfp4_quant", "--hidden-size", "7168", "--target", "gfx950", "--set", "num_warps=8")
    assert "num_warps=8" in source
    compile(source, "kernel", "exec")
    assert "registers" in run(
        "render", "dynamic_mxfp4_quant", "--hidden-size", "512", "--target", "sm90", "--resources"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("render", "rmsnorm_mxfp4", "--hidden-size", "512"), "Did you mean 'rmsnorm_mxfp4_quant'"),
        (("render", "rmsnorm_mxfp4_quant", "--hidden-size", "500"), "multiple of 32"),
        (("render", "rmsnorm_mxfp4_quant", "--hidden-size", "512", "--target", "h100"), "no target 'h100'"),
        (("render", "rmsnorm_mxfp4_quant", "--hidden-size", "512", "--set", "warps=2"), "Did you mean 'num_warps'"),
        (("render", "rmsnorm_mxfp4_quant", "--hidden-size", "512", "--set", "num_warps"), "--set takes key=value"),
        (("render", "rmsnorm_mxfp4_quant", "--hidden-size", "512", "--rounding", "half"), "no rounding 'half'"),
        (("render", "mla_rope_cache", "--num-heads", "16", "--variant", "nonsense"), "a variant is one of none, act"),
        (
            ("render", "mla_rope_cache_", "--num-heads", "16", "--variant", "act,q_fp8"),
            "no variants pe_first and q_fp8",
        ),
        (("render", "mla_rope_cache", "--variant", "act"), "mla_rope_cache needs --num-heads, or --model NAME"),
        (("render", "mla_rope_cache", "--hidden-size", "512"), "mla_rope_cache needs --num-heads"),
        (("render", "rmsnorm_mxfp4_quant", "--num-heads", "16"), "rmsnorm_mxfp4_quant needs --hidden-size"),
        (("render", "mla_rope_cache", "--num-heads", "16", "--num-heads", "32"), "give each size once"),
        (("render", "mla_rope_cache", "--num-heads", "0"), "num_heads must be from 1 to 1024; got 0"),
        (("render", "mla_rope_cache", "--num-heads", "16", "--rope-dim", "12"), "The next multiple is 16"),
        (("render", "mla_rope_cache", "--num-heads", "16", "--set", "rows=2"), "no config key 'rows'"),
        (("tune", "--op", "mla_rope_cache"), "mla_rope_cache needs --num-heads, or --model NAME"),
        (
            ("tune", "--model", "deepseek-r1", "--tp", "3"),
            "--tp must divide the 128 heads of deepseek-r1 evenly; got 3",
        ),
        (("tune", "--model", "deepseek-r1", "--tp", "0"), "--tp must divide the 128 heads"),
        (("tune",), "Say what for: --model NAME"),
        (("tune", "--model", "deepseek_r1"), "Did you mean 'deepseek-r1'"),
        (("tune", "--hidden-size", "512", "--tokens", "1,x"), "Token counts are positive integers"),
        (("tune", "--hidden-size", "512", "--tokens", "0"), "Token counts are positive integers"),
        (("tune", "--hidden-size", "512", "--target", "sm100"), "no performance limits of sm100"),
        (("tune", "--hidden-size", "512", "--timeout", "soon"), "--timeout takes a time such as 90s, 10m or 1h"),
        (("tune", "--hidden-size", "512", "--timeout", "0s"), "--timeout takes a time such as 90s, 10m or 1h"),
        (("tune", "--hidden-size", "512", "--devices", "a"), "--devices takes GPU indices"),
        (("tune", "--hidden-size", "512", "--devices", "99"), "--devices names GPU 99, but"),
        (("show", "--failures", "--storage", "sqlite:///NOWHERE"), "There is no storage sqlite:///"),
        (("emit", "--out", "OUT", "--configs", "NOWHERE"), "no tuned_configs folder"),
        (("emit", "--out", "OUT", "--name", "not-a-name"), "not-a-name"),
        (("emit", "--out", "OUT", "--hidden-size", "7136"), "no entry of these ops and shapes"),
        (("emit", "--out", "OUT", "--model", "deepseek"), "Did you mean 'deepseek-"),
        (("verify", "--pack", "no_such_pack"), "no package 'no_such_pack'"),
        (("verify", "--pack", "json"), "is not a pack that tunegen emitted"),
        (("verify", "--target", "gfx94"), "Did you mean 'gfx942'"),
        (("verify", "--hidden-size", "7136"), "nothing to verify"),
        (("show", "--op", "nothing"), "no op 'nothing'"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    replaced = {"OUT": str(tmp_path / "out"), "NOWHERE": str(tmp_path / "nowhere")}
    assert message in error(*(replaced.get(argument, argument) for argument in arguments))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = error("tune", "--hidden-size", "512", "--target", "gfx942", "--out", str(tmp_path / "file" / "out"))
    assert "The output folder" in message
    assert "must be one that files can be written to" in message


def test_measuring_needs_the_target(tmp_path: Path) -> None:
    message = error(
        "tune", "--hidden-size", "512", "--target", "gfx942", "--evidence", "measured", "--out", str(tmp_path)
    )
    assert "--evidence measured needs a gfx942 GPU" in message
    assert "--evidence predicted" in message
