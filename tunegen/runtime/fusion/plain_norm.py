"""Recognises RMSNorm written out in PyTorch: x * rsqrt(mean(x^2) + eps) * weight, in any spelling.

What earlier passes and decompositions make of a norm differs in the order of factors, in how the reciprocal root is
spelled, and above all in the places of the casts, which decide the roundings. The product is taken apart into its
factors. Products in fp32 may be taken in any order: each is one fp32 rounding, which the numerics contract allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from .nodes import (
    ACT_DTYPES,
    NoMatchError,
    arguments,
    dtype,
    is_cast,
    is_reshape,
    last_size,
    op_name,
    shown,
    tensor,
    uncast,
)

MULTIPLY, DIVIDE, ADD = "aten::mul", "aten::div", "aten::add"
RELATIVE_OF_RECIPROCAL = 1e-6


@dataclass
class PlainNorm:
    """What was found.

    Attributes:
        source: What is normalised: in the activation dtype, or fp32 where that is a sum which is never rounded.
        weight: The weight, in the activation dtype.
        epsilon: A number, or the node of a 0-dimensional tensor on the CPU.
        rounds_norm: The norm is rounded to the activation dtype before the weight.
        rounds_output: The result is.
        interior: All nodes between ``source`` and the output but casts of ``source`` and of the weight.
    """

    source: Node
    weight: Node
    epsilon: float | Node
    rounds_norm: bool
    rounds_output: bool
    interior: list[Node] = field(default_factory=list)


@dataclass
class _Root:
    """A factor 1 / sqrt(mean(source^2) + epsilon)."""

    source: Node
    epsilon: float | Node
    interior: list[Node]


def plain_norm(node: Node) -> PlainNorm | None:
    """The norm that a node is the output of; None if it is not a product with a reciprocal root.

    Raises:
        NoMatchError: It is such a product, and no RMSNorm of the last dimension that the pack has an op for.
    """
    core = node
    interior: list[Node] = []
    if is_cast(node) and dtype(node) in ACT_DTYPES and dtype(node.args[0]) == torch.float32:
        core = node.args[0]  # type: ignore[assignment]  # is_cast: a node
    elif dtype(node) not in (*ACT_DTYPES, torch.float32):
        return None
    if op_name(core) not in (MULTIPLY, DIVIDE):
        return None
    factors = _factors(core, interior)
    if factors is None:
        return None
    rounds_output = dtype(node) in ACT_DTYPES
    root, rest = _root_among(factors)
    rounds_norm = False
    if root is None:
        found = _rounded_norm_among(factors)
        if found is None:
            return None
        root, x, rest, inner = found
        rounds_norm = True
        interior += inner
        if dtype(node) not in (torch.float32, dtype(inner[0])):
            raise NoMatchError(
                f"the norm is rounded to {dtype(inner[0])} and its product with the weight to {dtype(node)}"
            )
    else:
        x, rest = _take_source(rest, root)
    if dtype(core) in ACT_DTYPES and not rounds_norm:
        raise NoMatchError(f"its factors are multiplied in {dtype(core)}, rounded each time, not in float32")
    weight = _weight(rest, x)
    interior = [n for n in dict.fromkeys([*interior, *root.interior]) if n is not node]
    return PlainNorm(x, weight, root.epsilon, rounds_norm, rounds_output, interior)


def _factors(node: Node, interior: list[Node]) -> list[Node] | None:
    """What a product is of: nodes, fp32 products taken apart; a divisor as its division. None if not only of nodes."""
    interior.append(node)
    left, right = node.args[:2]
    if op_name(node) == DIVIDE:
        if node.kwargs.get("rounding_mode") is not None or not isinstance(left, Node) or not isinstance(right, Node):
            return None
        return [*_operand(left, node, interior), node]
    if not isinstance(left, Node) or not isinstance(right, Node):
        number, other = (right, left) if isinstance(left, Node) else (left, right)
        return _operand(other, node, interior) if number == 1 and isinstance(other, Node) else None
    return [*_operand(left, node, interior), *_operand(right, node, interior)]


def _operand(node: Node, product: Node, interior: list[Node]) -> list[Node]:
    """The factors of an operand: its own if it is an fp32 product too."""
    if dtype(product) == torch.float32 and dtype(node) == torch.float32 and op_name(node) in (MULTIPLY, DIVIDE):
        inside: list[Node] = []
        factors = _factors(node, inside)
        if factors is not None and _is_row_like(node):
            interior += inside
            return factors
    return [node]


def _is_row_like(node: Node) -> bool:
    """Whether a product has whole rows; one of a row's scalars alone is left to `_root`."""
    return last_size(node) != 1


