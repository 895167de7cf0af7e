"""docs/template.md is done as it says, in a copy of the checkout: from its blocks to an op of a pack."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "template.md"
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
    said = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith(("    tunegen ", "    pip ")):
            program, *arguments = shlex.split(line)
            if program == "pip":
                # The pack is put on the path instead: tests install nothing into their environment.
                assert arguments == ["install", "build/pack"]
                continue
            python = [sys.executable, "-m", "tunegen", *arguments]
            path = f"{copy}:{folder / 'build' / 'pack'}"
            variables = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(python, cwd=folder, env=variables, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said[arguments[0]] = done.stdout
    assert "columns < 96" in said["render"]
    assert "predicted, not measured" in said["inspect"]
    assert "wrote tuned_configs/gfx950/residual_add.json" in said["tune"]
    assert re.search(r"residual_add \(hidden_size 96\) .*│ 0 ", said["verify"])
    assert " 0 failures" in said["verify"]
