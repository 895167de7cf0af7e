"""docs/template.md is done as it says, in a copy of the checkout: from its blocks to an op of a pack."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import documents

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "template.md"
DOCUMENTED = documents.texts(PAGE.name)
# Runs commands in one process, which saves starting torch for each; prints what they said, by their names.
RUN = """
import importlib, json, sys
from click.testing import CliRunner
from tunegen.cli import cli
if __name__ == "__main__":
    said = {}
    for arguments in json.loads(sys.argv[1]):
        importlib.invalidate_caches()  # the pack's folder was not there at first
        done = CliRunner().invoke(cli, arguments)
        said[arguments[0]] = done.output
        if done.exit_code:
            sys.exit(f"{arguments} {done.output} {done.exception!r}")
    print(json.dumps(said))
"""
# A file's name on a line of its own, then the blocks that make or change it.
FILE = re.compile(r"^`([\w./]+)`$")


def blocks() -> list[tuple[str, str, str]]:
    """Path, language and text of every fenced block."""
    found = []
    path, language, lines = "", "", list[str]()
    for line in PAGE.read_text().splitlines():
        if line.startswith("```"):
            if language:
                found.append((path, language, "\n".join(lines) + "\n"))
            language, lines = (line[3:], []) if not language else ("", [])
        elif language:
            lines.append(line)
        elif match := FILE.match(line):
            path = match[1]
    return found


def change(text: str, difference: str) -> str:
    """A text with the lines of a difference replaced; they must be there, once."""
    lines = difference.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_the_worked_example_works(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in ("tunegen", "templates", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
    written = set()
    for path, language, text in blocks():
        file = copy / path
        if language == "diff":
            file.write_text(change(file.read_text(), text))
        else:
            assert not file.exists(), path
            file.write_text(text)
        written.add(path)
    assert len(written) == 9  # six files and three that get a line
    for tool in (("ruff", "format", "--check"), ("ruff", "check")):
        sources = [path for path in written if path.endswith(".py")]
        subprocess.run(
            [sys.executable, "-m", *tool, "--config", ROOT / "pyproject.toml", *sources], cwd=copy, check=True
        )

    folder = tmp_path / "work"
    folder.mkdir()
    commands = [shlex.split(command) for command in DOCUMENTED]
    # The pack is put on the path instead of installed: tests install nothing into their environment.
    commands.remove(["pip", "install", "build/pack"])
    asked = json.dumps([arguments for _, *arguments in commands])
    variables = {"PYTHONPATH": f"{copy}:{folder / 'build' / 'pack'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    python = [sys.executable, "-c", RUN, asked]
    done = subprocess.run(python, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    said = json.loads(done.stdout.splitlines()[-1])
    assert "columns < 96" in said["render"]
    assert "predicted, not measured" in said["inspect"]
    assert "wrote tuned_configs/gfx950/residual_add.json" in said["tune"]
    assert re.search(r"residual_add \(hidden_size 96\) .*│ 0 ", said["verify"])
    assert " 0 failures" in said["verify"]
