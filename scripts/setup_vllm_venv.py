"""Makes a virtual environment with vLLM 0.33 for the CPU, over the packages of the one that runs this.

Usage: .venv/bin/python scripts/setup_vllm_venv.py .venv-vllm

There is no CPU wheel of that version, and the source distribution builds without compiled code. Its version decides
the platform that vLLM takes, so that it is built under one that says "cpu"; pip refuses a version other than the one
asked for, so that the file is downloaded under its own first. An environment that has it already is kept.
"""

from __future__ import annotations

import importlib.util
import os
import site
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

VLLM = "0.33.0"
BUILD = ["setuptools>=77.0.3,<81", "setuptools-scm>=8", "setuptools-rust", "wheel"]
# What importing vLLM's configuration, layers and passes takes, of its requirements: every one is imported by them.
NEEDED = [
    *("transformers>=5.16.1,<5.21", "pydantic", "cbor2", "psutil", "pyzmq", "requests", "httpx2", "aiohttp>=3.14.4"),
    *("openai-harmony", "openai", "pillow", "pybase64", "cachetools", "msgspec", "cloudpickle", "uvloop", "py-cpuinfo"),
    *("prometheus_client", "xgrammar", "fastapi", "partial-json-parser", "llguidance", "einops"),
]


def version_in(python: Path) -> str:
    """The version of vLLM that an environment has; empty if it has none."""
    code = "from importlib.metadata import distributions as d; print(*(x.version for x in d(name='vllm')))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main(folder: Path) -> None:
    """Creates or updates the environment."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    folder_of_packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # An environment sees the packages of the interpreter that it descends from, not those of another environment; nor
    # what that one sees in a third, where its torch may be.
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    outer = dict.fromkeys([*site.getsitepackages(), str(Path(torch.origin).parent.parent)])
    (Path(folder_of_packages) / "outer.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as download:
        constraints = Path(download) / "constraints.txt"
        constraints.write_text(f"torch=={version('torch')}\n", encoding="utf-8")
        subprocess.run([*pip, "install", "--constraint", constraints, *BUILD, *NEEDED], check=True)
        if version_in(python) == f"{VLLM}+cpu":
            return
        build = ["--no-deps", "--no-build-isolation"]
        own = {**os.environ, "VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VLLM}
        fetch = [*pip, "download", *build, "--no-binary", "vllm", "--dest", download, f"vllm=={VLLM}"]
        subprocess.run(fetch, check=True, env=own)
        cpu = {**own, "VLLM_VERSION_OVERRIDE": f"{VLLM}+cpu"}
        source = next(Path(download).glob("vllm-*.tar.gz"))
        subprocess.run([*pip, "install", *build, "--no-compile", source], check=True, env=cpu)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
