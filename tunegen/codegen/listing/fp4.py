"""Checks gfx950's conversions to E2M1 in a listing: which elements go into which nibbles, and the wait states.

``v_cvt_scalef32_pk_fp4_f32 vD, a, b, scale`` writes one byte of vD, the code of a low and that of b high, and leaves
the others; op_sel says which byte. Four of them fill a word. The forms for bf16 and fp16 take a and b as the halves of
one register. Whether each takes the two elements that belong there is read off the listing: every register is followed
from the loads on by the place, within its load, of the element that it holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunegen.codegen.listing._instruction import Instruction

CONVERSION = "v_cvt_scalef32_pk_fp4_"
_BYTE_OF = {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}
_Places = frozenset[int]
_NONE: _Places = frozenset()
# What the halves of a register hold, each one element.
_Halves = tuple[int, int]


def _bits(text: str, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    match = re.search(rf"\b{name}:\[([\d,]+)\]", text)
    return tuple(int(bit) for bit in match[1].split(",")) if match else default


def _registers(operand: str) -> list[str]:
    match = re.fullmatch(r"[-|]*v(?:(\d+)|\[(\d+):(\d+)\])\|?", operand.strip())
    if not match:
        return []
    if match[1]:
        return [f"v{match[1]}"]
    return [f"v{index}" for index in range(int(match[2]), int(match[3]) + 1)]


def _operands(instruction: Instruction) -> list[str]:
    rest = instruction.text.partition(" ")[2]
    rest = re.split(r"\s(?=op_sel|row_|quad_perm|bank_mask|offen|offset|clamp|src\d_sel|dst_sel)", rest)[0]
    return [part.strip() for part in re.split(r",\s*(?![^\[]*\])", rest)]


class _Flow:
    """What is known of the registers, instruction after instruction."""

    def __init__(self) -> None:
        self.places: dict[str, _Places] = {}
        # Registers that hold two elements of 16 bits, loaded or rounded: the places of their halves.
        self.halves: dict[str, _Halves] = {}

    def _of(self, name: str) -> _Places:
        return self.places.get(name, _NONE)

    def _set(self, name: str, places: _Places) -> None:
        self.halves.pop(name, None)
        # What comes of several elements, a sum or a maximum, is a scalar to all of them.
        self.places[name] = places if len(places) == 1 else _NONE

    def held(self, sources: Sequence[str], number: int, packed: bool) -> list[int]:
        """The places of what a conversion takes as its low (0) or high (1) value; none if that is not known."""
        registers = _registers(sources[0 if packed else number])
        if not registers:
            return []
        if packed:
            return [self.halves[registers[0]][number]] if registers[0] in self.halves else []
        return sorted(self._of(registers[0]))

    def _step_to_halves(self, opcode: str, written: str, sources: Sequence[list[str]]) -> bool:
        """Follows what rounds two elements into a register, or copies such a one; False for anything else."""
        held: list[int] = []
        if opcode.startswith(("v_cvt_pk_bf16_f32", "v_cvt_pk_f16_f32")):
            held = [place for source in sources for place in (sorted(self._of(source[0])) if source else [])]
        elif opcode.startswith("v_mov_b32_e") and sources[0] and sources[0][0] in self.halves:
            held = list(self.halves[sources[0][0]])
        else:
            return False
        self._set(written, _NONE)
        if len(held) == 2:
            self.halves[written] = (held[0], held[1])
        return True

    def step(self, instruction: Instruction) -> None:
        """Follows one instruction that is not a conversion."""
        opcode, operands = instruction.opcode, _operands(instruction)
        if instruction.kind == "global load":
            for index, name in enumerate(_registers(operands[0])):
                self.places.pop(name, None)
                self.halves[name] = (2 * index, 2 * index + 1)
            return
        written = _registers(operands[0]) if operands and operands[0] else []
        if not opcode.startswith("v_") or not written:
            # From LDS, say: no element of this lane's.
            for name in instruction.writes:
                self._set(name, _NONE)
            return
        sources = [_registers(operand) for operand in operands[1:]]
        if opcode.startswith(("v_lshlrev_b32", "v_and_b32")):
            word = sources[1][0] if len(sources) > 1 and sources[1] else ""
            half = {"v_lshlrev_b32": 0, "v_and_b32": 1}[re.sub(r"_(e32|e64|sdwa|dpp)$", "", opcode)]
            if word in self.halves and operands[1] in ("16", "0xffff0000"):
                self._set(written[0], frozenset({self.halves[word][half]}))
                return
        if self._step_to_halves(opcode, written[0], sources):
            return
        if opcode.startswith("v_pk_") and len(written) == 2:
            low = _bits(instruction.text, "op_sel", (0,) * len(sources))
            high = _bits(instruction.text, "op_sel_hi", (1,) * len(sources))
            results = []
            for chosen in (low, high):
                pairs = zip(sources, chosen, strict=False)
                results.append(_NONE.union(*(self._of(source[bit]) for source, bit in pairs if len(source) == 2)))
            for name, places in zip(written, results, strict=True):
                self._set(name, places)
            return
        places = _NONE.union(*(self._of(name) for source in sources for name in source))
        if opcode.startswith(("v_fmac", "v_pk_fmac")):
            places |= _NONE.union(*(self._of(name) for name in written))
        for name in written:
            self._set(name, places)


def check_conversions(instructions: Sequence[Instruction]) -> list[str]:
    """What is wrong with the conversions of a gfx950 listing, a line each; nothing if there are none.

    Of bfloat16 activations that are loaded as words, as the kernels do.
    """
    found: list[str] = []
    flow = _Flow()
    # Bytes of a word that have been written since it was last complete.
    filled: dict[str, list[int]] = {}
    for index, instruction in enumerate(instructions):
        if not instruction.opcode.startswith(CONVERSION):
            flow.step(instruction)
            continue
        where = f"line {instruction.line}: {instruction.text}"
        operands = _operands(instruction)
        word = _registers(operands[0])[0]
        selected = _bits(instruction.text, "op_sel", (0, 0, 0, 0))
        byte = _BYTE_OF[selected[2], selected[3]]
        for number, nibble in enumerate(("low", "high")):
            place = 2 * byte + number
            held = flow.held(operands[1:], number, packed=not instruction.opcode.startswith(CONVERSION + "f32"))
            if [place_in_word % 8 for place_in_word in held] != [place]:
                found.append(f"{where}: the {nibble} nibble of byte {byte} is element {place}'s, but holds {held}")
        bytes_before = filled.get(word, [])
        if byte == 0:
            bytes_before = []
        if byte != len(bytes_before):
            found.append(f"{where}: byte {byte} of {word} is written after bytes {bytes_before}")
        filled[word] = [*bytes_before, byte]
        flow.places[word] = _NONE
        flow.halves.pop(word, None)
        following = instructions[index + 1] if index + 1 < len(instructions) else None
        # LLVM's hazard recogniser asks for it after any byte but the lowest.
        if byte and following is not None and (word in following.reads or word in following.writes):
            found.append(
                f"{where}: line {following.line} uses {word} at once; a write of one byte needs a wait state before it"
            )
    return found
