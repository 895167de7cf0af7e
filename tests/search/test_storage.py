"""Storages, claims, and what is told of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tunegen.configs import TunedBucket
from tunegen.errors import UsageError
from tunegen.ops import Config, Problem, get_family
from tunegen.search import record as records
from tunegen.search.record import Heart, Outcome, Record
from tunegen.search.storage import open_storage
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TARGET = get_target("sm90")
DEFAULT = get_family(PROBLEM.op).default(PROBLEM, TARGET)
OTHER: Config = {**DEFAULT, "num_warps": 8}


@pytest.fixture(params=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:///{tmp_path}/folder/studies"


@pytest.fixture
def made(url: str) -> Iterator[list[Record]]:
    """Two tuners' views of one study."""
    storages = [open_storage(url) for _ in range(2)]
    with Heart(storages[0]) as one, Heart(storages[1]) as two:
        yield [
            Record(storage, heart, PROBLEM, TARGET, [1], ["predicted", "x" * 600], 1)
            for storage, heart in zip(storages, (one, two), strict=True)
        ]


def outcome(config: Config, failure: str = "") -> Outcome:
    return Outcome(config, {} if failure else {1: 2.5}, failure, {"limiter": "memory"})


def test_a_config_is_claimed_once(made: list[Record]) -> None:
    one, two = made
    assert one.claim([DEFAULT], 9) == [DEFAULT]
    assert two.claim([DEFAULT, OTHER], 9) == [OTHER]
    assert two.others() == {records.config_key(DEFAULT)}
    assert one.finish(outcome(DEFAULT), [1.0])
    assert two.others() == set()
    assert two.load() == [outcome(DEFAULT)]
    assert two.claim([DEFAULT], 9) == []
    assert two.finish(outcome(OTHER, "planted"), None)
    assert one.load() == [outcome(DEFAULT), outcome(OTHER, "planted")]


def test_a_study_gets_no_more_configs_than_asked_for(made: list[Record]) -> None:
    one, two = made
    assert one.claim([DEFAULT], 1) == [DEFAULT]
    assert two.claim([OTHER], 1) == []
    assert two.claim([OTHER], 2) == [OTHER]


def test_a_claim_that_was_given_back_is_free(made: list[Record]) -> None:
    one, two = made
    one.claim([DEFAULT, OTHER], 9)
    one.release_all()
    assert two.others() == set()
    assert two.claim([DEFAULT], 9) == [DEFAULT]
    assert two.load() == []


def test_the_claim_of_a_dead_process_is_free_at_once(made: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = made
    done = subprocess.Popen([sys.executable, "-c", ""])
    boot, namespace, _, began = records._owner().split()
    done.wait()
    monkeypatch.setattr(records, "_owner", lambda: f"{boot} {namespace} {done.pid} {began}")
    one.claim([DEFAULT], 9)
    monkeypatch.undo()
    assert two.claim([DEFAULT], 9) == [DEFAULT]
    # Had it only been slow, it would be told.
    assert not one.finish(outcome(DEFAULT), [1.0])
    assert two.finish(outcome(DEFAULT), [1.0])
    assert two.load() == [outcome(DEFAULT)]


def test_the_claim_of_another_machine_is_free_after_a_while(
    made: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = made
    monkeypatch.setattr(records, "_owner", lambda: "another-boot pid:[1] 1 1")
    one.claim([DEFAULT], 9)
    monkeypatch.undo()
    assert two.claim([DEFAULT], 9) == []
    monkeypatch.setattr(records, "ABANDONED_SECONDS", -1.0)
    assert two.claim([DEFAULT], 9) == [DEFAULT]


def test_a_heart_that_stops_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What optuna's heartbeat says of a tuner on another machine, with short times."""
    storage = open_storage(f"sqlite:///{tmp_path}/studies")
    storage._backend.grace_period = 1  # type: ignore[attr-defined]  # of SQLite's backend
    monkeypatch.setattr(records, "HEARTBEAT_SECONDS", 0.2)
    with Heart(storage) as heart:
        one = Record(storage, heart, PROBLEM, TARGET, [1], ["predicted"], 1)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(records, "_owner", lambda: "another-boot pid:[1] 1 1")
            one.claim([DEFAULT], 9)
        two = Record(storage, Heart(storage), PROBLEM, TARGET, [1], ["predicted"], 1)
        time.sleep(2.5)
        assert two.others(), "given up although its heart beats"
    tired = time.monotonic() + 30
    while two.others():
        assert time.monotonic() < tired
        time.sleep(0.2)
    assert not one.finish(outcome(DEFAULT), [1.0])


def test_winners_are_kept_and_the_first_decision_holds(made: list[Record]) -> None:
    one, two = made
    first, second = (
        records.Winners([TunedBucket(1, None, config, {"median_us": 1.0})], {"24": 0.01}) for config in (DEFAULT, OTHER)
    )
    outcomes = [outcome(DEFAULT), outcome(OTHER)]
    assert one.decision(outcomes) is None
    assert one.decide(outcomes, first) == first
    assert two.decide(outcomes, second) == first
    assert two.decision(outcomes[:1]) is None


def test_a_condemned_config_is_a_failure(made: list[Record]) -> None:
    one, two = made
    one.claim([DEFAULT], 9)
    one.finish(outcome(DEFAULT), [1.0])
    one.condemn(outcome(DEFAULT, "faulted in the final"))
    assert [o.failure for o in two.load()] == ["faulted in the final"]
    (study,) = records.read_studies(two._storage)
    assert study.outcomes == two.load()
    assert (study.problem, study.target) == (PROBLEM, "sm90")


def test_a_journal_whose_last_line_was_cut_off_can_be_written_on(tmp_path: Path) -> None:
    url = f"journal:///{tmp_path}/studies"
    with Heart(storage := open_storage(url)) as heart:
        record = Record(storage, heart, PROBLEM, TARGET, [1], ["predicted"], 1)
        record.claim([DEFAULT], 9)
        record.finish(outcome(DEFAULT), [1.0])
    path = tmp_path / "studies"
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "worker')
    with Heart(storage := open_storage(url)) as heart:
        record = Record(storage, heart, PROBLEM, TARGET, [1], ["predicted"], 1)
        assert record.load() == [outcome(DEFAULT)]
        assert record.claim([OTHER], 9) == [OTHER]
    assert len(open_storage(url).get_all_trials(record._id)) == 2


def test_a_new_database_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies"
    opened, errors = [], []

    def work() -> None:
        try:
            opened.append(open_storage(url))
        except UsageError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(opened), errors) == (6, [])


def test_a_running_trial_of_someone_else_is_left_alone(made: list[Record]) -> None:
    """A study that a person has put a trial into by hand."""
    one, _ = made
    trial = one._storage.create_new_trial(one._id)
    assert one.claim([DEFAULT], 9) == [DEFAULT]
    assert one._storage.get_trial(trial).state == TrialState.RUNNING
