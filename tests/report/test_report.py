"""The report's contents: what comes from where, and which files it refuses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from made import NORM, ROPE, aiter_of, search_of, shipped

from tunegen.cli import cli
from tunegen.errors import TunegenError, UsageError
from tunegen.ops import Problem
from tunegen.report import figures
from tunegen.report.baselines import read_baselines
from tunegen.report.gather import gather
from tunegen.report.importance import importances
from tunegen.report.page import render_page, short_name
from tunegen.runtime.families.recipe import RECIPES

MEASURED, PREDICTED = shipped(NORM, "sm90"), shipped(NORM, "gfx950")


def test_an_entry_has_the_search_that_it_came_from() -> None:
    right = search_of(MEASURED)
    elsewhere = replace(right, circumstances=[*right.circumstances[:3], "torch 9.9.9", *right.circumstances[4:]])
    lacking = replace(right, outcomes=right.outcomes[:2])
    (subject,) = gather([MEASURED], [elsewhere, right, lacking], [])
    assert subject.search is not None
    assert subject.search.outcomes == right.outcomes
    assert {name: (g[0], g[-1]) for name, g in subject.search.groups.items()} == {
        "decode": (1, 64),
        "mixed": (128, 1024),
        "prefill": (2048, 16384),
    }
    (alone,) = gather([MEASURED], [elsewhere], [])
    assert alone.search is None
    running = gather([], [search_of(PREDICTED)], [])
    assert [(s.entry, s.evidence, s.device) for s in running] == [(None, "predicted", "AMD Instinct MI350X")]
    assert "the search has not ended" in render_page(running)


def test_importance_finds_the_knob_that_was_planted() -> None:
    (subject,) = gather([MEASURED], [search_of(MEASURED, configs=240)], [])
    assert subject.search is not None
    shares = importances(subject.search, subject.search.tokens)
    (first, share), (_, second), *_ = shares.items()
    assert first == "num_warps"
    assert share > 1.5 * second


def test_baselines_are_of_the_same_problem_and_gpu() -> None:
    entry = shipped(ROPE, "sm90")
    times = aiter_of(entry)
    (subject,) = gather([entry], [], [times])
    assert set(subject.baselines) == {"aiter", "unfused"}
    assert [trace["name"] for trace in figures.times_figure(subject)["data"]] == [
        *("traffic twin", "default", "AITER", "unfused", "tuned")
    ]
    for other in (replace(times, device="NVIDIA B200"), replace(times, problem=NORM)):
        (subject,) = gather([entry], [], [other])
        assert not subject.baselines


def test_predicted_lines_are_dashed_and_measured_ones_are_not() -> None:
    for entry, dash in ((MEASURED, "solid"), (PREDICTED, "dash")):
        (subject,) = gather([entry], [], [])
        (tuned,) = (trace for trace in figures.times_figure(subject)["data"] if trace["name"] == "tuned")
        assert tuned["line"]["dash"] == dash
        assert tuned["line"]["color"] == f"--{entry.evidence}"
        assert tuned["y"] == [b.fields.get("median_us", b.fields.get("predicted_us")) for b in entry.buckets]


def test_page_says_where_winners_come_from_and_what_failed() -> None:
    study = search_of(MEASURED)
    first, *others = MEASURED.buckets
    between = replace(first, fields={name: first.fields[name] for name in ("median_us", "default_us", "margin")})
    measured = replace(MEASURED, buckets=[between, *others], held_out_regret={"24": 0.011, "3000": 0.053})
    predicted = replace(PREDICTED, template_hash="0" * 12, kernels_hash="0" * 12)
    page = render_page(gather([measured, predicted], [study], []))
    assert page.count('<span class="mark measured">') == len(MEASURED.buckets)
    assert page.count('<span class="mark predicted">') == len(PREDICTED.buckets)
    assert page.count("raced between tuned counts, margin") == sum(bucket.raced for bucket in measured.buckets) > 1
    assert "never tuned (24, 3,000) lose at most 5.3 %, at 3,000 tokens" in page
    assert f"of {len(study.outcomes)}</span>" in page  # found as config N of M
    assert page.count('<span class="chip stale">') == 1
    failed = sum(bool(outcome.failure) for outcome in study.outcomes)
    assert failed > 2
    assert f"<span>{failed}</span>" in page  # of one reason, though the numbers in the messages differ
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<dt>triton</dt><dd>3.6.0</dd>" in page


@pytest.mark.parametrize("op", sorted(RECIPES))
def test_every_form_has_a_short_name(op: str) -> None:
    names = RECIPES[op].sizes
    name = short_name(Problem.of(op, {size: 96 + 32 * at for at, size in enumerate(names)}))
    assert name.startswith(op)
    assert all(str(96 + 32 * at) in name for at in range(len(names)))


def test_labels_keep_their_order_and_distance() -> None:
    placed = figures._spread_labels([10.0, 0.0, 1.0, 2.0], 14.0)
    assert sorted(range(4), key=lambda i: placed[i]) == [1, 2, 3, 0]
    ordered = sorted(placed)
    assert all(b - a > 13.9 for a, b in itertools.pairwise(ordered))


def test_baselines_are_read_as_the_comparison_writes_them(tmp_path: Path) -> None:
    from tunegen.bench.compare import Row
    from tunegen.bench.report import Environment, as_json
    from tunegen.evaluate.measure import Timing

    environment = Environment("GPU", "sm90", 132, 79, "", "", "", "", "", 1.0, "", "", "")
    own = ("empty", "twin", "twin_same_launch", "default", "default_again", "tuned", "tuned_again")
    timed = {name: Timing.of([2.0, 2.0, 2.0]) for name in own}
    rows = [
        Row(ROPE, tokens, 1000, {}, {**timed, "aiter": Timing.of([3.0] * 3), "compiled": Timing.of([time] * 3)})
        for tokens, time in ((4, 5.0), (64, 7.0))
    ]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(as_json(environment, [*rows, Row(NORM, 4, 1000, {}, timed)]), default=float))
    (found,) = read_baselines(file)
    assert (found.problem, found.device) == (ROPE, "GPU")
    assert found.times == {"aiter": {4: 3.0, 64: 3.0}, "compiled": {4: 5.0, 64: 7.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must have format 1; it has 'list'"),
        ('{"format": 2}', "must have format 1; it has 2"),
        ('{"format": 1, "environment": {"device": "GPU"}, "rows": [{"op": "softmax"}]}', "there is no op 'softmax'"),
        ('{"format": 1, "rows": [{"op": "rmsnorm_mxfp4_quant", "tokens": 4}]}', "KeyError"),
    ],
)
def test_files_that_are_no_baselines(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_baselines(file)
    assert "`tunegen bench --json`" in str(error.value)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["report", "--target", "gfx950", "--op", NORM.op, "--out", "deep/page.html"])
    assert done.exit_code == 0, done.output
    assert done.output == "wrote deep/page.html: 5 problems, 0 with their search\n"
    assert not (tmp_path / ".tunegen").exists()
    for arguments, message in (
        (["--storage", "sqlite:///nowhere.sqlite3"], "There is no storage sqlite:///nowhere.sqlite3"),
        (["--op", "rmsnorm_mxfp4"], "Did you mean 'rmsnorm_mxfp4_quant'"),
        (["--target", "gfx95"], "Did you mean 'gfx950'"),
        (["--target", "gfx942"], "nothing to report"),
    ):
        failed = CliRunner().invoke(cli, ["report", *arguments])
        assert isinstance(failed.exception, TunegenError)
        assert message in str(failed.exception)
