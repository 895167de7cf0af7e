"""The messages that docs/troubleshooting.md quotes."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"


def documented(said: str) -> str:
    """The message; docs/troubleshooting.md must have it, in which … stands for anything."""
    fences = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    quotes = [line for fence in fences for line in fence.splitlines()]
    patterns = [".*".join(map(re.escape, quote.split("…"))) for quote in quotes]
    assert any(re.fullmatch(pattern, said.strip().removeprefix("Error: ")) for pattern in patterns), said
    return said
