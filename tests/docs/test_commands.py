"""Every command of the documents is run as it stands there, or with what bounds its cost added behind it.

`WAYS` says how, by patterns. A command that no pattern knows is a failure, and so is a pattern without a command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_template
import test_wheel
from click.testing import CliRunner
from documents import ROOT, Command, commands
from material import write_recording, write_table

from tunegen.cli import cli
from tunegen.search import evaluators
from tunegen.search.evaluators import PredictedEvaluator
from tunegen.targets import get_target, present_device

WAYS: dict[str, tuple[str, ...]] = {
    # Run elsewhere, each by a test that takes it from the page or from a list that must have it.
    "elsewhere": tuple(map(re.escape, (*test_wheel.DOCUMENTED, *test_template.DOCUMENTED))),
    # Run as they stand, in a folder with tuned configs, studies and a table of times.
    "run": (
        r"tunegen (models|ops|targets|report)\b.*",
        r"tunegen show(?! --failures).*",
        r"tunegen (render|inspect) \w+ -.*",
        r"tunegen bench --from .*",
        r"python -c .*",
    ),
    # Of a sentence, without what the command cannot do without: it has the options.
    "named": (r"tunegen (bench|emit|inspect|render|tune|verify)( --[a-z-]+( bench\.json)?)*",),
    # Run up to what they say where there is no GPU, or no such server.
    "refused": (r"tunegen bench .*", r"tunegen tune .*(--devices|postgresql:).*"),
    "refused script": (
        r"python benchmarks/(f2_table|f3_table|forms_table|counters|dependent_launch|record_space|host_cost)\.py.*",
        r"python examples/decoder_layer\.py .*",
    ),
    # Run one after another in one folder, what each takes made by those before it.
    "session": (r"tunegen (tune|emit|verify|show --failures)\b.*", r"optuna-dashboard .*"),
    "script": (r"python benchmarks/(compare_samplers|issue_limit|validate_model)\.py .*",),
    "pytest": (r"pytest .*",),
    # Of these CI runs `test`, `test-vllm` and `lint`, and "session" the commands of `tune`: here what make would do.
    "make": (r"make [a-z-]+( PYTHON=python3)?",),
    # Tests install nothing into their environment: pip's own parser, and pyproject.toml.
    "pip": (r"pip install .*",),
    # vLLM is not here; tests_vllm/test_pass.py gives these to its parser and runs the pass.
    "vllm": (r"vllm serve .*",),
}
# What may be added to a command: less work of the same kind, and a port that is free.
BOUNDS = ("--op", "--hidden-size", "--tokens", "--trials", "--samplers", "--most", "--workers", "--port")
OP = "rmsnorm_mxfp4_quant"
COMMANDS = commands()


def way_of(command: Command) -> str | None:
    """The first way that knows the command."""
    for way, patterns in WAYS.items():
        known = any(re.fullmatch(pattern, command.text) for pattern in patterns)
        if known and (way != "named" or command.within):
            return way
    return None


def of(way: str) -> list[str]:
    """The commands that go that way, each once."""
    return list(dict.fromkeys(command.text for command in COMMANDS if way_of(command) == way))


def bounded(command: str, *added: str) -> list[str]:
    """The words of a command and of what bounds its cost, an option and its value each."""
    words = shlex.split(command)
    given = {word for word in words if word.startswith("--")}
    for option, value in zip(added[::2], added[1::2], strict=True):
        assert option in BOUNDS, option
        # Another op or size beside those of the command would be more work.
        if option not in given or option not in ("--op", "--hidden-size"):
            words += [option, value]
    return words


def run(words: list[str]) -> str:
    """What a `tunegen` command says that ends well."""
    if "--plot" in words:
        pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `dev`")
    done = CliRunner().invoke(cli, words[1:])
    if done.exit_code:
        raise done.exception or AssertionError(done.output)
    return done.output


def test_every_command_has_a_way() -> None:
    assert [command for command in COMMANDS if way_of(command) is None] == []
    texts = [command.text for command in COMMANDS]
    patterns = [pattern for way in WAYS.values() for pattern in way]
    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, text) for text in texts)] == []
    assert all(of(way) for way in WAYS)
    assert len(COMMANDS) > 100
    assert set(cli.commands) <= {text.split()[1] for text in texts if text.startswith("tunegen ")}


@pytest.mark.parametrize("text", ["tunegen tun --model deepseek-r1", "python benchmarks/new.py", "npm install tunegen"])
def test_a_new_command_is_found(text: str) -> None:
    assert way_of(Command("README.md", text, False)) is None


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: shipped configs as one's own, here and in build/, empty storages, tables, a recording."""
    from tunegen.search.storage import open_storage

    folder = tmp_path_factory.mktemp("user")
    for name in ("tuned_configs", "build/tuned_configs"):
        shutil.copytree(ROOT / "tuned_configs", folder / name)
    for place in ("build/studies", ".tunegen/studies", "studies"):
        open_storage(f"sqlite:///{folder}/{place}.sqlite3")
    for name in ("FOLDER", "DIR", "build/pack"):
        (folder / name).mkdir()
    write_table(folder / "bench.json")
    write_table(folder / "DIR" / "f2_table.json")
    write_recording(folder / "space.jsonl")
    return folder


