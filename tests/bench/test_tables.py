"""The table scripts run from end to end: here in Triton's interpreter, with small token counts and no clock.

On a GPU they are run as they are. With ``--aiter-root`` or an installed amd-aiter, AITER's kernels take part.
"""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from interpreting_aiter import prepare

from tunegen import targets
from tunegen.bench.baselines import Baseline
from tunegen.bench.compare import Judge, Row
from tunegen.bench.plot import plot
from tunegen.bench.report import Environment
from tunegen.configs import TunedBucket, TunedEntry, load_entries, save_entries
from tunegen.errors import BenchError, TunegenError, UsageError
from tunegen.evaluate import interpreter as bf16_interpreter
from tunegen.evaluate import measure
from tunegen.evaluate.conformance import Case
from tunegen.evaluate.measure import Timing
from tunegen.oppack import emit_pack
from tunegen.ops import FAMILIES, Family, Problem, get_family
from tunegen.runtime.families import OPS
from tunegen.runtime.families.recipe import RECIPES
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


def prepared(changes: dict[str, Any]) -> dict[str, Any]:
    """What needs a GPU or takes long, and what a test changes, replaced in all modules that have it; all of it."""
    prepare()
    stand_ins = {
        "copy_bandwidth": lambda: 2e12,
        "empty_kernel_replay": lambda: OneCall(lambda _: None),
        "Workload": CpuWorkload,
        "Replay": OneCall,
        "OnDevice": OneProcess,
        "time_interleaved": lambda replays, rounds, warmup=2: [Timing.of([r.microseconds] * rounds) for r in replays],
        "compile_ahead": lambda problems, target: [list(timed) for _, timed in problems],  # nothing compiles here
        **changes,
    }
    # Compiling for the CPU has nothing to do with the scripts.
    torch.compile = lambda function, **_: function  # type: ignore[assignment]  # of another shape
    targets.present_device = lambda index=0: Device(0, "an interpreted H100", TARGET.device, TARGET)
    for family in FAMILIES:
        take_one_twin(type(family))
    measure.time_interleaved = stand_ins["time_interleaved"]
    modules = ("line", "compare", "report", "run", "baselines", "aiter.ops")
    for module in (importlib.import_module(f"tunegen.bench.{name}") for name in modules):
        put(module, stand_ins)
    return stand_ins


def run_script(name: str, changes: dict[str, Any], arguments: Sequence[Any]) -> Result:
    """A table script's command, or `tunegen bench`, with some of its constants changed and a folder to import from."""
    stand_ins = prepared(changes)
    sys.path.insert(0, str(changes.get("import_from", BENCHMARKS)))
    if name == "bench":
        command = importlib.import_module("tunegen.cli.bench").bench
    else:
        script = importlib.import_module(name)
        put(script, stand_ins)
        command = script.main
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


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


def take_one_twin(family: type[Family]) -> None:
    every = family.twin_configs
    # The process that this runs in is this test's alone.
    family.twin_configs = lambda self, *given: every(self, *given)[:1]  # type: ignore[method-assign]  # see above


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


def outcome(name: str, changes: dict[str, Any], arguments: Sequence[Any]) -> tuple[int, str]:
    result = run_script(name, changes, arguments)
    failed = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.output + (repr(result.exception) if failed else "")


@pytest.fixture
def aiter_arguments(pytestconfig: pytest.Config) -> list[str]:
    root = pytestconfig.getoption("--aiter-root")
    return ["--aiter-root", root] if root else []


def tables(output: str) -> list[list[dict[str, str]]]:
    """The lines of each Markdown table, by column."""
    found: list[list[dict[str, str]]] = []
    head: list[str] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
            found.append([])
        elif cells[0] != "---":
            found[-1].append(dict(zip(head, cells, strict=True)))
    return found


