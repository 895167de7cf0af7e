"""When a search ends, what it begins with, and what it says of knobs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from quiet import Quiet
from test_tune import PROBLEM, TARGET, TOKENS, Formula, run

from tunegen.configs import TunedBucket, TunedEntry
from tunegen.ops import Config, config_key, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.search.effects import idle_knobs
from tunegen.search.record import Outcome
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, _since_improvement, tune
from tunegen.search.warm import warm_start

DEVICE = DeviceKey("sm90", 132, 79)


def test_a_search_without_improvement_ends(tmp_path: Path) -> None:
    evaluator = Formula()
    with evaluator:
        plan = Plan(TOKENS, 400, 0, patience=32)
        (entry,) = tune([PROBLEM], evaluator, plan, open_storage(f"sqlite:///{tmp_path}/s"), [], Quiet())
    assert 33 <= len(evaluator.evaluated) < 400
    assert [bucket.config["rows"] for bucket in entry.buckets] == [2, 2, 2]


def test_a_search_whose_time_is_over_begins_nothing_and_decides(tmp_path: Path) -> None:
    evaluator = Formula()
    with evaluator:
        plan = Plan(TOKENS, 400, 0, deadline=time.monotonic())
        (entry,) = tune([PROBLEM], evaluator, plan, open_storage(f"sqlite:///{tmp_path}/s"), [], Quiet())
    default = get_family(PROBLEM.op).default(PROBLEM, TARGET)
    assert evaluator.evaluated == [config_key(default)]
    assert [bucket.config for bucket in entry.buckets] == [default] * 3


def test_since_improvement() -> None:
    assert _since_improvement([]) == 0
    assert _since_improvement([[1.0, 1.0], None, [1.1, 0.9]]) == 0
    assert _since_improvement([[1.0, 1.0], [1.1, 0.9999], None]) == 2
    # A gain in one group counts, though another one is worse than the best.
    assert _since_improvement([[1.0, 1.0], [0.5, 2.0], [2.0, 0.9], [0.6, 0.95]]) == 1


def entry(width: int, config: Config, **changes: object) -> TunedEntry:
    made = TunedEntry(
        PROBLEM.op, "sm90", DEVICE, {"hidden_size": width}, "none", "bfloat16", "measured", "", {}, 1,
        [TunedBucket(1, None, config)],
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def test_warm_start_takes_the_nearest_first() -> None:
    configs: list[Config] = [{"n": n} for n in range(7)]
    entries = [
        entry(2048, configs[6]),
        entry(1024, configs[5]),
        entry(512, configs[4], variant="output"),
        entry(512, configs[3], device=DeviceKey("sm90", 114, 79)),
        entry(512, configs[2], evidence="predicted"),
        entry(512, configs[0], buckets=[TunedBucket(1, 4, configs[0]), TunedBucket(8, None, configs[1])]),
        entry(512, {"n": 99}, op="dynamic_mxfp4_quant"),
    ]
    assert warm_start(PROBLEM, entries, DEVICE) == configs


def test_what_was_good_elsewhere_is_tried_right_after_the_default(tmp_path: Path) -> None:
    family = get_family(PROBLEM.op)
    default = family.default(PROBLEM, TARGET)
    good = next(config for config in family.space(PROBLEM, TARGET) if config["rows"] == 2)
    known = [entry(1024, good), entry(512, {"not": "a knob"})]
    evaluator = Formula()
    with evaluator:
        list(tune([PROBLEM], evaluator, Plan(TOKENS, 6, 0), open_storage(f"sqlite:///{tmp_path}/s"), known, Quiet()))
    assert evaluator.evaluated[:2] == [config_key(default), config_key(good)]


def test_idle_knobs() -> None:
    def compiled(a: int, b: int, c: int, fingerprint: str) -> Outcome:
        return Outcome({"a": a, "b": b, "c": c}, {1: 1.0}, "", {"fingerprint": fingerprint})

    outcomes = [
        compiled(1, 1, 1, "x"),
        compiled(1, 2, 1, "x"),
        compiled(2, 1, 1, "y"),
        compiled(2, 2, 1, "y"),
        Outcome({"a": 3, "b": 1, "c": 1}, {}, "does not compile", {}),
    ]
    # b never changes anything; a does; c was never varied.
    assert idle_knobs(outcomes) == {"b": 2}
    assert idle_knobs([*outcomes, compiled(2, 3, 1, "z")]) == {}


def test_a_second_run_with_the_same_seed_and_data_gives_the_same_winners(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s"
    first = run(Formula(), url, 20)
    again = Formula()
    assert run(again, url, 20) == first
    assert again.evaluated == []
