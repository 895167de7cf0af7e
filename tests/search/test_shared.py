"""Two tuners on one study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tuner_process

from tunegen.ops import config_key
from tunegen.search.record import read_studies
from tunegen.search.storage import open_storage

TRIALS = 40


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database on a PostgreSQL server of the test's own, which listens on a socket in its folder."""
    found = shutil.which("pg_ctl") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), default="")
    if not found:
        pytest.skip("PostgreSQL is not installed: sharing a study over a server is NOT tested (see .ci/run)")
    programs = Path(found).resolve().parent
    # A socket's path may have about a hundred characters.
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    # The server refuses to run as root.
    user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def server(program: str, *arguments: str) -> None:
        subprocess.run([*user, str(programs / program), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data, log = str(folder / "data"), str(folder / "log")
    server("initdb", "-D", data, "-U", "tuner", "--auth", "trust", "--no-sync")
    server("pg_ctl", "-D", data, "-l", log, "-w", "-o", f"-c listen_addresses='' -k {folder} -c fsync=off", "start")
    try:
        yield f"postgresql://tuner@/postgres?host={folder}"
    finally:
        server("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def share(url: str, folder: Path) -> None:
    """Runs two tuners side by side and checks that they shared the work."""
    tuners = {name: tuner_process.start(url, folder, name, TRIALS, 0.1) for name in ("one", "two")}
    for tuner in tuners.values():
        tuner.join()
        assert tuner.exitcode == 0
    timed = {name: tuner_process.lines(folder / f"timed-{name}.log") for name in tuners}
    assert all(timed.values()), "one of them did nothing"
    every = timed["one"] + timed["two"]
    assert len(every) == len(set(every)), "a config was timed twice"
    (study,) = read_studies(open_storage(url))
    assert {config_key(outcome.config) for outcome in study.outcomes} == set(every), "a trial is lost"
    assert len(every) == TRIALS
    one, two = (json.loads((folder / f"winners-{name}.json").read_text()) for name in tuners)
    assert one == two


def test_two_tuners_share_a_study_on_postgresql(tmp_path: Path, postgres: str) -> None:
    share(postgres, tmp_path)


@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_two_tuners_share_a_study_in_a_file(tmp_path: Path, scheme: str) -> None:
    share(f"{scheme}:///{tmp_path}/studies", tmp_path)
