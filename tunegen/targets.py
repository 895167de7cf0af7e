"""What a GPU is to tunegen: architecture, limits that a config must respect, and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunegen.errors import TargetError, UnknownNameError
from tunegen.runtime.device import DeviceKey


@dataclass(frozen=True)
class Target:
    """A GPU architecture that kernels are rendered and compiled for.

    Attributes:
        name: As on the command line and in tuned_configs/: ``"gfx950"``, ``"sm90"``.
        backend: Triton's back end.
        arch: What Triton's GPUTarget takes as architecture.
        warp_size: Lanes a warp (NVIDIA) or wave (AMD).
        max_warps: Most warps a program (workgroup, thread block) may have.
        warps_per_unit: Most resident warps a compute unit (CU, SM).
        programs_per_unit: Most resident programs a compute unit.
        registers: 32-bit registers a lane may use.
        register_file: 32-bit registers a compute unit has, over all lanes.
        shared_memory: Bytes of shared memory (LDS) a compute unit.
        shared_memory_of_program: Bytes of it that one program may have.
        default_elements_per_lane: The default config gives a lane about this many elements of a row.
        fp4_conversion: The form of the conversion to E2M1; see templates/lib/mxfp4.jinja.
        fp8: Dtype that its instructions have for e4m3: OCP's, or the one without negative zero and of half the range.
        device: The device that predictions are made for.
        device_name: Its marketing name, for people.
        measurable: False for targets that kernels are compiled for and nothing more.
    """

    name: str
    backend: Literal["cuda", "hip"]
    arch: int | str
    warp_size: int
    max_warps: int
    warps_per_unit: int
    programs_per_unit: int
    registers: int
    register_file: int
    shared_memory: int
    shared_memory_of_program: int
    default_elements_per_lane: int
    fp4_conversion: str
    fp8: Literal["float8_e4m3fn", "float8_e4m3fnuz"]
    device: DeviceKey
    device_name: str
    measurable: bool = True


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # AMD CDNA4: 4 SIMDs a CU, 8 waves and 512 VGPRs a lane each (CDNA4 ISA document; MI350X data sheet).
        Target(
            name="gfx950",
            backend="hip",
            arch="gfx950",
            warp_size=64,
            max_warps=16,
            warps_per_unit=32,
            programs_per_unit=32,
            registers=512,
            register_file=4 * 64 * 512,
            shared_memory=160 * 1024,
            shared_memory_of_program=160 * 1024,
            default_elements_per_lane=32,
            fp4_conversion="cvt_scalef32",
            fp8="float8_e4m3fn",
            device=DeviceKey("gfx950", 256, 288),
            device_name="AMD Instinct MI350X",
        ),
        # AMD CDNA3 (CDNA3 ISA document; MI300X data sheet).
        Target(
            name="gfx942",
            backend="hip",
            arch="gfx942",
            warp_size=64,
            max_warps=16,
            warps_per_unit=32,
            programs_per_unit=32,
            registers=512,
            register_file=4 * 64 * 512,
            shared_memory=64 * 1024,
            shared_memory_of_program=64 * 1024,
            default_elements_per_lane=32,
            fp4_conversion="saturate",
            fp8="float8_e4m3fnuz",
            device=DeviceKey("gfx942", 304, 192),
            device_name="AMD Instinct MI300X",
        ),
        # NVIDIA compute capability 9.0 and 10.0 (CUDA C++ Programming Guide, compute capabilities).
        Target(
            name="sm90",
            backend="cuda",
            arch=90,
            warp_size=32,
            max_warps=32,
            warps_per_unit=64,
            programs_per_unit=32,
            registers=255,
            register_file=65536,
            shared_memory=228 * 1024,
            shared_memory_of_program=227 * 1024,
            default_elements_per_lane=64,
            # With it come block maxima of floats, of every quantiser: see templates/lib/blocks.jinja.
            fp4_conversion="binades",
            fp8="float8_e4m3fn",
            device=DeviceKey("sm90", 132, 79),
            device_name="NVIDIA H100 80GB HBM3",
        ),
        Target(
            name="sm100",
            backend="cuda",
            arch=100,
            warp_size=32,
            max_warps=32,
            warps_per_unit=64,
            programs_per_unit=32,
            registers=255,
            register_file=65536,
            shared_memory=228 * 1024,
            shared_memory_of_program=227 * 1024,
            default_elements_per_lane=64,
            fp4_conversion="cvt_e2m1x2",
            fp8="float8_e4m3fn",
            device=DeviceKey("sm100", 148, 179),
            device_name="NVIDIA B200",
            measurable=False,
        ),
    )
}

DEFAULT_TARGET = "gfx950"


def get_target(name: str) -> Target:
    """The target of that name; raises UnknownNameError."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UnknownNameError("target", name, TARGETS) from None


@dataclass(frozen=True)
class Device:
    """A GPU that is present.

    Attributes:
        index: Its CUDA or ROCm device index.
        name: Marketing name.
        key: What tuned data is looked up by.
        target: Its architecture.
    """

    index: int
    name: str
    key: DeviceKey
    target: Target


def present_device(index: int = 0) -> Device | None:
    """The GPU ``index`` of this machine, or None if there is none.

    Raises:
        TargetError: There is a GPU of an architecture that tunegen does not know.
    """
    import torch

    from tunegen.runtime.device import device_key

    if not torch.cuda.is_available():
        return None
    key = device_key(index)
    name = torch.cuda.get_device_name(index)
    if key.arch not in TARGETS:
        raise TargetError(
            f"GPU {index} ({name}) has architecture {key.arch}; tunegen knows {', '.join(TARGETS)}."
            " Name one with --target to compile and predict for it."
        )
    return Device(index, name, key, TARGETS[key.arch])
