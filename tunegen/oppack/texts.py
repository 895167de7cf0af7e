"""The texts of a pack that are not kernels: its __init__.py, pyproject.toml and README.md."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tunegen import __version__
from tunegen.runtime.families import OPS, Op
from tunegen.runtime.manifest import Entry, Manifest
from tunegen.runtime.table import shape_text

# Schema types as Python annotations.
ANNOTATIONS = {
    "Tensor": "torch.Tensor",
    "float": "float",
    "int": "int",
    "bool": "bool",
    "str": "str",
    "ScalarType": "torch.dtype",
}


def _annotation(schema_type: Any) -> str:
    name = str(schema_type)
    if name.startswith("Optional[") and name.endswith("]"):
        return ANNOTATIONS[name.removeprefix("Optional[").removesuffix("]")] + " | None"
    return ANNOTATIONS[name]


def _function(pack: str, op: Op) -> str:
    """The Python function of an op: typed, and named as in the schema."""
    schema = torch._C.parse_schema(f"{pack}::{op.name}{op.schema}")
    parameters, names = [], []
    for argument in schema.arguments:
        value = argument.default_value
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        default = f" = {shown}" if argument.has_default_value() else ""
        parameters.append(f"    {argument.name}: {_annotation(argument.real_type)}{default},")
        names.append(argument.name)
    returns = [_annotation(result.type) for result in schema.returns]
    returned = "None" if not returns else returns[0] if len(returns) == 1 else f"tuple[{', '.join(returns)}]"
    call = f"torch.ops.{pack}.{op.name}.default({', '.join(names)})"
    body = [f"    outputs: {returned}", f"    outputs = {call}", "    return outputs"] if returns else [f"    {call}"]
    summary = (inspect.getdoc(type(op)) or op.name).splitlines()[0]
    if type(op).check_values is not Op.check_values:
        parameters += ["    *,", "    debug: bool = False,"]
        summary += "\n\n    ``debug``: first raise OpInputError for values out of range; waits for the device.\n    "
        body = ["    if debug:", f'        check_values("{op.name}", {", ".join(names)})', *body]
    return "\n".join(
        [
            f"def {op.name}(",
            *parameters,
            f") -> {returned}:",
            f'    """{summary}"""',
            *body,
        ]
    )


def init_text(manifest: Manifest) -> str:
    """``<pack>/__init__.py``."""
    exports = ["Explanation", "TunegenPackWarning", "WarmUp", "__version__", "explain", "supports", "warmup", *OPS]
    listed = "\n".join(f'    "{name}",' for name in sorted(exports))
    functions = "\n\n\n".join(_function(manifest.pack, op) for op in OPS.values())
    return f'''"""Kernels for the shapes and GPUs that manifest.json lists, as torch ops: torch.ops.{manifest.pack}.

Emitted by tunegen {manifest.tunegen}. Importing it registers the ops.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .runtime.api import Explanation, Pack, check_values
from .runtime.table import TunegenPackWarning
from .runtime.warmup import WarmUp

__version__ = "{manifest.version}"

_pack = Pack(Path(__file__).resolve().parent)
supports = _pack.supports
explain = _pack.explain
warmup = _pack.warmup


{functions}


__all__ = [
{listed}
]
'''


def pyproject_text(name: str, version: str) -> str:
    """``pyproject.toml``."""
    return f"""[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "Kernels for LLM inference as torch ops, tuned and emitted by tunegen"
readme = "README.md"
requires-python = ">=3.10"
license = "Apache-2.0"
dependencies = [
    "torch>=2.8",
    "triton>=3.6,<3.10; platform_system == 'Linux'",
]

[tool.hatch.build]
ignore-vcs = true

[tool.hatch.build.targets.wheel]
packages = ["{name}"]
"""


def _row(entry: Entry) -> str:
    served = [str(bucket.tokens) for bucket in entry.buckets]
    evidence = entry.evidence + (", stale" if entry.stale else "")
    kernels_of = (entry.target, str(entry.device), evidence, ", ".join(served))
    return f"| {' | '.join((f'`{entry.op}`', shape_text(entry.shape), entry.variant, *kernels_of))} |"


def readme_text(manifest: Manifest) -> str:
    """``README.md``."""
    name, first = manifest.pack, manifest.entries[0]
    sizes = ", ".join(f"{size}={value}" for size, value in first.shape.items())
    rows = "\n".join(_row(entry) for entry in manifest.entries)
    signatures = "\n".join(f"    {name}.{op.name}{op.schema}" for op in OPS.values())
    predicted = any(entry.evidence == "predicted" for entry in manifest.entries)
    caution = (
        "\nEntries marked *predicted* were chosen from the compiled kernels, on no GPU; the pack warns when it runs"
        " one. To measure, run `tunegen tune` on the GPU and emit the pack again.\n"
        if predicted
        else ""
    )
    return f"""# {name}

Kernels for LLM inference as torch ops, emitted by tunegen {__version__}. Version {manifest.version}.

## Install

    pip install --no-deps .

It needs PyTorch and the Triton that came with it, nothing else. Without `--no-deps`, pip may put another
Triton over the one of a ROCm build of PyTorch.

## Use

    import torch, {name}

    {name}.warmup()    # compiles all kernels for the present GPU, before serving
    print({name}.explain("{first.op}", 16, {sizes}))    # what would run, and on what evidence
    {name}.supports("{first.op}", {sizes})    # False: the reference in PyTorch would run

The ops, also as `torch.ops.{name}.*`:

{signatures}

They work in eager mode, under `torch.compile` and in CUDA graphs, on CUDA, ROCm and (as a plain PyTorch
reference) on CPU. They are for inference and have no gradients. A call for a shape or a GPU that is not listed
below still gives the right result: through the kernels of the nearest GPU of the same architecture, or else the
reference. It warns once and says what to do.

## Contents

| op | shape | variant | target | device | evidence | tuned at tokens |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
{caution}
The variant is what was tuned: the rounding, and of mla_rope_cache the pairing, order and dtypes. Each entry has
kernels for all roundings, pairings and orders. `{name}/kernels/` holds their sources, plain Triton that can be read,
and `{name}/manifest.json` says which serves which call, with the evidence for it.
"""
