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
    summary = (inspect.getdoc(op) or op.name).splitlines()[0]
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


def fusion_text(manifest: Manifest) -> str:
    """``<pack>/fusion.py``."""
    return f'''"""Rewrites graphs to the ops of {manifest.pack}; imports Inductor.

    torch.compile(model, options={{"post_grad_custom_post_pass": {manifest.pack}.fusion.FusionPass()}})
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import _pack
from .runtime.fusion.fusion_pass import PATTERNS
from .runtime.fusion.fusion_pass import FusionPass as _FusionPass
from .runtime.fusion.report import Match, Miss, Report


class FusionPass(_FusionPass):
    """Rewrites a graph to the ops of this pack, each with the rounding of what it replaces.

    Args:
        patterns: Names among `PATTERNS`. Default: all of them.
        dump: A folder to write each graph to, before and after. Default: none is written.
        allow_reference: Rewrite also where the pack has no kernels for the shape and device, so that its reference in
            PyTorch runs: right, and slower than the graph was.
    """

    def __init__(
        self,
        patterns: Sequence[str] | None = None,
        dump: Path | str | None = None,
        allow_reference: bool = False,
    ) -> None:
        super().__init__(_pack, patterns, dump, allow_reference)


__all__ = ["PATTERNS", "FusionPass", "Match", "Miss", "Report"]
'''


def vllm_plugin_text(manifest: Manifest) -> str:
    """``<pack>/vllm_plugin.py``."""
    pack = manifest.pack
    return f'''"""{pack} in vLLM 0.33: what its ``vllm.general_plugins`` entry point calls, and the pass's report.

    vllm serve MODEL -cc.inductor_passes='{{"post_grad_custom_post_pass": "{pack}.vllm_fusion_pass"}}'
"""

from __future__ import annotations

import functools
from typing import Any

from . import _pack, vllm_fusion_pass
from .fusion import FusionPass, Report
from .runtime.vllm import adapter, layer


def register() -> None:
    """Registers the ops, in every process of vLLM; again does nothing, and neither does it without vLLM."""
    adapter.register(_pack.manifest.pack)


def register_mla_layer() -> None:
    """Has vLLM make its MLA layers with RoPE and the cache write fused: call it before the model is made.

    The other way to that fusion than the pass; needs no graph partition. Layers with what it does not serve (sparse
    attention, an fp8 layout of its own, context parallelism, a shape without kernels) stay vLLM's, with a warning.
    """
    register()
    layer.register(_pack)


@functools.cache
def default_pass() -> FusionPass:
    """The pass of this process that `vllm_fusion_pass` calls."""
    register()
    return FusionPass()


def report() -> Report:
    """What was matched and what was not in the graphs of this process."""
    return default_pass().report()


def inductor_pass() -> Any:
    """The pass as vLLM's InductorPass, for ``CompilationConfig(inductor_compile_config=...)``; it pickles."""
    from vllm.compilation.passes.inductor_pass import CallableInductorPass

    return CallableInductorPass(vllm_fusion_pass, default_pass().uuid())
'''


def aiter_text(manifest: Manifest, functions: str, release: str) -> str:
    """``<pack>/compat/aiter.py`` and its like."""
    return f'''"""AITER's fused functions, as AITER {release} has them, on the ops of {manifest.pack}.

    from {manifest.pack}.compat.{"aiter" if functions == "Aiter" else "aiter_0_1_7"} import fused_rms_mxfp4_quant
"""

from __future__ import annotations

import torch

from ..runtime.compat.aiter import {functions}

_functions = {functions}(torch.ops.{manifest.pack})
dynamic_mxfp4_quant = _functions.dynamic_mxfp4_quant
fused_rms_mxfp4_quant = _functions.fused_rms_mxfp4_quant
fused_qk_rope_cat_and_cache_mla = _functions.fused_qk_rope_cat_and_cache_mla

__all__ = ["dynamic_mxfp4_quant", "fused_qk_rope_cat_and_cache_mla", "fused_rms_mxfp4_quant"]
'''


