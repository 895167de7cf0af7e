"""DS instructions: LDS, and the permutes that use its crossbar (ISA documents, "Data share", "DS_BPERMUTE_B32")."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tunegen.execute.errors import ExecutionError
from tunegen.execute.isa.memory import extend
from tunegen.execute.isa.vector_decode import allow
from tunegen.execute.isa.vector_operands import raw_reader
from tunegen.execute.lanes import parse_swizzle
from tunegen.execute.listing import Instruction
from tunegen.execute.step import Step, registers_of
from tunegen.execute.waves import Mask, Waves

# Bytes, sign extension, half of the register that is written (the other one kept).
READS: dict[str, tuple[int, bool, int | None]] = {
    "ds_read_u8": (1, False, None),
    "ds_read_i8": (1, True, None),
    "ds_read_u16": (2, False, None),
    "ds_read_i16": (2, True, None),
    "ds_read_b32": (4, False, None),
    "ds_read_b64": (8, False, None),
    "ds_read_b96": (12, False, None),
    "ds_read_b128": (16, False, None),
    "ds_read_u8_d16": (1, False, 0),
    "ds_read_u8_d16_hi": (1, False, 1),
    "ds_read_u16_d16": (2, False, 0),
    "ds_read_u16_d16_hi": (2, False, 1),
}
# Bytes, and the half of the register that they come from.
WRITES: dict[str, tuple[int, int]] = {
    "ds_write_b8": (1, 0),
    "ds_write_b16": (2, 0),
    "ds_write_b32": (4, 0),
    "ds_write_b64": (8, 0),
    "ds_write_b96": (12, 0),
    "ds_write_b128": (16, 0),
    "ds_write_b8_d16_hi": (1, 1),
    "ds_write_b16_d16_hi": (2, 1),
}
# Two accesses: bytes of each, and what their offsets count.
_TWO = re.compile(r"ds_(read|write)2(st64)?_b(32|64)")


def least_access(name: str) -> int | None:
    """Bytes of an access to LDS by an instruction; None if it makes none."""
    if name in READS or name in WRITES:
        return (READS.get(name) or WRITES[name])[0]
    return 4 if _TWO.fullmatch(name) else None


def decode(instruction: Instruction, arch: str) -> Step | None:  # noqa: PLR0911 - one a form
    """The step of a DS instruction; None if it is of another family."""
    name = instruction.name
    if name in READS:
        size, signed, half = READS[name]
        return _read(instruction, size, signed, half, [_offset(instruction, "offset")])
    if name in WRITES:
        size, half_from = WRITES[name]
        return _write(instruction, size, half_from, [_offset(instruction, "offset")])
    if match := _TWO.fullmatch(name):
        size = int(match[3]) // 8
        unit = size * (64 if match[2] else 1)
        offsets = [unit * _offset(instruction, key) for key in ("offset0", "offset1")]
        if match[1] == "read":
            return _read(instruction, size, False, None, offsets)
        return _write(instruction, size, 0, offsets)
    if name in ("ds_bpermute_b32", "ds_permute_b32"):
        return _permute(instruction, forward=name == "ds_permute_b32")
    if name == "ds_swizzle_b32":
        return _swizzle(instruction)
    return None


def _offset(instruction: Instruction, key: str) -> int:
    return int(str(instruction.modifiers.get(key, "0")), 0)


def _at(waves: Waves, addresses: Any, offset: int) -> Any:
    at = addresses.astype(np.int64) + offset
    if (at >= 2**32).any():
        raise ExecutionError("An LDS address and its offset pass 2^32.")
    return np.broadcast_to(at.astype(np.uint32), waves.mask.shape)


def _note(waves: Waves, write: bool, indices: Any, mask: Mask) -> None:
    board = waves.board
    board.lds_ops.append((board.issued["lds"], write, np.nonzero(mask)[0], indices))


def _read(instruction: Instruction, size: int, signed: bool, half: int | None, offsets: list[int]) -> Step:
    allow(instruction, *(("offset",) if len(offsets) == 1 else ("offset0", "offset1")))
    destination, address = instruction.operands
    each = max(size // 4, 1)
    if destination.kind != "v" or destination.count != each * len(offsets):
        raise ValueError(f"the destination must be {each * len(offsets)} vector registers")
    read_address = raw_reader(address)
    index = destination.index

    def run(waves: Waves) -> None:
        mask, memory = waves.mask, waves.machine.lds
        base = read_address(waves)
        for number, offset in enumerate(offsets):
            indices = memory.indices(waves, _at(waves, base, offset), size, mask)
            data = memory.load(waves, indices, mask)
            _note(waves, False, indices, mask)
            padded: Any = np.pad(data, ((0, 0), (0, 4 - size))) if size < 4 else data
            dwords = np.ascontiguousarray(padded).view(np.uint32)
            for i in range(each):
                register = index + number * each + i
                if waves.full:
                    value = dwords[:, i].reshape(mask.shape)
                else:
                    value = np.zeros(mask.shape, np.uint32)
                    value[mask] = dwords[:, i]
                waves.set_v(register, extend(value, size, signed, half, waves.v[register]))

    reads = registers_of(address) + (registers_of(destination) if half is not None else [])
    return Step(instruction, run, frozenset(reads), frozenset(registers_of(destination)), counter="lds")


def _write(instruction: Instruction, size: int, half: int, offsets: list[int]) -> Step:
    allow(instruction, *(("offset",) if len(offsets) == 1 else ("offset0", "offset1")))
    address, *data = instruction.operands
    each = max(size // 4, 1)
    if len(data) != len(offsets) or any(operand.kind != "v" or operand.count != each for operand in data):
        raise ValueError(f"the data must be {len(offsets)} times {each} vector registers")
    read_address = raw_reader(address)
    starts = [operand.index for operand in data]

    def run(waves: Waves) -> None:
        mask, memory = waves.mask, waves.machine.lds
        base = read_address(waves)
        for start, offset in zip(starts, offsets, strict=True):
            indices = memory.indices(waves, _at(waves, base, offset), size, mask)
            dwords = np.stack([waves.v[start + i][mask] >> np.uint32(16 * half) for i in range(each)], axis=1)
            values = dwords if memory.unit == 4 else np.ascontiguousarray(dwords).view(np.uint8)[:, :size]
            memory.store(waves, indices, values, mask)
            _note(waves, True, indices, mask)

    reads = [register for operand in instruction.operands for register in registers_of(operand)]
    return Step(instruction, run, frozenset(reads), counter="lds")


def _permute(instruction: Instruction, forward: bool) -> Step:
    """Backward: each lane reads the lane that its address says; forward: writes it. The address is 4 times the lane.

    A lane that is not active gives 0 (backward), or is neither read nor written.
    """
    allow(instruction, "offset")
    destination, address, data = instruction.operands
    read_address, read_data = raw_reader(address), raw_reader(data)
    offset = _offset(instruction, "offset")
    index = destination.index

    def run(waves: Waves) -> None:
        shape = waves.mask.shape
        lane = ((np.broadcast_to(read_address(waves), shape) + np.uint32(offset)) >> np.uint32(2)) & np.uint32(63)
        lane = lane.astype(np.int64)
        values = np.where(waves.mask, np.broadcast_to(read_data(waves), shape), np.uint32(0))
        if not forward:
            waves.set_v(index, np.take_along_axis(values, lane, axis=1))
            return
        result = np.zeros(shape, np.uint32)
        rows, lanes = np.nonzero(waves.mask)
        result[rows, lane[rows, lanes]] = values[rows, lanes]
        if (result[rows, lane[rows, lanes]] != values[rows, lanes]).any():
            raise ExecutionError("Lanes permute other values to one lane: which of them stays is not defined.")
        waves.set_v(index, result)

    reads = registers_of(address) + registers_of(data)
    return Step(instruction, run, frozenset(reads), frozenset(registers_of(destination)), counter="lds")


def _swizzle(instruction: Instruction) -> Step:
    allow(instruction, "offset")
    destination, data = instruction.operands
    source = parse_swizzle(str(instruction.modifiers["offset"]))
    read_data = raw_reader(data)
    index = destination.index

    def run(waves: Waves) -> None:
        shape = waves.mask.shape
        values = np.where(waves.mask, np.broadcast_to(read_data(waves), shape), np.uint32(0))
        waves.set_v(index, np.take(values, source, axis=1))

    return Step(instruction, run, frozenset(registers_of(data)), frozenset(registers_of(destination)), counter="lds")
