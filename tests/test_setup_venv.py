"""The environment that `make setup` makes, from an interpreter with a torch of its own or without one."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.mark.parametrize("own", [True, False], ids=["with torch", "without"])
def test_an_environment_made_from_another_has_its_torch(own: bool, tmp_path: Path) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    venv.create(parent, with_pip=False)
    (site,) = parent.glob("lib/python*/site-packages")
    if own:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text("mine = 17\n")
    make = f"import sys; sys.path.append({str(SCRIPTS)!r}); import setup_venv, pathlib; "
    for _ in range(2):  # an environment that is there is kept
        made = f"print(setup_venv.make(pathlib.Path({str(child)!r}), with_pip=False))"
        done = subprocess.run(
            [parent / "bin" / "python", "-c", make + made], check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == str(own)
    said = subprocess.run(
        [child / "bin" / "python", "-c", "import torch; print(torch.mine)"], check=False, capture_output=True, text=True
    )
    assert said.stdout == ("17\n" if own else "")
    assert sys.version.split()[0] in (child / "pyvenv.cfg").read_text()
