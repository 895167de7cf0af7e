"""Which lane reads which: DPP controls and the swizzles of ds_swizzle_b32 (ISA documents, "DPP", "DS_SWIZZLE_B32")."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LANES = np.arange(64)
ROW = 16


@dataclass(frozen=True)
class Dpp:
    """A DPP control.

    Attributes:
        source: Lane that each lane reads, int [64].
        inside: The source is a lane that the control has, bool [64].
        enabled: Row and bank masks allow the lane to be written, bool [64].
        zero: BOUND_CTRL: a lane without a source reads 0; otherwise it is not written.
    """

    source: NDArray[np.int64]
    inside: NDArray[np.bool_]
    enabled: NDArray[np.bool_]
    zero: bool


def parse_dpp(modifiers: dict[str, str | bool]) -> Dpp:
    """The control of an instruction; raises ValueError for one that is not known."""
    row, position = LANES // ROW, LANES % ROW
    source, inside = LANES, np.ones(64, np.bool_)
    controls = [name for name in modifiers if re.match(r"quad_perm|row_(?!mask)|wave_", name)]
    if len(controls) != 1:
        raise ValueError(f"DPP has one control; got {', '.join(controls) or 'none'}")
    name = controls[0]
    text = str(modifiers[name])
    if name == "quad_perm":
        order = [int(part) for part in text.strip("[]").split(",")]
        source = LANES // 4 * 4 + np.array(order)[LANES % 4]
    elif name in ("row_shl", "row_shr", "row_ror"):
        count = int(text)
        at = position + (count if name == "row_shl" else -count)
        if name == "row_ror":
            at = at % ROW
        inside = (at >= 0) & (at < ROW)
        source = row * ROW + at % ROW
    elif name == "row_mirror":
        source = row * ROW + ROW - 1 - position
    elif name == "row_half_mirror":
        source = LANES // 8 * 8 + 7 - LANES % 8
    elif name == "row_newbcast":
        source = row * ROW + int(text)
    elif name == "row_bcast" and text == "15":
        inside = row > 0
        source = np.maximum(row * ROW - 1, 0)
    elif name == "row_bcast" and text == "31":
        inside = row >= 2
        source = np.full(64, 31)
    elif name in ("wave_shl", "wave_shr", "wave_rol", "wave_ror"):
        at = LANES + (1 if name in ("wave_shl", "wave_rol") else -1)
        inside = np.ones(64, np.bool_) if "_ro" in name else (at >= 0) & (at < 64)
        source = at % 64
    else:
        raise ValueError(f"the DPP control {name}:{text} is not known")
    row_mask, bank_mask = (int(str(modifiers.get(key, "0xf")), 0) for key in ("row_mask", "bank_mask"))
    enabled = ((row_mask >> row) & 1 == 1) & ((bank_mask >> (position // 4)) & 1 == 1)
    # LLVM prints the set bit as bound_ctrl:1 or, up to version 12, bound_ctrl:0.
    return Dpp(source, inside, enabled, "bound_ctrl" in modifiers)


def parse_swizzle(text: str) -> NDArray[np.int64]:  # noqa: PLR0911 - one a form
    """Lane that each lane reads, int [64], of ``swizzle(...)`` or an offset; raises ValueError for other forms."""
    within, half = LANES % 32, LANES // 32 * 32
    if match := re.fullmatch(r"swizzle\(SWAP,\s*(\d+)\)", text):
        return np.asarray(half + (within ^ int(match[1])))
    if match := re.fullmatch(r"swizzle\(REVERSE,\s*(\d+)\)", text):
        return np.asarray(half + (within ^ (int(match[1]) - 1)))
    if match := re.fullmatch(r"swizzle\(BROADCAST,\s*(\d+),\s*(\d+)\)", text):
        size, lane = int(match[1]), int(match[2])
        return half + within // size * size + lane
    if match := re.fullmatch(r"swizzle\(QUAD_PERM,\s*(\d),\s*(\d),\s*(\d),\s*(\d)\)", text):
        return np.asarray(LANES // 4 * 4 + np.array([int(part) for part in match.groups()])[LANES % 4])
    if match := re.fullmatch(r'swizzle\(BITMASK_PERM,\s*"([01pi]{5})"\)', text):
        and_mask = sum(16 >> i for i, char in enumerate(match[1]) if char in "pi")
        or_mask = sum(16 >> i for i, char in enumerate(match[1]) if char == "1")
        xor_mask = sum(16 >> i for i, char in enumerate(match[1]) if char == "i")
        return half + (((within & and_mask) | or_mask) ^ xor_mask)
    if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", text):
        offset = int(text, 0)
        if offset & 0x8000:
            return LANES // 4 * 4 + (offset >> (2 * (LANES % 4))) % 4
        return half + (((within & (offset & 31)) | ((offset >> 5) & 31)) ^ ((offset >> 10) & 31))
    raise ValueError(f"the swizzle {text} is not known")
