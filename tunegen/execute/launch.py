"""Executes a launch of a kernel on the CPU, with tensors as arguments."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tunegen.errors import UsageError
from tunegen.execute.decode import Program, decode
from tunegen.execute.listing import parse_listing
from tunegen.execute.machine import Dispatch, Machine, Options
from tunegen.execute.memory import GlobalMemory, Region
from tunegen.execute.waves import LANES

_FORMATS = {
    "i1": np.int8,
    "u1": np.uint8,
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "u16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "u64": np.uint64,
    "fp32": np.float32,
    "f32": np.float32,
    "fp64": np.float64,
}
DEFAULTS = Options()
SCRATCH_POINTERS = 2


@functools.lru_cache(maxsize=32)
def program_of(text: str) -> Program:
    """The decoded program of a listing; the same for the same text."""
    return decode(parse_listing(text))


def execute(
    text: str,
    grid: tuple[int, int, int],
    waves: int,
    lds_size: int,
    arguments: Sequence[tuple[str, Any]],
    options: Options = DEFAULTS,
) -> None:
    """Executes one launch; tensors that the kernel writes are changed in place.

    Functional, not timed: it says what a kernel computes and nothing of how long it takes.

    Args:
        text: The amdgcn listing, of one kernel for gfx942 or gfx950.
        grid: Workgroups in x, y and z.
        waves: Waves (Triton: warps) a workgroup.
        lds_size: Bytes of LDS a workgroup, beside those that the kernel declares.
        arguments: Triton type (``"*bf16"``, ``"i32"``, ``"fp32"``) and value of each run-time argument, in order;
            pointers are tensors on the CPU.
        options: How.

    Raises:
        ListingError: The listing has an instruction or a descriptor that the executor does not know.
        ExecutionError: The kernel reads or writes outside of its tensors, uses a result before it has come, has a
            race, or the like; the message names the line of the listing.
        UsageError: The arguments are not those of the kernel.
    """
    program = program_of(text)
    memory = GlobalMemory()
    kernarg = _kernarg(program, memory, arguments, _hidden(grid, waves, lds_size), options.seed)
    length = program.listing.descriptor.get("user_sgpr_kernarg_preload_length", 0)
    words = np.zeros(max(length, -(-len(kernarg) // 4)), np.uint32)
    words.view(np.uint8)[: len(kernarg)] = kernarg
    declared = program.listing.descriptor["group_segment_fixed_size"]
    dispatch = Dispatch(grid, waves, declared + lds_size, int(kernarg.ctypes.data), words[:length])
    Machine(program, memory, dispatch, options).run()


def _hidden(grid: tuple[int, int, int], waves: int, lds_size: int) -> dict[str, int]:
    """The hidden arguments that a launch has a value for (LLVM's guide, "AMDHSA Code Object V5 Kernel Argument")."""
    dims = 3 if grid[2] > 1 else 2 if grid[1] > 1 else 1
    hidden = {"hidden_grid_dims": dims, "hidden_dynamic_lds_size": lds_size}
    for dimension, count, size in zip("xyz", grid, (waves * LANES, 1, 1), strict=True):
        hidden[f"hidden_block_count_{dimension}"] = count
        hidden[f"hidden_group_size_{dimension}"] = size
        hidden[f"hidden_remainder_{dimension}"] = 0
        hidden[f"hidden_global_offset_{dimension}"] = 0
    return hidden


def _kernarg(
    program: Program,
    memory: GlobalMemory,
    arguments: Sequence[tuple[str, Any]],
    hidden: dict[str, int],
    seed: int,
) -> Any:
    """The kernarg segment; the tensors and itself become the kernel's memory."""
    listing = program.listing
    segment = np.random.default_rng(seed).integers(0, 256, listing.kernarg_size, np.uint8)
    slots = [slot for slot in listing.arguments if not slot.kind.startswith("hidden_")]
    # Triton adds pointers to scratch memory behind the arguments; kernels here use none, and they are null.
    if not len(arguments) <= len(slots) <= len(arguments) + SCRATCH_POINTERS:
        raise UsageError(f"The kernel {listing.name} has {len(slots)} arguments; {len(arguments)} were given.")
    for slot in slots[len(arguments) :]:
        segment[slot.offset : slot.offset + slot.size] = 0
    for slot in listing.arguments:
        if slot.kind in hidden:
            value = hidden[slot.kind].to_bytes(slot.size, "little")
            segment[slot.offset : slot.offset + slot.size] = np.frombuffer(value, np.uint8)
    for number, ((kind, value), slot) in enumerate(zip(arguments, slots, strict=False)):
        if kind.startswith("*"):
            if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                raise UsageError(f"Argument {number} of {listing.name} must be a tensor on the CPU; got {value!r}.")
            content = np.array([value.data_ptr()], np.uint64)
            _add_tensor(memory, f"argument {number}", value)
        else:
            if kind not in _FORMATS:
                raise UsageError(f"Argument {number} of {listing.name} has type {kind}, which the executor lacks.")
            content = np.array([value]).astype(_FORMATS[kind])
        data = content.view(np.uint8)
        if len(data) != slot.size:
            raise UsageError(
                f"Argument {number} of {listing.name} takes {slot.size} bytes; {kind} has {len(data)}."
                " Give the run-time arguments alone, in order."
            )
        segment[slot.offset : slot.offset + slot.size] = data
    address = int(segment.ctypes.data)
    memory.add(address, segment, Region("the kernarg segment", address, (), len(segment), writable=False))
    return segment


def _add_tensor(memory: GlobalMemory, name: str, tensor: torch.Tensor) -> None:
    storage = tensor.untyped_storage()
    data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    strides = tuple(stride * tensor.element_size() for stride in tensor.stride())
    region = Region.of(name, tensor.data_ptr(), tuple(tensor.shape), strides, tensor.element_size())
    memory.add(storage.data_ptr(), data, region)
