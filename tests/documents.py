"""The commands that the documents give, as they stand there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# What a piece of code in a sentence must begin with to be a command; in a block any word may be a program.
PROGRAMS = ("tunegen", "make", "pytest", "python", "pip", "optuna-dashboard", "vllm")
SHELL_FENCES = ("", "sh", "bash", "console")
PYTHON = ("from", "import", "with")


class Command(NamedTuple):
    """A command of a page.

    Attributes:
        page: The file's name.
        text: As in the page, continued lines joined, without the comment behind it.
        within: It stands in a sentence.
    """

    page: str
    text: str
    within: bool


def _lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines of code blocks, indented or fenced as a shell's, joined where continued; and, True, code in sentences."""
    fence: str | None = None
    joined = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip()[3:] if fence is None else None
            continue
        if (fence in SHELL_FENCES) if fence is not None else line.startswith("    "):
            joined += line.strip().removeprefix("$ ")
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            yield joined, False
            joined = ""
        elif fence is None:
            yield from ((code, True) for code in re.findall(r"`([^`]+)`", line))


def _is_command(words: list[str], within: bool) -> bool:
    """Of a block, what a shell could run; of a sentence, more than the bare name of a command or program."""
    if within:
        return len(words) > 1 and words[0] in PROGRAMS and "|" not in words
    shell = bool(words) and re.fullmatch(r"\.?[a-z][\w./-]*", words[0]) is not None
    return shell and words[0] not in PYTHON and words[1:2] != ["="]


def commands() -> list[Command]:
    """Every command of every page, once, and those that `make tune` runs."""
    found = []
    for page in PAGES:
        for line, within in _lines(page):
            for part in re.split(r"\s+#\s", line)[0].split(" && "):
                if _is_command(part.split(), within):
                    found.append(Command(page.name, re.sub(r"\s+", " ", part.strip()), within))
    made = subprocess.run(["make", "--dry-run", "tune"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    runs = [line.removeprefix(".venv/bin/") for line in made.splitlines() if line.startswith(".venv/bin/tunegen ")]
    found += [Command("Makefile", line, False) for line in runs]
    return list(dict.fromkeys(found))


def texts(page: str) -> list[str]:
    """The commands of a page's blocks, in order."""
    return [command.text for command in commands() if command.page == page and not command.within]


def python_blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    (path,) = (path for path in PAGES if path.name == page)
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
