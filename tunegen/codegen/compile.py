"""Compiles rendered kernels for any target, with no GPU, as a launch on one would."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from tunegen.codegen.render import Rendered
from tunegen.codegen.resources import (
    Resources,
    Usage,
    amd_usage,
    disassemble,
    nvidia_usage,
    read_listing,
    resources_of,
)
from tunegen.errors import CompileError
from tunegen.ops import get_family
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import Target, get_target

ACT_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel.

    Attributes:
        target: What it was compiled for.
        assembly: amdgcn text or PTX.
        binary: hsaco or cubin.
        usage: Registers, spills, shared memory.
        seconds: What compiling took.
    """

    target: Target
    assembly: str
    binary: bytes
    usage: Usage
    seconds: float

    @cached_property
    def listing(self) -> str:
        """What the machine executes: amdgcn text or SASS, which takes as long to get as a kernel to compile."""
        return self.assembly if self.target.backend == "hip" else disassemble(self.binary)

    @cached_property
    def resources(self) -> Resources:
        """Usage, occupancy and what the listing consists of."""
        used = self.usage
        registers = (used.registers, used.accumulation_registers, used.scalar_registers, used.spills)
        instructions = read_listing(self.target, self.listing)
        return resources_of(self.target, instructions, registers, used.warps, used.shared_memory)


def gpu_target(target: Target) -> GPUTarget:
    """Triton's name for a target."""
    return GPUTarget(target.backend, target.arch, target.warp_size)


def compile_kernel(rendered: Rendered, dtype: str = "bfloat16", folder: Path | None = None) -> Compiled:
    """Compiles a kernel for its target.

    The signature carries the specialisation a launch with aligned tensors would have: divisibility by 16
    of pointers and strides and, on AMD, tensors within 2 GiB.

    Args:
        rendered: The kernel.
        dtype: Activation dtype, ``"bfloat16"`` or ``"float16"``.
        folder: Where the source file goes; the same folder on a later launch finds the result in
            Triton's cache. Default: a temporary one.

    Raises:
        CompileError: Triton or the assembler refuses it; its message is in the error.
    """
    target = get_target(rendered.target)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="tunegen-") as temporary:
            return _compile(rendered, target, dtype, Path(temporary))
    return _compile(rendered, target, dtype, folder)


def _compile(rendered: Rendered, target: Target, dtype: str, folder: Path) -> Compiled:
    kernel = load_kernel(rendered.write(folder))
    backend: Any = make_backend(gpu_target(target))
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    constants: dict[str, Any] = {}
    for index, argument in enumerate(get_family(rendered.problem.op).arguments(rendered.problem)):
        signature[argument.name] = argument.type.format(act=ACT_TYPES[dtype])
        if argument.type == "constexpr":
            constants[argument.name] = dtype in argument.true_for
        if argument.aligned:
            small = target.backend == "hip" and argument.type.startswith("*")
            attributes[(index,)] = backend.parse_attr("DS" if small else "D")
    source = ASTSource(kernel.function, signature, constants, attributes)
    start = time.perf_counter()
    try:
        compiled = triton.compile(source, target=gpu_target(target), options=kernel.options)
    except Exception as error:  # Triton raises a different type for each stage that can refuse a kernel
        # What went wrong inside a helper is the cause of an error that shows no more than the helper's call.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CompileError(f"{rendered.problem} for {target.name}, {rendered.config}: {cause}") from error
    seconds = time.perf_counter() - start
    warps, shared_memory = int(kernel.options["num_warps"]), int(compiled.metadata.shared)
    if target.backend == "hip":
        assembly, binary = compiled.asm["amdgcn"], compiled.asm["hsaco"]
        usage = amd_usage(assembly)
    else:
        assembly, binary = compiled.asm["ptx"], compiled.asm["cubin"]
        usage = nvidia_usage(binary)
    return Compiled(target, assembly, binary, Usage(*usage, shared_memory, warps), seconds)
