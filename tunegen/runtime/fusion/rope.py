"""Recognises RoPE with a table of cos and sin, by what a part of the graph computes.

RoPE is written in too many ways to list: halves or pairs, `cat` or `stack`, cos repeated or not, cast or not. What all
have in common is that they only multiply, add, move and round the values and rows of a table. So the part of the graph
between them and a value is run on random numbers, for a few tokens, and its output compared with the reference, bit for
bit, in each pairing and rounding. Only ops that cannot depend on the values otherwise (LINEAR) are run, so that what
is true of random numbers is true of all: two polynomials that agree there, in every rounding, are one.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node

from ..reference.mla_rope import ROUNDINGS, rotate
from .functionalized import Functionalized
from .nodes import ACT_DTYPES, NoMatchError, dtype, last_size, op_name, shown, static, tensor

LINEAR = {
    f"aten::{name}"
    for name in (
        *("mul", "add", "sub", "rsub", "neg", "cat", "stack", "slice", "select", "split", "split_with_sizes", "chunk"),
        *("unbind", "reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
        *("repeat", "permute", "transpose", "t", "clone", "contiguous", "alias", "detach", "flip", "roll"),
        *("slice_scatter", "select_scatter", "copy", "view_as_real", "view_as_complex", "_to_copy"),
    )
} | {"prims::convert_element_type", "prims::broadcast_in_dim"}
GATHERS = {"aten::index", "aten::index_select", "aten::embedding"}
ROTARY = "_C::rotary_embedding"
# Numbers of tokens to try with, one for each symbol: different, and neither of them a size of a model.
TOKENS = (5, 7, 11, 13, 17, 19)
# The most nodes that one RoPE can be written in.
LARGEST = 200


@dataclass(frozen=True)
class Rope:
    """A RoPE in a graph.

    Attributes:
        producer: Whose: ``"pytorch"`` or ``"_C"``.
        x: What is rotated, ``[tokens, (heads,) D]``, in the activation dtype.
        output: It rotated, in the same dtype.
        table: ``[positions, D]``, each row cos and then sin.
        positions: ``[tokens]``.
        is_neox: Pairs are (i, i + D/2), not (2i, 2i + 1).
        rounding: ``"none"`` or ``"act"``.
    """

    producer: str
    x: Node
    output: Node
    table: Node
    positions: Node
    is_neox: bool
    rounding: str


def find_rope(output: Node) -> Rope | None:
    """The RoPE that a node is the output of; None if it is none's.

    Raises:
        NoMatchError: It computes with rows of a table and is not RoPE as the pack has it.
    """
    return _in_place(output) or _plain(output)


def _in_place(output: Node) -> Rope | None:
    """``_C::rotary_embedding`` under auto_functionalized: each product and sum is rounded."""
    call = Functionalized.of(output.args[0]) if output.target is operator.getitem else None
    if call is None or call.name != ROTARY:
        return None
    for name in ("query", "key"):
        if name in call.written and call.written[name][0] is not None and call.result(name) is output:
            break
    else:
        return None
    given = call.given
    table, positions, size = given["cos_sin_cache"], given["positions"], given["head_size"]
    if last_size(table) != size or given.get("rope_dim_offset", 0) or given.get("inverse", False):
        raise NoMatchError(f"{ROTARY} rotates a part of its heads, or backwards")
    if dtype(table) != dtype(output):
        raise NoMatchError(f"the table of {ROTARY} is {dtype(table)}, not {dtype(output)}")
    return Rope("_C", call.before(name), output, table, positions, bool(given["is_neox"]), "act")


def _plain(output: Node) -> Rope | None:
    region = region_of(output)
    gathers = [node for node in region if op_name(node) in GATHERS and _gather(node) is not None]
    if not gathers:
        return None
    rows = {_gather(node) for node in gathers}
    if len(rows) != 1:
        raise NoMatchError("it computes with rows of several tables, not with one of cos and then sin")
    table, positions = next(iter(rows))  # type: ignore[misc]  # not None
    width = last_size(table)
    if dtype(output) not in ACT_DTYPES or width is None or last_size(output) != width:
        raise NoMatchError(f"{shown(output)} is not of the width of the table, {width}, in bfloat16 or float16")
    sizes: dict[Any, int] = {}
    for x in region:
        if x is output or x in gathers or dtype(x) != dtype(output) or not _same_elements(x, output, width):
            continue
        with unset_fake_temporarily():
            found = _compare(output, x, gathers, sizes)
        if found is not None:
            return Rope("pytorch", x, output, table, positions, *found)
    raise NoMatchError(f"{shown(output)} is made with the rows of a table, and is not RoPE of any node before it")


def region_of(output: Node) -> list[Node]:
    """The nodes that an output is computed from by LINEAR ops, and those that these begin with, the nearest first."""
    found, pending = {output: None}, [output]
    while pending and len(found) < LARGEST:
        node = pending.pop(0)
        if node is not output and op_name(node) not in LINEAR and node.target is not operator.getitem:
            continue
        for source in node.all_input_nodes:
            if source not in found:
                found[source] = None
                pending.append(source)
    return list(found)


def _gather(node: Node) -> tuple[Node, Node] | None:
    """The table and the positions of a gather of rows; None if it is something else."""
    args, name = node.args, op_name(node)
    if name == "aten::index":
        indices = args[1]
        if not isinstance(indices, (list, tuple)) or len(indices) != 1:
            return None
        table, positions = args[0], indices[0]
    elif name == "aten::index_select":
        if args[1] != 0:
            return None
        table, positions = args[0], args[2]
    else:
        table, positions = args[0], args[1]
    rows, at = tensor(table), tensor(positions)
    fit = rows is not None and at is not None and rows.dim() == 2 and at.dim() == 1
    if not fit or at.dtype not in (torch.int64, torch.int32):  # type: ignore[union-attr]  # fit
        return None
    return table, positions  # type: ignore[return-value]  # nodes: they have tensors


def _same_elements(x: Node, output: Node, width: int) -> bool:
    """Whether a node is as many rows of the width as the output is."""
    made, wanted = tensor(x), tensor(output)
    if made is None or wanted is None or last_size(x) != width:
        return False
    difference = made.numel() - wanted.numel()
    return static(difference) == 0


def _number(size: Any, sizes: dict[Any, int]) -> Any:
    """A symbolic size with numbers for its symbols; anything else as it is."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    for symbol in sorted(expression.free_symbols, key=str):
        sizes.setdefault(symbol, TOKENS[len(sizes) % len(TOKENS)])
    return int(expression.subs(sizes))


