"""Scalar loads, buffer, global and scratch instructions (ISA documents, "Scalar memory operations", "Vector memory
buffer instructions", "Flat memory instructions").

Cache policies (sc0, sc1, nt) say nothing of values and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunegen.execute.errors import ExecutionError
from tunegen.execute.isa.vector_decode import allow
from tunegen.execute.isa.vector_operands import raw_reader
from tunegen.execute.listing import Instruction
from tunegen.execute.operands import Operand
from tunegen.execute.step import Reader, Step, registers_of, scalar_id, scalar_reader
from tunegen.execute.waits import HAZARDS, VALU_SCALAR, WIDE_STORE, Need
from tunegen.execute.waves import Mask, Waves

# Bytes, and what becomes of them in a load: sign-extended; in which half, the other one kept.
WIDTHS: dict[str, tuple[int, bool, int | None]] = {
    "ubyte": (1, False, None),
    "sbyte": (1, True, None),
    "ushort": (2, False, None),
    "sshort": (2, True, None),
    "dword": (4, False, None),
    "dwordx2": (8, False, None),
    "dwordx3": (12, False, None),
    "dwordx4": (16, False, None),
    "short_d16": (2, False, 0),
    "short_d16_hi": (2, False, 1),
    "ubyte_d16": (1, False, 0),
    "ubyte_d16_hi": (1, False, 1),
}
STORES = {"byte": (1, 0), "short": (2, 0), "byte_d16_hi": (1, 1), "short_d16_hi": (2, 1)}
STORES |= {name: (size, 0) for name, (size, _, _) in WIDTHS.items() if name.startswith("dword")}
SMEM = {"s_load_dword": 1, "s_load_dwordx2": 2, "s_load_dwordx4": 4, "s_load_dwordx8": 8, "s_load_dwordx16": 16}
POLICIES = ("nt", "sc0", "sc1")
Addresses = Callable[[Waves], tuple[NDArray[np.int64], Mask]]


def decode(instruction: Instruction, arch: str) -> Step | None:
    """The step of a memory instruction; None if it is of another family."""
    name = instruction.name
    if name in SMEM:
        return _scalar_load(instruction, SMEM[name])
    family, _, rest = name.partition("_")
    kind, _, width = rest.partition("_")
    if family not in ("buffer", "global", "scratch") or kind not in ("load", "store"):
        return None
    if width not in (WIDTHS if kind == "load" else STORES):
        return None
    if family == "scratch":
        return _scratch(instruction, kind, width)
    return (_load if kind == "load" else _store)(instruction, family, width)


def _offset(instruction: Instruction) -> int:
    return int(str(instruction.modifiers.get("offset", "0")), 0)


def _scalar_load(instruction: Instruction, count: int) -> Step:
    allow(instruction, "offset")
    destination, base, offset = instruction.operands
    if destination.kind != "s" or destination.count != count:
        raise ValueError(f"the destination must be {count} scalar registers")
    read_base = scalar_reader(base, 64)
    read_offset = scalar_reader(offset, 32)
    literal = offset.value if offset.kind == "int" else None
    immediate = _offset(instruction)
    index = destination.index

    def run(waves: Waves) -> None:
        start = read_base(waves).astype(np.int64)
        added = literal if literal is not None else read_offset(waves).astype(np.int64)
        # The two lowest bits of the address count as zero.
        addresses = np.broadcast_to(start + added + immediate, (waves.n,)) & ~np.int64(3)
        dwords = waves.machine.memory.load(addresses, 4 * count, waves.machine.first + waves.workgroup)
        for i, dword in enumerate(dwords):
            waves.set_s(index + i, dword)

    return Step(
        instruction,
        run,
        frozenset([*registers_of(base), *registers_of(offset)]),
        frozenset(registers_of(destination)),
        counter="smem",
    )


# --- Where lanes access memory ---


def _buffer_addresses(instruction: Instruction, operands: list[Operand], size: int) -> Addresses:
    """Addresses of a raw buffer, and the lanes that are inside of it.

    The descriptor has the base in its first 48 bits, then the stride, the size in bytes and the format; stride and
    swizzling are not modelled. A lane is outside if its offset (without the scalar one) and the access pass the size
    less the scalar offset: it loads zero and stores nothing.
    """
    address, descriptor, scalar = operands
    if descriptor.kind != "s" or descriptor.count != 4:
        raise ValueError("the descriptor must be four scalar registers")
    if "idxen" in instruction.modifiers or "lds" in instruction.modifiers:
        raise ValueError("buffers with an index, and loads to LDS, are not modelled")
    offen = "offen" in instruction.modifiers
    if offen == (address.kind == "off"):
        raise ValueError("the address must be a register with offen, and off without")
    read_address: Reader = raw_reader(address) if offen else (lambda waves: np.zeros((1, 1), np.uint32))
    read_scalar = scalar_reader(scalar, 32)
    immediate = _offset(instruction)
    at = descriptor.index

    def run(waves: Waves) -> tuple[NDArray[np.int64], Mask]:
        if ((waves.s[at + 1] >> np.uint32(16)) & np.uint32(0xBFFF)).any() or (
            waves.s[at + 3] & np.uint32(0x00800000)
        ).any():
            raise ExecutionError("A buffer with a stride or swizzling is not modelled.")
        base = (waves.get_s64(at) & np.uint64(0xFFFFFFFFFFFF)).astype(np.int64)
        records = waves.s[at + 2].astype(np.int64)
        extra = np.broadcast_to(read_scalar(waves), (waves.n,)).astype(np.int64)
        offset = read_address(waves).astype(np.int64) + immediate
        inside = offset + size <= (records - extra)[:, None]
        addresses = offset + (base + extra)[:, None]
        partly = ~inside & (offset < (records - extra)[:, None])
        if (partly & waves.mask).any():
            raise ExecutionError("An access that lies half inside a buffer's size is not modelled.")
        return np.broadcast_to(addresses, waves.mask.shape), np.broadcast_to(inside, waves.mask.shape)

    return run


def _global_addresses(instruction: Instruction, operands: list[Operand]) -> Addresses:
    """Addresses of a global access: a 64-bit vector address, or a 32-bit one added to a scalar base."""
    address, base = operands
    immediate = _offset(instruction)
    everywhere = np.ones((1, 1), np.bool_)
    low = raw_reader(address)
    if base.kind == "off":
        if address.count != 2:
            raise ValueError("without a scalar base the address must be two registers")
        high = raw_reader(address, 1)

        def run_vector(waves: Waves) -> tuple[NDArray[np.int64], Mask]:
            wide = low(waves).astype(np.uint64) | (high(waves).astype(np.uint64) << np.uint64(32))
            addresses = wide.view(np.int64) + immediate
            return np.broadcast_to(addresses, waves.mask.shape), np.broadcast_to(everywhere, waves.mask.shape)

        return run_vector
    read_base = scalar_reader(base, 64)
    if address.count != 1:
        raise ValueError("with a scalar base the address must be one register")

    def run(waves: Waves) -> tuple[NDArray[np.int64], Mask]:
        start = np.broadcast_to(read_base(waves), (waves.n,)).view(np.int64)
        addresses = start[:, None] + low(waves).astype(np.int64) + immediate
        return np.broadcast_to(addresses, waves.mask.shape), np.broadcast_to(everywhere, waves.mask.shape)

    return run


def _addresses(instruction: Instruction, family: str, operands: list[Operand], size: int) -> Addresses:
    if family == "buffer":
        allow(instruction, "offen", "offset", *POLICIES)
        return _buffer_addresses(instruction, operands, size)
    allow(instruction, "offset", *POLICIES)
    return _global_addresses(instruction, operands)


def _needs(operands: list[Operand]) -> list[Need]:
    hazard = HAZARDS[VALU_SCALAR, "vmem"]
    registers = [register for operand in operands for register in registers_of(operand)]
    return [Need(VALU_SCALAR, register, hazard) for register in registers if register >= scalar_id(0)]


# --- Loads and stores ---


def _load(instruction: Instruction, family: str, width: str) -> Step:
    size, signed, half = WIDTHS[width]
    destination, *operands = instruction.operands
    count = max(size // 4, 1)
    if destination.kind != "v" or destination.count != count:
        raise ValueError(f"the destination must be {count} vector registers")
    where = _addresses(instruction, family, operands, size)
    index = destination.index

    def run(waves: Waves) -> None:
        addresses, inside = where(waves)
        active = inside if waves.full else inside & waves.mask
        for i, value in enumerate(_gather(waves, addresses, active, size)):
            waves.set_v(index + i, extend(value, size, signed, half, waves.v[index + i]))

    reads = [register for operand in operands for register in registers_of(operand)]
    writes = registers_of(destination)
    if half is not None:
        reads += writes
    return Step(instruction, run, frozenset(reads), frozenset(writes), counter="vmcnt", needs=_needs(operands))


def extend(value: Any, size: int, signed: bool, half: int | None, old: Any) -> Any:
    """What a load of one or two bytes puts into its register."""
    if signed:
        left = np.uint32(32 - 8 * size)
        value = ((value << left).view(np.int32) >> left.astype(np.int32)).view(np.uint32)
    if half is not None:
        keep = np.uint32(0xFFFF0000 if half == 0 else 0x0000FFFF)
        value = (old & keep) | ((value & np.uint32(0xFFFF)) << np.uint32(16 * half))
    return value


def _gather(waves: Waves, addresses: NDArray[np.int64], active: Mask, size: int) -> list[Any]:
    count = max(size // 4, 1)
    shape = active.shape
    if active.all():
        flat = np.ascontiguousarray(addresses).reshape(-1)
        owners = np.repeat(waves.machine.first + waves.workgroup, shape[1])
        return [value.reshape(shape) for value in waves.machine.memory.load(flat, size, owners)]
    results = [np.zeros(shape, np.uint32) for _ in range(count)]
    if active.any():
        owners = (waves.machine.first + waves.workgroup)[np.nonzero(active)[0]]
        for result, value in zip(results, waves.machine.memory.load(addresses[active], size, owners), strict=True):
            result[active] = value
    return results


def _store(instruction: Instruction, family: str, width: str) -> Step:
    size, half = STORES[width]
    operands = list(instruction.operands)
    # A buffer store has its data first, a global one its address.
    data = operands.pop(0 if family == "buffer" else 1)
    count = max(size // 4, 1)
    if data.kind != "v" or data.count != count:
        raise ValueError(f"the data must be {count} vector registers")
    where = _addresses(instruction, family, operands, size)
    index = data.index

    def run(waves: Waves) -> None:
        addresses, inside = where(waves)
        active = inside if waves.full else inside & waves.mask
        if not active.any():
            return
        values = [waves.v[index + i][active] for i in range(count)]
        if half:
            values = [value >> np.uint32(16) for value in values]
        owners = (waves.machine.first + waves.workgroup)[np.nonzero(active)[0]]
        waves.machine.memory.store(addresses[active], values, size, owners)

    reads = [register for operand in (data, *operands) for register in registers_of(operand)]
    # With a register for the scalar offset a buffer store holds its data long enough.
    wide = size > 8 and not (family == "buffer" and operands[-1].kind == "s")
    return Step(
        instruction,
        run,
        frozenset(reads),
        counter="vmcnt",
        needs=_needs(operands),
        produces=[(WIDE_STORE, tuple(registers_of(data)))] if wide else [],
    )


def _scratch(instruction: Instruction, kind: str, width: str) -> Step:
    """Private memory at a constant offset, which is what spilled registers have."""
    allow(instruction, "offset", *POLICIES)
    operands = list(instruction.operands)
    data = operands.pop(0 if kind == "load" else 1)
    if any(operand.kind != "off" for operand in operands) or not width.startswith("dword"):
        raise ValueError("of scratch only dwords at constant offsets are modelled")
    offset = _offset(instruction)
    if offset % 4 or offset < 0:
        raise ValueError("of scratch only whole dwords are modelled")
    count = WIDTHS[width][0] // 4
    if data.kind != "v" or data.count != count:
        raise ValueError(f"the data must be {count} vector registers")
    index = data.index

    def limit(waves: Waves) -> None:
        if offset + 4 * count > waves.machine.scratch_size:
            raise ExecutionError(
                f"It accesses bytes {offset} to {offset + 4 * count} of scratch, of which a lane has"
                f" {waves.machine.scratch_size}."
            )

    def load(waves: Waves) -> None:
        limit(waves)
        for i in range(count):
            dword = waves.scratch.get(offset // 4 + i)
            waves.set_v(index + i, waves.machine.poison(waves.mask.shape) if dword is None else dword)

    def store(waves: Waves) -> None:
        limit(waves)
        for i in range(count):
            value = waves.v[index + i]
            if not waves.full:
                old = waves.scratch.get(offset // 4 + i)
                old = waves.machine.poison(waves.mask.shape) if old is None else old
                value = np.where(waves.mask, value, old)
            waves.scratch[offset // 4 + i] = value

    registers = frozenset(registers_of(data))
    if kind == "load":
        return Step(instruction, load, writes=registers, counter="vmcnt")
    wide = [(WIDE_STORE, tuple(registers_of(data)))] if count > 2 else []
    return Step(instruction, store, registers, counter="vmcnt", produces=wide)
