"""The README's way from an installed wheel to a verified pack, in an empty folder of an environment of its own.

Nothing of the checkout is on the path, and no GPU is there: times are predicted.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import documents
import optuna
import pytest
from quotes import documented

ROOT = Path(__file__).resolve().parent.parent
# What README.md gives under "Use", what docs/numerics.md adds to it, and how it goes on: run here as it stands there.
TUNE, EMIT, INSTALL = (
    "tunegen tune --model deepseek-r1 --out tuned_configs",
    "tunegen emit --configs tuned_configs --out build/pack --wheel",
    "pip install --no-deps build/pack",
)
VERIFY, REPORT = "tunegen verify --pack tunegen_ops", "tunegen report"
# `home` is what pip makes of a clone.
DOCUMENTED = ("pip install .", TUNE, EMIT, INSTALL, VERIFY)
# The op of README.md's example alone, and few configs: minutes less.
OP = "rmsnorm_add_mxfp4_quant"
BOUNDS = ("--op", OP, "--tokens", "64", "--trials", "3")
STORAGE = "sqlite:///.tunegen/studies.sqlite3"


class Home:
    """An environment with the wheel, and an empty folder."""

    def __init__(self, root: Path) -> None:
        self.environment, self.folder = root / "venv", root / "empty"
        self.folder.mkdir()
        self.python, self.tunegen = (str(self.environment / "bin" / name) for name in ("python", "tunegen"))

    def words(self, command: str) -> list[str]:
        """Those of a command of `tunegen`, which is the environment's."""
        program, *rest = shlex.split(command)
        assert program == "tunegen"
        return [self.tunegen, *rest]

    def run(self, *command: str, status: int = 0) -> str:
        """Runs a command in the folder; returns what it said."""
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=self.variables)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables: those of a login, and no GPU."""
        path = f"{self.environment}/bin:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.folder.parent), "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}

    def pip(self, *arguments: str) -> None:
        """Installs without an index: all that a wheel needs is in the outer environment."""
        offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        self.run(sys.executable, "-m", "pip", "--python", self.python, "install", *offline, *arguments)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of what git knows, as a clean clone has it."""
    clone, out = (tmp_path_factory.mktemp(name) for name in ("clone", "dist"))
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=clone, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def home(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    venv.create(home.environment, with_pip=False)
    # An environment sees the packages of the interpreter that it descends from, not those of one in between.
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site,) = home.environment.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text("\n".join(outer) + "\n")
    home.pip(*map(str, distributions.glob("*.whl")))
    assert home.run(home.python, "-c", "import tunegen; print(tunegen.__file__)").startswith(str(site))
    return home


def test_wheel_and_sdist_have_what_they_need(distributions: Path) -> None:
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    with tarfile.open(sdist) as tar:
        source = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("templates", "tuned_configs"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.j*") if path.is_file()}
        assert files
        assert files <= source
        assert {f"tunegen/{file}" for file in files} <= packed
    assert {"tunegen/py.typed", "tunegen/limits/gfx950.json", "tunegen/report/page.css"} <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests/test_wheel.py", "docs/concepts.md"} <= source


def test_from_wheel_to_pack_and_report(home: Home) -> None:
    """README.md's commands: tune, stopped once; emit, install, import, call, verify, report."""
    assert documents.texts("README.md")[2:5] == [TUNE, EMIT, INSTALL]
    tune = [*home.words(TUNE), *BOUNDS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(tune, cwd=home.folder, env=home.variables, text=True, **pipes) as interrupted:
        assert interrupted.stdout is not None and interrupted.stderr is not None
        while "2 configs" not in interrupted.stdout.readline():
            assert interrupted.poll() is None
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait() == 130
        said = interrupted.stderr.read()
    assert said.startswith(f"Interrupted: 0 of 1 problems are done; what was evaluated is kept in {STORAGE}"), said
    first = home.run(*tune)
    assert re.search(r"up to 3 configs, [23] of them known from an earlier run", first)
    assert f"wrote tuned_configs/gfx950/{OP}.json" in first
    written = (home.folder / "tuned_configs" / "gfx950" / f"{OP}.json").read_text()
    (entry,) = json.loads(written)["entries"]
    assert (entry["evidence"], entry["trials"]) == ("predicted", 3)

    home.run(*home.words(EMIT))
    home.pip(*shlex.split(INSTALL)[2:])
    # Without a GPU the example's tensors lie on the CPU.
    example = documents.python_blocks("README.md")[0].replace('device="cuda"', 'device="cpu"')
    shapes = "print([tuple(t.shape) for t in (q, scales, residual_out)])"
    said = home.run(home.python, "-c", f"{example}\n{shapes}")
    assert said.startswith(f"{OP}, hidden_size 7168, 64 tokens, variant none, on the CPU\n")
    assert said.endswith("[(64, 3584), (64, 224), (64, 7168)]\n")
    assert " 0 failures" in home.run(*home.words(VERIFY))
    assert home.run(*home.words(REPORT)) == "wrote report.html: 1 problems, 1 with their search\n"
    page = (home.folder / "report.html").read_text()
    assert "Plotly" in page
    assert "found as" in page
    assert "another search" not in page
    optuna_reads_the_studies_as_they_are(home)
    another_target_and_another_version_are_said(home)


def optuna_reads_the_studies_as_they_are(home: Home) -> None:
    """Its dashboard shows them so: parameters, importance, names of objectives."""
    storage = f"sqlite:///{home.folder}/.tunegen/studies.sqlite3"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert study.metric_names == ["time over default, 64 tokens"]
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 3
    for trial in study.trials:
        assert trial.params == trial.user_attrs["config"]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[0])
    assert "num_warps" in shares


def another_target_and_another_version_are_said(home: Home) -> None:
    """A pack asked about a GPU that it is not for, and one with a manifest of another version."""
    asked = home.run(home.tunegen, "verify", "--pack", "tunegen_ops", "--target", "sm90", status=1)
    assert "There is nothing to verify for sm90: no kernels of these ops and sizes." in documented(asked)
    explain = "print(tunegen_ops.explain('rmsnorm_mxfp4_quant', 64, device=DeviceKey('sm90', 132, 79), hidden_size=96))"
    code = f"import tunegen_ops; from tunegen_ops.runtime.device import DeviceKey; {explain}"
    told = home.run(home.python, "-W", "error", "-c", code)
    assert "runs      the reference in PyTorch" in told
    assert "tunegen_ops is not tuned for rmsnorm_mxfp4_quant, hidden_size 96, on sm90" in told
    assert "tunegen tune" in told
    documented(told.rpartition("note")[2])

    (manifest,) = home.environment.glob("lib/python*/site-packages/tunegen_ops/manifest.json")
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 0'))
    for command in ([home.tunegen, "verify", "--pack", "tunegen_ops"], [home.python, "-c", "import tunegen_ops"]):
        said = home.run(*command, status=1)
        assert re.search(r"manifest\.json.* must have format 1; it has 0.*tunegen emit", said), said
        documented(said.splitlines()[-1])
