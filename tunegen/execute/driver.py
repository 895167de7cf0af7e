"""Launches Triton kernels on the executor: compiled for gfx942 or gfx950 as a launch there would compile them, with
its specialisation on alignment and values, and executed on CPU tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from tunegen.errors import CompileError, UsageError
from tunegen.execute.launch import DEFAULTS, execute
from tunegen.execute.listing import ARCHITECTURES
from tunegen.execute.machine import Options
from tunegen.runtime.kernel import Kernel
from tunegen.targets import Target


class TargetDriver(DriverBase):  # type: ignore[misc]  # Triton has no types
    """The part of Triton's driver interface that compiling needs: it says what for. It launches nothing."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @classmethod
    def is_active(cls) -> bool:
        """It is never chosen by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Of no use without a launcher in C++."""
        raise NotImplementedError("Nothing is launched through this driver.")

    def get_current_target(self) -> GPUTarget:
        """What kernels are compiled for."""
        return GPUTarget(self._target.backend, self._target.arch, self._target.warp_size)

    def get_current_device(self) -> int:
        """One a target: Triton keeps what it has compiled by device."""
        return 1000 + ARCHITECTURES.index(str(self._target.arch))

    def get_current_stream(self, device: int) -> int:
        """The one stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """There is none."""
        raise NotImplementedError("The executor models no time.")


@contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Triton compiles for the target within it, whatever GPU there is."""
    # What is active is an attribute that is made when it is asked for, by another name in each release: without a GPU
    # it cannot be asked for, so that all attributes are kept and put back.
    attributes = vars(triton.runtime.driver)
    before = dict(attributes)
    triton.runtime.driver.set_active(TargetDriver(target))
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(before)


class Executed:
    """A ``@triton.jit`` function whose launches are executed; takes the place of the function.

    Args:
        function: The function.
        target: What it is compiled for: gfx942 or gfx950.
        options: How launches are executed; the attribute may be changed between them.
        mutate: Changes the listing before it is executed: for tests of the executor.
    """

    def __init__(
        self,
        function: Any,
        target: Target,
        options: Options = DEFAULTS,
        mutate: Callable[[str], str] | None = None,
    ) -> None:
        if target.arch not in ARCHITECTURES:
            raise UsageError(f"The executor runs {', '.join(ARCHITECTURES)}; {target.name} is none of them.")
        self.function = function
        self.target = target
        self.options = options
        self.mutate = mutate

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """A launch over a grid, as Triton has it."""

        def launch(*args: Any, **kwargs: Any) -> None:
            self._launch(grid, args, kwargs)

        return launch

    def _launch(self, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _launch(self.function, self.target, grid, args, kwargs, self.options, self.mutate)


def _launch(
    function: Any,
    target: Target,
    grid: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    mutate: Callable[[str], str] | None,
) -> None:
    signature = inspect.signature(function.fn)
    own = {name: value for name, value in kwargs.items() if name in signature.parameters}
    bound = signature.bind(*args, **own)
    bound.apply_defaults()
    if callable(grid):
        grid = grid(dict(bound.arguments))
    x, y, z = (*grid, 1, 1)[:3]
    with compiling_for(target):
        try:
            compiled = JITFunction.run(function, *args, grid=(x, y, z), warmup=True, **kwargs)
        except Exception as error:  # Triton raises a different type for each stage that can refuse a kernel
            raise CompileError(f"{function.fn.__name__} for {target.name}: {error}") from error
    source = compiled.src
    constants = {path[0] if isinstance(path, tuple) else path for path in source.constants}
    arguments = [
        (kind, bound.arguments[name])
        for index, (name, kind) in enumerate(source.signature.items())
        if kind != "constexpr" and index not in constants and name not in constants
    ]
    text = compiled.asm["amdgcn"]
    if mutate is not None:
        text = mutate(text)
    execute(text, (x, y, z), compiled.metadata.num_warps, compiled.metadata.shared, arguments, options)


@contextmanager
def executing(target: Target, options: Options = DEFAULTS) -> Iterator[None]:
    """Every launch of any Triton kernel within it is executed: for code that launches kernels itself."""
    compile_or_launch = JITFunction.run

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if warmup:
            return compile_or_launch(function, *args, grid=grid, warmup=True, **kwargs)
        return _launch(function, target, grid, args, kwargs, options, None)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = compile_or_launch


def executed(kernel: Kernel, target: Target, options: Options = DEFAULTS) -> Kernel:
    """A loaded kernel whose launches are executed."""
    return replace(kernel, function=Executed(kernel.function, target, options))
