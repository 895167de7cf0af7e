"""Compiling, in processes that need no GPU."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered
from tunegen.codegen.resources import Usage
from tunegen.errors import CompileError
from tunegen.evaluate.predict import Prediction, predict
from tunegen.targets import Target, get_target


@dataclass(frozen=True)
class Compilation:
    """What a compile gives back: no listing, no binary.

    Attributes:
        resources: Of the compiled kernel: its `Resources` if predictions were asked for, else its `Usage`.
        binary: Names the machine code.
        predictions: By token count; empty if none were asked for.
    """

    resources: dict[str, Any]
    binary: str
    predictions: dict[int, Prediction]


def _require_room(target: Target, usage: Usage) -> None:
    for what, needed, most in (
        ("warps", usage.warps, target.max_warps),
        ("bytes of shared memory", usage.shared_memory, target.shared_memory_of_program),
        ("registers a lane", usage.registers, target.registers),
        ("registers", usage.registers * usage.warps * target.warp_size, target.register_file),
    ):
        if needed > most:
            raise CompileError(f"out of resources: a program takes {needed} {what}; on {target.name} it has {most}")


def compile_task(rendered: Rendered, folder: Path, predicted_tokens: tuple[int, ...]) -> Compilation:
    """Compiles a kernel, in a worker process.

    Args:
        rendered: The kernel.
        folder: Where its source goes.
        predicted_tokens: Token counts to predict its time at.

    Raises:
        CompileError: The compiler refuses it, or no compute unit can hold one program of it.
    """
    compiled = compile_kernel(rendered, folder=folder)
    target = get_target(rendered.target)
    _require_room(target, compiled.usage)
    return Compilation(
        asdict(compiled.resources if predicted_tokens else compiled.usage),
        hashlib.sha256(compiled.binary).hexdigest(),
        {m: predict(rendered.problem, target, rendered.config, compiled.resources, m) for m in predicted_tokens},
    )
