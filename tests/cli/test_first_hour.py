"""What goes wrong in a new user's first hour, and what is said: packages, disks, folders, damaged files."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from quotes import documented

from tunegen.cli import _group, cli
from tunegen.configs import load_entries, save_entries
from tunegen.errors import TunegenError
from tunegen.paths import tuned_configs_dir

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--op", "rmsnorm_mxfp4_quant", "--hidden-size", "96", "--target", "gfx942", "--tokens", "1", "--trials", "1")
NOBODY = 65534
# The interpreter finds no such package.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] == {package!r} else found(name, *rest)
from tunegen.cli import main
main()
"""


def message(*arguments: str) -> str:
    """What a command says, that a user can mend, and that the documentation has."""
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, TunegenError), (done.output, done.exception)
    return documented(str(done.exception))


def test_wrong_names() -> None:
    assert "Did you mean" in message("render", "rmsnorm_mxfp4", "--hidden-size", "512")
    assert "--model NAME" in message("tune")


def test_versions_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    stated = {name: tuple(map(int, version.split("."))) for name, version in re.findall(r'"(\w+)>=(\d+\.\d+)', text)}
    assert {name: stated[name] for name in _group.OLDEST} == _group.OLDEST


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_a_package_is_missing(package: str) -> None:
    code = ["-c", WITHOUT.format(package=package), "render", "rmsnorm_mxfp4_quant", "--hidden-size", "96"]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert re.match(rf"Error: tunegen needs {package} [\d.]+ or newer; none is installed\. .*{package}", done.stderr)
    documented(done.stderr.removeprefix("Error: "))


@pytest.mark.parametrize(("package", "version"), [("torch", "2.7.1+cu126"), ("triton", "3.5.1")])
def test_a_package_is_old(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == package else "9.9")
    said = message("models")
    assert re.match(rf"tunegen needs {package} [\d.]+ or newer; this is {package} {re.escape(version)}\. ", said)
    assert CliRunner().invoke(cli, ["tune", "--help"]).exit_code == 0


def test_triton_may_come_under_the_name_of_a_rocm_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.9.0+rocm7.0", "triton-rocm": "3.5.0"}[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "this is triton 3.5.0" in message("models")


def test_a_package_for_one_command_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "tunegen needs the package plotly" in message("report", "--out", str(tmp_path / "page.html"))


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for arguments, said in (
        (("bench", "--model", "deepseek-r1"), "times kernels on a GPU; there is none here"),
        (("tune", *SMALL, "--evidence", "measured", "--out", str(tmp_path)), "needs a gfx942 GPU; there is no GPU"),
        (("tune", *SMALL, "--devices", "0"), "--devices names GPU 0, but there is no GPU here"),
    ):
        assert said in message(*arguments)


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with room for 64 KiB; where none can be mounted, one in which nothing can be flushed to the disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:

        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_is_full(full_disk: Path) -> None:
    page = full_disk / "report.html"
    page.write_text("the last one")
    said = message("report", "--target", "gfx950", "--out", str(page))
    assert said.startswith(f"There is no room left to write {page}: No space left on device. Free some")
    assert page.read_text() == "the last one"
    assert [path.name for path in full_disk.iterdir()] == ["report.html"]


def test_the_disk_is_full_where_the_studies_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunegen.search import storage

    # SQLite says the same of a database that may not grow.
    made = storage._write_ahead

    def limited(connection: Any, record: Any) -> None:
        made(connection, record)
        connection.execute("PRAGMA max_page_count=1")  # at least as many as there are

    monkeypatch.setattr(storage, "_write_ahead", limited)
    place = f"sqlite:///{tmp_path}/studies.sqlite3"
    # So many that what is recorded of the study needs new pages.
    many = ",".join(map(str, range(1, 400)))
    said = message("tune", *SMALL, "--tokens", many, "--out", str(tmp_path / "tuned"), "--storage", place)
    assert re.match(r"There is no room left where --storage is: .*disk is full.*the same command goes on", said), said


def test_the_output_folder_is_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    (entry, *_) = load_entries(tuned_configs_dir(), ["gfx942", "gfx950"])
    save_entries(tmp_path / "tuned", [entry])
    run = {
        "tune": ("tune", *SMALL, "--out", str(folder / "tuned"), "--storage", f"sqlite:///{tmp_path}/s.sqlite3"),
        "report": ("report", "--configs", str(tmp_path / "tuned"), "--out", str(folder / "page.html")),
        "emit": ("emit", "--configs", str(tmp_path / "tuned"), "--out", str(folder / "pack")),
    }
    CliRunner().invoke(cli, ["emit", "--configs", str(tmp_path / "tuned"), "--out", str(tmp_path / "warm")])
    folder.chmod(0o555)
    # Root may write anywhere.
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        said = {name: message(*arguments) for name, arguments in run.items()}
    finally:
        if root:
            os.seteuid(0)
    for name in ("tune", "report"):
        assert re.match(
            r"The output folder .* must be one that files can be written to: .*Permission denied", said[name]
        )
    assert re.match(r".* cannot be written: Permission denied\. Name a folder that is yours", said["emit"]), said
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "op": "rmsno', r"is not JSON .* Restore it from version control or delete it and tune again"),
        ('{"format": 0, "entries": []}', r"a tuned file has format 1; this one has 0\. Restore it"),
        ('{"format": 1, "op": "rmsnorm_mxfp4_quant", "target": "sm90"}', r"a file is named <target>/<op>\.json"),
    ],
)
def test_a_damaged_tuned_configs_file(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "gfx950" / "rmsnorm_mxfp4_quant.json"
    file.parent.mkdir()
    file.write_text(text)
    for command in (
        ("show",),
        ("report", "--out", str(tmp_path / "page.html")),
        ("emit", "--out", str(tmp_path / "p")),
    ):
        found = message(*command, "--configs", str(tmp_path))
        assert re.search(rf"{re.escape(str(file))}.*{said}", found), found
