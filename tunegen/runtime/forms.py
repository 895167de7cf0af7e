"""The two forms of a kernel: few enough for a warm-up to compile them all.

Triton compiles a kernel anew for every combination of arguments that are divisible by 16 or not: with
three inputs and two strides there are 32. A pack uses two. The aligned form, which is the one tuned, serves
calls whose inputs are all aligned. The general form assumes nothing and serves the rest, such as a view
that begins in the middle of a row; that is rare, and one kernel in this form serves all token counts.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .kernel import Kernel, load_kernel

ALIGNMENT = 16  # what Triton specialises on: pointers in bytes, strides in elements
# Triton's AMD back end compiles one kernel for tensors whose storage has fewer bytes, and another for the rest.
LARGE = 2**31


def is_aligned(args: tuple[Any, ...]) -> bool:
    """True if the pointers of all tensors, and their strides but the last, are multiples of 16."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            if arg.data_ptr() % ALIGNMENT:
                return False
            # All strides of a contiguous tensor but the last are multiples of its last size.
            if arg.dim() > 1 and not (arg.is_contiguous() and arg.size(-1) % ALIGNMENT == 0):
                for size, stride in zip(arg.shape[:-1], arg.stride(), strict=False):
                    # The stride of a dimension of size 1 is arbitrary; the ops do not pass it on.
                    if stride % ALIGNMENT and size > 1:
                        return False
    return True


@functools.cache
def load_form(path: Path, aligned: bool, /) -> Kernel:
    """Loads a kernel file in its aligned or its general form, once: what is compiled of it stays with what it returns.

    By position alone: the cache would take the same argument by keyword for another one.
    """
    kernel = load_kernel(path)
    if aligned:
        return kernel
    import triton

    parameters = [parameter for parameter in kernel.function.params if not parameter.is_constexpr]
    general = triton.jit(
        kernel.function.fn,
        do_not_specialize=[parameter.name for parameter in parameters if parameter.do_not_specialize],
        do_not_specialize_on_alignment=[parameter.name for parameter in parameters],
    )
    return replace(kernel, function=general)
