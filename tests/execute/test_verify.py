"""tunegen verify of a target that is not here executes its kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.configs import load_entries, save_entries
from tunegen.errors import UsageError
from tunegen.evaluate.executor import executable, execute_case
from tunegen.execute.driver import Executed
from tunegen.execute.errors import ListingError
from tunegen.execute.launch import execute
from tunegen.ops import Problem
from tunegen.paths import tuned_configs_dir
from tunegen.targets import TARGETS, get_target, present_device


def test_verify_executes_gfx950_without_a_gpu(tmp_path: Path) -> None:
    device = present_device()
    if device is not None and device.target.name == "gfx950":
        pytest.skip("the device itself is here: verify runs on it")
    out = str(tmp_path / "tuned")
    op, size = "dynamic_mxfp4_quant", {"hidden_size": 512}
    which = ["--target", "gfx950", "--op", op, "--hidden-size", "512"]
    shipped = load_entries(tuned_configs_dir(), ["gfx950"])
    (entry,) = (entry for entry in shipped if entry.problem == Problem.of(op, size))
    save_entries(Path(out), [replace(entry, buckets=entry.buckets[-1:])])
    result = CliRunner().invoke(cli, ["verify", *which, "--configs", out], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "executed (functional), not timed" in " ".join(result.output.split())
    assert "software conversion" not in result.output
    assert result.output.rstrip().endswith(" 0 failures")
    asked = CliRunner().invoke(cli, ["verify", *which, "--interpret", "--configs", out], catch_exceptions=False)
    assert asked.exit_code == 0, asked.output
    assert "software conversion" in asked.output
    assert "executed (functional)" not in " ".join(asked.output.split())


def test_which_targets_are_executable() -> None:
    assert [name for name, target in TARGETS.items() if executable(target)] == ["gfx950", "gfx942"]
    with pytest.raises(UsageError, match="runs gfx942, gfx950; sm90 is none of them"):
        Executed(None, get_target("sm90"))


def test_a_kernel_that_breaks_a_rule_is_a_failure_with_its_line(tmp_path: Path) -> None:
    """It reads a row past the end of x, whatever the numbers are."""
    from tunegen.codegen.render import render
    from tunegen.evaluate.conformance import candidates
    from tunegen.ops import get_family

    problem, target = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 512}), get_target("gfx950")
    path = render(problem, target, get_family(problem.op).default(problem, target)).write(tmp_path)
    source = path.read_text(encoding="utf-8")
    broken = tmp_path / "broken.py"
    broken.write_text(source.replace("first_row * x_stride", "(first_row + 1) * x_stride"), encoding="utf-8")
    assert broken.read_text(encoding="utf-8") != source
    case = next(case for case in candidates([problem], [3], target) if case.layout == "contiguous")
    (found,) = execute_case(broken, case, 64, "gfx950")
    assert found.startswith("ExecutionError: line ")
    assert "reads" in found
    assert "outside the buffers given" in found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v_mov_b32 v0, v1", "no .amdgcn_target line"),
        ('.amdgcn_target "amdgcn-amd-amdhsa--gfx1100"', "knows gfx942, gfx950; the listing is for gfx1100"),
        ('.amdgcn_target "amdgcn-amd-amdhsa--gfx950"', "must have one kernel; this one has 0"),
    ],
)
def test_what_is_no_listing_is_refused(text: str, says: str) -> None:
    with pytest.raises(ListingError, match=says):
        execute(text, (1, 1, 1), 1, 0, [("*fp32", torch.zeros(1))])
