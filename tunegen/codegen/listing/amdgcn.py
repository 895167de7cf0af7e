"""Reads LLVM's amdgcn assembly."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from tunegen.codegen.listing._instruction import Instruction, Kind
from tunegen.limits import rates_of

_CODE = re.compile(r"^\s+([a-z]\w*)\b\s*([^;\n]*)")
_LABEL = re.compile(r"^(\.?L?BB\w+|\.LBB\w+):")
_VMCNT, _LGKMCNT = re.compile(r"vmcnt\((\d+)\)"), re.compile(r"lgkmcnt\((\d+)\)")
_REGISTER = re.compile(r"\b([vsa])(?:(\d+)|\[(\d+):(\d+)\])|\b(vcc|exec|scc|m0)\b")

_LANES = 64
_WIDTHS = {
    **{"ubyte": 1, "sbyte": 1, "byte": 1, "u8": 1, "b8": 1, "ushort": 2, "sshort": 2, "short": 2, "b16": 2, "u16": 2},
    **{"dword": 4, "b32": 4, "dwordx2": 8, "b64": 8, "dwordx3": 12, "b96": 12, "dwordx4": 16, "b128": 16},
}


def _width(opcode: str) -> int:
    for part in reversed(opcode.split("_")):
        if part in _WIDTHS:
            return _WIDTHS[part]
    return 4


def _memory(opcode: str) -> tuple[Kind, int] | None:
    if opcode.startswith(("buffer_load", "global_load", "flat_load")):
        return "global load", _width(opcode.replace("_d16_hi", "").replace("_d16", ""))
    if opcode.startswith(("buffer_store", "global_store", "flat_store", "buffer_atomic", "global_atomic")):
        return "global store", _width(opcode.replace("_d16_hi", ""))
    if opcode.startswith("scratch_"):
        return "scratch", _width(opcode)
    if opcode.startswith(("ds_read", "ds_load")):
        return "shared load", _width(opcode) * (2 if "2_" in opcode or "2st64" in opcode else 1)
    if opcode.startswith(("ds_write", "ds_store")):
        return "shared store", _width(opcode) * (2 if "2_" in opcode or "2st64" in opcode else 1)
    return None


# What an opcode is by how it begins, the first that fits.
_KINDS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("shuffle", "shared", ("ds_bpermute", "ds_permute", "ds_swizzle")),
    ("barrier", "", ("s_barrier",)),
    ("wait", "", ("s_waitcnt",)),
    ("branch", "", ("s_branch", "s_cbranch", "s_setpc", "s_swappc")),
    ("exit", "", ("s_endpgm",)),
    ("nop", "", ("s_nop", "s_code_end", "s_sleep", "s_setprio", "s_inst_prefetch")),
    ("scalar", "scalar", ("s_",)),
    ("transcendental", "vector", tuple(f"v_{name}_" for name in ("rsq", "rcp", "sqrt", "exp", "log", "sin", "cos"))),
    ("vector", "vector", ("",)),
)
_SLOW_INTEGER = ("v_mul_lo_u32", "v_mul_hi_u32", "v_mul_hi_i32", "v_mad_u64_u32", "v_mad_i64_i32")


@functools.lru_cache(maxsize=4096)
def _about(opcode: str, target: str) -> tuple[Kind, str, int, float, float]:
    """Kind, unit, width in bytes, cycles and latency of an opcode."""
    rates = rates_of(target)
    memory = _memory(opcode)
    if memory:
        kind, width = memory
        moved = width * _LANES
        if kind in ("shared load", "shared store"):
            return kind, "shared", width, max(1.0, moved / rates.shared_bytes), rates.shared_latency
        return kind, "global", width, max(rates.address_clocks, moved / rates.global_bytes), 0.0
    kind, unit = next((kind, unit) for kind, unit, starts in _KINDS if opcode.startswith(starts))
    cycles, latency = 1.0, 0.0
    if kind == "shuffle":
        cycles, latency = rates.shuffle_clocks, rates.shuffle_latency
    elif kind == "scalar":
        loads = opcode.startswith(("s_load", "s_buffer_load"))
        latency = rates.scalar_load_latency if loads else rates.scalar_latency
    elif kind == "transcendental":
        cycles, latency = rates.transcendental_clocks, rates.transcendental_latency
    elif kind == "vector":
        slow = opcode.startswith(_SLOW_INTEGER)
        cycles = rates.slow_integer_clocks if slow else rates.integer_clocks
        latency = rates.slow_latency if slow else rates.arithmetic_latency
    return kind, unit, 0, cycles, latency


def _names(match: re.Match[str]) -> list[str]:
    letter, number, first, last, named = match.groups()
    if named:
        return [named]
    if number:
        return [f"{letter}{number}"]
    return [f"{letter}{index}" for index in range(int(first), int(last) + 1)]


def _operands(opcode: str, kind: Kind, text: str) -> tuple[list[str], list[str]]:
    parts = [part.strip() for part in re.split(r",\s*(?![^\[]*\])", text)] if text else []
    without_result = kind in ("global store", "shared store", "branch", "wait", "barrier", "nop", "exit")
    writes: list[str] = []
    reads: list[str] = []
    for index, part in enumerate(parts):
        names = [name for match in _REGISTER.finditer(part) for name in _names(match)]
        if index == 0 and not without_result:
            writes += names
            if opcode.startswith(("v_fmac", "v_cvt_scalef32_pk_fp4", "v_mov_b32_dpp")):
                reads += names
        else:
            reads += names
    return writes, reads


def read_amdgcn(listing: str, target: str) -> list[Instruction]:
    """Instructions of the first kernel of an amdgcn listing, in order.

    Args:
        listing: What LLVM wrote.
        target: ``"gfx942"`` or ``"gfx950"``.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    branches: list[tuple[int, str]] = []
    for number, line in enumerate(listing.split("\n"), 1):
        label = _LABEL.match(line)
        if label:
            waiting.append(label[1])
            continue
        if line.startswith("\t.section") and instructions:
            break
        match = _CODE.match(line)
        if not match:
            continue
        opcode, operands = match[1], match[2].strip()
        if opcode[0] not in "svbdgf" or "_" not in opcode:
            continue
        for name in waiting:
            labels[name] = number
        waiting.clear()
        kind, unit, width, cycles, latency = _about(re.sub(r"_e(32|64)$", "", opcode), target)
        writes, reads = _operands(opcode, kind, operands)
        count = shared_count = -1
        if kind == "wait":
            count, shared_count = (
                int(left[1]) if left else -1 for left in (_VMCNT.search(operands), _LGKMCNT.search(operands))
            )
        if kind == "nop":
            cycles = float(operands or 0) + 1 if operands.isdigit() else 1.0
        if kind == "branch":
            branches.append((len(instructions), operands.split(" ")[0]))
        instructions.append(
            Instruction(
                line=number,
                text=f"{opcode} {operands}".strip(),
                opcode=opcode,
                kind=kind,
                unit=unit,
                width=width,
                cycles=cycles,
                latency=latency,
                writes=tuple(writes),
                reads=tuple(reads),
                predicated=opcode.startswith("s_cbranch"),
                count=count,
                shared_count=shared_count,
            )
        )
    for index, name in branches:
        instructions[index] = replace(instructions[index], target=labels.get(name, 0))
    return instructions
