"""A pack to fuse into, imported once for all tests."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
from packs import emit_for_tests

NAME = "fusion_ops"


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The pack ``fusion_ops``."""
    project = emit_for_tests(tmp_path_factory.mktemp("fusion") / "pack", NAME)
    sys.path.insert(0, str(project))
    return importlib.import_module(NAME)
