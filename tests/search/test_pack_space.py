"""Two recordings packed as one: whatever lies between them must not be taken for a matter of the configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_up import PROBLEM, TOKENS, recording

from tunegen.ops import config_key
from tunegen.search.replay import Recorded, load

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE, FIRST = 72, 36
# Microseconds that every look, and every sample of the final timing, takes more in the second recording.
LOOKS_ABOVE, FINALS_ABOVE = 0.3, 0.5
FINALISTS = {0: [0, *range(1, 12)], 1: [0, *range(FIRST, FIRST + 12)]}
BETWEEN = 24
# The formula's space is sparsely sampled here: what is left of the steps, which are tens of per cent.
NEAR = 0.1


@pytest.fixture(scope="module")
def made() -> Recorded:
    return recording(noise=0.01, size=SIZE)


@pytest.fixture
def pack_space(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pack_space

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pack_space
    torch.set_num_threads(threads)


def header_of(made: Recorded, which: int) -> dict[str, Any]:
    return {
        "kind": "header",
        "device": {"arch": "sm90", "units": 132, "memory_gib": 79},
        "device_name": "a formula",
        "target": made.target.name,
        "environment": {"torch": "0"},
        "policy": "formula/1",
        "model": f"model/{which}",
        "seed": 20,
        "tokens": TOKENS,
        "problems": [
            {
                "op": PROBLEM.op,
                "shape": PROBLEM.sizes,
                "rounding": PROBLEM.rounding,
                "valid_configs": 999,
                "knobs": {knob.name: knob.choices for knob in made.knobs},
                "default": made.default,
                "template_hash": f"{which}",
            }
        ],
    }


def write(made: Recorded, which: int, path: Path, **changed: Any) -> Path:
    """One of the two recordings, as record_space.py writes it; the second visited its configs but once."""
    generator = np.random.default_rng(which)
    lines: list[dict[str, Any]] = [{**header_of(made, which), **changed}]
    for i in [0, *(range(1, FIRST) if which == 0 else range(FIRST, SIZE))]:
        for visit in (1, 2) if which == 0 or i == 0 else (1,):
            samples = (made.looks[i, :, visit - 1] + which * LOOKS_ABOVE).tolist()
            about = {"binary": f"b{i}", "resources": {"registers": i, **({"turn": 2} if which else {})}}
            config = made.configs[i]
            line = {"kind": "look", "problem": 0, "config": config, "visit": visit, "samples_us": samples}
            lines.append({**line, **(about if visit == 1 else {})})
    for at, tokens in [*enumerate(TOKENS), *([(1, BETWEEN)] if which else [])]:
        configs = [made.configs[i] for i in FINALISTS[which]]
        times = [made.truth[i, at] * generator.normal(1, 0.005, 9) + which * FINALS_ABOVE for i in FINALISTS[which]]
        samples = [row.tolist() for row in times]
        lines.append({"kind": "final", "problem": 0, "tokens": tokens, "configs": configs, "samples_us": samples})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "lo', encoding="utf-8")
    return path


def test_nothing_is_lost_and_levels_are_the_first_ones(made: Recorded, pack_space: ModuleType, tmp_path: Path) -> None:
    paths = [write(made, which, tmp_path / f"{which}.jsonl") for which in (0, 1)]
    out = tmp_path / "packed.json.xz"
    said = CliRunner().invoke(pack_space.main, [*map(str, paths), "--out", str(out)], catch_exceptions=False)
    assert said.exit_code == 0
    assert said.output.count("is not whole and is left out") == 2
    (found,) = load(out)
    assert [config_key(c) for c in found.configs] == [config_key(c) for c in made.configs]
    assert found.recordings == (0,) * FIRST + (1,) * (SIZE - FIRST)
    assert [len(found.visits_of(i)) for i in (0, 1, FIRST)] == [4, 2, 1]
    assert found.resources[1] == {"registers": 1, "binary": "b1"}
    assert found.resources[FIRST] == {"registers": FIRST, "binary": f"b{FIRST}", "turn": 2}
    # The default was timed again in both.
    assert sorted(found.finals) == sorted({*FINALISTS[0], *FINALISTS[1]})
    assert found.final_tokens == (1, BETWEEN, 256, 4096)
    there = (~np.isnan(found.finals[0])).sum(axis=1).tolist()
    assert there == [18, 9, 18, 18]
    assert np.isnan(found.finals[1][1]).all()
    # The first recording stays as it is; the second comes down to it.
    np.testing.assert_allclose(found.looks[1, :, :2], made.looks[1], atol=0.0006)
    second = np.log(np.nanmean(found.looks[FIRST:, :, 2], axis=2) / made.looks[FIRST:, :, 0].mean(axis=2))
    assert abs(np.median(second[:, 0])) < NEAR * LOOKS_ABOVE
    finals = [np.log(np.median(found.finals[i][0]) / made.truth[i, 0]) for i in FINALISTS[1][1:]]
    assert abs(np.median(finals)) < NEAR * FINALS_ABOVE


def test_estimates_are_nearer_to_the_truth_than_medians(made: Recorded, pack_space: ModuleType) -> None:
    times = made.truth[:, 1]
    generator = np.random.default_rng(0)
    # The last config has no capture, and the one before was disturbed once.
    which = np.repeat(np.arange(SIZE - 1), 2)
    captures = times[which] * np.exp(generator.normal(0, 0.1, len(which)))
    captures[-1] = 2 * captures[-2]
    found, noise = pack_space.estimates(made.knobs, made.configs, which, captures)
    assert np.isnan(found[-1])
    assert 0.05 < noise < 0.15
    medians = np.array([np.median(captures[which == i]) for i in range(SIZE - 2)])
    asked = np.flatnonzero(medians < 1.5 * np.sort(medians)[9])
    assert len(asked) > 20
    off = [np.sqrt(np.mean(np.log(those[asked] / times[asked]) ** 2)) for those in (found, medians)]
    assert off[0] < 0.9 * off[1]


@pytest.mark.parametrize("changed", [{"policy": "formula/2"}, {"tokens": [1]}])
def test_recordings_of_different_things_are_not_packed(
    made: Recorded, pack_space: ModuleType, tmp_path: Path, changed: dict[str, Any]
) -> None:
    paths = [write(made, 0, tmp_path / "0.jsonl"), write(made, 1, tmp_path / "1.jsonl", **changed)]
    said = CliRunner().invoke(pack_space.main, [*map(str, paths), "--out", str(tmp_path / "packed.xz")])
    assert said.exit_code == 1
    assert f"differ in {next(iter(changed))}" in said.output
