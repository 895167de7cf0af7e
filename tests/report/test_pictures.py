"""The pictures in docs/: of the report in a browser, and of a terminal in which `tunegen tune` runs.

Made here of a page with made-up searches and of a short run, and looked at. `--write-docs REPORT` has the same code
write them into docs/, of a page that `tunegen report` wrote and of a longer run.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from browser import Browser
from click.testing import CliRunner
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from tunegen.cli import _progress, cli
from tunegen.search import evaluators
from tunegen.search.evaluators import PredictedEvaluator

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Picture(NamedTuple):
    """Size in pixels, colour scheme, and the section that it shows; None: the top of the page."""

    width: int
    height: int
    dark: bool
    section: str | None


PICTURES = {
    "report_wide.png": Picture(1400, 1000, False, None),
    "report_problem.png": Picture(
        1400, 1000, False, "mla_rope_cache-kv_lora_rank-512-num_heads-128-rope_dim-64-sm90-measured"
    ),
    "report_phone.png": Picture(390, 844, True, "rmsnorm_mxfp4_quant-hidden_size-7168-gfx950-predicted"),
}
# Plots of which something is in the window.
SEEN = """
[...document.querySelectorAll('.plot')].filter((p) => {
  const box = p.getBoundingClientRect();
  return p.checkVisibility() && box.bottom > 0 && box.top < innerHeight;
})
"""
# Where their axes span: left, top, width and height, cut at the window.
AREAS = f"""
{SEEN}.flatMap((p) => [...p.querySelectorAll('.nsewdrag')]).map((area) => {{
  const box = area.getBoundingClientRect(), top = Math.max(box.top, 0);
  return [box.left, top, box.width, Math.min(box.bottom, innerHeight) - top].map(Math.round);
}})
"""
# How many colours each area of an image has; the image is given as data, so that its pixels may be read.
COLOURS = """
(async () => {
  const image = new Image();
  image.src = 'data:image/png;base64,%s';
  await image.decode();
  const paper = new OffscreenCanvas(image.width, image.height).getContext('2d', {willReadFrequently: true});
  paper.drawImage(image, 0, 0);
  return %s.map((area) => new Set(new Uint32Array(paper.getImageData(...area).data.buffer)).size);
})()
"""
# Background, lines of the grid and where they cross are three.
FEWEST_COLOURS = 8


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Path:
    """The page to take pictures of."""
    given: Path | None = request.config.getoption("--write-docs")
    if given and not given.is_file():
        raise pytest.UsageError(f"--write-docs takes a page that `tunegen report` wrote; there is no {given}.")
    page: Path = given or request.getfixturevalue("page")
    return page


@pytest.fixture
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder to write them to."""
    return DOCS if request.config.getoption("--write-docs") else tmp_path


def take(browser: Browser, page: Path, picture: Picture, file: Path) -> list[list[int]]:
    """Writes a picture; returns the areas of the plots in it."""
    browser.window(picture.width, picture.height, picture.dark, phone=picture.width < 500)
    browser.open(page)
    if picture.section:
        section = f"document.getElementById({picture.section!r})"
        browser.ask(f"{section}.open = true, {section}.scrollIntoView()")
    browser.wait_for(f"{SEEN}.every((p) => p.dataset.state === 'drawn')")
    browser.screenshot(file)
    areas: list[list[int]] = browser.ask(AREAS)
    return areas


@pytest.mark.parametrize("name", PICTURES)
def test_the_report(name: str, browser: Browser, report: Path, out: Path) -> None:
    picture, file = PICTURES[name], out / name
    areas = take(browser, report, picture, file)
    data = file.read_bytes()
    # A PNG's signature, then the size in its first chunk.
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (picture.width, picture.height)
    assert len(areas) >= 2
    assert all(min(width, height) > 20 for _, _, width, height in areas)
    colours = browser.ask(COLOURS % (base64.b64encode(data).decode(), areas))
    assert min(colours) >= FEWEST_COLOURS, colours
    assert browser.complaints == []


TERMINAL_WIDTH = 128
TUNE = "tune --target gfx950 --hidden-size 512 --op rmsnorm_mxfp4_quant --op dynamic_mxfp4_quant --tokens 1,64,1024"
# Configs a problem, and how many of all have been evaluated when the picture is taken.
LONG, SHORT = (12, 15), (2, 3)


class Terminal(Console):
    """A terminal of fixed width that keeps what is printed to it."""

    printed: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(force_terminal=True, width=TERMINAL_WIDTH, file=io.StringIO(), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        if objects and isinstance(objects[0], str):
            self.printed.append((objects, settings))
        super().print(*objects, **settings)


def test_the_progress(
    request: pytest.FixtureRequest, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command, predicted; what its terminal shows when so many configs have been evaluated."""
    trials, after = LONG if request.config.getoption("--write-docs") else SHORT
    count = 0
    evaluated = _progress._Live.evaluated

    def look(self: Any, *arguments: Any) -> None:
        nonlocal count
        evaluated(self, *arguments)
        count += 1
        if count == after:
            shot = Console(record=True, width=TERMINAL_WIDTH, file=io.StringIO())
            for objects, settings in Terminal.printed:
                shot.print(*objects, **{**settings, "soft_wrap": False})
            shot.print(self._bars.get_renderable())
            # Pages load nothing from elsewhere, fonts neither.
            local = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            shot.save_svg(str(out / "tune.svg"), title="tunegen tune --target gfx950", code_format=local)

    monkeypatch.setattr(evaluators, "PredictedEvaluator", functools.partial(PredictedEvaluator, workers=1))
    monkeypatch.setattr(Terminal, "printed", [], raising=False)
    monkeypatch.setattr(_progress, "Console", Terminal)
    monkeypatch.setattr(_progress._Live, "evaluated", look)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, [*TUNE.split(), "--evidence", "predicted", "--trials", str(trials)])
    assert done.exit_code == 0, (done.output, done.exception)

    text = (out / "tune.svg").read_text(encoding="utf-8")
    assert "url(http" not in text
    assert "@font-face" not in text
    shown = "\n".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ")
    assert "Tuning 2 problems for AMD Instinct MI350X (gfx950, 256 units, 288 GiB): predicted" in shown
    assert "all problems" in shown
    assert f"{after}/{2 * trials}" in shown
    assert re.search(r"(rmsnorm|dynamic)_mxfp4_quant \(hidden_size 512\)", shown)
    assert re.search(r"best [01]\.\d{3} of default", shown)
    # Of a bar, what is done and what is not have a colour each.
    bars = {fill for fill, bar in re.findall(r'class="[\w-]+-(r\d+)"[^>]*>([━╸╺]+)', text)}
    assert len(bars) >= 2, bars
