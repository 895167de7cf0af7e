"""What the executor raises."""

from __future__ import annotations

from tunegen.errors import TunegenError


class ListingError(TunegenError):
    """A listing that cannot be executed: text it cannot read, an opcode or operand it does not know."""


class ExecutionError(TunegenError):
    """A kernel that did what no correct kernel does: a wild access, a race, a result used before it is there.

    Args:
        what: The rule that was broken, and by what.
        line: Line of the listing, from 1.
        text: The instruction there.
    """

    def __init__(self, what: str, line: int = 0, text: str = "") -> None:
        super().__init__(f"line {line}: {text}: {what}" if line else what)
        self.what = what
        self.line = line
        self.text = text
