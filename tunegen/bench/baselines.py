"""What users would run without this project, on the arguments of its ops.

compiled    the op's reference in PyTorch through torch.compile (Inductor), in one call
unfused     the sequence of steps that a model without a fused kernel runs, each step compiled by itself; AITER's
            quantisation is a step where there is AITER
aiter       AITER's fused Triton kernel

Compiled for any number of tokens, as engines compile, and for sizes as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunegen.bench.aiter import Aiter
from tunegen.bench.aiter import ops as aiter_ops
from tunegen.ops import Problem
from tunegen.runtime.families import OPS
from tunegen.runtime.reference import mla_rope
from tunegen.runtime.reference.mxfp4 import quantize_mxfp4

QUANT, NORM, ADD = "dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
ROPE, ROPE_INPLACE = "mla_rope_cache", "mla_rope_cache_"
Outputs = tuple[torch.Tensor, ...]
# Arguments of the op in schema order and, for what can write into given outputs, the outputs.
Call = Callable[[Sequence[Any], Sequence[torch.Tensor]], Outputs]


@dataclass(frozen=True)
class Baseline:
    """Something else that does what an op does.

    Attributes:
        name: Column of the tables.
        call: Computes an op's outputs, and writes what the op writes.
        rounding: What it rounds before the quantisation; only of ops that quantise.
        undefined_scales: Its scales below 1 may be anything; see `Mxfp4Agreement`.
    """

    name: str
    call: Call
    rounding: str = "none"
    undefined_scales: bool = False


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Whole graphs alone: past its limit of recompilations, Dynamo would go on uncompiled.
    run = torch.compile(function, fullgraph=True)

    def call(*args: Any) -> Any:
        for arg in args:
            # Tokens come first; weights, tables and scales have their own sizes.
            if isinstance(arg, torch.Tensor) and arg.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(arg, 0)
        return run(*args)

    return call


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm rounded to the activation dtype once, as rounding "output" has it."""
    values = x.to(torch.float32)
    factor = torch.rsqrt((values * values).mean(dim=-1, keepdim=True) + epsilon)
    return (values * factor * weight.to(torch.float32)).to(x.dtype)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of x + residual, and their sum."""
    total = x.to(torch.float32) + residual.to(torch.float32)
    factor = torch.rsqrt((total * total).mean(dim=-1, keepdim=True) + epsilon)
    return (total * factor * weight.to(torch.float32)).to(x.dtype), total.to(x.dtype)


def _quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return quantize_mxfp4(x.to(torch.float32), zero_blocks=False)


def _unfused_norm(aiter: Aiter | None) -> Call:
    quantise = aiter.dynamic_mxfp4_quant if aiter else _compiled(_quantise)
    plain, added = _compiled(norm), _compiled(add_norm)

    def call(args: Sequence[Any], _: Sequence[torch.Tensor]) -> Outputs:
        if len(args) == 4:
            return tuple(quantise(plain(*args[:-1])))
        y, residual_out = added(*args[:-1])
        return (*quantise(y), residual_out)

    return call


def _rotated(
    q_pe: torch.Tensor,
    k_pe: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    is_neox: bool,
    rounding: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = k_pe.shape[0]
    cos, sin = mla_rope.load_angles(positions, table, rounding, q_pe.dtype)
    q = mla_rope.rotate(q_pe, cos[:, None], sin[:, None], is_neox, rounding).to(q_pe.dtype)
    return q, mla_rope.rotate(k_pe.reshape(tokens, -1), cos, sin, is_neox, rounding).to(q_pe.dtype)


def _written(
    kv_cache: torch.Tensor, slots: torch.Tensor, kv_c: torch.Tensor, k_pe: torch.Tensor, scale: torch.Tensor | None
) -> None:
    slots = mla_rope.existing_slots(slots, kv_cache, kv_c.shape[0])
    mla_rope.write_mla_cache(kv_cache, slots, kv_c, k_pe, scale, False)


def _unfused_rope() -> Call:
    rotate, write = _compiled(_rotated), _compiled(_written)

    def call(args: Sequence[Any], _: Sequence[torch.Tensor]) -> Outputs:
        q_nope, q_pe, kv_c, k_pe, positions, table, kv_cache, slots, k_scale, _, _, is_neox, _, rounding = args
        q_rotated, k_rotated = rotate(q_pe, k_pe, positions, table, is_neox, rounding)
        write(kv_cache, slots, kv_c, k_rotated, k_scale)
        return torch.cat((q_nope, q_rotated), dim=-1), k_rotated

    return call


def _one_call(op: str) -> Call:
    run = _compiled(OPS[op].reference)

    def call(args: Sequence[Any], _: Sequence[torch.Tensor]) -> Outputs:
        return tuple(run(*args))

    return call


def _plain_layout(problem: Problem) -> bool:
    """True for mla_rope_cache with kv_c first and q_out in the activation dtype, which is what others write too."""
    return not {"pe_first", "q_fp8"} & set(problem.rounding.split(","))


def baselines_of(problem: Problem, aiter: Aiter | None) -> list[Baseline]:
    """What there is to compare an op with; forgets what was compiled for other problems."""
    torch._dynamo.reset()
    op = problem.op
    undefined = torch.version.hip is None
    found = [Baseline("compiled", _one_call(op), problem.rounding)]
    if is_f2(problem) and op != QUANT:
        found.append(Baseline("unfused", _unfused_norm(aiter), "output", undefined and aiter is not None))
    elif op == ROPE and _plain_layout(problem):
        found.append(Baseline("unfused", _unfused_rope()))
    if aiter is None:
        return found
    if is_f2(problem) and problem.rounding == "none":
        theirs = aiter

        def quantise(args: Sequence[Any], _: Sequence[torch.Tensor]) -> Outputs:
            return aiter_ops.mxfp4_quant(theirs, args)

        found.append(Baseline("aiter", quantise, "none", undefined))
    elif op == ROPE and _plain_layout(problem):
        rope = aiter

        def rotate(args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> Outputs:
            return aiter_ops.mla_rope_cache(rope, args, outputs)

        found.append(Baseline("aiter", rotate))
    return found


def pack_op(pack: str, problem: Problem) -> Baseline:
    """The op of an installed pack, as ``torch.ops`` has it."""
    op: Any = getattr(getattr(torch.ops, pack), problem.op).default

    def call(args: Sequence[Any], _: Sequence[torch.Tensor]) -> Outputs:
        returned = op(*args)
        return returned if isinstance(returned, tuple) else ()

    return Baseline("tuned", call, problem.rounding)


def is_f2(problem: Problem) -> bool:
    """True for the ops whose outputs are codes and a row of scales a row, as AITER has them too."""
    return problem.op in (QUANT, NORM, ADD) and "," not in problem.rounding
