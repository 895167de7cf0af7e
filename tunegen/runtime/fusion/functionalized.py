"""Calls of ops that write to their arguments, as they stand in a functionalised graph: auto_functionalized 1 and 2."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2
from torch.fx import Node

from .nodes import NoMatchError, fake_mode_of, tensor, value

# Of the second version: what says that an argument is a part or another view of its base.
PARTS = ("size", "stride", "storage_offset", "slice_dim", "slice_start", "slice_end")


@dataclass(frozen=True)
class Functionalized:
    """One call.

    Attributes:
        node: The higher-order op's node.
        op: The op that it calls.
        given: The arguments that are not written, by name, defaults filled in.
        written: For each argument that is: the node it is given, and its index among the outputs. The node is None
            where only a part of it is handed on (a slice, say); then ``result`` raises.
    """

    node: Node
    op: torch._ops.OpOverload
    given: dict[str, Any]
    written: dict[str, tuple[Node | None, int]]

    @classmethod
    def of(cls, node: Any) -> Functionalized | None:
        """The call that a node is; None if it is another kind."""
        if not isinstance(node, Node) or node.target not in (auto_functionalized, auto_functionalized_v2):
            return None
        op = node.args[0]
        if not isinstance(op, torch._ops.OpOverload):
            return None
        schema = op._schema
        kwargs: dict[str, Any] = dict(node.kwargs)
        names = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        given |= {name: kwargs[name] for name in kwargs if name not in names and not name.startswith("_")}
        first = max(len(schema.returns), 1)
        written: dict[str, tuple[Node | None, int]] = {}
        for place, name in enumerate(names):
            if node.target is auto_functionalized:
                written[name] = (kwargs[name], first + place)
                continue
            index = kwargs.get(f"_{name}_base_index")
            if index is None:
                continue
            parts = [part for part in PARTS if f"_{name}_{part}" in kwargs]
            base = kwargs["_all_bases"][index]
            written[name] = (None if parts else base, first + index)
        return cls(node, op, given, written)

    @property
    def name(self) -> str:
        """The op's name: ``"_C::rms_norm"``."""
        return str(self.op._schema.name)

    def before(self, name: str) -> Node:
        """What a written argument is given. Raises NoMatchError for a part of a tensor."""
        node = self.written[name][0]
        if node is None:
            raise NoMatchError(f"{self.name} writes {name} through a view")
        return node

    def given_value(self, name: str) -> torch.Tensor | None:
        """The fake tensor of a written argument as the op is given it, a view of its base too; None if not known."""
        kwargs: dict[str, Any] = dict(self.node.kwargs)
        if "_all_bases" not in kwargs:
            return tensor(self.written[name][0])
        base = tensor(kwargs["_all_bases"][kwargs[f"_{name}_base_index"]])
        about: dict[str, Any] = torch.fx.map_arg({part: kwargs.get(f"_{name}_{part}") for part in PARTS}, value)
        if base is None:
            return None
        with fake_mode_of([base]):
            if about["size"] is not None:
                return base.as_strided(about["size"], about["stride"], about["storage_offset"])
            if about["slice_dim"] is not None:
                view: torch.Tensor = torch.ops.aten.slice.Tensor(
                    base, about["slice_dim"], about["slice_start"], about["slice_end"]
                )
                return view
        return base

    def result(self, name: str) -> Node | None:
        """The node of a written argument's new value; None if nothing uses it. Raises as `before`."""
        self.before(name)
        return self.output(self.written[name][1])

    def output(self, index: int) -> Node | None:
        """The node of one of the call's outputs; None if nothing uses it."""
        for user in self.node.users:
            if user.target is operator.getitem and user.args[1] == index:
                return user
        return None
