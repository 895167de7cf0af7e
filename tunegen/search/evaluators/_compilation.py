"""Compiling, in processes that need no GPU."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import Rendered
from tunegen.codegen.resources import Resources
from tunegen.evaluate.isolated import IsolatedPool, TimeLimit
from tunegen.evaluate.predict import Prediction, predict
from tunegen.targets import get_target

# What a compile may take before it is known what others take, and at least.
FIRST_SECONDS = 300.0
LEAST_SECONDS = 60.0


@dataclass(frozen=True)
class Compilation:
    """What a compile gives back: no listing, no binary.

    Attributes:
        resources: Of the compiled kernel.
        binary: Names the machine code.
        predictions: By token count; empty if none were asked for.
    """

    resources: Resources
    binary: str
    predictions: dict[int, Prediction]


def compile_pool(workers: int) -> IsolatedPool:
    """A pool for `compile_task`."""
    return IsolatedPool(workers, TimeLimit(FIRST_SECONDS, LEAST_SECONDS))


def compile_task(rendered: Rendered, folder: Path, predicted_tokens: tuple[int, ...]) -> Compilation:
    """Compiles a kernel, in a worker process.

    Args:
        rendered: The kernel.
        folder: Where its source goes.
        predicted_tokens: Token counts to predict its time at.

    Raises:
        CompileError: The compiler refuses it.
    """
    compiled = compile_kernel(rendered, folder=folder)
    target = get_target(rendered.target)
    return Compilation(
        compiled.resources,
        hashlib.sha256(compiled.binary).hexdigest(),
        {m: predict(rendered.problem, target, rendered.config, compiled.resources, m) for m in predicted_tokens},
    )
