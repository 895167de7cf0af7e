"""RMSNorms in a graph: what one is, and the producers that are recognised.

A producer is a function from a node to the `Norm` that makes it. It returns None if the node is not its own, and
raises NoMatchError if it is but cannot be written as the pack's op. PRODUCERS is the list; one more is a line there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .functionalized import Functionalized
from .nodes import ACT_DTYPES, NoMatchError, arguments, dtype, op_name, rows_of, same_shape, shown, tensor, uncast
from .plain_norm import plain_norm


@dataclass(frozen=True)
class Norm:
    """An RMSNorm in a graph.

    Attributes:
        producer: Whose: ``"pytorch"``, ``"vllm_ir"``, ``"_C"``.
        x: What is normalised, or what is added to the residual; in the activation dtype.
        residual: What is added to it first; None: nothing.
        weight: ``[hidden size]``, perhaps with leading dimensions of 1.
        epsilon: A number, or a node of one element on the CPU.
        rounding: As the pack's ops have it.
        output: The normalised node.
        totals: Nodes that hold x + residual in the activation dtype.
        interior: The nodes that the fused op replaces, without ``output`` and ``totals``.
        without_residual: The same norm with the sum as its x, if that can be said.
    """

    producer: str
    x: Node
    residual: Node | None
    weight: Node
    epsilon: float | Node
    rounding: str
    output: Node
    totals: tuple[Node, ...] = ()
    interior: tuple[Node, ...] = ()
    without_residual: Norm | None = None


def _pytorch(node: Node) -> Norm | None:
    """The arithmetic of a norm in plain PyTorch, however it is written."""
    found = plain_norm(node)
    if found is None:
        return None
    interior = tuple(found.interior)
    roundings = {
        (False, False): "none",
        (False, True): "output",
        (True, True): "norm_output",
    }
    rounding = roundings.get((found.rounds_norm, found.rounds_output))
    if rounding is None:
        raise NoMatchError("the norm is rounded before the weight and not after it: no rounding of the pack is that")
    source = found.source
    plain = None
    if dtype(source) in ACT_DTYPES:
        _check_dtypes(node, found.weight, dtype(source))
        plain = Norm("pytorch", source, None, found.weight, found.epsilon, rounding, node, (), interior)
    total = _sum(source)
    if total is None:
        if plain is None:
            raise NoMatchError(f"what is normalised, {shown(source)}, is {dtype(source)}, neither bfloat16 nor float16")
        return plain
    x, residual, added = total
    _check_dtypes(node, found.weight, dtype(x))
    if dtype(added) in ACT_DTYPES:
        if rounding == "none":
            return plain  # no op rounds the sum and nothing else
        kept = (*interior, *(n for n in _between(source, added) if n is not added))
        return Norm("pytorch", x, residual, found.weight, found.epsilon, f"sum_{rounding}", node, (added,), kept, plain)
    totals = tuple(user for user in added.users if _rounds(user, dtype(x)))
    return Norm("pytorch", x, residual, found.weight, found.epsilon, rounding, node, totals, (*interior, added))


def _check_dtypes(output: Node, weight: Node, act: torch.dtype | None) -> None:
    if dtype(output) not in (act, torch.float32):
        raise NoMatchError(f"activations in {act} are normalised to {dtype(output)}")
    if dtype(weight) != act:
        raise NoMatchError(f"the weight is {dtype(weight)}, the activations are {act}: the pack's ops take one dtype")


def _rounds(node: Node, act: torch.dtype | None) -> bool:
    return op_name(node) == "prims::convert_element_type" and dtype(node) == act


def _between(node: Node, end: Node) -> list[Node]:
    found = []
    while node is not end:
        found.append(node)
        node = node.args[0]  # type: ignore[assignment]  # reshapes, as rows_of walked them
    return found


def _sum(source: Node) -> tuple[Node, Node, Node] | None:
    """The two addends in the activation dtype and the sum of them that a node's rows are; None if they are no sum."""
    added = rows_of(source)
    if op_name(added) != "aten::add" or not isinstance(added.args[1], Node):
        return None
    if arguments(added).get("alpha", 1) != 1 or (dtype(added) == torch.float32 and added is not source):
        return None
    addends: tuple[Any, ...] = added.args[:2]
    x, residual = (uncast(node) if dtype(added) == torch.float32 else node for node in addends)
    fit = (
        dtype(x) in ACT_DTYPES and dtype(x) == dtype(residual) and same_shape(x, added) and same_shape(residual, added)
    )
    if not fit or dtype(added) not in (dtype(x), torch.float32):
        return None
    return x, residual, added


def _vllm_ir(node: Node) -> Norm | None:
    """``vllm_ir::rms_norm`` and ``vllm_ir::fused_add_rms_norm``: the norm is rounded, the sum is not."""
    if op_name(node) == "vllm_ir::rms_norm":
        call, total = node, None
    elif node.target is operator.getitem and op_name(node.args[0]) == "vllm_ir::fused_add_rms_norm":
        call = node.args[0]  # type: ignore[assignment]  # op_name: a node
        if node.args[1] != 0:
            return None
        total = 1
    else:
        return None
    name = op_name(call)
    given = arguments(call)
    if given["weight"] is None:
        raise NoMatchError(f"{name} has no weight, and the pack's ops take one")
    x, weight, size = given["x"], given["weight"], given["variance_size"]
    made = tensor(x)
    if size is not None and (made is None or size != made.shape[-1]):
        raise NoMatchError(f"{name} takes the variance of a part of the row (variance_size)")
    _check_dtypes(node, weight, dtype(x))
    if total is None:
        return Norm("vllm_ir", x, None, weight, given["epsilon"], "norm_output", node)
    totals = tuple(user for user in call.users if user.target is operator.getitem and user.args[1] == total)
    return Norm("vllm_ir", x, given["x_residual"], weight, given["epsilon"], "norm_output", node, totals, (call,))


def _in_place(node: Node) -> Norm | None:
    """``_C::rms_norm`` and ``_C::fused_add_rms_norm`` under auto_functionalized, of both versions."""
    if node.target is not operator.getitem:
        return None
    call = Functionalized.of(node.args[0])
    if call is None or call.name not in ("_C::rms_norm", "_C::fused_add_rms_norm"):
        return None
    if call.given.get("weight") is None:
        raise NoMatchError(f"{call.name} has no weight, and the pack's ops take one")
    weight, epsilon = call.given["weight"], call.given["epsilon"]
    _check_dtypes(node, weight, dtype(node))
    if call.name == "_C::rms_norm":
        if node is not call.result("result"):
            return None
        return Norm("_C", call.given["input"], None, weight, epsilon, "output", node, (), (call.node,))
    if node is not call.result("input"):
        return None
    total = call.result("residual")
    totals = () if total is None else (total,)
    x, residual = call.before("input"), call.before("residual")
    return Norm("_C", x, residual, weight, epsilon, "sum_output", node, totals, (call.node,))


PRODUCERS: tuple[Callable[[Node], Norm | None], ...] = (_vllm_ir, _in_place, _pytorch)


def find_norm(node: Node) -> Norm | None:
    """The norm that a node is the output of; None if it is none's.

    Raises:
        NoMatchError: It is one's, and the pack has no op for it.
    """
    for producer in PRODUCERS:
        found = producer(node)
        if found is not None:
            return found
    return None
