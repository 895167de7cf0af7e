"""What a compiled kernel uses of a compute unit, read from what the compiler made."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton.backends.nvidia

from tunegen.codegen.listing import LANE_KINDS, MEMORY_KINDS, Instruction, paths_of, read_amdgcn, read_sass
from tunegen.codegen.work import Work, work_of
from tunegen.errors import CompileError
from tunegen.targets import Target

# Registers are handed out in eights, on CDNA and on NVIDIA alike.
REGISTER_GRANULE = 8
SCHEDULERS = 4


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel.

    Attributes:
        registers: 32-bit registers a lane (architectural + accumulation on AMD).
        accumulation_registers: Those of them that are accumulation registers; 0 on NVIDIA.
        scalar_registers: Scalar registers a wave; 0 on NVIDIA, which does not report them.
        vector_instructions: Arithmetic of a lane in the listing, each instruction once: of a loop, one turn.
        barriers: Barriers in the listing.
        spills: Bytes a lane in scratch (AMD private segment) or local memory (NVIDIA).
        shared_memory: Bytes of LDS or shared memory a program.
        warps: Warps a program.
        programs_per_unit: Programs a compute unit holds at once.
        limiter: What keeps it from holding more.
        occupancy: Resident warps over the most a compute unit can hold.
        mix: Instructions of the listing by kind, memory accesses by kind and bytes a lane: ``"global load 16"``.
        ways: Ways through the kernel that programs may take.
        loops: Loops on the longest of them.
        once: What a warp does on that way, but for its longest loop.
        turn: What it does in a turn of that loop.
    """

    registers: int
    accumulation_registers: int
    scalar_registers: int
    vector_instructions: int
    barriers: int
    spills: int
    shared_memory: int
    warps: int
    programs_per_unit: int
    limiter: str
    occupancy: float
    mix: dict[str, int]
    ways: int
    loops: int
    once: Work
    turn: Work

    @property
    def warps_per_scheduler(self) -> int:
        """Resident warps (waves) that a scheduler (SIMD) chooses among."""
        return self.programs_per_unit * self.warps // SCHEDULERS


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel says of itself, of which no listing is needed; see `Resources`."""

    registers: int
    accumulation_registers: int
    scalar_registers: int
    spills: int
    shared_memory: int
    warps: int


def resources_of(
    target: Target, instructions: list[Instruction], usage: tuple[int, int, int, int], warps: int, shared_memory: int
) -> Resources:
    """Works out what a kernel uses.

    Args:
        target: What it was compiled for.
        instructions: Of its listing.
        usage: Registers a lane, accumulation registers among them, scalar registers, bytes of spills.
        warps: Warps a program.
        shared_memory: Bytes a program.
    """
    registers, accumulation, scalar, spills = usage
    rounded = -(-max(registers, 1) // REGISTER_GRANULE) * REGISTER_GRANULE
    warps_by_registers = target.register_file // (rounded * target.warp_size)
    # Registers are a SIMD's: a warp cannot be split between two of the four.
    warps_by_registers = warps_by_registers // SCHEDULERS * SCHEDULERS
    limits = {
        "registers": warps_by_registers // warps,
        "warps": target.warps_per_unit // warps,
        "programs": target.programs_per_unit,
    }
    if shared_memory:
        limits["shared memory"] = target.shared_memory // shared_memory
    limiter = min(limits, key=lambda name: limits[name])
    programs = limits[limiter]
    mix = Counter(f"{i.kind} {i.width}" if i.kind in MEMORY_KINDS else i.kind for i in instructions)
    works = [(work_of(target, path), path) for path in paths_of(instructions)]
    # The longest way: kinds of programs differ (heads, cache rows), and the many do the most.
    (once, turn), path = max(works, key=lambda item: item[0][0].scheduler_clocks + item[0][1].scheduler_clocks)
    return Resources(
        registers=registers,
        accumulation_registers=accumulation,
        scalar_registers=scalar,
        vector_instructions=sum(mix[kind] for kind in LANE_KINDS),
        barriers=mix["barrier"],
        spills=spills,
        shared_memory=shared_memory,
        warps=warps,
        programs_per_unit=programs,
        limiter=limiter,
        occupancy=programs * warps / target.warps_per_unit,
        mix=dict(sorted(mix.items())),
        ways=len(works),
        loops=len(path.loops),
        once=once,
        turn=turn,
    )


def read_listing(target: Target, listing: str) -> list[Instruction]:
    """Instructions of what `Compiled.listing` holds."""
    return read_amdgcn(listing, target.name) if target.backend == "hip" else read_sass(listing, target.name)


def amd_usage(assembly: str) -> tuple[int, int, int, int]:
    """Registers a lane, accumulation registers among them, scalar registers, bytes of spills; of amdgcn metadata."""

    def field(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if not match:
            raise CompileError(f"The amdgcn listing has no .{name} in its metadata.")
        return int(match[1])

    # .vgpr_count is already the sum with the accumulation registers where the file is unified.
    return field("vgpr_count"), field("agpr_count"), field("sgpr_count"), field("private_segment_fixed_size")


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


def nvidia_usage(cubin: bytes) -> tuple[int, int, int, int]:
    """As `amd_usage`, of a cubin."""
    usage = _cuobjdump(cubin, "-res-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if not match:
        raise CompileError(f"cuobjdump gave no resource usage: {usage.strip()}")
    return int(match[1]), 0, 0, max(int(match[2]), int(match[3]))