def _compare(output: Node, x: Node, gathers: list[Node], sizes: dict[Any, int]) -> tuple[bool, str] | None:
    """Which pairing and rounding of the reference gives what the nodes between x, the rows and the output do."""
    act = dtype(x)
    generator = torch.Generator().manual_seed(0)

    def random(node: Node) -> torch.Tensor:
        found = tensor(node)
        shape = [_number(size, sizes) for size in found.shape]  # type: ignore[union-attr]  # the callers checked
        return torch.randn(shape, generator=generator).to(found.dtype)  # type: ignore[union-attr]  # as above

    rows = random(gathers[0])
    values: dict[Node, Any] = {x: random(x), **dict.fromkeys(gathers, rows)}
    got = _run(output, values, sizes)
    if got is None or act is None:
        return None
    width = rows.shape[-1]
    x_rows = values[x].reshape(rows.shape[0], -1, width)
    for is_neox, rounding in itertools.product((False, True), ROUNDINGS):
        table = rows.to(act) if rounding == "act" else rows
        cos, sin = table.to(torch.float32)[:, None].chunk(2, dim=-1)
        if torch.equal(rotate(x_rows, cos, sin, is_neox, rounding).to(act), got.reshape(x_rows.shape)):
            return is_neox, rounding
    return None


def _run(node: Node, values: dict[Node, Any], sizes: dict[Any, int]) -> Any:
    """A node's value from some others'; None if it needs more than those."""
    if node in values:
        return values[node]
    found = node.meta.get("val")
    if isinstance(found, (torch.SymInt, int)):
        values[node] = _number(found, sizes)
        return values[node]
    if op_name(node) not in LINEAR and node.target is not operator.getitem:
        return None
    for source in node.all_input_nodes:
        if _run(source, values, sizes) is None:
            return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # an op or getitem
    return values[node]