def tuned(folder: Path, entries: Sequence[tuple[Problem, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Writes entries of the default configs, changed, for all token counts; returns the configs."""
    configs = [{**get_family(problem.op).default(problem, TARGET), **change} for problem, change in entries]
    made = [
        TunedEntry(
            *(problem.op, "sm90", TARGET.device, problem.sizes, problem.rounding, "bfloat16", "measured"),
            *("a template's", {}, 1, [TunedBucket(2, None, config)]),
        )
        for (problem, _), config in zip(entries, configs, strict=True)
    ]
    save_entries(folder, made)
    return configs


def tuned_rope(folder: Path) -> None:
    sizes = {"num_heads": 4, "kv_lora_rank": 512, "rope_dim": 64}
    changes = (("mla_rope_cache", "none", {"heads": 2}), ("mla_rope_cache_", "act", {}))
    tuned(folder, [(Problem.of(op, sizes, variant), change) for op, variant, change in changes])


def test_f3_table(tmp_path: Path, aiter_arguments: list[str]) -> None:
    tuned_rope(tmp_path / "configs")
    rows = ((4, "none", (1, 3)), (4, "none,fp8", (2,)))
    given = ["--configs", tmp_path / "configs", "--out", tmp_path / "out", *aiter_arguments]
    code, output = in_child("f3_table", {"ROWS": rows}, given)
    assert code == 0, output
    plain, fp8 = tables(output)
    assert [[line["tokens"] for line in table] for table in (plain, fp8)] == [["1", "3"], ["2"]]
    assert [line["tuned"] == "-" for line in (*plain, *fp8)] == [False, False, True]
    assert "Not tuned for this device: the default config stands for the op." in output
    compared = "AITER is not compared with" not in output
    assert compared >= bool(aiter_arguments)
    for line in (*plain, *fp8):
        assert ("AITER" in line) == compared
        assert float(line["Inductor"]) > 0
        assert float(line["unfused"]) > 0
    assert (tmp_path / "out" / "f3_table.md").read_text() in output
    written = json.loads((tmp_path / "out" / "f3_table.json").read_text())
    assert written["environment"]["copy_gbs"] == 2000
    assert [row["tokens"] for row in written["rows"]] == [1, 3, 2]
    assert ("aiter" in written["rows"][0]["us"]) == compared


def test_f2_table(tmp_path: Path, aiter_arguments: list[str]) -> None:
    code, output = in_child("f2_table", {"TOKENS": (1,)}, ["--json", tmp_path / "f2.json", *aiter_arguments])
    assert code == 0, output
    compared = "AITER is not compared with" not in output
    assert compared >= bool(aiter_arguments)
    for table, fused in zip(tables(output), (True, True, False), strict=True):
        assert len(table) == 1
        assert (
            {"hand-written", "unfused"} <= set(table[0]) if fused else not {"hand-written", "unfused"} & set(table[0])
        )
        assert {"empty", "twin", "Inductor", "default", "tuned", "of twin", "x default", "noise"} <= set(table[0])
        assert ("AITER" in table[0]) == compared
    written = json.loads((tmp_path / "f2.json").read_text())
    assert [row["op"] for row in written["rows"]] == [
        *("rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant", "dynamic_mxfp4_quant")
    ]


def reference_as_aiters(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `Aiter.dynamic_mxfp4_quant`: the scales lie column by column."""
    q, scales = OPS["dynamic_mxfp4_quant"].reference(x)
    return q, scales.t().contiguous().t()


def wrong_of_three(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, scales = reference_as_aiters(x)
    return (q.flip(0) if x.shape[0] == 3 else q), scales


def stand_in_for_aiter(_: Path | None, quantise: Any = reference_as_aiters) -> tuple[Any, str]:
    return SimpleNamespace(dynamic_mxfp4_quant=quantise, origin="the reference in its place"), ""


def forms_output(folder: Path, ops: Sequence[str], changes: dict[str, Any], given: Sequence[Any]) -> tuple[int, str]:
    sizes = {
        "SIZES": {"hidden_size": 256, "intermediate_size": 64},
        "TWO_SIZES": {"hidden_size": 64, "second_size": 32},
    }
    asked = [part for op in ops for part in ("--op", op)]
    return in_child("forms_table", {"VERIFIED_TOKENS": (3,), **sizes, **changes}, [*asked, "--out", folder, *given])


def test_forms_table(tmp_path: Path, aiter_arguments: list[str]) -> None:
    ops = ("rmsnorm_add_mxfp4_quant", "dual_rmsnorm")
    size = {"hidden_size": 256}
    problems = [Problem.of(op, size) for op in (ops[0], "dynamic_mxfp4_quant")]
    configs = tuned(tmp_path / "configs", [(problem, {"num_warps": 2}) for problem in problems])
    assert all(get_family(problem.op).default(problem, TARGET)["num_warps"] != 2 for problem in problems)
    changes = {"TOKENS": (3,)} | ({} if aiter_arguments else {"aiter_if_there": stand_in_for_aiter})
    code, output = forms_output(tmp_path, ops, changes, ["--configs", tmp_path / "configs", *aiter_arguments])
    assert code == 0, output
    (lines,) = tables(output)
    forms = [*ops, f"{ops[0]}, shuffled", f"{ops[0]}, padded"]
    assert [(line["form"], line["tokens"]) for line in lines] == [(form, "3") for form in forms]
    for line in lines:
        quantises, fused = line["form"] != "dual_rmsnorm", float(line["fused us"])
        assert (line["our quantiser us"] != "-") == quantises
        for whose, timed in (("AITER's", quantises), ("our", True)):
            times, speed_up = line[f"unfused us ({whose} quantiser)"], line[f"speed-up ({whose} quantiser)"]
            assert [times == "-", speed_up == "-"] == [not timed] * 2
            assert not timed or speed_up == f"{float(times) / fused:.2f}"
        assert (line["config"] == "tuned") == quantises
    assert output.count("Below 1.3 with ") == 2
    written = json.loads((tmp_path / "forms_table.json").read_text())
    assert [row["op"] for row in written["rows"]] == [line["form"].partition(",")[0] for line in lines]
    for row in written["rows"]:
        assert row["tuned"] == (row["op"] == ops[0])
        assert not row["tuned"] or [row["config"], row["quantiser_config"]] == configs


def always_wrong(*_: Any) -> list[str]:
    """As `unfused_forms.wrong_in`, of sequences whose first step is wrong."""
    return ["the sum is wrong"]


def test_a_first_step_that_is_wrong_is_in_both_sequences(tmp_path: Path) -> None:
    op = "silu_mul_mxfp4_quant"
    changes = {"TOKENS": (3,), "aiter_if_there": stand_in_for_aiter, "wrong_in": always_wrong}
    code, output = forms_output(tmp_path, [op], changes, [])
    assert code == 1
    ((line,),) = tables(output)
    assert [line[f"unfused us ({whose} quantiser)"] for whose in ("AITER's", "our")] == ["-", "-"]
    assert output.count("not timed: the sum is wrong") == 2


def test_a_wrong_sequence_is_not_timed(tmp_path: Path) -> None:
    op = "silu_mul_mxfp4_quant"
    changes = {"TOKENS": (2, 3), "aiter_if_there": partial(stand_in_for_aiter, quantise=wrong_of_three)}
    code, output = forms_output(tmp_path, [op], changes, [])
    assert code == 1
    (lines,) = tables(output)
    assert [line["unfused us (AITER's quantiser)"] == "-" for line in lines] == [False, True]
    assert f"WRONG: {op} (none) at 3, unfused with AITER's quantiser, not timed: " in output
    assert f"wrong outputs, named beside the table: {op}" in output


# --- What is wrong is not timed ---

ROPE_SIZES = {"num_heads": 4, "kv_lora_rank": 64, "rope_dim": 16}


def judge_of(op: str, variant: str = "none") -> tuple[Judge, list[Any]]:
    sizes = dict(zip(OPS[op].sizes, (256, 64), strict=False)) if op in RECIPES else ROPE_SIZES
    problem = Problem.of(op, sizes, variant)
    workload = CpuWorkload(problem, 5)
    # What of a line is judged.
    line: Any = SimpleNamespace(problem=problem, tokens=5, workload=workload)
    return Judge(line), list(workload.inputs[0])


def without_cache(args: list[Any], at: int) -> list[Any]:
    return [arg.clone() if index == at else arg for index, arg in enumerate(args)]


def next_slot_too(op: str, args: list[Any], cache: int, slots: int) -> Any:
    given = OPS[op].reference(*args)
    args[cache].view(-1, args[cache].shape[-1])[args[slots] + 1] = 0
    return given


def half_of_it(op: str, args: list[Any]) -> Any:
    q, *rest = OPS[op].reference(*args)
    q[2:] = 0
    return q, *rest


WRONG: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "no cache": (
        *("mla_rope_cache", "none"),
        lambda args, _: OPS["mla_rope_cache"].reference(*without_cache(args, 6)),
        "kv_cache of kv_c",
    ),
    "another slot": (
        *("mla_rope_cache", "none,fp8"),
        lambda args, _: next_slot_too("mla_rope_cache", args, 6, 7),
        "kv_cache of other slots",
    ),
    "no cache, in place": (
        *("mla_rope_cache_", "act"),
        lambda args, _: OPS["mla_rope_cache_"].reference(*without_cache(args, 7)),
        "kv_cache of kv_c",
    ),
    "no rotation, in place": (
        *("mla_rope_cache_", "act"),
        lambda args, _: OPS["mla_rope_cache_"].reference(*without_cache(args, 1)),
        "q_out of q_pe",
    ),
    "half of it": (
        *("rmsnorm_add_mxfp4_quant", "none"),
        lambda args, _: half_of_it("rmsnorm_add_mxfp4_quant", args),
        "blocks of codes",
    ),
    "nothing": (*("dynamic_mxfp4_quant", "none"), lambda _, outputs: outputs, "scales"),
    "nothing, in another form": (
        *("rmsnorm_fp8_group_quant", "output,columns"),
        lambda _, outputs: outputs,
        "scales",
    ),
    "half of it, in another form": (
        *("dual_rmsnorm_add_and_mxfp4_quant", "none,shuffled"),
        lambda args, _: half_of_it("dual_rmsnorm_add_and_mxfp4_quant", args),
        "code magnitudes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_baseline_is_not_timed(name: str) -> None:
    op, variant, wrong, found = WRONG[name]
    judge, args = judge_of(op, variant)
    before = [arg.clone() for arg in args if isinstance(arg, torch.Tensor)]
    judge.check("right", lambda args, _: OPS[op].reference(*args), variant)
    with pytest.raises(BenchError, match=f"5 tokens: AITER does not compute what the op does: .*{found}"):
        judge.check("AITER", wrong, variant)
    after = [arg for arg in args if isinstance(arg, torch.Tensor)]
    assert all(
        torch.equal(*(t.contiguous().view(torch.uint8) for t in pair)) for pair in zip(before, after, strict=True)
    )


def test_a_folder_without_aiter_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "present_device", lambda index=0: Device(0, "a GPU", TARGET.device, TARGET))
    command = importlib.import_module("tunegen.cli.bench").bench
    result = CliRunner().invoke(command, ["--hidden-size", "96", "--aiter-root", str(tmp_path)])
    assert f"must hold aiter/ops/triton; {tmp_path} does not" in str(result.exception)


# --- tunegen bench ---


def test_bench(tmp_path: Path, aiter_arguments: list[str]) -> None:
    """All ops of a family, in place too, and every kind of output; then the same from the file that was written."""
    tuned_rope(tmp_path / "configs")
    files = {kind: tmp_path / f"bench.{kind}" for kind in ("json", "csv", "markdown")}
    given = ["--num-heads", 4, "--tokens", "1,3", "--configs", tmp_path / "configs", *aiter_arguments]
    outputs = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    code, output = in_child("bench", {}, [*given, *outputs])
    assert code == 0, output
    assert "mla_rope_cache_ (kv_lora_rank 512, num_heads 4, rope_dim 64, act)" in output
    lines = list(csv.DictReader(files["csv"].open()))
    assert {line["device"] for line in lines} == {"an interpreted H100"}
    for op, others in (("mla_rope_cache", {"unfused"}), ("mla_rope_cache_", set())):
        timed = {line["what"] for line in lines if line["op"] == op and line["tokens"] == "3"}
        expected = {"empty", "twin", "default", "default_again", "tuned", "tuned_again", "compiled", *others}
        assert expected <= timed
        assert timed - expected <= {"aiter", "twin_same_launch"}
    again = {kind: tmp_path / f"again.{kind}" for kind in ("json", "csv", "markdown")}
    source = ["--from", files["json"], *(part for kind, file in again.items() for part in (f"--{kind}", file))]
    result = CliRunner().invoke(importlib.import_module("tunegen.cli.bench").bench, [str(part) for part in source])
    assert result.exit_code == 0, result.output
    for kind, file in files.items():
        assert file.read_text() == again[kind].read_text()


def one_wrong(problem: Problem, aiter: object) -> list[Baseline]:
    """A baseline that is right and one that writes nothing."""

    def right(args: Sequence[Any], _: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(OPS[problem.op].reference(*args))

    return [Baseline("compiled", right), Baseline("aiter", lambda args, outputs: tuple(outputs))]


def test_what_is_wrong_is_left_out_and_all_else_timed(tmp_path: Path) -> None:
    given = ["--op", "dynamic_mxfp4_quant", "--hidden-size", 96, "--tokens", "1,3", "--configs", tmp_path]
    files = ["--json", tmp_path / "bench.json", "--csv", tmp_path / "bench.csv"]
    code, output = in_child("bench", {"baselines_of": one_wrong}, [*given, *files])
    assert code == 1
    assert "AITER does not compute what the op does at 1, 3 tokens, and is not timed there." in output
    assert "BenchError" in output and "3 tokens: aiter does not compute what the op does: scales" in output
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 3]
    for row in rows:
        assert {"compiled", "default", "twin"} < set(row["us"]) and "aiter" not in row["us"]
        assert list(row["wrong"]) == ["aiter"]
    lines = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert [line["tokens"] for line in lines if line["what"] == "aiter" and not line["us"] and line["wrong"]] == [
        "1",
        "3",
    ]
    assert not [line for line in lines if line["what"] != "aiter" and (line["wrong"] or not line["us"])]


def the_op_wrong(problem: Problem, aiter: object) -> list[Baseline]:
    """What stands for the op of a pack, and writes nothing."""
    return [Baseline("tuned", lambda args, outputs: tuple(outputs))]


def test_an_op_that_is_wrong_ends_it(tmp_path: Path) -> None:
    given = ["--op", "dynamic_mxfp4_quant", "--hidden-size", 96, "--tokens", "1,3", "--configs", tmp_path]
    code, output = in_child(
        "bench", {"baselines_of": the_op_wrong, "BASELINES": ("tuned",)}, [*given, "--against", "tuned"]
    )
    assert code == 1 and "1 tokens: tuned does not compute what the op does" in output
    assert "3 tokens" not in output and "default" not in output.partition("does not compute")[2]


def test_bench_of_a_pack(tmp_path: Path) -> None:
    """On the CPU its op is the reference; it stands where the tuned kernel does."""
    tuned_rope(tmp_path / "configs")
    (entry, _) = load_entries(tmp_path / "configs", ["sm90"])
    emit_pack([entry], tmp_path / "pack", name="a_pack", allow_stale=True)
    (tmp_path / "none").mkdir()
    given = ["--op", entry.op, "--num-heads", 4, "--tokens", "3", "--configs", tmp_path / "none", "--pack", "a_pack"]
    changes = {"import_from": tmp_path / "pack"}
    code, output = in_child("bench", changes, [*given, "--against", "", "--csv", tmp_path / "bench.csv"])
    assert code == 0, output
    assert "Not tuned for this device" not in output
    lines = [line for line in csv.DictReader((tmp_path / "bench.csv").open()) if line["variant"] == "none"]
    assert {line["what"] for line in lines} == {
        *("empty", "twin", "twin_same_launch", "default", "default_again", "tuned", "tuned_again")
    }
    assert lines[0]["configs"].startswith("a_pack 0.")


def test_bench_needs_to_know_its_baselines() -> None:
    command = importlib.import_module("tunegen.cli.bench").bench
    result = CliRunner().invoke(command, ["--hidden-size", "96", "--against", "aiter,cutlass"])
    assert "--against takes any of compiled, unfused, aiter" in str(result.exception)
    result = CliRunner().invoke(command, ["--hidden-size", "96", "--pack", "no_such_pack"])
    assert isinstance(result.exception, TunegenError)


# --- What is said of times ---


def timing(*samples: float) -> Timing:
    return Timing.of(samples)


def row(**timings: Timing) -> Row:
    return Row(Problem.of("dynamic_mxfp4_quant", {"hidden_size": 96}), 1, 1000, {}, timings)


def test_a_ratio_within_noise_is_marked() -> None:
    """By how far our kernel differs from itself, by its spread, or by the spread of the ratio."""
    steady = timing(10.0, 10.0, 10.0, 10.0)
    slower = timing(10.3, 10.3, 10.3, 10.3)
    clear = row(tuned=steady, tuned_again=steady, default=slower)
    assert (str(clear.ratio("default")), clear.noise) == ("1.03±0.00", 0.0)
    assert (
        str(row(tuned=steady, tuned_again=timing(9.6, 9.6, 9.6, 9.6), default=slower).ratio("default")) == "1.03±0.00~"
    )
    wide = timing(9.0, 9.0, 11.0, 11.0)
    assert str(row(tuned=wide, tuned_again=wide, default=slower).ratio("default")).endswith("~")
    assert str(row(tuned=steady, tuned_again=steady, default=wide).ratio("default")).endswith("~")


def test_a_ratio_is_of_samples_taken_together() -> None:
    """A clock that falls by half in the middle changes both times and not their ratio."""
    falling = row(
        tuned=timing(10.0, 10.0, 20.0, 20.0), tuned_again=timing(10.0, 10.0, 20.0, 20.0), twin=timing(5, 5, 10, 10)
    )
    ratio = falling.ratio("twin")
    assert ratio is not None
    assert (ratio.value, ratio.spread) == (0.5, 0.0)
    assert falling.ratio("aiter") is None


# --- Plots ---


def two_rows() -> tuple[Environment, list[Row]]:
    environment = Environment("GPU", "sm90", 132, 79, "", "", "", "", "", 1.0, "", "", "")
    timings = {"empty": timing(1, 1), "twin": timing(2, 2), "tuned": timing(3, 3), "tuned_again": timing(3, 3)}
    problem = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 96})
    return environment, [Row(problem, tokens, 1000, {}, timings) for tokens in (1, 64)]


def test_plots_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install tunegen\[bench\]"):
        plot(*two_rows(), tmp_path)


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `bench`")
    (path,) = plot(*two_rows(), tmp_path)
    text = path.read_text()
    assert path.name == "dynamic_mxfp4_quant_hidden_size96_none.svg"
    assert text.count("microseconds a call") == 1
    assert "twin" in text


# --- Two runs of the tuner ---


def winners(folder: Path, rows: dict[int, int], between: bool = False) -> Path:
    """A folder as a run of the tuner writes it, whose winners are the default with so many rows, by token count."""
    problem = Problem.of("dynamic_mxfp4_quant", {"hidden_size": 96})
    default = get_family(problem.op).default(problem, TARGET)
    searched = {"median_us": 2.0, "twin_us": 1.0, "margin": 0.05}
    buckets = [TunedBucket(tokens, tokens, {**default, "rows": count}, searched) for tokens, count in rows.items()]
    if between:
        buckets.append(TunedBucket(100, 100, default, {"median_us": 2.0, "margin": 0.01}))
    last = TunedBucket(buckets[-1].tokens, None, buckets[-1].config, buckets[-1].fields)
    entry = TunedEntry(
        *("dynamic_mxfp4_quant", "sm90", TARGET.device, {"hidden_size": 96}, "none", "bfloat16", "measured"),
        *("a template's", {}, 1, [*buckets[:-1], last]),
    )
    save_entries(folder, [entry])
    return folder


def test_two_runs(tmp_path: Path) -> None:
    """One winner is the same; of the others nine graphs each are timed: 1 to 9 and 10 to 18 us, then 19 to 36."""
    first = winners(tmp_path / "first", {1: 1, 16: 2, 64: 1}, between=True)
    second = winners(tmp_path / "second", {1: 1, 16: 4, 64: 4, 256: 1})
    changes = {"compile_side_by_side": list}
    code, output = in_child("two_runs", changes, [first, second, "--out", tmp_path])
    assert code == 0, output
    ((line, every),) = tables(output)
    figures = [line["token counts"], line["the same kernel"], line["within the margin"], line["largest"]]
    assert figures == ["3", "1", "1", "180.0% at 16 tokens"]
    assert list(every.values())[1:] == list(line.values())[1:]
    written = json.loads((tmp_path / "two_runs.json").read_text())
    assert [pair["tokens"] for pair in written["pairs"]] == [1, 16, 64]
    code, output = in_child("two_runs", changes, [first, winners(tmp_path / "other", {2: 1})])
    assert code == 1 and "no problem in common" in output