def _root_among(factors: list[Node]) -> tuple[_Root | None, list[Node]]:
    """The reciprocal root among factors, and the others."""
    for index, factor in enumerate(factors):
        root = _root(factor)
        if root is not None:
            return root, factors[:index] + factors[index + 1 :]
    return None, factors


def _root(node: Node) -> _Root | None:
    """1 / sqrt(mean(x^2) + eps), in any spelling; None if a node is no reciprocal root of a row's scalar."""
    interior: list[Node] = []
    at = _unviewed(node, interior)
    inner: Any = None
    name = op_name(at)
    if name == DIVIDE and isinstance(at.args[1], Node) and _is_row_like(at):
        # x / sqrt(v): the division stands for its divisor. The node itself is in the product's interior already.
        at = _unviewed(at.args[1], interior)
        inner = at.args[0] if _is_square_root(at) else None
        interior.append(at)
    else:
        while op_name(at) == MULTIPLY and 1 in at.args[:2]:
            interior.append(at)
            at = next(a for a in at.args[:2] if isinstance(a, Node))
        name = op_name(at)
        interior.append(at)
        if name == "aten::rsqrt" or (name == "aten::pow" and at.args[1] == -0.5):
            inner = at.args[0]
        elif name == "aten::reciprocal" or (name == DIVIDE and at.args[0] == 1):
            root = at.args[0] if name == "aten::reciprocal" else at.args[1]
            if _is_square_root(root):
                interior.append(root)  # type: ignore[arg-type]  # _is_square_root: a node
                inner = root.args[0]  # type: ignore[union-attr]  # _is_square_root: a node
    if not isinstance(inner, Node):
        return None
    mean, epsilon = _epsilon(inner, interior)
    source = _mean_square(mean, interior)
    if dtype(at) != torch.float32 or dtype(inner) != torch.float32 or dtype(mean) != torch.float32:
        raise NoMatchError(f"the statistics are computed in {dtype(mean)}, not in float32")
    return _Root(source, epsilon, interior)


def _is_square_root(node: Any) -> bool:
    return op_name(node) == "aten::sqrt" or (op_name(node) == "aten::pow" and node.args[1] == 0.5)


def _unviewed(node: Node, interior: list[Node]) -> Node:
    """A row's scalar without the views that only add or remove its dimension of 1."""
    while (is_reshape(node) or op_name(node) == "aten::expand") and isinstance(node.args[0], Node):
        interior.append(node)
        node = node.args[0]
    return node


def _epsilon(node: Node, interior: list[Node]) -> tuple[Node, float | Node]:
    """The mean and the epsilon of ``mean + epsilon``; without an addition it is 0."""
    at = _unviewed(node, interior)
    if op_name(at) != ADD:
        return at, 0.0
    interior.append(at)
    if arguments(at).get("alpha", 1) != 1:
        raise NoMatchError(f"epsilon is scaled in {shown(at)}")
    left, right = at.args[:2]
    for mean, epsilon in ((left, right), (right, left)):
        if not isinstance(mean, Node):
            continue
        if isinstance(epsilon, (int, float)):
            if epsilon < 0:
                raise NoMatchError(f"epsilon is {epsilon}, below 0")
            return _unviewed(mean, interior), float(epsilon)
        if isinstance(epsilon, Node):
            number = epsilon.args[0] if is_cast(epsilon) else epsilon
            found = tensor(number)
            if found is not None and found.dim() == 0 and found.is_floating_point():
                if found.device.type != "cpu":
                    raise NoMatchError(f"epsilon is a tensor on {found.device}; reading it would stall the device")
                if epsilon is not number:
                    interior.append(epsilon)
                return _unviewed(mean, interior), number  # type: ignore[return-value]  # tensor: a node
    raise NoMatchError(f"epsilon is not a number in {shown(at)}")


