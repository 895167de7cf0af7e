"""Reads NVIDIA's SASS as cuobjdump prints it.

Which unit an instruction occupies follows the groups of the CUDA C++ Programming Guide (throughput of native arithmetic
instructions); multiplications of integers share the unit of fp32.
"""

from __future__ import annotations

import functools
import re

from tunegen.codegen.listing._instruction import MEMORY_KINDS, Instruction, Kind
from tunegen.limits import rates_of

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_REGISTER = re.compile(r"\b(U?)([RP])(\d+)\b(\.64)?")

_FLOAT_OPCODES = {"FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "MOV"}
_SPECIAL_OPCODES = {"MUFU", "F2F", "I2F", "F2I", "FRND", "I2FP", "POPC", "FLO", "BREV"}
_WITHOUT_RESULT = {
    *("STG", "STS", "STL", "ST", "STSM", "RED", "LDGSTS", "BAR", "BRA", "EXIT", "NOP", "DEPBAR", "LDGDEPBAR"),
    *("BSSY", "BSYNC", "WARPSYNC", "MEMBAR", "ERRBAR", "CCTL", "UTMASTG", "NANOSLEEP", "YIELD", "FENCE"),
}
_LANES = 32


_KINDS: dict[Kind, tuple[str, ...]] = {
    "global load": ("LDG", "LD", "LDGMC"),
    "global store": ("STG", "ST", "RED", "ATOMG", "ATOM"),
    "async copy": ("LDGSTS",),
    "shared load": ("LDS", "LDSM"),
    "shared store": ("STS", "STSM", "ATOMS"),
    "scratch": ("LDL", "STL"),
    "shuffle": ("SHFL", "REDUX", "VOTE", "MATCH"),
    "barrier": ("BAR",),
    "wait": ("DEPBAR", "LDGDEPBAR"),
    "branch": ("BRA", "BRX", "JMP", "CALL", "RET", "BSSY", "BSYNC", "WARPSYNC"),
    "exit": ("EXIT",),
    "nop": ("NOP",),
    "transcendental": tuple(_SPECIAL_OPCODES),
    "scalar": ("S2UR", "R2UR", "S2R", "CS2R", "LDC", "VOTEU"),
}
_KIND_OF = {base: kind for kind, bases in _KINDS.items() for base in bases}


def _kind(base: str) -> Kind:
    # Names with a U in front are the uniform data path's: once for a whole warp.
    return _KIND_OF.get(base, "scalar" if base.startswith("U") else "vector")


@functools.lru_cache(maxsize=4096)
def _about(opcode: str, target: str) -> tuple[str, Kind, str, int, float, float]:
    """Base name, kind, unit, width in bytes, cycles and latency of an opcode."""
    rates = rates_of(target)
    base, *modifiers = opcode.split(".")
    kind = _kind(base)
    unit, width, cycles, latency = "", 0, 1.0, 0.0
    if kind in MEMORY_KINDS:
        width = 4
        for modifier in modifiers:
            width = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.get(modifier, width)
        if base in ("LDSM", "STSM"):
            width = 4 * int(modifiers[-1]) if modifiers[-1].isdigit() else 4
        of_shared = kind in ("shared load", "shared store")
        rate = rates.shared_bytes if of_shared else rates.global_bytes
        unit, cycles = "memory", max(rates.address_clocks, width * _LANES / rate)
        latency = rates.shared_latency if of_shared else 0.0
    elif kind == "shuffle":
        unit, cycles, latency = "memory", rates.shuffle_clocks, rates.shuffle_latency
    elif kind == "transcendental":
        unit, cycles, latency = "special", rates.transcendental_clocks, rates.transcendental_latency
    elif kind == "scalar":
        unit, cycles, latency = "uniform", rates.integer_clocks, rates.scalar_latency
        if base in ("LDC", "ULDC"):
            latency = rates.scalar_load_latency
        elif base in ("S2R", "S2UR"):
            latency = rates.special_register_latency
    elif kind == "vector":
        if base in _FLOAT_OPCODES:
            unit, cycles, latency = "float", rates.float_clocks, rates.arithmetic_latency
        elif base.startswith("IMAD"):
            unit, cycles, latency = "float", rates.slow_integer_clocks, rates.slow_latency
        else:
            unit, cycles, latency = "integer", rates.integer_clocks, rates.arithmetic_latency
    return base, kind, unit, width, cycles, latency


def _expand(match: re.Match[str], registers: int) -> list[str]:
    prefix, letter, number, wide = match.groups()
    count = max(registers, 2 if wide else 1)
    return [f"{prefix}{letter}{int(number) + offset}" for offset in range(count)]


def _operands(base: str, kind: Kind, opcode: str, text: str, width: int) -> tuple[list[str], list[str]]:
    """Registers written and read."""
    parts = [part.strip() for part in text.split(",")] if text else []
    writes: list[str] = []
    reads: list[str] = []
    results = 0
    if base not in _WITHOUT_RESULT and parts:
        results = 1
        if len(parts) > 1:
            first, second = (re.match(r"U?P(T|\d)", part) is not None for part in parts[:2])
            plain = re.fullmatch(r"U?[RP](Z|T|\d+)(\.64)?", parts[1]) is not None
            if plain and (first or second):
                results = 2
    wide = 2 if ".WIDE" in opcode or ".64" in opcode or base == "CS2R" else 1
    registers = width // 4 if kind in ("global load", "shared load") else wide
    for index, part in enumerate(parts):
        is_data = base in ("STG", "STS", "ST") and index == len(parts) - 1
        for match in _REGISTER.finditer(part):
            if index < results:
                writes += _expand(match, registers if match[2] == "R" else 1)
            else:
                reads += _expand(match, max(width // 4, 1) if is_data else 1)
    return writes, reads


def read_sass(listing: str, target: str) -> list[Instruction]:
    """Instructions of a cuobjdump listing of one kernel, in order.

    Args:
        listing: What cuobjdump printed.
        target: ``"sm90"`` or ``"sm100"``.
    """
    rows: list[tuple[int, re.Match[str]]] = []
    line_of: dict[int, int] = {}
    for number, line in enumerate(listing.split("\n"), 1):
        match = _LINE.match(line)
        if match:
            rows.append((number, match))
            line_of[int(match[1], 16)] = number
    instructions = []
    for number, match in rows:
        _, predicate, opcode, operands = match.groups()
        base, kind, unit, width, cycles, latency = _about(opcode, target)
        writes, reads = _operands(base, kind, opcode, operands, width)
        if predicate:
            reads.append(predicate.lstrip("!"))
        goes_to = 0
        if base in ("BRA", "CALL"):
            address = re.search(r"0x([0-9a-f]+)", operands)
            goes_to = line_of.get(int(address[1], 16), 0) if address else 0
        count = -1
        if base == "DEPBAR":
            left = re.search(r"SB\d+, 0x([0-9a-f]+)", operands)
            count = int(left[1], 16) if left else 0
        prefix = f"@{predicate} " if predicate else ""
        instructions.append(
            Instruction(
                line=number,
                text=f"{prefix}{opcode} {operands}".strip(),
                opcode=opcode,
                kind=kind,
                unit=unit,
                width=width,
                cycles=cycles,
                latency=latency,
                writes=tuple(writes),
                reads=tuple(reads),
                predicated=predicate is not None,
                target=goes_to,
                count=count,
            )
        )
    return _without_padding(instructions)


def _without_padding(instructions: list[Instruction]) -> list[Instruction]:
    """Without the branch to itself and the NOPs that fill the last line of the instruction cache."""
    end = len(instructions)
    while end and (instructions[end - 1].kind == "nop" or instructions[end - 1].target == instructions[end - 1].line):
        end -= 1
    return instructions[:end]
