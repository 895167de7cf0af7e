"""SOP1, SOP2, SOPK, SOPC and SOPP: scalar instructions (ISA documents, "Scalar ALU operations", "Program flow").

A function takes its operands as uint32 or uint64 [n] (or [1]) and gives the result, or the result and SCC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunegen.execute.listing import Instruction
from tunegen.execute.operands import EXEC, VCC
from tunegen.execute.step import Reader, Run, Step, registers_of, scalar_id, scalar_reader
from tunegen.execute.waves import Waves

_31 = np.uint32(31)
_63 = np.uint64(63)
_1 = np.uint32(1)


@dataclass(frozen=True)
class Scalar:
    """An opcode.

    Attributes:
        function: Result, or result and SCC.
        bits: Of the result; 0 for none, where the function gives SCC alone.
        sources: Bits of each source.
        scc: It writes SCC.
        reads_scc: SCC comes as a further operand.
        accumulates: The destination comes as the first operand.
    """

    function: Callable[..., Any]
    bits: int = 32
    sources: tuple[int, ...] = (32, 32)
    scc: bool = False
    reads_scc: bool = False
    accumulates: bool = False


def _i32(a: Any) -> Any:
    return a.view(np.int32)


def _i64(a: Any) -> Any:
    return a.view(np.int64)


def _nonzero(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*sources: Any) -> Any:
        result = function(*sources)
        return result, result != 0

    return run


def _add_carry(a: Any, b: Any, carry: Any = 0) -> Any:
    total = a.astype(np.uint64) + b + carry
    return total.astype(np.uint32), total > 0xFFFFFFFF


def _subtract_borrow(a: Any, b: Any, borrow: Any = 0) -> Any:
    total = a.astype(np.int64) - b - borrow
    return (total & 0xFFFFFFFF).astype(np.uint32), total < 0


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """SCC is signed overflow."""

    def run(a: Any, b: Any) -> Any:
        total = function(_i32(a).astype(np.int64), _i32(b).astype(np.int64))
        return (total & 0xFFFFFFFF).astype(np.uint32), (total < -(2**31)) | (total >= 2**31)

    return run


def _simm(a: Any) -> Any:
    return a.astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32)


def _bfe_u32(a: Any, b: Any) -> Any:
    offset, width = b & _31, (b >> np.uint32(16)) & np.uint32(0x7F)
    mask = np.where(width >= 32, 0xFFFFFFFF, (1 << np.minimum(width, 31).astype(np.int64)) - 1).astype(np.uint32)
    return (a >> offset) & mask


def _bfe_i32(a: Any, b: Any) -> Any:
    """What lies past the highest bit is the sign."""
    offset = (b & _31).astype(np.int64)
    width = np.minimum((b >> np.uint32(16)) & np.uint32(0x7F), np.uint32(32)).astype(np.int64)
    field = (_i32(a).astype(np.int64) >> offset) & ((np.int64(1) << width) - 1)
    negative = (width > 0) & (((field >> np.maximum(width - 1, 0)) & 1) == 1)
    return (np.where(negative, field - (np.int64(1) << width), field) & 0xFFFFFFFF).astype(np.uint32)


def _reverse(a: Any) -> Any:
    packed = np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(packed, axis=1, bitorder="little"), axis=1).view(">u4")[:, 0].astype(np.uint32)


def _count_ones(a: Any) -> Any:
    packed = np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)
    return np.unpackbits(packed, axis=1).sum(axis=1).astype(np.uint32)


def _lowest_one(a: Any) -> Any:
    found = np.full(a.shape, 0xFFFFFFFF, np.uint32)
    for bit in reversed(range(8 * a.dtype.itemsize)):
        found = np.where((a >> a.dtype.type(bit)) & a.dtype.type(1), np.uint32(bit), found)
    return found


def _leading_zeros(a: Any) -> Any:
    found = np.full(a.shape, 0xFFFFFFFF, np.uint32)
    width = 8 * a.dtype.itemsize
    for bit in range(width):
        found = np.where((a >> a.dtype.type(bit)) & a.dtype.type(1), np.uint32(width - 1 - bit), found)
    return found


def _abs(a: Any) -> Any:
    result = np.where(_i32(a) < 0, np.uint32(0) - a, a)
    return result, result != 0


def _shift_add(count: int) -> Callable[..., Any]:
    def run(a: Any, b: Any) -> Any:
        total = (a.astype(np.uint64) << np.uint64(count)) + b
        return total.astype(np.uint32), total > 0xFFFFFFFF

    return run


def _pack(a_shift: int, b_shift: int) -> Callable[..., Any]:
    def run(a: Any, b: Any) -> Any:
        low = (a >> np.uint32(a_shift)) & np.uint32(0xFFFF)
        return low | (((b >> np.uint32(b_shift)) & np.uint32(0xFFFF)) << np.uint32(16))

    return run


def _table() -> dict[str, Scalar]:
    table = {
        "s_add_u32": Scalar(_add_carry, scc=True),
        "s_sub_u32": Scalar(_subtract_borrow, scc=True),
        "s_addc_u32": Scalar(_add_carry, scc=True, reads_scc=True),
        "s_subb_u32": Scalar(_subtract_borrow, scc=True, reads_scc=True),
        "s_add_i32": Scalar(_signed(lambda a, b: a + b), scc=True),
        "s_sub_i32": Scalar(_signed(lambda a, b: a - b), scc=True),
        "s_addk_i32": Scalar(
            lambda d, k: _signed(lambda a, b: a + b)(d, _simm(k)), sources=(32,), scc=True, accumulates=True
        ),
        "s_mulk_i32": Scalar(lambda d, k: d * _simm(k), sources=(32,), accumulates=True),
        "s_movk_i32": Scalar(_simm, sources=(32,)),
        "s_mul_i32": Scalar(lambda a, b: a * b),
        "s_mul_hi_u32": Scalar(lambda a, b: ((a.astype(np.uint64) * b) >> np.uint64(32)).astype(np.uint32)),
        "s_mul_hi_i32": Scalar(
            lambda a, b: ((_i32(a).astype(np.int64) * _i32(b)) >> 32).astype(np.int32).view(np.uint32)
        ),
        "s_bfe_u32": Scalar(_nonzero(_bfe_u32), scc=True),
        "s_bfe_i32": Scalar(_nonzero(_bfe_i32), scc=True),
        "s_bfm_b32": Scalar(lambda a, b: ((_1 << (a & _31)) - _1) << (b & _31)),
        "s_brev_b32": Scalar(_reverse, sources=(32,)),
        "s_abs_i32": Scalar(_abs, sources=(32,), scc=True),
        "s_absdiff_i32": Scalar(lambda a, b: _abs(a - b), scc=True),
        "s_sext_i32_i16": Scalar(lambda a: _simm(a & np.uint32(0xFFFF)), sources=(32,)),
        "s_sext_i32_i8": Scalar(
            lambda a: (a & np.uint32(0xFF)).astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32),
            sources=(32,),
        ),
        "s_pack_ll_b32_b16": Scalar(_pack(0, 0)),
        "s_pack_lh_b32_b16": Scalar(_pack(0, 16)),
        "s_pack_hh_b32_b16": Scalar(_pack(16, 16)),
        "s_bitcmp0_b32": Scalar(lambda a, b: ((a >> (b & _31)) & _1) == 0, bits=0, scc=True),
        "s_bitcmp1_b32": Scalar(lambda a, b: ((a >> (b & _31)) & _1) == 1, bits=0, scc=True),
        "s_bitset0_b32": Scalar(lambda d, a: d & ~(_1 << (a & _31)), sources=(32,), accumulates=True),
        "s_bitset1_b32": Scalar(lambda d, a: d | (_1 << (a & _31)), sources=(32,), accumulates=True),
        "s_bcnt1_i32_b32": Scalar(_nonzero(_count_ones), sources=(32,), scc=True),
        "s_bcnt1_i32_b64": Scalar(_nonzero(_count_ones), sources=(64,), scc=True),
        "s_ff1_i32_b32": Scalar(_lowest_one, sources=(32,)),
        "s_ff1_i32_b64": Scalar(_lowest_one, sources=(64,)),
        "s_flbit_i32_b32": Scalar(_leading_zeros, sources=(32,)),
        "s_flbit_i32_b64": Scalar(_leading_zeros, sources=(64,)),
        "s_lshl_b32": Scalar(_nonzero(lambda a, b: a << (b & _31)), scc=True),
        "s_lshr_b32": Scalar(_nonzero(lambda a, b: a >> (b & _31)), scc=True),
        "s_ashr_i32": Scalar(_nonzero(lambda a, b: (_i32(a) >> _i32(b & _31)).view(np.uint32)), scc=True),
        "s_lshl_b64": Scalar(_nonzero(lambda a, b: a << (b.astype(np.uint64) & _63)), 64, (64, 32), scc=True),
        "s_lshr_b64": Scalar(_nonzero(lambda a, b: a >> (b.astype(np.uint64) & _63)), 64, (64, 32), scc=True),
        "s_ashr_i64": Scalar(
            _nonzero(lambda a, b: (_i64(a) >> (b & np.uint32(63)).astype(np.int64)).view(np.uint64)),
            64,
            (64, 32),
            scc=True,
        ),
        "s_min_i32": Scalar(lambda a, b: (np.where(_i32(a) < _i32(b), a, b), _i32(a) < _i32(b)), scc=True),
        "s_max_i32": Scalar(lambda a, b: (np.where(_i32(a) > _i32(b), a, b), _i32(a) > _i32(b)), scc=True),
        "s_min_u32": Scalar(lambda a, b: (np.minimum(a, b), a < b), scc=True),
        "s_max_u32": Scalar(lambda a, b: (np.maximum(a, b), a > b), scc=True),
    }
    for count in (1, 2, 3, 4):
        table[f"s_lshl{count}_add_u32"] = Scalar(_shift_add(count), scc=True)
    logic: dict[str, Callable[..., Any]] = {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "andn2": lambda a, b: a & ~b,
        "orn2": lambda a, b: a | ~b,
        "nand": lambda a, b: ~(a & b),
        "nor": lambda a, b: ~(a | b),
        "xnor": lambda a, b: ~(a ^ b),
    }
    for bits in (32, 64):
        pair = (bits, bits)
        for name, function in logic.items():
            table[f"s_{name}_b{bits}"] = Scalar(_nonzero(function), bits, pair, scc=True)
        table[f"s_not_b{bits}"] = Scalar(_nonzero(lambda a: ~a), bits, (bits,), scc=True)
        table[f"s_mov_b{bits}"] = Scalar(lambda a: a, bits, (bits,))
        table[f"s_cselect_b{bits}"] = Scalar(lambda a, b, scc: np.where(scc, a, b), bits, pair, reads_scc=True)
        table[f"s_cmov_b{bits}"] = Scalar(
            lambda d, a, scc: np.where(scc, a, d), bits, (bits,), reads_scc=True, accumulates=True
        )
    compare: dict[str, Callable[..., Any]] = {
        "eq": lambda a, b: a == b,
        "lg": lambda a, b: a != b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
    }
    for name, function in compare.items():
        table[f"s_cmp_{name}_u32"] = Scalar(function, bits=0, scc=True)
        table[f"s_cmp_{name}_i32"] = Scalar(_as_signed(function), bits=0, scc=True)
        if name in ("eq", "lg"):
            table[f"s_cmp_{name}_u64"] = Scalar(function, bits=0, sources=(64, 64), scc=True)
        table[f"s_cmpk_{name}_u32"] = Scalar(_with_unsigned_16(function), bits=0, scc=True)
        table[f"s_cmpk_{name}_i32"] = Scalar(_with_signed_16(function), bits=0, scc=True)
    return table


def _as_signed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(_i32(a), _i32(b))


def _with_unsigned_16(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(a, b & np.uint32(0xFFFF))


def _with_signed_16(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(_i32(a), _i32(_simm(b)))


SCALAR = _table()

# EXEC becomes function(source, EXEC) and the destination the former EXEC; SCC says whether any lane is left.
SAVE_EXEC: dict[str, Callable[..., Any]] = {
    "s_and_saveexec_b64": lambda source, active: source & active,
    "s_or_saveexec_b64": lambda source, active: source | active,
    "s_xor_saveexec_b64": lambda source, active: source ^ active,
    "s_andn2_saveexec_b64": lambda source, active: source & ~active,
    "s_andn1_saveexec_b64": lambda source, active: ~source & active,
    "s_orn2_saveexec_b64": lambda source, active: source | ~active,
    "s_nand_saveexec_b64": lambda source, active: ~(source & active),
}

CONDITIONS: dict[str, tuple[Reader, tuple[int, ...]]] = {
    "s_cbranch_scc0": (lambda waves: ~waves.scc, ()),
    "s_cbranch_scc1": (lambda waves: waves.scc, ()),
    "s_cbranch_vccz": (lambda waves: waves.get_s64(VCC) == 0, (VCC, VCC + 1)),
    "s_cbranch_vccnz": (lambda waves: waves.get_s64(VCC) != 0, (VCC, VCC + 1)),
    "s_cbranch_execz": (lambda waves: waves.get_s64(EXEC) == 0, ()),
    "s_cbranch_execnz": (lambda waves: waves.get_s64(EXEC) != 0, ()),
}


def decode(instruction: Instruction, labels: dict[str, int]) -> Step | None:  # noqa: PLR0911 - one a form
    """The step of a scalar instruction; None if it is of another family."""
    name, operands = instruction.name, instruction.operands
    if name in SCALAR:
        return _decode_alu(instruction, SCALAR[name])
    if name in SAVE_EXEC:
        return _decode_save_exec(instruction, SAVE_EXEC[name])
    if name in CONDITIONS or name == "s_branch":
        target = labels.get(operands[0].name)
        if target is None:
            raise ValueError(f"the label {operands[0].name!r} is not there")
        condition, reads = CONDITIONS.get(name, (None, ()))
        return Step(
            instruction,
            _nothing,
            reads=frozenset(map(scalar_id, reads)),
            flow="branch",
            condition=condition,
            target=target,
        )
    if name == "s_nop":
        return Step(instruction, _nothing, states=operands[0].value + 1)
    if name == "s_waitcnt":
        return _decode_wait(instruction)
    if name == "s_barrier":
        return Step(instruction, _nothing, flow="barrier")
    if name == "s_endpgm":
        return Step(instruction, _nothing, flow="end")
    if name == "s_setreg_imm32_b32":
        return _decode_setreg(instruction)
    if name == "s_setprio":
        return Step(instruction, _nothing)
    return None


def _nothing(waves: Waves) -> None:
    pass


def _decode_alu(instruction: Instruction, opcode: Scalar) -> Step:
    operands = list(instruction.operands)
    destination = operands.pop(0) if opcode.bits else None
    if len(operands) != len(opcode.sources):
        raise ValueError(f"{len(opcode.sources)} sources are due, {len(operands)} are there")
    readers = [scalar_reader(operand, bits) for operand, bits in zip(operands, opcode.sources, strict=True)]
    reads = {register for operand in operands for register in registers_of(operand)}
    writes: set[int] = set()
    if destination is not None:
        if destination.kind != "s" or destination.count != opcode.bits // 32:
            raise ValueError(f"the destination must be {opcode.bits // 32} scalar registers")
        writes.update(registers_of(destination))
        if opcode.accumulates:
            readers.insert(0, scalar_reader(destination, opcode.bits))
            reads |= writes
    if opcode.reads_scc:
        readers.append(lambda waves: waves.scc)
    return Step(instruction, _alu(opcode, readers, destination), frozenset(reads), frozenset(writes))


def _alu(opcode: Scalar, readers: list[Reader], destination: Any) -> Run:
    function, scc, bits = opcode.function, opcode.scc, opcode.bits
    index = destination.index if destination is not None else 0

    def run(waves: Waves) -> None:
        result = function(*[read(waves) for read in readers])
        if scc:
            if bits:
                result, flag = result
            else:
                flag = result
            waves.scc = flag if flag.shape == (waves.n,) else np.broadcast_to(flag, (waves.n,))
        if bits == 32:
            waves.set_s(index, result)
        elif bits:
            waves.set_s64(index, result)

    return run


def _decode_save_exec(instruction: Instruction, function: Callable[..., Any]) -> Step:
    destination, source = instruction.operands
    read = scalar_reader(source, 64)

    def run(waves: Waves) -> None:
        before = waves.get_s64(EXEC)
        after = function(read(waves), before)
        waves.set_s64(destination.index, before)
        waves.set_s64(EXEC, after)
        waves.scc = waves.get_s64(EXEC) != 0

    writes = frozenset([*registers_of(destination), scalar_id(EXEC), scalar_id(EXEC + 1)])
    return Step(instruction, run, frozenset(registers_of(source)), writes)


def _decode_wait(instruction: Instruction) -> Step:
    counts = {operand.name: operand.value for operand in instruction.operands if operand.kind == "wait"}
    if len(counts) != len(instruction.operands) or not counts:
        raise ValueError("only vmcnt, lgkmcnt and expcnt may be waited for")
    vmcnt, lgkmcnt = counts.get("vmcnt"), counts.get("lgkmcnt")

    def run(waves: Waves) -> None:
        waves.board.wait(vmcnt, lgkmcnt)

    return Step(instruction, run)


# Bit of MODE that makes conversions to fp16 and fp8 saturate: the only one that a program may change here.
FP16_OVERFLOW_BIT = 23
# Bits of MODE, first and how many, that have fp16 round: 0, to nearest even, is what a kernel begins with.
FP16_ROUND_BITS = (2, 2)


def _decode_setreg(instruction: Instruction) -> Step:
    register, value = instruction.operands
    if register.field == FP16_ROUND_BITS and not value.value:
        return Step(instruction, lambda waves: None)
    if register.field != (FP16_OVERFLOW_BIT, 1):
        raise ValueError(f"of MODE only bit {FP16_OVERFLOW_BIT} (FP16_OVFL) is modelled")
    saturate = bool(value.value & 1)

    def run(waves: Waves) -> None:
        waves.fp16_overflow = saturate

    return Step(instruction, run)
