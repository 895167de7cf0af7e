"""kill -9 of the tuner and of its worker, at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import tuner_process

from tunegen.ops import config_key
from tunegen.search.record import read_studies
from tunegen.search.storage import open_storage

TRIALS = 60
KILLS = 10


def recorded(url: str) -> dict[str, dict[int, float]]:
    (study,) = read_studies(open_storage(url))
    return {config_key(outcome.config): outcome.times for outcome in study.outcomes if not outcome.failure}


@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_nothing_that_was_finished_is_lost(tmp_path: Path, scheme: str) -> None:
    """Ten times a storage, twenty in all; in turn the tuner and, while it goes on, its worker."""
    url = f"{scheme}:///{tmp_path}/studies"
    random.seed(scheme)
    done = tmp_path / "timed-one.log"
    before: dict[str, dict[int, float]] = {}
    tuner = tuner_process.start(url, tmp_path, "one", TRIALS, 0.02)
    for kill in range(KILLS):
        seen = len(tuner_process.lines(done))
        tuner_process.wait_until(lambda seen=seen: len(tuner_process.lines(done)) > seen + 2)
        time.sleep(random.uniform(0, 0.1))
        if kill % 2:
            os.kill(int((tmp_path / "worker-one.pid").read_text()), signal.SIGKILL)
        else:
            assert tuner.pid is not None
            os.kill(tuner.pid, signal.SIGKILL)
            tuner.join()
            told = set(tuner_process.lines(tmp_path / "recorded.log"))
            now = recorded(url)
            assert told <= set(now), "a trial that was reported as recorded is lost"
            assert before.items() <= now.items(), "a recorded trial has changed"
            before = now
            tuner = tuner_process.start(url, tmp_path, "one", TRIALS, 0.02)
    tuner.join()
    assert tuner.exitcode == 0
    final = recorded(url)
    assert before.items() <= final.items()
    assert len(final) == TRIALS
    # What was in flight when a process was killed, one trial a kill at most, is all that was timed again.
    again = Counter(tuner_process.lines(done)).total() - len(final)
    assert 0 <= again <= KILLS
    fastest = min(times[1] for times in final.values())
    winner = json.loads((tmp_path / "winners-one.json").read_text())[0]
    assert final[config_key(winner)][1] <= 1.01 * fastest
