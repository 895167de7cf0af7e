"""The page in a real browser: nothing in the console, nothing fetched, every plot drawn, at every size and scheme."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser

PHONE, WIDE = 390, 1400

# Drawn means: plotly has made marks for every trace, inside of the plot's box, which has a size.
UNDRAWN = """
[...document.querySelectorAll('.plot')].filter((plot) => {
  const marks = plot.querySelectorAll('.scatterlayer .trace, .barlayer .trace, .heatmaplayer image');
  const box = plot.getBoundingClientRect();
  const boxes = [...marks].map((mark) => mark.getBoundingClientRect());
  return plot.data === undefined || marks.length !== plot.data.length || box.width < 250 || box.height < 90
    || boxes.some((b) => b.width <= 0 || b.left < box.left - 1 || b.right > box.right + 1);
}).length
"""
# Names at the ends of lines that lie on one another or outside of their figure.
BAD_LABELS = """
[...document.querySelectorAll('.plot')].filter((plot) => plot.layout.yaxis.title.text).flatMap((plot) => {
  const outer = plot.getBoundingClientRect();
  const boxes = [...plot.querySelectorAll('.annotation-text')].map((text) => text.getBoundingClientRect());
  return boxes.filter((a, i) => a.right > outer.right + 1
    || boxes.some((b, j) => j > i && a.left < b.right && b.left < a.right
      && a.top + 3 < b.bottom && b.top + 3 < a.bottom));
}).length
"""


@pytest.mark.parametrize(("width", "dark"), [(WIDE, False), (PHONE, True)])
def test_every_plot_is_drawn(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.window(width, 900, dark, phone=width == PHONE)
    browser.open(page)
    browser.ask("dispatchEvent(new Event('beforeprint'))")
    # Two overviews of each of two GPUs; five figures in each of three sections.
    assert browser.ask("document.querySelectorAll('.plot').length") == 2 * 2 + 3 * 5
    browser.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.state === 'drawn')")
    assert browser.ask(UNDRAWN) == 0
    assert browser.ask(BAD_LABELS) == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def test_plots_wait_for_being_seen_and_follow_the_colour_scheme(browser: Browser, page: Path) -> None:
    browser.window(WIDE, 900, dark=False)
    browser.open(page)
    folded = "document.querySelectorAll('details:not([open]) .plot')"
    browser.wait_for("document.querySelector('.plot').dataset.state === 'drawn'")
    assert browser.ask(f"[...{folded}].filter((plot) => plot.dataset.state).length") == 0
    second = "document.querySelectorAll('details')[1]"
    browser.ask(f"{second}.open = true, {second}.scrollIntoView()")
    browser.wait_for(f"{second}.querySelector('.plot').dataset.state === 'drawn'")
    colour = "document.querySelector('.plot').layout.font.color"
    light = browser.ask(colour)
    browser.window(WIDE, 900, dark=True)
    browser.wait_for(f"{colour} !== '{light}'")
    assert browser.complaints == []