def init_text(manifest: Manifest) -> str:
    """``<pack>/__init__.py``."""
    exports = [
        "Explanation",
        "TunegenPackWarning",
        "WarmUp",
        "__version__",
        "explain",
        "supports",
        "vllm_fusion_pass",
        "warmup",
        *OPS,
    ]
    listed = "\n".join(f'    "{name}",' for name in sorted(exports))
    functions = "\n\n\n".join(_function(manifest.pack, op) for op in OPS.values())
    return f'''"""Kernels for the shapes and GPUs that manifest.json lists, as torch ops: torch.ops.{manifest.pack}.

Emitted by tunegen {manifest.tunegen}. Importing it registers the ops.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

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


def vllm_fusion_pass(graph: torch.fx.Graph) -> None:
    """Rewrites a graph to the ops of {manifest.pack} {manifest.version}: for vLLM's ``inductor_passes``.

    vLLM hashes this function's source, with the version above, to tell whether what it compiled before still holds.
    """
    from .vllm_plugin import default_pass

    default_pass()(graph)


def __getattr__(name: str) -> ModuleType:
    """Modules that are imported when they are first used; some import Inductor."""
    if name in ("compat", "fusion", "vllm_plugin"):
        return import_module("." + name, __name__)
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")


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

[project.entry-points."vllm.general_plugins"]
{name} = "{name}.vllm_plugin:register"

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

## In a model

    torch.compile(model, options={{"post_grad_custom_post_pass": {name}.fusion.FusionPass()}})

rewrites the compiled graph: (residual add +) RMSNorm and MXFP4 quantisation become one op, and so do RoPE, the
concatenation of q and the write of the MLA cache row (by vLLM's `concat_and_cache_mla` or that of
`torch.ops.{name}`). Norms may be plain PyTorch in any spelling, vLLM's IR or its `_C` ops; quantisers are
`dynamic_mxfp4_quant` and vLLM's `gemm_with_dynamic_quant`. Each rewrite keeps the rounding of the graph that it
replaces, with two rules of the ops: blocks below 2^-64 become zero, and a row whose sum of squares is not finite
stays visible as NaN. `FusionPass.report()` says what matched and what did not, and why; `FusionPass(dump=FOLDER)`
writes the graphs. What Inductor has cached is used again without the pass, and is not in the report.

In vLLM 0.33, where this package is installed:

    vllm serve MODEL -cc.inductor_passes='{{"post_grad_custom_post_pass": "{name}.vllm_fusion_pass"}}'

Its entry point registers the ops in every process. From Python, `CompilationConfig(inductor_compile_config=...)`
takes `{name}.vllm_plugin.inductor_pass()` under the same key. Two of vLLM's own passes may take a norm first:
`fuse_allreduce_rms` (tensor parallel with AITER) and `fuse_mla_dual_rms_norm`; `-cc.pass_config` turns them off.
For RoPE and the cache write, the op that updates the cache must be in the graph: set
`-cc.use_inductor_graph_partition=True`, or `splitting_ops` without `vllm::unified_mla_kv_cache_update`; or call
`{name}.vllm_plugin.register_mla_layer()` before the model is made, which needs neither. Tokens without a slot
(padding) keep their q and k as they were, as with vLLM's own fused op.

In the place of AITER's functions:

    from {name}.compat import aiter    # as 0.1.20 has them; aiter_0_1_7: as 0.1.7 has them
    (q, scales), norm, norm2, residual_out = aiter.fused_rms_mxfp4_quant(x, weight, 1e-6, res1=residual, shuffle=True)

## Contents

| op | shape | variant | target | device | evidence | tuned at tokens |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
{caution}
The variant is what was tuned: the rounding, and of mla_rope_cache the pairing, order and dtypes. Each entry has
kernels for all roundings, pairings and orders. `{name}/kernels/` holds their sources, plain Triton that can be read,
and `{name}/manifest.json` says which serves which call, with the evidence for it.
"""
