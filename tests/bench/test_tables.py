"""The table scripts run from end to end: here in Triton's interpreter, with small token counts and no clock.

On a GPU they are run as they are. With ``--aiter-root`` or an installed amd-aiter, AITER's kernels take part.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from interpreting_aiter import prepare

from tunegen.configs import TunedBucket, TunedEntry, save_entries
from tunegen.evaluate import interpreter as bf16_interpreter
from tunegen.evaluate.conformance import Case
from tunegen.ops import FAMILIES, Family, Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.targets import Device, get_target

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TARGET = get_target("sm90")

# --- In the interpreting process ---


class CpuWorkload:
    """As `tunegen.evaluate.measure.Workload`, on the CPU."""

    def __init__(self, problem: Problem, num_tokens: int) -> None:
        self.op, self.units = OPS[problem.op], bf16_interpreter.UNITS
        self.bytes = get_family(problem.op).bytes_moved(problem, num_tokens)
        generator = torch.Generator().manual_seed(0)
        given = (problem.sizes, num_tokens, torch.bfloat16, torch.device("cpu"), generator, problem.rounding)
        self.inputs = [self.op.inputs(*given) for _ in range(2)]
        self.outputs = [self.op.allocate(*args) for args in self.inputs]

    def launch(self, kernel: Any) -> Callable[[int], None]:
        return lambda index: self.op.launch(kernel, self.units, self.outputs[index % 2], *self.inputs[index % 2])


class OneCall:
    """As `tunegen.evaluate.measure.Replay`, run once; each takes a microsecond more than the one before."""

    made = 0

    def __init__(self, run: Callable[[int], None], sets: int = 2, calls: int | None = None) -> None:
        OneCall.made += 1
        self.microseconds = float(OneCall.made)
        run(0)

    def sample(self) -> float:
        return self.microseconds


def run_script(name: str, changes: dict[str, Any], arguments: Sequence[Any]) -> Result:
    """The script's command with some of its constants changed."""
    prepare()
    sys.path.insert(0, str(BENCHMARKS))
    tables, script = importlib.import_module("tables"), importlib.import_module(name)
    stand_ins = {
        "present_device": lambda: Device(0, "an interpreted H100", TARGET.device, TARGET),
        "copy_bandwidth": lambda: 2e12,
        "empty_kernel_replay": lambda: OneCall(lambda _: None),
        "Workload": CpuWorkload,
        "Replay": OneCall,
        "OnDevice": OneProcess,
        "compile_ahead": lambda problems, target: [list(timed) for _, timed in problems],  # nothing compiles here
        **changes,
    }
    # Compiling for the CPU has nothing to do with the scripts.
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    for family in FAMILIES:
        take_few_twins(type(family))
    for module in (tables, script):
        put(module, stand_ins)
    return CliRunner().invoke(script.main, [str(argument) for argument in arguments])


class OneProcess:
    """As `tunegen.evaluate.on_device.OnDevice`, in this process."""

    def __init__(self, workers: int, device: int) -> None:
        pass

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, path: Path, case: Case, lanes: int) -> Future[list[str]]:
        future: Future[list[str]] = Future()
        future.set_result(bf16_interpreter.run_task(path, case, lanes))
        return future


def take_few_twins(family: type[Family]) -> None:
    every = family.twin_configs
    # The process that this runs in is this test's alone.
    family.twin_configs = lambda self, *given: every(self, *given)[::8]  # type: ignore[method-assign]


def put(module: ModuleType, stand_ins: dict[str, Any]) -> None:
    for name, value in stand_ins.items():
        if hasattr(module, name):
            setattr(module, name, value)


# --- Here ---


def in_child(name: str, changes: dict[str, Any], arguments: Sequence[Any]) -> tuple[int, str]:
    """Exit status of the script and what it prints."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=bf16_interpreter.start_worker) as pool:
        return pool.submit(outcome, name, changes, arguments).result()


def some_aiter(root: Path | None) -> tuple[str, str]:
    return "a baseline", "a baseline"


def facts(device: Device, aiter: str) -> dict[str, Any]:
    return {"device": device.name, "torch": "", "triton": "", "policy": "", "copy_gbs": 1.0}


def rotates_and_writes_no_cache(aiter: str, args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> None:
    kv_cache = args[6].clone()
    for output, right in zip(outputs, OPS["mla_rope_cache"].reference(*args[:6], kv_cache, *args[7:]), strict=True):
        output.copy_(right)


def writes_next_slot_too(aiter: str, args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> None:
    for output, right in zip(outputs, OPS["mla_rope_cache"].reference(*args), strict=True):
        output.copy_(right)
    args[6].view(-1, args[6].shape[-1])[args[7] + 1] = 0


def outcome(name: str, changes: dict[str, Any], arguments: Sequence[Any]) -> tuple[int, str]:
    result = run_script(name, changes, arguments)
    failed = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.output + (repr(result.exception) if failed else "")


@pytest.fixture
def aiter_arguments(pytestconfig: pytest.Config) -> list[str]:
    root = pytestconfig.getoption("--aiter-root")
    return ["--aiter-root", root] if root else []


def table_lines(output: str) -> list[list[str]]:
    """The cells of a table's lines, without its head."""
    lines = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if line[0].strip().isdigit()]