@pytest.mark.parametrize("command", of("run"))
def test_run(command: str, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    words = shlex.split(command)
    if words[0] == "python":
        assert subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True).stdout in (
            b"True\n",
            b"False\n",
        )
    else:
        assert run([OP if word == "OP" else word for word in words])


@pytest.mark.parametrize("command", of("named"))
def test_named(command: str) -> None:
    _, name, *rest = shlex.split(command)
    has = {option for parameter in cli.commands[name].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= has


REFUSALS = ("there is none here", "there is no GPU here", "failed to resolve host 'host'")


@pytest.mark.skipif(present_device() is not None, reason="there is a GPU: this would measure")
@pytest.mark.parametrize("command", of("refused"))
def test_refused_without_a_gpu_or_a_server(command: str, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    done = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert any(refusal in str(done.exception) for refusal in REFUSALS), (done.output, done.exception)


@pytest.mark.skipif(present_device() is not None, reason="there is a GPU: this would measure")
@pytest.mark.parametrize("command", of("refused script"))
def test_scripts_refused_without_a_gpu(
    command: str, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, script, *arguments = shlex.split(command)
    monkeypatch.chdir(user)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code not in (None, 0)
    said = f"{ended.value.code} {capsys.readouterr().err}"
    assert re.search(r"no GPU here|on a GPU|there is none here", said), said


def added_to(script: str) -> tuple[str, ...]:
    """What bounds the cost of a script."""
    samplers, model = ("--samplers", "random:1"), ("--most", "2", "--workers", "1")
    return {"compare_samplers": samplers, "validate_model": model, "issue_limit": ()}[script]


@pytest.mark.parametrize("command", of("script"))
def test_scripts(command: str, user: Path) -> None:
    script = ROOT / command.split()[1]
    if script.stem == "compare_samplers":
        pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `dev`")
    _, _, *arguments = bounded(command, *added_to(script.stem))
    done = subprocess.run([sys.executable, script, *arguments], cwd=user, capture_output=True, text=True, check=False)
    if "studies.sqlite3" in arguments:
        # What a run without a GPU leaves there was not measured.
        assert done.returncode == 1
        assert "There is nothing to compare with: studies.sqlite3" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    for folder in re.findall(r"--out (\w+)", command):
        assert {path.suffix for path in (user / folder).iterdir()} == {".svg", ".json"}
    assert done.stdout.count("|") > 10 or "--out" in command


# Runs pytest several times in one process, which saves starting torch for each.
PYTESTS = """
import json, sys, pytest
if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        print("#", *arguments, flush=True)
        print("ended:", int(pytest.main([*arguments, "-p", "no:cacheprovider"])), flush=True)
"""


def test_pytest_commands() -> None:
    """Those that need a GPU are run; all else is of the suite itself: its tests are collected, with the options."""
    on_gpu = ("--exhaustive", "broken_gpu")
    asked = []
    for command in of("pytest"):
        words = shlex.split(command)[1:]
        bare = any(name in command for name in on_gpu) and present_device() is None
        asked.append([*words, *([] if bare else ["--collect-only"])])
    asked = [[(word != "FOLDER" and word) or str(ROOT) for word in words] for words in asked]
    done = subprocess.run(
        [sys.executable, "-c", PYTESTS, json.dumps(asked)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parts = done.stdout.split("# ")[1:]
    assert len(parts) == len(asked)
    for words, part in zip(asked, parts, strict=True):
        if "--exhaustive" in words and "--collect-only" not in words:
            assert "the exhaustive check needs a GPU" in part
        else:
            assert part.rstrip().endswith("ended: 0"), part


@pytest.mark.parametrize("command", of("make"))
def test_make(command: str) -> None:
    _, *arguments = shlex.split(command)
    subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", of("pip"))
def test_pip(command: str) -> None:
    from pip._internal.commands import create_command

    _, _, *arguments = shlex.split(command)
    options, names = create_command("install").parse_args(arguments)
    text = (ROOT / "pyproject.toml").read_text()
    for name in [*names, *options.editables]:
        if match := re.fullmatch(r"(?:tunegen|\.)\[(\w+)\]", name):
            assert re.search(rf"^{match[1]} = \[", text, re.MULTILINE), name
        else:
            assert re.search(rf'"{name}["><=]', text), name


@pytest.mark.parametrize("command", of("vllm"))
def test_vllm(command: str) -> None:
    program, serve, model, option = shlex.split(command)
    assert (program, serve, model) == ("vllm", "serve", "MODEL")
    name, _, value = option.partition("=")
    assert name == "-cc.inductor_passes"
    (place,) = json.loads(value).values()
    module, _, function = place.partition(".")
    if module == "tunegen_ops":
        assert f"def {function}(" in (ROOT / "tunegen" / "oppack" / "texts.py").read_text()
    else:
        page = (ROOT / "docs" / "vllm.md").read_text()
        assert f"# {module}.py" in page
        assert f"\n{function} = " in page


@pytest.fixture
def kept_evaluator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of `tunegen tune` share one evaluator: its processes start once, and no kernel is compiled twice."""
    with PredictedEvaluator(get_target("gfx950"), [1], workers=1) as evaluator, monkeypatch.context() as patched:
        patched.setattr(evaluator, "close", lambda: None)

        def kept(target: object, tokens: list[int]) -> PredictedEvaluator:
            assert (target, tokens) == (evaluator.target, evaluator.tokens)
            return evaluator

        patched.setattr(evaluators, "PredictedEvaluator", kept)
        yield


@pytest.mark.skipif(present_device() is not None, reason="there is a GPU: this would measure")
def test_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_evaluator: None) -> None:
    """Tune, emit, verify, look at the studies: all such commands of all pages in one folder."""
    monkeypatch.chdir(tmp_path)
    by_name: dict[str, list[str]] = {"tune": [], "emit": [], "verify": [], "show": [], "dashboard": []}
    for command in of("session"):
        words = command.split()
        by_name["dashboard" if words[0] == "optuna-dashboard" else words[1]].append(command)
    assert all(by_name.values())
    for command in by_name["tune"]:
        words = bounded(command, "--op", OP, "--tokens", "1", "--trials", "1")
        # The shared file system of the example is this folder.
        words = [word.replace("journal:////shared/", f"journal:///{tmp_path}/.tunegen/") for word in words]
        assert "wrote " in run(words), command
    for command in by_name["emit"]:
        assert re.search(r"tunegen_ops .*: \d+ entries, \d+ kernels, in ", run(shlex.split(command))), command
    for command in by_name["verify"]:
        said = run(bounded(command, "--op", OP, "--hidden-size", "512"))
        assert "executed (functional)" in " ".join(said.split())
        assert said.rstrip().endswith(" 0 failures"), said
    for command in by_name["show"]:
        assert f"{OP} (hidden_size 512) on gfx950, predicted: 0 of 1 configs failed" in run(shlex.split(command))
    for command in by_name["dashboard"]:
        assert {name.partition(" | ")[0] for name in studies_in_dashboard(command)} >= {f"{OP} (hidden_size 512)"}


def studies_in_dashboard(command: str) -> list[str]:
    """Names of the studies that the dashboard's page asks for and gets."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("optuna-dashboard comes with the extra `dev`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = bounded(command, "--port", str(port))
    place = f"http://127.0.0.1:{port}"
    with subprocess.Popen([Path(sys.executable).with_name(program), *arguments]) as server:
        try:
            page = ""
            while not page:
                assert server.poll() is None
                with contextlib.suppress(urllib.error.URLError):
                    page = urllib.request.urlopen(f"{place}/dashboard/").read().decode()
                time.sleep(0.1)
            assert "<title>Optuna Dashboard" in page
            answer = json.load(urllib.request.urlopen(f"{place}/api/studies"))
        finally:
            server.terminate()
    return [study["study_name"] for study in answer["study_summaries"]]
