"""A report and a browser to open it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from made import NORM, ROPE, aiter_of, search_of, shipped

from tunegen.report.gather import gather
from tunegen.report.page import render_page


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two measured sections, one of them with baselines, and a predicted one."""
    entries = [shipped(NORM, "sm90"), shipped(ROPE, "sm90"), shipped(NORM, "gfx950")]
    path = tmp_path_factory.mktemp("report") / "report.html"
    subjects = gather(entries, [search_of(entry) for entry in entries], [aiter_of(entries[1])])
    path.write_text(render_page(subjects), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = find_browser()
    if found is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with Browser(found, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
