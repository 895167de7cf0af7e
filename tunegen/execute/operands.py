"""Operands and modifiers of an instruction, as LLVM prints them.

Syntax: LLVM's "Syntax of AMDGPU Instruction Operands" and "Syntax of AMDGPU Instruction Modifiers".
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

# Scalar registers that have names; the numbers are those of the encodings, above the 102 general ones.
SCALAR_NAMES = {
    "flat_scratch": (102, 2),
    "xnack_mask": (104, 2),
    "vcc": (106, 2),
    "vcc_lo": (106, 1),
    "vcc_hi": (107, 1),
    "m0": (124, 1),
    "exec": (126, 2),
    "exec_lo": (126, 1),
    "exec_hi": (127, 1),
}
VCC, M0, EXEC = 106, 124, 126
NUM_SCALARS = 128
NUM_VECTORS = 512
# Accumulation registers are the second half of one file.
FIRST_ACCUMULATION = 256

Kind = Literal["v", "s", "int", "float", "label", "off", "scc", "hwreg", "wait"]


@dataclass(frozen=True)
class Operand:
    """An operand.

    Attributes:
        kind: ``"v"``: vector registers (accumulation ones from 256); ``"s"``: scalar ones; ``"int"``: a constant in
            ``value``, inline or literal; ``"float"``: an inline constant in ``number``, whose bits depend on the type
            of the operand; ``"label"``, ``"hwreg"`` and ``"wait"`` (as in ``vmcnt(0)``): ``name``.
        index: First register.
        count: Registers.
        value: Of an int; the id of a hwreg; the count of a wait.
        number: Of a float.
        name: Of a label or counter.
        negated, absolute, sext: Source modifiers, absolute first.
        field: Offset and width of a hwreg.
    """

    kind: Kind
    index: int = 0
    count: int = 1
    value: int = 0
    number: float = 0.0
    name: str = ""
    negated: bool = False
    absolute: bool = False
    sext: bool = False
    field: tuple[int, int] = (0, 32)


def split_operands(text: str) -> tuple[list[str], list[str]]:
    """Operands (between commas) and the modifiers behind the last of them."""
    parts: list[str] = []
    depth = 0
    current = ""
    for char in text.strip():
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    if not current.strip():
        return parts, []
    words = re.findall(r"[^\s\[(]*(?:[\[(][^\])]*[\])])+[^\s]*|\S+", current.strip())
    # The waits of s_waitcnt stand behind one another without commas.
    first = next((i for i, word in enumerate(words) if _is_modifier(word)), len(words))
    return [*parts, *words[:first]], words[first:]


_FLAGS = {"offen", "idxen", "nt", "sc0", "sc1", "clamp", "lds", "gds", "glc", "slc", "dlc", "tfe"}
_KEYS = re.compile(
    r"(offset[01]?|op_sel|op_sel_hi|neg_lo|neg_hi|quad_perm|row_shl|row_shr|row_ror|row_bcast|row_newbcast|wave_\w+"
    r"|row_mask|bank_mask|bound_ctrl|dst_sel|dst_unused|src[01]_sel|mul|div|bitop3):"
)


def _is_modifier(word: str) -> bool:
    return word in _FLAGS or word in ("row_mirror", "row_half_mirror") or bool(_KEYS.match(word))


def parse_modifiers(words: list[str]) -> dict[str, str | bool]:
    """Modifiers by name, with what follows the colon or True; raises ValueError for others."""
    modifiers: dict[str, str | bool] = {}
    for word in words:
        if not _is_modifier(word):
            raise ValueError(f"the modifier {word!r} is not known")
        name, colon, value = word.partition(":")
        modifiers[name] = value if colon else True
    return modifiers


def parse_operand(text: str) -> Operand:  # noqa: PLR0911, PLR0912 - one a form
    """One operand; raises ValueError if it is none that is known."""
    if text.startswith("-") and not re.match(r"-[\d.]", text):
        inner = parse_operand(text[1:])
        return _with(inner, negated=True)
    if text.startswith("|") and text.endswith("|"):
        return _with(parse_operand(text[1:-1]), absolute=True)
    if match := re.fullmatch(r"(neg|abs|sext)\((.*)\)", text):
        return _with(parse_operand(match[2]), **{{"neg": "negated", "abs": "absolute"}.get(match[1], "sext"): True})
    if match := re.fullmatch(r"([vsa])(\d+)", text):
        return _register(match[1], int(match[2]), 1)
    if match := re.fullmatch(r"([vsa])\[(\d+):(\d+)\]", text):
        return _register(match[1], int(match[2]), int(match[3]) - int(match[2]) + 1)
    if match := re.fullmatch(r"([vsa])\[(\d+)\]", text):
        return _register(match[1], int(match[2]), 1)
    if text in SCALAR_NAMES:
        index, count = SCALAR_NAMES[text]
        return Operand("s", index, count)
    if text in ("scc", "src_scc"):
        return Operand("scc")
    if text == "off":
        return Operand("off")
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return Operand("int", value=int(text, 0))
    if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text):
        return Operand("float", number=float(text))
    if match := re.fullmatch(r"(vmcnt|lgkmcnt|expcnt)\((\d+)\)", text):
        return Operand("wait", name=match[1], value=int(match[2]))
    if match := re.fullmatch(r"hwreg\((HW_REG_MODE|1)\s*(?:,\s*(\d+)\s*,\s*(\d+)\s*)?\)", text):
        return Operand("hwreg", value=1, field=(int(match[2] or 0), int(match[3] or 32)))
    if re.fullmatch(r"\.L\w+", text):
        return Operand("label", name=text)
    raise ValueError(f"the operand {text!r} is not known")


def _with(operand: Operand, **changes: bool) -> Operand:
    values = {**vars(operand), **changes}
    return Operand(**values)


def _register(letter: str, index: int, count: int) -> Operand:
    if letter == "s":
        if index + count > 102:
            raise ValueError(f"there are 102 scalar registers, not s{index + count - 1}")
        return Operand("s", index, count)
    if index + count > FIRST_ACCUMULATION:
        raise ValueError(f"there are 256 registers of a kind, not {letter}{index + count - 1}")
    return Operand("v", index + (FIRST_ACCUMULATION if letter == "a" else 0), count)


# 1/(2 pi) has an inline constant of its own, which LLVM prints with these digits.
_INVERSE_TWO_PI = 0.15915494


def float_bits(number: float, bits: int) -> int:
    """Bits of an inline constant as an operand of 16, 32 or 64 bits."""
    if bits == 32 and abs(number - _INVERSE_TWO_PI) < 1e-8:
        return 0x3E22F983
    code = {16: "<e", 32: "<f", 64: "<d"}[bits]
    return int.from_bytes(struct.pack(code, number), "little")
