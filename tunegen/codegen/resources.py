"""What a compiled kernel uses of a compute unit, read from what the compiler made."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton.backends.nvidia

from tunegen.errors import CompileError
from tunegen.targets import Target

# Registers are handed out in eights, on CDNA and on NVIDIA alike.
REGISTER_GRANULE = 8


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel.

    Attributes:
        registers: 32-bit registers a lane (architectural + accumulation on AMD).
        scalar_registers: Scalar registers a wave; 0 on NVIDIA, which does not report them.
        vector_instructions: Vector instructions in the listing, each once: of a loop, one turn.
        barriers: Barriers in the listing.
        spills: Bytes a lane in scratch (AMD private segment) or local memory (NVIDIA).
        shared_memory: Bytes of LDS or shared memory a program.
        warps: Warps a program.
        programs_per_unit: Programs a compute unit holds at once.
        limiter: What keeps it from holding more.
        occupancy: Resident warps over the most a compute unit can hold.
    """

    registers: int
    scalar_registers: int
    vector_instructions: int
    barriers: int
    spills: int
    shared_memory: int
    warps: int
    programs_per_unit: int
    limiter: str
    occupancy: float


def resources_of(target: Target, assembly: str, binary: bytes, warps: int, shared_memory: int) -> Resources:
    """Reads registers and spills from the listing (AMD) or the cubin (NVIDIA) and works out the occupancy."""
    if target.backend == "hip":
        registers, scalar, spills = _amd_usage(assembly)
        vector = len(re.findall(r"^\s+v_", assembly, re.MULTILINE))
    else:
        registers, scalar, spills = _nvidia_usage(binary)
        # Instructions with a U are the uniform data path's, one for a whole warp.
        vector = len(
            re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(?!U)[A-Z]", disassemble(binary), re.MULTILINE)
        )
    rounded = -(-max(registers, 1) // REGISTER_GRANULE) * REGISTER_GRANULE
    warps_by_registers = target.register_file // (rounded * target.warp_size)
    # Registers are a SIMD's: a warp cannot be split between two of the four.
    warps_by_registers = warps_by_registers // 4 * 4
    limits = {
        "registers": warps_by_registers // warps,
        "warps": target.warps_per_unit // warps,
        "programs": target.programs_per_unit,
    }
    if shared_memory:
        limits["shared memory"] = target.shared_memory // shared_memory
    limiter = min(limits, key=lambda name: limits[name])
    programs = limits[limiter]
    return Resources(
        registers=registers,
        scalar_registers=scalar,
        vector_instructions=vector,
        barriers=len(re.findall(r"\bs_barrier\b|\bbar\.sync\b", assembly)),
        spills=spills,
        shared_memory=shared_memory,
        warps=warps,
        programs_per_unit=programs,
        limiter=limiter,
        occupancy=programs * warps / target.warps_per_unit,
    )


def _amd_usage(assembly: str) -> tuple[int, int, int]:
    def field(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if not match:
            raise CompileError(f"The amdgcn listing has no .{name} in its metadata.")
        return int(match[1])

    # .vgpr_count is already the sum with the accumulation registers where the file is unified.
    return field("vgpr_count"), field("sgpr_count"), field("private_segment_fixed_size")


def _cuobjdump(cubin: bytes, option: str) -> str:
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"cuobjdump {option} failed: {done.stdout.strip()} {done.stderr.strip()}")
    return done.stdout


def disassemble(cubin: bytes) -> str:
    """SASS of a cubin, by the cuobjdump that Triton carries."""
    return _cuobjdump(cubin, "-sass")


def _nvidia_usage(cubin: bytes) -> tuple[int, int, int]:
    usage = _cuobjdump(cubin, "-res-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if not match:
        raise CompileError(f"cuobjdump gave no resource usage: {usage.strip()}")
    return int(match[1]), 0, max(int(match[2]), int(match[3]))
