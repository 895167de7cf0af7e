"""(Residual add +) RMSNorm and the MXFP4 quantisation of its output, made one op.

Quantisers: the pack's own ``dynamic_mxfp4_quant``, and vLLM's ``gemm_with_dynamic_quant``, which quantises inside and
becomes the pack's GEMM of a matrix that is quantised already. All quantisers of one norm share one fused op.

The fused op has no unquantised output. A norm that something else uses too is left alone: it would be computed twice.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ..families.rows import MAX_HIDDEN_SIZE
from ..reference.mxfp4 import BLOCK
from .nodes import (
    ACT_DTYPES,
    Builder,
    NoMatchError,
    arguments,
    dtype,
    erase_unused,
    is_cast,
    keeps_rows,
    last_size,
    op_name,
    order,
    shown,
    tensor,
    with_dims,
)
from .norms import Norm, find_norm
from .ops import GEMM, TENSOR_EPSILON, VLLM_GEMM
from .support import Support

QUANT, FUSED_GEMM = "dynamic_mxfp4_quant", "gemm_with_dynamic_quant"
NORM, ADD_NORM = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
# With the residual form first: its graph holds that of the other one.
PATTERNS = tuple(
    f"{norm} -> {quantiser}" for norm in ("fused_add_rms_norm", "rms_norm") for quantiser in (QUANT, FUSED_GEMM)
)
# How far back a norm is looked for where something stands between it and the quantiser.
BETWEEN = 3


def pattern_of(norm: Norm, quantiser: str) -> str:
    """The name of the pattern of a norm and a kind of quantiser."""
    return f"{'rms_norm' if norm.residual is None else 'fused_add_rms_norm'} -> {quantiser}"


@dataclass(frozen=True)
class Quantiser:
    """A node that quantises: the pack's op, or vLLM's GEMM.

    Attributes:
        node: The call.
        kind: ``QUANT`` or ``FUSED_GEMM``.
        x: What it quantises.
    """

    node: Node
    kind: str
    x: Node


def find_quantisers(graph: Graph, pack: str) -> list[Quantiser]:
    """All quantisers of a graph, in its order."""
    kinds = {f"{pack}::{QUANT}": QUANT, VLLM_GEMM: FUSED_GEMM}
    found = []
    for node in graph.nodes:
        kind = kinds.get(op_name(node))
        if kind is not None:
            found.append(Quantiser(node, kind, arguments(node)["x"]))
    return found


def norm_of(quantiser: Quantiser) -> Norm | None:
    """The norm whose rows are quantised; None if it is nothing like one.

    Raises:
        NoMatchError: There is one, and it cannot be fused.
    """
    output = quantiser.x
    while True:
        norm = find_norm(output)
        if norm is not None:
            _check_quantiser(quantiser)
            return norm
        if not keeps_rows(output):
            break
        output = output.args[0]  # type: ignore[assignment]  # keeps_rows: a node
    _explain_distance(output)
    return None


def _explain_distance(node: Node) -> None:
    """Raises NoMatchError if a norm is not far behind a node."""
    pending, seen = [(node, 0)], set()
    while pending:
        at, distance = pending.pop(0)
        for source in at.all_input_nodes:
            if source in seen or distance >= BETWEEN:
                continue
            seen.add(source)
            try:
                norm = find_norm(source)
            except NoMatchError:
                continue
            if norm is not None:
                raise NoMatchError(f"{shown(node)} stands between the norm and the quantiser")
            pending.append((source, distance + 1))


def _check_quantiser(quantiser: Quantiser) -> None:
    given = arguments(quantiser.node)
    if quantiser.kind != FUSED_GEMM:
        if given["scale_layout"] != "rows":
            raise NoMatchError(f"its scales are laid out as {given['scale_layout']}, those of the fused op in rows")
        return
    if given.get("x_scales") is not None:
        raise NoMatchError("its input is quantised already (x_scales)")
    if given["out_dtype"] is None:
        raise NoMatchError("its out_dtype is not given")
    if given["rocm_use_aiter_fp4_asm_gemm"]:
        raise NoMatchError("the assembly GEMM wants shuffled scales, which the pack's kernels do not write")


def fuse(graph: Graph, norm: Norm, quantisers: list[Quantiser], pack: str, support: Support) -> Norm:
    """Replaces a norm and its quantisers, which are all that the graph has of them; returns the form that was taken.

    Raises:
        NoMatchError: Not possible; the graph is as it was.
    """
    _check_users(norm, quantisers)
    try:
        _fuse(graph, norm, quantisers, pack, support)
    except NoMatchError:
        if norm.without_residual is None:
            raise
        norm = norm.without_residual
        _fuse(graph, norm, quantisers, pack, support)
    return norm


def _check_users(norm: Norm, quantisers: Iterable[Quantiser]) -> None:
    """That nothing but the quantisers uses what the fused op no longer gives."""
    ends = {quantiser.node for quantiser in quantisers}
    pending = [norm.output]
    while pending:
        for user in pending.pop().users:
            if keeps_rows(user):
                pending.append(user)
            elif user not in ends:
                raise NoMatchError(
                    f"{shown(user)} uses the norm too, and the pack's op gives it quantised alone: fused, the norm"
                    " would be computed twice"
                )
    inside = {*norm.interior, *norm.totals, norm.output}
    for node in norm.interior:
        for user in node.users:
            if user not in inside and not (is_cast(user) and inside.issuperset(user.users)):
                raise NoMatchError(f"{shown(user)} uses {shown(node)}, a part of the norm")


def _check_inputs(norm: Norm, support: Support) -> None:
    x, act = norm.x, dtype(norm.x)
    found, width = tensor(x), last_size(x)
    if act not in ACT_DTYPES or found is None:
        raise NoMatchError(f"the activations are {act}, neither bfloat16 nor float16")
    if width is None:
        raise NoMatchError("the hidden size is not known to the graph: compile with a fixed one")
    if width % BLOCK or width > MAX_HIDDEN_SIZE:
        raise NoMatchError(f"the hidden size, {width}, is not a multiple of {BLOCK} up to {MAX_HIDDEN_SIZE}")
    for name, node in (("x", norm.x), ("residual", norm.residual)):
        made = None if node is None else tensor(node)
        if made is not None and made.stride(-1) != 1:
            raise NoMatchError(f"the rows of {name} are not contiguous: strides {tuple(made.stride())}")
    weight = tensor(norm.weight)
    if weight is None or weight.numel() != width or weight.dtype != act or weight.device != found.device:
        raise NoMatchError(f"{shown(norm.weight)}, the weight, is not one row of {width} in {act} on {found.device}")
    op, variant = (NORM, norm.rounding.removeprefix("sum_")) if norm.residual is None else (ADD_NORM, norm.rounding)
    support.check(op, variant, found.device, hidden_size=width)


def _fuse(graph: Graph, norm: Norm, quantisers: list[Quantiser], pack: str, support: Support) -> None:
    _check_inputs(norm, support)
    places = order(graph)
    inputs = [node for node in (norm.x, norm.residual, norm.weight, norm.epsilon) if isinstance(node, Node)]
    last = max(inputs, key=places.__getitem__)
    inside = {*norm.interior, *norm.totals, norm.output}
    # The new op stands where its last input is made, so that the graph's order stays as it is; who uses the sum earlier
    # than that cannot have it from there.
    for total in norm.totals:
        early = [user for user in total.users if user not in inside and places[user] < places[last]]
        if early:
            raise NoMatchError(f"the weight, {shown(norm.weight)}, is made after the sum is used")
    build = Builder(graph, last, like=norm.output)
    namespace: Any = getattr(torch.ops, pack)
    name = NORM if norm.residual is None else ADD_NORM
    if isinstance(norm.epsilon, Node):
        name += TENSOR_EPSILON
    weight = with_dims(norm.weight, 1) or build.call(torch.ops.aten.reshape.default, norm.weight, [-1])
    rows = [build.rows(node) for node in (norm.x, norm.residual) if node is not None]
    fused = build.call(getattr(namespace, name).default, *rows, weight, norm.epsilon, norm.rounding)
    q, scales = build.items(fused, 2)
    if norm.totals:
        total_rows = build.call(operator.getitem, fused, 2)
        for total in norm.totals:
            new = build.like(total_rows, total)
            total.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    for quantiser in quantisers:
        _replace(graph, quantiser, q, scales, namespace)
    between = [node for quantiser in quantisers for node in _views(quantiser.x, norm.output)]
    gone = [*(quantiser.node for quantiser in quantisers), *between, norm.output, *norm.interior, *norm.totals]
    erase_unused(graph, gone)


def _views(node: Node, end: Node) -> list[Node]:
    found = []
    while node is not end:
        found.append(node)
        node = node.args[0]  # type: ignore[assignment]  # keeps_rows on the way here
    return found


def _replace(graph: Graph, quantiser: Quantiser, q: Node, scales: Node, namespace: Any) -> None:
    node = quantiser.node
    if quantiser.kind == QUANT:
        for user in list(node.users):
            user.replace_all_uses_with((q, scales)[user.args[1]])  # type: ignore[index]  # getitem 0 or 1
            graph.erase_node(user)
        return
    given = arguments(node)
    build = Builder(graph, node, like=node)
    weight, weight_scale, out_dtype = given["weight"], given["weight_scale"], given["out_dtype"]
    product = build.call(getattr(namespace, GEMM).default, q, scales, weight, weight_scale, out_dtype)
    new = build.like(product, node)
    node.replace_all_uses_with(new)
