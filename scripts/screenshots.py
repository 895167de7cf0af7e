"""Makes the pictures in docs/: the report in a browser, and the progress of `tunegen tune` in a terminal.

Usage: python scripts/screenshots.py REPORT.html [--problem ANCHOR] [--phone ANCHOR] [--out docs]

REPORT.html is what `tunegen report` wrote; an anchor is the id of one of its sections. Needs a Chromium.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "report"))

from browser import Browser, find_browser  # noqa: E402 - it lies beside the tests that use it

TERMINAL_WIDTH = 128
# The progress is drawn when this many configs have been evaluated.
AFTER = 15
VISIBLE = "(p, i, all, r = p.getBoundingClientRect()) => p.checkVisibility() && r.bottom > 0 && r.top < innerHeight"
DRAWN = "(p) => p.dataset.state === 'drawn'"
TUNED = ("rmsnorm_mxfp4_quant", "dynamic_mxfp4_quant")


def browse(page: Path, problem: str | None, phone: str | None, out: Path) -> None:
    """Pictures of the top of the page, wide and light, and of two sections: wide and light, narrow and dark."""
    found = find_browser()
    if found is None:
        sys.exit("This needs a Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, Browser(found, Path(profile)) as browser:
        pictures = (
            ("report_wide.png", 1400, 1000, False, None),
            ("report_problem.png", 1400, 1000, False, problem),
            ("report_phone.png", 390, 844, True, phone),
        )
        for name, width, height, dark, anchor in pictures:
            browser.window(width, height, dark, phone=width < 500)
            browser.open(page)
            if anchor:
                section = f"document.getElementById({anchor!r})"
                browser.ask(f"{section}.open = true, {section}.scrollIntoView()")
            browser.wait_for(f"[...document.querySelectorAll('.plot')].filter({VISIBLE}).every({DRAWN})")
            browser.screenshot(out / name)
        if browser.complaints:
            sys.exit("\n".join(browser.complaints))


def progress(out: Path) -> None:
    """A picture of the terminal while `tunegen tune` runs: the real command, predicted."""
    from tunegen.cli import _progress, cli

    printed: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Terminal(Console):
        """A terminal of fixed width that keeps what is printed to it."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(force_terminal=True, width=TERMINAL_WIDTH, file=io.StringIO(), **settings)

        def print(self, *objects: Any, **settings: Any) -> None:
            if objects and isinstance(objects[0], str):
                printed.append((objects, settings))
            super().print(*objects, **settings)

    count = 0
    evaluated = _progress._Live.evaluated

    def look(self: Any, *arguments: Any) -> None:
        nonlocal count
        evaluated(self, *arguments)
        count += 1
        if count == AFTER:
            shot = Console(record=True, width=TERMINAL_WIDTH, file=io.StringIO())
            for objects, settings in printed:
                shot.print(*objects, **{**settings, "soft_wrap": False})
            shot.print(self._bars.get_renderable())
            # Pages load nothing from elsewhere, fonts neither.
            local = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            shot.save_svg(str(out / "tune.svg"), title="tunegen tune --target gfx950", code_format=local)

    _progress.Console = Terminal  # type: ignore[misc]  # a class in a class's place
    _progress._Live.evaluated = look  # type: ignore[method-assign]  # for this process alone
    with tempfile.TemporaryDirectory() as folder:
        command = ["tune", "--target", "gfx950", "--hidden-size", "512", "--tokens", "1,64,1024", "--trials", "12"]
        for op in TUNED:
            command += ["--op", op]
        here = Path.cwd()
        os.chdir(folder)
        try:
            cli.main(command, standalone_mode=False)
        finally:
            os.chdir(here)


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True))
@click.option("--problem", help="Section for the second picture.")
@click.option("--phone", help="Section for the picture of a phone.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", show_default=True)
def main(page: Path, problem: str | None, phone: str | None, out: Path) -> None:
    """Writes report_wide.png, report_problem.png, report_phone.png and tune.svg."""
    browse(page, problem, phone, out)
    progress(out.absolute())


if __name__ == "__main__":
    main()