def test_f3_table(tmp_path: Path, aiter_arguments: list[str]) -> None:
    sizes = {"num_heads": 4, "kv_lora_rank": 512, "rope_dim": 64}
    problem = Problem.of("mla_rope_cache", sizes)
    config = {**get_family(problem.op).default(problem, TARGET), "heads": 2}
    entry = TunedEntry(
        *(problem.op, "sm90", TARGET.device, sizes, "none", "bfloat16", "measured"),
        *("a template's", {}, 1, [TunedBucket(2, None, config)]),
    )
    save_entries(tmp_path / "configs", [entry])
    rows = ((4, "none", (1, 3)), (4, "none,fp8", (2,)))
    given = ["--configs", tmp_path / "configs", "--out", tmp_path / "out", *aiter_arguments]
    code, output = in_child("f3_table", {"ROWS": rows}, given)
    assert code == 0, output
    lines = table_lines(output)
    assert [line[:3] for line in lines] == [["4", "bf16", "1"], ["4", "bf16", "3"], ["4", "fp8", "2"]]
    assert [line[8] == "-" for line in lines] == [False, False, True]
    assert "No measured entry for mla_rope_cache (kv_lora_rank 512, num_heads 4, rope_dim 64, none,fp8)" in output
    compared = "AITER is not compared with." not in output
    assert [line[6] != "-" for line in lines] == [compared] * 3
    assert compared >= bool(aiter_arguments)
    assert (tmp_path / "out" / "f3_table.md").read_text() == output
    written = json.loads((tmp_path / "out" / "f3_table.json").read_text())
    assert written["copy_gbs"] == 2000
    assert [row["tokens"] for row in written["rows"]] == [1, 3, 2]
    assert ("aiter" in written["rows"][0]["us"]) == compared


@pytest.mark.parametrize(
    ("baseline", "found"),
    [
        pytest.param(rotates_and_writes_no_cache, "kv_cache of kv_c", id="no cache"),
        pytest.param(writes_next_slot_too, "kv_cache of other slots", id="another slot"),
    ],
)
def test_a_wrong_baseline_is_not_timed(tmp_path: Path, baseline: Any, found: str) -> None:
    save_entries(tmp_path, [])
    changes = {"ROWS": ((4, "none", (1,)),), "aiter_if_there": some_aiter, "mla_rope_cache": baseline, "about": facts}
    code, output = in_child("f3_table", changes, ["--configs", tmp_path])
    assert code == 1
    assert "1 tokens: AITER does not compute what the op does: kv_cache of" in output
    assert found in output
    assert table_lines(output) == []


def test_f2_table(tmp_path: Path, aiter_arguments: list[str]) -> None:
    code, output = in_child("f2_table", {"TOKENS": (1,)}, ["--json", tmp_path / "f2.json", *aiter_arguments])
    assert code == 0, output
    lines = table_lines(output)
    compared = "AITER is not compared with." not in output
    assert compared >= bool(aiter_arguments)
    assert [len(line) for line in lines] == [12 + 4 * compared] * 2
    written = json.loads((tmp_path / "f2.json").read_text())
    assert [row["op"] for row in written["rows"]] == ["rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"]
    assert ("unfused" in written["rows"][0]["us"]) == compared


def test_forms_table(tmp_path: Path) -> None:
    ops = ("rmsnorm_add_mxfp4_quant", "dual_rmsnorm", "silu_mul_mxfp4_quant", "rmsnorm_fp8_group_quant")
    sizes = {
        "SIZES": {"hidden_size": 256, "intermediate_size": 64},
        "TWO_SIZES": {"hidden_size": 64, "second_size": 32},
    }
    changes = {"TOKENS": (1, 3), "VERIFIED_TOKENS": (3,), **sizes}
    given = [part for op in ops for part in ("--op", op)]
    code, output = in_child("forms_table", changes, [*given, "--out", tmp_path])
    assert code == 0, output
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")][1:]
    forms = [*ops[:1], ops[2], ops[1], ops[3], f"{ops[0]}, shuffled", f"{ops[0]}, padded"]
    assert [line[:2] for line in lines] == [[form, tokens] for form in forms for tokens in ("1", "3")]
    assert [line[4] == "-" for line in lines] == [line[0] == "dual_rmsnorm" for line in lines]
    written = json.loads((tmp_path / "forms_table.json").read_text())
    assert [row["op"] for row in written["rows"]] == [line[0].partition(",")[0] for line in lines]


def test_a_folder_without_aiter_ends_a_script(tmp_path: Path) -> None:
    code, output = in_child("f3_table", {}, ["--aiter-root", tmp_path])
    assert code == 1
    assert f"must hold aiter/ops/triton; {tmp_path} does not" in output
