"""The prediction follows from what a kernel uses, and inspect shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.codegen.resources import Resources, resources_of
from tunegen.codegen.work import Work
from tunegen.errors import TargetError
from tunegen.evaluate.predict import predict
from tunegen.limits import limits_of
from tunegen.ops import Problem, get_family
from tunegen.targets import get_target

SM90 = get_target("sm90")
PROBLEM = Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 7168})
DEFAULT = get_family(PROBLEM.op).default(PROBLEM, SM90)
ONCE = Work(issued=700, clocks={"float": 400.0, "integer": 800.0, "memory": 100.0}, alone=1200.0, round_trips=1.0)


def uses(once: Work = ONCE, registers: int = 64, warps: int = 4, shared_memory: int = 16) -> Resources:
    return replace(resources_of(SM90, [], (registers, 0, 0, 0), warps, shared_memory), once=once, turn=Work())


def microseconds(resources: Resources, tokens: int) -> float:
    return predict(PROBLEM, SM90, DEFAULT, resources, tokens).microseconds


@pytest.mark.parametrize(
    ("registers", "warps", "shared_memory", "programs", "limiter"),
    [
        (64, 4, 16, 8, "registers"),
        (65, 4, 16, 7, "registers"),
        (32, 4, 16, 16, "registers"),
        (16, 8, 16, 8, "warps"),
        (16, 1, 16, 32, "programs"),
        (16, 4, 100 * 1024, 2, "shared memory"),
    ],
)
def test_occupancy(registers: int, warps: int, shared_memory: int, programs: int, limiter: str) -> None:
    used = uses(registers=registers, warps=warps, shared_memory=shared_memory)
    assert (used.programs_per_unit, used.limiter) == (programs, limiter)
    assert used.warps_per_scheduler == programs * warps // 4


def test_time_grows_with_what_is_done() -> None:
    times = [microseconds(uses(), tokens) for tokens in (1, 256, 1024, 4096, 16384)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(
        limits_of("sm90").launch_us + 1200 / 1755 + limits_of("sm90").cache_latency_us, rel=0.03
    )
    busier = replace(ONCE, clocks={**ONCE.clocks, "integer": 1600.0})
    assert microseconds(uses(busier), 256) > microseconds(uses(), 256)
    chained = replace(ONCE, round_trips=3.0)
    assert microseconds(uses(chained), 1) > microseconds(uses(), 1)
    crowded = replace(ONCE, clocks={**ONCE.clocks, "memory": 900.0})
    assert predict(PROBLEM, SM90, DEFAULT, uses(crowded), 1024).limiter == "shared units"


def test_fewer_residents_hide_less_and_a_last_round_costs() -> None:
    # 132 multiprocessors: with one program of each at a time, 133 rows take two rounds.
    alone = uses(registers=255, warps=8)
    assert alone.programs_per_unit == 1
    assert microseconds(alone, 133) > microseconds(alone, 132) + 0.4
    light = replace(ONCE, clocks={"integer": 200.0})
    assert microseconds(uses(light, registers=128, warps=8), 264) < microseconds(uses(light, 255, 8), 264)


def test_limiter_and_distance_to_the_limit() -> None:
    few, many = (predict(PROBLEM, SM90, DEFAULT, uses(), tokens) for tokens in (1, 16384))
    assert (few.limiter, few.cached) == ("launch", 1.0)
    assert (many.limiter, many.cached) == ("memory", 0.0)
    assert many.limit_us == many.launch_us + many.memory_us < many.microseconds < 1.3 * many.limit_us


def test_nothing_is_predicted_for_a_device_of_which_nothing_is_known() -> None:
    with pytest.raises(TargetError, match=r"no performance limits of sm100 .* gfx942, gfx950, sm90"):
        limits_of("sm100")


def test_inspect_explains_a_difference(tmp_path: Path) -> None:
    listing = tmp_path / "kernel.s"
    arguments = ["inspect", "rmsnorm_mxfp4_quant", "--hidden-size", "512", "--target", "gfx950", "--tokens", "16"]
    done = CliRunner().invoke(
        cli, [*arguments, "--set", "num_warps=4", "--against", "num_warps=1", "--listing", str(listing)]
    )
    assert done.exit_code == 0, done.output
    for part in (
        "B differs num_warps=1",
        "waves a SIMD",
        "limited by",
        "global load",
        "of limit",
        "barriers",
        "narrow:",
    ):
        assert part in done.output
    shown = next(line for line in done.output.splitlines() if "narrow:" in line and "load" in line)
    at = int(shown.rsplit(": ", 1)[1].split(",")[0].split(" and ")[0])
    assert "buffer_load" in listing.read_text().split("\n")[at - 1]
