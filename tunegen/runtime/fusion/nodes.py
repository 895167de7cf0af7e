"""What nodes of a post-grad graph are: their ops, arguments, dtypes, views and casts."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.operator_schemas import normalize_function
from torch.utils._pytree import tree_leaves

ACT_DTYPES = (torch.bfloat16, torch.float16)
# Views (or copies) that keep the order of elements; whether they keep rows is checked by shape.
RESHAPES = {
    "aten::reshape",
    "aten::view",
    "aten::_unsafe_view",
    "aten::squeeze",
    "aten::unsqueeze",
    "aten::flatten",
    "aten::contiguous",
    "aten::clone",
    "aten::alias",
    "aten::detach",
}
# What a new node takes over from one that it replaces.
NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "original_aten", "from_node")
CASTS = {"prims::convert_element_type", "aten::_to_copy", "aten::to"}


class NoMatchError(Exception):
    """Why something that looks like a candidate is left alone; the message is for the report."""


def op_name(node: Any) -> str:
    """``"aten::mul"`` for a call of any overload of it; empty for what calls no torch op."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def shown(node: Node) -> str:
    """A node for people: its name and op."""
    if node.op != "call_function":
        return f"{node.name} ({node.op})"
    return f"{node.name} ({op_name(node) or getattr(node.target, '__name__', node.target)})"


def value(node: Node) -> Any:
    """What tracing left of a node's value: a fake tensor, a number, a tuple; None if nothing."""
    return node.meta.get("val")


