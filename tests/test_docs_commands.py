"""Every command in the documents: run where that is cheap, otherwise taken apart as far as it goes without running.

Why a command is not run is said beside its name below. A command that no rule knows is a failure.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.errors import TunegenError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = ("tunegen", "make", "pytest", "python", "pip", "optuna-dashboard")
SHELL_FENCES = ("", "sh", "bash", "console")
# Run as they stand, in a folder with tuned configs, studies and baselines.
RUN = ("models", "ops", "targets", "show", "render", "report", "inspect")
NOT_RUN = {
    "tune": "minutes; tests/test_wheel.py runs a small one",
    "emit": "half a minute for all that ships; tests/test_wheel.py and tests/oppack run it",
    "verify": "minutes; tests/test_wheel.py and tests/execute run it",
    "bench": "times kernels on a GPU",
}
# Ops that a page makes itself are not there without it.
ELSEWHERE = {"template.md": "residual_add"}  # tests/test_docs_template.py runs that page's commands


def lines_of(page: Path) -> Iterator[tuple[str, bool]]:
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


def commands() -> list[tuple[str, str, bool]]:
    """Page and command of each, once, and whether it is in a sentence, where what is beside the point is left out."""
    found = []
    for page in PAGES:
        for line, within in lines_of(page):
            for part in re.split(r"\s+#\s", line)[0].split(" && "):
                words = part.split()
                # The bare name of a command or program is a word of the sentence.
                if len(words) > 1 and words[0] in PROGRAMS and "|" not in words:
                    found.append((page.name, part.strip(), within))
    return list(dict.fromkeys(found))


COMMANDS = commands()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: shipped configs as one's own, here and in build/, an empty storage, a table."""
    from tunegen.search.storage import open_storage

    folder = tmp_path_factory.mktemp("user")
    for name in ("tuned_configs", "build/tuned_configs"):
        shutil.copytree(ROOT / "tuned_configs", folder / name)
    for place in ("build", ".tunegen"):
        open_storage(f"sqlite:///{folder}/{place}/studies.sqlite3")
    (folder / "bench.json").write_text('{"format": 1, "environment": {"device": "a GPU"}, "rows": []}')
    return folder


def test_the_documents_are_read() -> None:
    pages = {page for page, *_ in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "concepts.md", "report.md", "search.md", "troubleshooting.md"} <= pages
    tunegens = {command.split()[1] for _, command, _ in COMMANDS if command.startswith("tunegen ")}
    assert set(cli.commands) == tunegens - {"--help"}
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(("page", "command", "within"), COMMANDS)
def test_command(page: str, command: str, within: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    monkeypatch.chdir(folder)
    if program == "tunegen":
        mentioned(arguments) if within else tunegen(page, arguments)
    elif program == "make":
        made = ["make", "--dry-run", "--file", str(ROOT / "Makefile"), "--directory", str(ROOT), *arguments]
        subprocess.run(made, check=True, capture_output=True)
    elif program == "pytest":
        pytest_command(arguments)
    elif program == "python":
        python(arguments)
    elif program == "pip":
        pip(arguments)
    else:
        # A package of its own, not needed here: its argument is a storage that `tunegen tune` takes.
        assert program == "optuna-dashboard"
        assert arguments[0].startswith(("sqlite:///", ".tunegen/", "postgresql://"))


def mentioned(arguments: list[str]) -> None:
    """A command within a sentence: it is there, and has the options."""
    if arguments == ["--help"]:
        return
    command = cli.commands[arguments[0]]
    has = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in arguments[1:] if word.startswith("--")} <= has


def tunegen(page: str, arguments: list[str]) -> None:
    """Runs a command, or checks its options, their values and the names in them."""
    name, *rest = arguments
    assert name in cli.commands
    made = ELSEWHERE.get(page)
    # A word in capitals stands for what a user puts there.
    placeholders = any(re.fullmatch(r"[A-Z_]{2,}", word) for word in rest)
    if name in RUN and not placeholders and made not in rest:
        done = CliRunner().invoke(cli, arguments)
        if done.exit_code:
            raise done.exception or AssertionError(done.output)
        return
    assert name in NOT_RUN or placeholders or made in rest
    try:
        context = cli.commands[name].make_context(name, list(rest))
    except click.exceptions.Exit:  # --help
        return
    if placeholders or made in rest:
        return
    check_names(context.params)


def check_names(values: dict[str, object]) -> None:
    """Models, ops, sizes, targets, token counts and times of a command are ones that there are."""
    from tunegen.cli import _options
    from tunegen.ops import get_family
    from tunegen.targets import get_target

    sizes = {name: values[name] for name in _options.SIZE_HELP if name in values}
    ops = values.get("ops", ())
    assert isinstance(ops, tuple)
    for op in ops:
        get_family(op)
    if values.get("model") or any(sizes.values()):
        # Click's values have no types.
        _options.chosen_problems(values.get("model"), values.get("tp", 1), ops, **sizes)  # type: ignore[arg-type]
    targets = values.get("targets", (values.get("target", "auto"),))
    assert isinstance(targets, tuple)
    for target in targets:
        if target != "auto":
            get_target(target)
    if values.get("tokens"):
        _options.parse_tokens(str(values["tokens"]))
    if values.get("timeout"):
        _options.parse_seconds(str(values["timeout"]))


def options_of(script: Path) -> set[str]:
    """Options that the source of a script, or what the scripts share, names."""
    text = script.read_text(encoding="utf-8")
    if "from tables import" in text:
        text += (script.parent / "tables.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(--[a-z-]+)', text))


def python(arguments: list[str]) -> None:
    """Scripts take minutes or a GPU: there they are, and the options given are theirs."""
    if arguments[0] == "-c":
        compile(arguments[1], "docs", "exec")
        return
    script = ROOT / arguments[0]
    assert script.is_file(), arguments
    given = {word.partition("=")[0] for word in arguments[1:] if word.startswith("--")}
    assert given <= options_of(script), arguments


def pytest_command(arguments: list[str]) -> None:
    """Tests are run by themselves: the paths are there, and the options are pytest's or conftest.py's."""
    for word in arguments:
        if word.startswith("--"):
            assert word in options_of(ROOT / "tests" / "conftest.py"), word
        else:
            assert (ROOT / word.partition("::")[0]).exists(), word


def pip(arguments: list[str]) -> None:
    """Nothing is installed by tests: extras are ones of pyproject.toml."""
    assert arguments[0] == "install"
    text = (ROOT / "pyproject.toml").read_text()
    for word in arguments[1:]:
        if match := re.search(r"\[(\w+)\]$", word):
            assert re.search(rf"^{match[1]} = \[", text, re.MULTILINE), word


def test_wrong_commands_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(AssertionError):
        mentioned(["show", "--failure"])
    wrong = (
        ["tune", "--model", "deepseek-r2"],
        ["tune", "--modl", "deepseek-r1"],
        ["tune", "--hidden-size", "500"],
        ["verify", "--target", "gfx95"],
        ["show", "--diff", "sm91", "--target", "sm90"],
    )
    for arguments in wrong:
        with pytest.raises((TunegenError, click.UsageError, SystemExit)):
            tunegen("README.md", arguments)
    with pytest.raises(AssertionError):
        python(["benchmarks/f3_table.py", "--aiter", "FOLDER"])
    with pytest.raises(AssertionError):
        pytest_command(["tests/nowhere.py"])
