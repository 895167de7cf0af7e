"""What in a listing costs time, and where: spills, narrow accesses, layout changes through LDS, wrong conversions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunegen.codegen.listing import Instruction
from tunegen.codegen.listing.fp4 import check_conversions
from tunegen.targets import Target

# Bytes a lane: of a load at most, and of a store at least unless a lane has no more to store.
WIDEST, WORD = 16, 4
# A row reduction passes one fp32 a warp; anything wider brings elements to other lanes.
REDUCTION_WIDTH = 4


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        what: What it is, in one line.
        lines: Where in the listing, from 1.
    """

    what: str
    lines: tuple[int, ...]


def _of(instructions: Sequence[Instruction], *kinds: str) -> list[Instruction]:
    return [instruction for instruction in instructions if instruction.kind in kinds]


def _lines(instructions: Sequence[Instruction]) -> tuple[int, ...]:
    return tuple(instruction.line for instruction in instructions)


def findings_of(target: Target, instructions: Sequence[Instruction]) -> list[Finding]:
    """Everything of note in a listing, the worst first."""
    found = [Finding(f"wrong conversion: {text}", ()) for text in _conversions(target, instructions)]
    spilled = _of(instructions, "scratch")
    if spilled:
        found.append(Finding(f"{len(spilled)} accesses of spilled registers", _lines(spilled)))
    for kind, enough in (("global load", WIDEST), ("global store", WORD)):
        for width in sorted({i.width for i in _of(instructions, kind) if i.width < enough}):
            narrow = [i for i in _of(instructions, kind) if i.width == width]
            bytes_ = "byte" if width == 1 else "bytes"
            found.append(Finding(f"narrow: {len(narrow)} {kind}s of {width} {bytes_} a lane", _lines(narrow)))
    wide = [i for i in _of(instructions, "shared load", "shared store") if i.width > REDUCTION_WIDTH]
    if wide:
        copies = _of(instructions, "async copy")
        what = "pipeline buffers and layout changes" if copies else "a layout change"
        found.append(Finding(f"{len(wide)} wide accesses of shared memory: {what}", _lines(wide)))
    barriers = _of(instructions, "barrier")
    if barriers:
        found.append(Finding(f"{len(barriers)} barriers", _lines(barriers)))
    return found


def _conversions(target: Target, instructions: Sequence[Instruction]) -> list[str]:
    return check_conversions(instructions) if target.fp4_conversion == "cvt_scalef32" else []