def tensor(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node, None if it is not one tensor."""
    found = value(node) if isinstance(node, Node) else None
    return found if isinstance(found, torch.Tensor) else None


def dtype(node: Any) -> torch.dtype | None:
    """A node's dtype, None if it is not one tensor."""
    found = tensor(node)
    return None if found is None else found.dtype


def static(size: Any) -> int | None:
    """A size that tracing knows; None if it is symbolic."""
    if isinstance(size, int):
        return size
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return int(expression) if expression is not None and expression.is_number else None


def last_size(node: Node) -> int | None:
    """The size of the last dimension; None if it is symbolic or there is none."""
    found = tensor(node)
    return static(found.shape[-1]) if found is not None and found.dim() else None


def same_shape(one: Node, other: Node) -> bool:
    """Whether two tensors have one shape, for all values of the symbolic sizes."""
    a, b = tensor(one), tensor(other)
    if a is None or b is None or a.dim() != b.dim():
        return False
    return all(_expression(m) == _expression(n) for m, n in zip(a.shape, b.shape, strict=True))


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def arguments(node: Node) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in."""
    target: Any = node.target
    found = normalize_function(target, node.args, node.kwargs, normalize_to_only_use_kwargs=True)
    if found is None:
        raise NoMatchError(f"the arguments of {shown(node)} are not those of its schema")
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    return {**defaults, **found.kwargs}


def is_cast(node: Any) -> bool:
    """Whether a node only changes the dtype of another."""
    return op_name(node) in CASTS and isinstance(node.args[0], Node) and dtype(node) != dtype(node.args[0])


def uncast(node: Node) -> Node:
    """What a node is a lossless fp32 copy of: casts from an activation dtype removed."""
    while is_cast(node) and dtype(node) == torch.float32 and dtype(node.args[0]) in ACT_DTYPES:
        node = node.args[0]  # type: ignore[assignment]  # is_cast: a node
    return node


def is_reshape(node: Any) -> bool:
    """Whether a node has the elements of its input in the same order and dtype."""
    if op_name(node) not in RESHAPES or not isinstance(node.args[0], Node):
        return False
    made, source = tensor(node), tensor(node.args[0])
    return made is not None and source is not None and made.dtype == source.dtype


def keeps_rows(node: Any) -> bool:
    """Whether a node is a reshape whose rows (the last dimension) are those of its input."""
    return is_reshape(node) and last_size(node) is not None and last_size(node) == last_size(node.args[0])


def rows_of(node: Node) -> Node:
    """What a node's rows are of, reshapes that keep them removed."""
    while keeps_rows(node):
        node = node.args[0]  # type: ignore[assignment]  # keeps_rows: a node
    return node


def with_dims(node: Node, dims: int) -> Node | None:
    """A node of that many dimensions that a node is a view of, rows kept; None if there is none."""
    while True:
        found = tensor(node)
        if found is not None and found.dim() == dims:
            return node
        if not keeps_rows(node):
            return None
        node = node.args[0]  # type: ignore[assignment]  # keeps_rows: a node


def order(graph: Graph) -> dict[Node, int]:
    """The place of each node."""
    return {node: place for place, node in enumerate(graph.nodes)}


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def make_room(
    graph: Graph, replaced: Iterable[Node], gone: set[Node], inputs: Iterable[Node]
) -> tuple[Node, list[Node]]:
    """The last of a new op's inputs, and the nodes before it that use what the op will replace, in their order.

    They are to be moved behind the new op: `Builder.move`. Nodes in ``gone`` are not counted.

    Raises:
        NoMatchError: An input is made from what is replaced, or a node in between writes to memory.
    """
    places, inputs = order(graph), list(inputs)
    last = max(inputs, key=places.__getitem__)
    late, moved = set(replaced), []
    for node in list(graph.nodes)[: places[last] + 1]:
        if node in late or node in gone:
            if node in inputs:
                raise NoMatchError(f"{shown(node)} would be an input of the op that makes it")
            continue
        if late.intersection(node.all_input_nodes):
            if node in inputs:
                raise NoMatchError(f"{shown(node)} is made from what the fused op would give, and is an input of it")
            late.add(node)
            moved.append(node)
        if moved and _mutates(node):
            raise NoMatchError(f"{shown(node)} writes to memory between the nodes to be fused")
    return last, moved


def erase_unused(graph: Graph, nodes: Iterable[Node]) -> None:
    """Erases those of some nodes that nothing uses any more, and then casts, views and empty tensors left by them."""
    places = order(graph)
    pending = sorted({node for node in nodes if node in places}, key=places.__getitem__)
    while pending:
        node = pending.pop()
        if node.users or node not in places or node.op != "call_function":
            continue
        del places[node]
        sources = node.all_input_nodes
        graph.erase_node(node)
        pending += [n for n in sources if is_cast(n) or is_reshape(n) or op_name(n).startswith("aten::empty")]
        pending.sort(key=lambda n: places.get(n, -1))


class Builder:
    """Adds nodes one after another behind some node, with the fake values that later passes read.

    Args:
        graph: The graph.
        after: The node behind which to begin; a placeholder stands for the last of them.
        like: The node whose stack trace and other notes the new ones take.
    """

    def __init__(self, graph: Graph, after: Node, like: Node) -> None:
        if after.op == "placeholder":
            after = [node for node in graph.nodes if node.op == "placeholder"][-1]
        self._graph, self._at, self._like = graph, after, like

    def call(self, target: Any, *args: Any) -> Node:
        """Calls an op."""
        with self._graph.inserting_after(self._at):
            node = self._graph.call_function(target, args)
        node.meta = {name: self._like.meta[name] for name in NOTES if name in self._like.meta}
        values = torch.fx.map_arg(args, value)
        with fake_mode_of(values):
            node.meta["val"] = target(*values)
        if isinstance(target, torch._ops.OpOverload) and not target._schema.name.startswith("aten::"):
            # The strides that Inductor must hand to a custom op; without them it is free to choose.
            node.meta["eager_input_vals"] = (values, {})
        self._at = node
        return node

    def functionalized(self, call: Any, op: Any, inputs: dict[str, Any], outputs: tuple[Any, ...]) -> Node:
        """Calls another op on what a functionalised call writes (see `Functionalized`), with other inputs."""
        kept: dict[str, Any] = {}
        for name in call.written:
            kept |= {key: arg for key, arg in call.node.kwargs.items() if key == name or key.startswith(f"_{name}_")}
        if "_all_bases" in call.node.kwargs:
            kept["_all_bases"] = call.node.kwargs["_all_bases"]
        bases = call.node.meta["val"][max(len(call.op._schema.returns), 1) :]
        return self.higher_order(call.node.target, op, {**inputs, **kept}, (*outputs, *bases))

    def higher_order(self, target: Any, op: Any, kwargs: dict[str, Any], outputs: tuple[Any, ...]) -> Node:
        """Calls an op through a higher-order one; its outputs' fake values are given."""
        with self._graph.inserting_after(self._at):
            node = self._graph.call_function(target, (op,), kwargs)
        node.meta = {name: self._like.meta[name] for name in NOTES if name in self._like.meta}
        node.meta["val"] = outputs
        node.meta["eager_input_vals"] = torch.fx.map_arg((node.args, node.kwargs), value)
        self._at = node
        return node

    def move(self, nodes: Iterable[Node]) -> None:
        """Moves nodes behind the last new one, in their order."""
        for node in nodes:
            self._at.append(node)
            self._at = node

    def like(self, node: Node, other: Node) -> Node:
        """A node in the shape of another one, of as many elements and rows of the same size."""
        if same_shape(node, other):
            return node
        shape = tensor(other).shape  # type: ignore[union-attr]  # the callers' nodes have one
        sizes: list[Any] = [static(size) for size in shape]
        unknown = [index for index, size in enumerate(sizes) if size is None]
        for index in unknown:
            sizes[index] = -1 if len(unknown) == 1 else self.call(torch.ops.aten.sym_size.int, other, index)
        return self.call(torch.ops.aten.reshape.default, node, sizes)

    def items(self, node: Node, count: int) -> list[Node]:
        """The first outputs of a call."""
        return [self.call(operator.getitem, node, index) for index in range(count)]

    def rows(self, node: Node) -> Node:
        """A node as ``[rows, last size]``."""
        flat = with_dims(node, 2)
        return flat if flat is not None else self.call(torch.ops.aten.reshape.default, node, [-1, last_size(node)])


def fake_mode_of(values: Any) -> Any:
    """The context in which ops are run on fake values: their own fake mode; none if they are of no mode."""
    return detect_fake_mode(tree_leaves(values)) or nullcontext()
