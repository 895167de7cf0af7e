"""Makes steps of VOP1, VOP2, VOP3 and VOPC instructions, in their SDWA and DPP forms too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tunegen.execute import floats
from tunegen.execute.isa.vector import TRANSCENDENTAL, VECTOR, Vector, compare, half_result
from tunegen.execute.isa.vector_operands import HALVES, SELECTS, dpp_mask, reader
from tunegen.execute.lanes import Dpp, parse_dpp
from tunegen.execute.listing import Instruction
from tunegen.execute.operands import EXEC, VCC, Operand
from tunegen.execute.step import Reader, Run, Step, registers_of, scalar_id
from tunegen.execute.waits import (
    HAZARDS,
    PARTIAL,
    VALU_SCALAR,
    VALU_VECTOR,
    WIDE_STORE,
    Need,
)
from tunegen.execute.waits import TRANSCENDENTAL as TRANSCENDENTAL_WRITE
from tunegen.execute.waves import Waves

SDWA = ("src0_sel", "src1_sel", "dst_sel", "dst_unused")
DPP = ("quad_perm", "row_mask", "bank_mask", "bound_ctrl")
Write = Callable[[Waves, Any], None]
# What an instruction that writes a part of a register does with the rest.
KEEPS, ZEROES = "keeps", "zeroes"


def allow(instruction: Instruction, *names: str) -> None:
    """Raises ValueError for a modifier that is none of these."""
    for name in instruction.modifiers:
        if name not in names:
            raise ValueError(f"the modifier {name} is not modelled for {instruction.name}")


def bits_modifier(instruction: Instruction, name: str, count: int, default: int = 0) -> list[int]:
    """The list of bits of op_sel, op_sel_hi, neg_lo or neg_hi."""
    text = instruction.modifiers.get(name)
    if text is None:
        return [default] * count
    values = [int(part) for part in str(text).strip("[]").split(",")]
    if len(values) > count:
        raise ValueError(f"{name} has {len(values)} bits where {count} are due")
    return values + [default] * (count - len(values))


def vector_step(
    instruction: Instruction,
    run: Run,
    sources: Iterable[Operand],
    destinations: Iterable[Operand],
    implicit_reads: Iterable[int] = (),
    implicit_writes: Iterable[int] = (),
    partial: Iterable[int] = (),
    keeps: bool = True,
    extra: Iterable[tuple[str, int, str]] = (),
) -> Step:
    """The step of a VALU instruction with the hazards that all of them have.

    Args:
        instruction: It.
        run: Executes it.
        sources, destinations: Operands that it reads and writes.
        implicit_reads, implicit_writes: Registers that are not among its operands.
        partial: Vector registers of which it writes a part.
        keeps: It keeps the rest of those: it reads them too.
        extra: Further hazards that it consumes: producer, register, use.
    """
    partial = list(partial)
    reads = {register for operand in sources for register in registers_of(operand)} | {
        *implicit_reads,
        *(partial if keeps else ()),
    }
    writes = {register for operand in destinations for register in registers_of(operand)} | {*implicit_writes}
    transcendental = instruction.name in TRANSCENDENTAL
    wanted = list(extra)
    for register in reads:
        if register >= scalar_id(0):
            wanted.append((VALU_SCALAR, register, "valu"))
            continue
        wanted.append((PARTIAL, register, "valu"))
        if not transcendental:
            wanted.append((TRANSCENDENTAL_WRITE, register, "valu"))
    vectors = tuple(register for register in writes if register < scalar_id(0))
    scalars = tuple(register for register in writes if register >= scalar_id(0))
    wanted += [(WIDE_STORE, register, "valu write") for register in vectors]
    produces = [(VALU_VECTOR, vectors), (VALU_SCALAR, scalars)]
    if transcendental:
        produces.append((TRANSCENDENTAL_WRITE, vectors))
    if partial:
        produces.append((PARTIAL, tuple(partial)))
    return Step(
        instruction,
        run,
        frozenset(reads),
        frozenset(writes),
        needs=[Need(producer, register, HAZARDS[producer, use]) for producer, register, use in wanted],
        produces=[(kind, registers) for kind, registers in produces if registers],
    )


def decode(instruction: Instruction, arch: str) -> Step | None:
    """The step of an instruction of the tables; None if it is of another family."""
    name = instruction.name
    entry = VECTOR.get(name) or compare(name)
    if entry is None or (entry.arch and entry.arch != arch):
        return None
    return _decode(instruction, entry)


def _decode(instruction: Instruction, entry: Vector) -> Step:
    allow(instruction, "op_sel", "clamp", *SDWA, *DPP, *(n for n in instruction.modifiers if n.startswith("row_")))
    operands = list(instruction.operands)
    destination = operands.pop(0)
    destinations = [destination]
    carry = None
    if entry.carry_out:
        carry = operands.pop(0)
        _require_mask(carry)
        destinations.append(carry)
    mask_operand = None
    if entry.carry_in:
        mask_operand = Operand("s", VCC, 2) if entry.implicit_vcc else operands.pop()
        _require_mask(mask_operand)
    if len(operands) != len(entry.sources):
        raise ValueError(f"{len(entry.sources)} sources are due, {len(operands)} are there")

    dpp = parse_dpp(instruction.modifiers) if instruction.encoding == "dpp" else None
    selects, high = _selects(instruction, entry)
    readers = [
        reader(operand, kind, select, dpp if i == 0 else None)
        for i, (operand, kind, select) in enumerate(zip(operands, entry.sources, selects, strict=True))
    ]
    sources = list(operands)
    if entry.accumulates:
        readers.append(reader(destination, entry.result))
        sources.append(destination)
    if mask_operand is not None:
        readers.append(_mask_reader(mask_operand.index))
        sources.append(mask_operand)

    write, kept = _writer(instruction, entry, destination, high, dpp)
    saves = dpp is not None and not (dpp.zero and dpp.enabled.all())
    run = _run(entry, readers, write, carry.index if carry is not None else None, "clamp" in instruction.modifiers)
    extra = []
    if dpp is not None:
        extra = [(VALU_VECTOR, register, "dpp") for register in registers_of(operands[0])]
        extra += [(VALU_SCALAR, scalar_id(EXEC + i), "exec of dpp") for i in (0, 1)]
    if entry.implicit_vcc:
        extra += [(VALU_SCALAR, scalar_id(VCC + i), "div_fmas") for i in (0, 1)]
    return vector_step(
        instruction,
        run,
        sources,
        destinations,
        # A lane that is not written keeps what the register had.
        implicit_reads=registers_of(destination) if saves else (),
        implicit_writes=[scalar_id(EXEC), scalar_id(EXEC + 1)] if instruction.name.startswith("v_cmpx") else (),
        partial=registers_of(destination) if kept else (),
        keeps=kept == KEEPS,
        extra=extra,
    )


def _require_mask(operand: Operand) -> None:
    if operand.kind != "s" or operand.count != 2:
        raise ValueError("a lane mask must be two scalar registers")


def _mask_reader(index: int) -> Reader:
    return lambda waves: waves.get_mask(index)


def _selects(instruction: Instruction, entry: Vector) -> tuple[list[str], bool]:
    """What part of each source is read, and whether a 16-bit result goes to the high half."""
    count = len(entry.sources)
    if instruction.encoding == "sdwa":
        selects = [str(instruction.modifiers.get(f"src{i}_sel", "DWORD")) for i in range(count)]
        if any(select not in SELECTS for select in selects):
            raise ValueError(f"the SDWA selects {selects} are not known")
        return selects, False
    if "op_sel" not in instruction.modifiers:
        return ["DWORD"] * count, False
    chosen = bits_modifier(instruction, "op_sel", count + 1)
    for kind, bit in zip((*entry.sources, entry.result), chosen, strict=True):
        if bit and kind not in HALVES:
            raise ValueError(f"op_sel is not modelled for an operand of type {kind}")
    return ["WORD_1" if bit else "DWORD" for bit in chosen[:count]], bool(chosen[count])


def _run(entry: Vector, readers: list[Reader], write: Write, carry: int | None, clamp: bool) -> Run:
    function = entry.clamped if clamp and entry.clamped is not None else entry.function
    if entry.approximation:
        (only,) = readers

        def run_approximation(waves: Waves) -> None:
            write(waves, (function(only(waves), waves.machine.ulps), ()))

        return run_approximation
    if carry is not None:

        def run_carry(waves: Waves) -> None:
            result, mask = function(*[read(waves) for read in readers])
            write(waves, (result, ()))
            waves.set_mask(carry, mask)

        return run_carry
    if entry.result == "f16":

        def run_half(waves: Waves) -> None:
            sources = [read(waves) for read in readers]
            write(waves, (function(*sources), sources))

        return run_half

    def run(waves: Waves) -> None:
        write(waves, (function(*[read(waves) for read in readers]), ()))

    return run


def _writer(
    instruction: Instruction, entry: Vector, destination: Operand, high: bool, dpp: Dpp | None
) -> tuple[Write, str]:
    """Writes a result; also, what becomes of the rest of the register if it takes a part of it."""
    if entry.result == "mask":
        return _mask_writer(instruction, destination), ""
    due = 2 if entry.result.endswith("64") else 1
    if destination.kind != "v" or destination.count != due:
        raise ValueError(f"the destination must be {due} vector registers")
    convert = _to_bits(entry, "clamp" in instruction.modifiers)
    index = destination.index
    where = dpp_mask(dpp) if dpp is not None else None
    if due == 2:

        def write_pair(waves: Waves, result: Any) -> None:
            value = result[0].view(np.uint64)
            waves.set_v(index, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32))
            waves.set_v(index + 1, (value >> np.uint64(32)).astype(np.uint32))

        return write_pair, ""
    place, kept = _place(instruction, entry, high)

    def write(waves: Waves, result: Any) -> None:
        value = convert(waves, *result)
        if place is not None:
            value = place(waves, value, waves.v[index])
        waves.set_v(index, value, where(waves) if where is not None else None)

    if place is None and where is None:

        def write_plain(waves: Waves, result: Any) -> None:
            waves.set_v(index, convert(waves, *result))

        return write_plain, ""
    return write, kept


def _mask_writer(instruction: Instruction, destination: Operand) -> Write:
    _require_mask(destination)
    index = destination.index
    executes = instruction.name.startswith("v_cmpx")

    def write(waves: Waves, result: Any) -> None:
        waves.set_mask(index, result[0])
        if executes and index != EXEC:
            waves.set_s64(EXEC, waves.get_s64(index))

    return write


def _to_bits(entry: Vector, clamp: bool) -> Callable[[Waves, Any, Any], Any]:
    kind = entry.result
    if clamp and kind not in ("f32", "f16") and entry.clamped is None:
        raise ValueError(f"clamp is not modelled for a result of type {kind}")
    if kind == "f32":
        if clamp:
            return lambda waves, value, sources: floats.clamp_to_one(value).view(np.uint32)
        return lambda waves, value, sources: value.view(np.uint32)
    if kind == "f16":

        def half(waves: Waves, value: Any, sources: Any) -> Any:
            if clamp:
                value = np.where(value > 0, np.minimum(value, 1), 0)
            return half_result(value, sources, waves.fp16_overflow)

        return half
    if kind == "i32":
        return lambda waves, value, sources: value.view(np.uint32)
    if kind == "b16":
        return lambda waves, value, sources: value & np.uint32(0xFFFF)
    return lambda waves, value, sources: value


def _place(instruction: Instruction, entry: Vector, high: bool) -> tuple[Callable[[Waves, Any, Any], Any] | None, str]:  # noqa: PLR0911 - one a place
    """Puts a result at its place among the bits of the register; also, what becomes of the others."""
    if instruction.encoding == "sdwa":
        select = str(instruction.modifiers.get("dst_sel", "DWORD"))
        if select == "DWORD":
            return None, ""
        shift, width = SELECTS[select]
        mask = np.uint32(((1 << width) - 1) << shift)
        unused = instruction.modifiers.get("dst_unused", "UNUSED_PAD")
        if unused == "UNUSED_PAD":
            return lambda waves, value, old: (value << np.uint32(shift)) & mask, ZEROES
        if unused == "UNUSED_PRESERVE":
            return lambda waves, value, old: ((value << np.uint32(shift)) & mask) | (old & ~mask), KEEPS
        raise ValueError(f"{unused} is not modelled")
    if entry.result not in ("f16", "b16"):
        return None, ""
    if high:
        return lambda waves, value, old: (value << np.uint32(16)) | (old & np.uint32(0xFFFF)), KEEPS
    if entry.high == "preserve":
        return lambda waves, value, old: value | (old & np.uint32(0xFFFF0000)), KEEPS
    if entry.high == "open":
        return lambda waves, value, old: value | (waves.machine.poison(old.shape) & np.uint32(0xFFFF0000)), ""
    return None, ""
