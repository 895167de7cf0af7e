"""Fixtures of the search's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from tunegen.cli import cli


@pytest.fixture(scope="session")
def show_failures() -> Callable[[str], str]:
    """What `tunegen show --failures` says of a storage."""

    def show(url: str) -> str:
        return CliRunner().invoke(cli, ["show", "--failures", "--storage", url], catch_exceptions=False).output

    return show
