"""Runs rendered kernels without a GPU, under Triton's CPU interpreter, in child processes.

Triton decides when it is imported whether kernels are compiled or interpreted. So that a caller can do both, only
the children interpret; nothing here imports triton in the parent.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunegen.codegen.render import Rendered, render
from tunegen.errors import UsageError
from tunegen.evaluate._pool import Pool
from tunegen.evaluate.conformance import Arguments, Case, Outputs, run_case
from tunegen.ops import Config, Problem
from tunegen.runtime.families import OPS
from tunegen.runtime.kernel import load_kernel
from tunegen.targets import Target

# Conversions to FP4 without an instruction of the target's; the first stands in for those that are one.
SOFTWARE_CONVERSIONS = ("saturate", "binades")
# Compute units that persistent kernels are launched for: fewer programs than tiles, so that their loops turn.
UNITS = 4


def substituted(problem: Problem, target: Target, config: Config) -> bool:
    """True if the kernel converts to FP4 by the target's instruction, which the interpreter cannot run.

    `interpretable` then renders another conversion: what passes shows everything but the conversion.
    """
    return render(problem, target, config).source != interpretable(problem, target, config).source


def interpretable(problem: Problem, target: Target, config: Config) -> Rendered:
    """The kernel of a config, with a software conversion in place of the target's instruction if it has one."""
    if target.fp4_conversion not in SOFTWARE_CONVERSIONS:
        target = dataclasses.replace(target, fp4_conversion=SOFTWARE_CONVERSIONS[0])
    return render(problem, target, config)


class Interpreter(Pool):
    """A pool of processes that interpret kernels; a context manager.

    Args:
        workers: Number of processes.
    """

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers, start_worker)

    def submit(self, source_path: Path, case: Case, lanes_per_row: int) -> Future[list[str]]:
        """Queues `tunegen.evaluate.conformance.run_case` of a rendered kernel file.

        The file may not change while the pool lives: a worker loads it once.
        """
        return self._pool.submit(run_task, source_path, case, lanes_per_row)

    def run_case(self, source_path: Path, case: Case, lanes_per_row: int) -> list[str]:
        """What is wrong with a rendered kernel on a case; empty if nothing is."""
        return self.submit(source_path, case, lanes_per_row).result()


def start_worker() -> None:
    """Has a process interpret; to be called before it imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"


def run_task(source_path: Path, case: Case, lanes_per_row: int) -> list[str]:
    """`tunegen.evaluate.conformance.run_case` of a rendered kernel file, in a process that `start_worker` began."""
    _prepare_worker()
    kernel = load_kernel(source_path)
    op = OPS[case.problem.op]

    def launch(outputs: Outputs, args: Arguments) -> None:
        op.launch(kernel, UNITS, outputs, *args)

    return run_case(launch, case, torch.device("cpu"), lanes_per_row)


@functools.cache
def _prepare_worker() -> None:
    """Makes the interpreter round as the contract says, and faster."""
    import triton.language as tl
    from triton.runtime import interpreter

    if not isinstance(tl.standard.sum, interpreter.InterpretedFunction):
        raise UsageError(
            "Triton was imported before the interpreter could be chosen. A child process imports the main script"
            " first: keep `import triton` out of its top level, and its own calls under `if __name__ == '__main__'`."
        )
    torch.set_num_threads(1)
    # NaN and Inf among the inputs are on purpose.
    np.seterr(all="ignore")
    _round_bfloat16_to_nearest(interpreter, tl)
    _convert_to_fp8(interpreter, tl)
    _fuse_multiply_and_add(interpreter)
    _loop_over_tensors(interpreter)
    _skip_repeated_work(interpreter)


def _round_bfloat16_to_nearest(interpreter: Any, tl: Any) -> None:
    """Replaces the interpreter's conversions between fp32 and bfloat16.

    Its own truncates fp32 to bfloat16, where every GPU rounds to nearest even, and widens the subnormals of bfloat16
    to wrong values. Both are silent.
    """
    convert = interpreter._convert_float

    def convert_float(values: Any, source: Any, destination: Any, rounding_mode: Any) -> Any:
        if source == tl.float32 and destination == tl.bfloat16:
            bits = np.ascontiguousarray(values).view(np.uint32)
            # To nearest: half an ulp less one, and one more if the last bit that stays is odd.
            rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
            is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
            return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(values.shape)
        if source == tl.bfloat16 and destination == tl.float32:
            return (np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16).reshape(values.shape)
        return convert(values, source, destination, rounding_mode)

    interpreter._convert_float = convert_float


def _convert_to_fp8(interpreter: Any, tl: Any) -> None:
    """Replaces the interpreter's conversions to e4m3 by PyTorch's.

    Its own neither round to nearest even nor know NaN, and it has no type for that of gfx942.
    """
    dtypes = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e4b8: torch.float8_e4m3fnuz}
    convert, patch = interpreter._convert_float, interpreter._patch_lang_core

    def convert_float(values: Any, source: Any, destination: Any, rounding_mode: Any) -> Any:
        if destination in dtypes:
            return torch.from_numpy(values.copy()).to(dtypes[destination]).view(torch.uint8).numpy()
        return convert(values, source, destination, rounding_mode)

    def patch_core(language: Any, *scope: Any) -> None:
        patch(language, *scope)
        known = language.dtype.to_ir

        def to_ir(self: Any, builder: Any) -> Any:
            return builder.get_fp8e4b8_ty() if self.name == "fp8e4b8" else known(self, builder)

        language.dtype.to_ir = to_ir

    interpreter._patch_lang_core = patch_core
    interpreter._convert_float = convert_float


def _fuse_multiply_and_add(interpreter: Any) -> None:
    """Makes tl.fma round once: the product of two fp32 is exact in float64; the interpreter's rounds twice."""

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(np.float32), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma


def _loop_over_tensors(interpreter: Any) -> None:
    """Makes tl.range yield int32 scalars, as in a compiled kernel; the interpreter's yields Python's integers.

    Its bounds are handed over as integers: Triton 3.6 converts arrays of one element, which NumPy 2.4 refuses.
    """
    patch = interpreter._patch_lang_core

    def integer(bound: Any) -> Any:
        return int(bound.handle.data.item()) if hasattr(bound, "handle") else bound

    def patch_core(language: Any, *scope: Any) -> None:
        patch(language, *scope)
        integers = language.range

        def scalars(*bounds: Any, **options: Any) -> Iterator[Any]:
            return map(interpreter._implicit_cvt, integers(*map(integer, bounds), **options))

        language.range = scalars

    interpreter._patch_lang_core = patch_core


def _skip_repeated_work(interpreter: Any) -> None:
    """Halves the interpreter's time.

    It replaces the functions of triton.language anew for every call of a helper, and computes every integer operation
    twice for an overflow check that is off. A worker only ever interprets: replaced once, they stay so.
    """
    patch = interpreter._patch_lang
    done: set[str] = set()

    class Kept:
        def restore(self) -> None:
            pass

    def patch_once(function: Any) -> Kept:
        # Which modules are patched depends on those that the function's own module has imported.
        module = function.__globals__["__name__"]
        if module not in done:
            done.add(module)
            patch(function)
        return Kept()

    interpreter._patch_lang = patch_once
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