def _mean_square(node: Node, interior: list[Node]) -> Node:
    """x of mean(x^2) over the last dimension. Raises NoMatchError if a node is not that."""
    total, divided = node, False
    if op_name(node) in (DIVIDE, MULTIPLY):
        number = node.args[1] if isinstance(node.args[0], Node) else node.args[0]
        source = node.args[0] if isinstance(node.args[0], Node) else node.args[1]
        if isinstance(number, (int, float)) and isinstance(source, Node):
            interior.append(node)
            total, divided = _unviewed(source, interior), True
            factor = 1.0 / number if op_name(node) == DIVIDE else float(number)
    name = op_name(total)
    if name != ("aten::sum" if divided else "aten::mean"):
        raise NoMatchError(f"{shown(node)}, under the root, is not a mean of squares plus epsilon")
    interior.append(total)
    squares = total.args[0]
    if not isinstance(squares, Node):
        raise NoMatchError(f"{shown(total)} is of no tensor")
    given, found = arguments(total), tensor(squares)
    dims, width = given.get("dim"), last_size(squares)
    if found is None or not dims or len(dims) != 1 or dims[0] not in (-1, found.dim() - 1):
        raise NoMatchError(f"the mean is over dimensions {dims}, not over the last one")
    if width is None:
        raise NoMatchError("the hidden size is not known to the graph: compile with a fixed one")
    if divided and abs(factor * width - 1) > RELATIVE_OF_RECIPROCAL:
        raise NoMatchError(f"the sum of squares is not divided by the hidden size, {width}")
    if given.get("dtype") is not None and given["dtype"] != found.dtype:
        raise NoMatchError(f"the mean is taken in {given['dtype']} of squares in {found.dtype}")
    interior.append(squares)
    name = op_name(squares)
    if name == "aten::square" or (name == "aten::pow" and squares.args[1] == 2):
        return squares.args[0]  # type: ignore[return-value]  # a tensor's square: a node
    if name == MULTIPLY and isinstance(squares.args[0], Node) and isinstance(squares.args[1], Node):
        left, right = squares.args[:2]
        if uncast(left) is uncast(right):  # type: ignore[arg-type]  # nodes, as just asked
            return left  # type: ignore[return-value]  # a node, as just asked
    raise NoMatchError(f"{shown(squares)} is not a square")


def _take_source(factors: list[Node], root: _Root) -> tuple[Node, list[Node]]:
    """What is normalised, of which the statistics must be, and the remaining factors."""
    source = uncast(root.source)
    for index, factor in enumerate(factors):
        if uncast(factor) is source:
            return source, factors[:index] + factors[index + 1 :]
    raise NoMatchError(f"what is normalised is not {shown(source)}, whose mean of squares it is divided by")


def _rounded_norm_among(factors: list[Node]) -> tuple[_Root, Node, list[Node], list[Node]] | None:
    """The root and x of a norm that is rounded, among the factors; the other factors; the nodes in between."""
    for index, factor in enumerate(factors):
        at = uncast(factor)
        if op_name(at) in (MULTIPLY, DIVIDE) and dtype(at) in ACT_DTYPES:
            inside = _factors(at, [])
            if inside is not None and _root_among(inside)[0] is not None:
                raise NoMatchError(f"its factors are multiplied in {dtype(at)}, rounded each time, not in float32")
        if not (is_cast(at) and dtype(at) in ACT_DTYPES and dtype(at.args[0]) == torch.float32):
            continue
        product = at.args[0]
        if op_name(product) not in (MULTIPLY, DIVIDE):
            continue
        interior = [at, *([factor] if factor is not at else [])]
        inside = _factors(product, interior)  # type: ignore[arg-type]  # op_name: a node
        root, rest = _root_among(inside) if inside is not None else (None, [])
        if root is None:
            continue
        x, rest = _take_source(rest, root)
        if rest:
            raise NoMatchError(f"{shown(rest[0])} is multiplied before the norm is rounded")
        return root, x, factors[:index] + factors[index + 1 :], interior
    return None


def _weight(factors: list[Node], x: Node) -> Node:
    """The weight, which must be what remains, in the activation dtype."""
    if len(factors) != 1:
        what = "no weight" if not factors else f"factors beside the weight: {', '.join(map(shown, factors))}"
        raise NoMatchError(f"it has {what}, and the pack's ops take one weight")
    weight, width = factors[0], last_size(x)
    if width is None:
        raise NoMatchError("the hidden size is not known to the graph: compile with a fixed one")
    found = tensor(uncast(weight))
    if found is None or found.numel() != width or last_size(uncast(weight)) != width:
        raise NoMatchError(f"{shown(weight)}, the weight, is not one row of {width}")
    return uncast(weight)
