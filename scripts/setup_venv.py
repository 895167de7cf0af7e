"""Makes a virtual environment with tunegen (editable) and what its tests need.

Usage: python scripts/setup_venv.py .venv

If the interpreter that runs this has torch, the environment uses that torch and its triton and installs neither:
a ROCm or CUDA build that is there is the one to tune for. Otherwise constraints.txt says the versions.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GPU_STACK = ("torch", "triton")


def requirements() -> list[str]:
    """The dependencies of pyproject.toml, with those of the dev extra (no TOML reader before Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    main = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    dev = re.search(r"^dev = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    if not main or not dev:
        raise SystemExit("pyproject.toml: dependencies and the dev extra were not found")
    return re.findall(r'"([^"]+)"', main[1] + dev[1])


def make(folder: Path, with_pip: bool = True) -> bool:
    """Creates the environment, unless it is there; True if it has the torch of the interpreter that runs this."""
    torch = importlib.util.find_spec("torch")
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=with_pip, system_site_packages=torch is not None)
    if torch is None or torch.origin is None:
        return False
    # The site packages of the system are not those of a virtual environment, if this one is made from such.
    found = subprocess.run(
        [python, "-c", "import importlib.util; print(importlib.util.find_spec('torch'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    if found.stdout.strip() == "None":
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "outer.pth").write_text(f"{Path(torch.origin).parent.parent}\n", encoding="utf-8")
    return True


def main(folder: Path) -> None:
    """Creates or updates the environment."""
    fresh = not (folder / "bin" / "python").exists()
    present = make(folder)
    needed = requirements()
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if present:
        needed = [item for item in needed if re.split(r"[^\w-]", item)[0] not in GPU_STACK]
        print("torch is installed: using it and its triton", flush=True)
        # What else is installed there has its commands there, and not in the environment.
        command += ["--ignore-installed"] if fresh else []
    else:
        command += ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *needed], check=True)
    editable = [*command[:6], "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    subprocess.run(editable, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
