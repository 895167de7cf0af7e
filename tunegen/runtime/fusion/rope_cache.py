"""RoPE, the concatenation of q and the write of the MLA cache row, made one op.

Plain PyTorch, with vLLM's or the pack's op that writes a cache row: rope(q_pe), cat(q_nope, rope(q_pe)) and the write
of (kv_c, rope(k_pe)) become ``mla_rope_cache``. In vLLM's graphs a layer's cache is not seen, only its name: rope and
``unified_mla_kv_cache_update``, or the op that vLLM's own pass makes of both, become the pack's in-place form. This
leaves q_pe and k_pe of tokens without a slot (padding) as they are, as vLLM's own fused op does.

An assignment ``cache[slots] = rows`` is none of these: with slot -1 it writes the last row, the ops write nothing then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch.fx import Graph, Node

from ..families import OPS, OpInputError
from ..families.mla_rope import FP8_CACHE_NAMES, TABLE_DTYPES, Variant
from .functionalized import Functionalized
from .nodes import (
    Builder,
    NoMatchError,
    arguments,
    dtype,
    erase_unused,
    fake_mode_of,
    keeps_rows,
    last_size,
    make_room,
    op_name,
    order,
    shown,
    static,
    tensor,
    value,
)
from .ops import CACHE
from .rope import Rope, find_rope, region_of
from .support import Support

FUNCTIONAL = "rope + cat + concat_and_cache_mla -> mla_rope_cache"
UPDATE = "rope + unified_mla_kv_cache_update -> mla_rope_cache_"
FUSED_UPDATE = "fused_rope_unified_mla_kv_cache_update -> mla_rope_cache_"
PATTERNS = (FUNCTIONAL, UPDATE, FUSED_UPDATE)

IN_PLACE = "mla_rope_cache_"
VLLM_CACHE = "_C_cache_ops::concat_and_cache_mla"
VLLM_UPDATE = "vllm::unified_mla_kv_cache_update"
VLLM_FUSED_UPDATE = "vllm::fused_rope_unified_mla_kv_cache_update"


@dataclass(frozen=True)
class Write:
    """A node that writes a cache.

    Attributes:
        node: The call.
        pattern: What it may be a part of.
    """

    node: Node
    pattern: str


@dataclass(frozen=True)
class Taken:
    """What a rewrite replaced: for the report."""

    producer: str
    rounding: str


def find_writes(graph: Graph, pack: str) -> list[Write]:
    """All nodes of a graph that write a cache, in its order."""
    names = {VLLM_CACHE: FUNCTIONAL, f"{pack}::{CACHE}": FUNCTIONAL, VLLM_FUSED_UPDATE: FUSED_UPDATE}
    found = []
    for node in graph.nodes:
        call = Functionalized.of(node)
        pattern = UPDATE if op_name(node) == VLLM_UPDATE else names.get(call.name) if call is not None else None
        if pattern is not None:
            found.append(Write(node, pattern))
    return found


def fuse(graph: Graph, write: Write, pack: str, support: Support, adapter: Callable[[], Any]) -> Taken:
    """Replaces a cache write and the RoPE before it.

    Args:
        graph: The graph.
        write: One of its cache writes.
        pack: Name of the pack.
        support: What it has kernels for.
        adapter: Gives the pack's op for vLLM's layers, or None.

    Raises:
        NoMatchError: Not possible; the graph is as it was.
    """
    if write.pattern == FUNCTIONAL:
        return _fuse_functional(graph, write.node, pack, support)
    op = adapter()
    if op is None:
        raise NoMatchError("vLLM is not installed, whose forward context the in-place form needs")
    if write.pattern == FUSED_UPDATE:
        return _fuse_fused_update(write.node, op, support)
    return _fuse_update(graph, write.node, op, support)


def _rope_of(node: Node, what: str) -> Rope:
    """The RoPE whose rows a node has; its output is that before views, so that all its users are seen."""
    views = [node]
    while keeps_rows(views[-1]):
        views.append(views[-1].args[0])  # type: ignore[arg-type]  # keeps_rows: a node
    for at in reversed(views):
        rope = find_rope(at)
        if rope is not None:
            return rope
    raise NoMatchError(f"{what}, {shown(node)}, is not the output of RoPE with a table of cos and sin")


def _agree(one: Rope, other: Rope) -> bool:
    """Whether two RoPEs are turned alike."""
    same = one.table is other.table and one.positions is other.positions
    return same and (one.is_neox, one.rounding) == (other.is_neox, other.rounding)


def _cat_of(graph: Graph, key: Rope, rank: int, near: Node) -> tuple[Node, Rope]:
    """The concatenation of q_nope and of q_pe turned like a key, the one nearest to a node; and that RoPE."""
    places = order(graph)
    width = rank + (last_size(key.x) or 0)
    cats = [node for node in graph.nodes if op_name(node) == "aten::cat" and last_size(node) == width]
    for cat in sorted(cats, key=lambda node: abs(places[node] - places[near])):
        parts, made = cat.args[0], tensor(cat)
        last = made is not None and made.dim() == 3 and arguments(cat)["dim"] in (-1, 2)
        if not last or not isinstance(parts, (list, tuple)) or len(parts) != 2 or last_size(parts[0]) != rank:
            continue
        try:
            query = _rope_of(parts[1], "q_pe")
        except NoMatchError:
            continue
        if _agree(key, query):
            return cat, query
    raise NoMatchError("no q is rotated alike and concatenated with its other part, [tokens, heads, rank + rope dim]")


def _fuse_functional(graph: Graph, node: Node, pack: str, support: Support) -> Taken:
    call = Functionalized.of(node)
    assert call is not None  # find_writes
    given = call.given
    kv_c, slots, cache_dtype, scale = given["kv_c"], given["slot_mapping"], given["kv_cache_dtype"], given["scale"]
    rank = last_size(kv_c)
    key = _rope_of(given["k_pe"], "k_pe")
    if rank is None or dtype(kv_c) != dtype(key.x):
        raise NoMatchError(f"kv_c, {shown(kv_c)}, is not rows of a known size in {dtype(key.x)}")
    cat, query = _cat_of(graph, key, rank, node)
    fp8 = cache_dtype in FP8_CACHE_NAMES
    if not fp8 and cache_dtype != "auto":
        raise NoMatchError(f"the cache is {cache_dtype}")
    if fp8 and key.rounding == "none":
        raise NoMatchError("k_pe is rounded to the activation dtype and then to fp8: no rounding of the pack is that")
    if given.get("skip_scale"):
        scale = None
    q_nope = cat.args[0][0]  # type: ignore[index]  # _cat_of
    base, _ = call.written["kv_cache"]
    inputs = {
        "q_nope": q_nope,
        "q_pe": query.x,
        "kv_c": kv_c,
        "k_pe": key.x,
        "positions": key.positions,
        "cos_sin_cache": key.table,
        "slot_mapping": slots,
        "k_scale": scale if fp8 else None,
        "q_scale": None,
        "q_out_dtype": None,
        "is_neox": key.is_neox,
        "pe_first": False,
        "rounding": key.rounding,
    }
    if base is None:
        raise NoMatchError(f"{call.name} writes a part of a tensor")
    _check(inputs, base, support)
    results = [user for user in node.users if user.target is operator.getitem]
    replaced = [cat, query.output, key.output, *results]
    last, moved = make_room(graph, replaced, {node}, [n for n in (*inputs.values(), base) if isinstance(n, Node)])
    op = getattr(torch.ops, pack).mla_rope_cache.default
    build = Builder(graph, last, like=cat)
    made = OPS["mla_rope_cache"].allocate(*_values(inputs, base))
    new = build.functionalized(call, op, inputs, made)
    q_out, k_out = build.items(new, 2)
    first = max(len(call.op._schema.returns), 1)
    for result in results:
        # Results are getitems, whose second argument is a number.
        result.replace_all_uses_with(build.call(operator.getitem, new, result.args[1] - first + 2))  # type: ignore[operator]  # an index
    # Whoever uses the rotated q alone has it as a part of q_out.
    rotated = [user for user in query.output.users if user is not cat]
    if rotated:
        part = build.call(torch.ops.aten.slice.Tensor, q_out, -1, rank, rank + (last_size(query.x) or 0))
        query.output.replace_all_uses_with(build.like(part, query.output), delete_user_cb=lambda u: u is not cat)
    cat.replace_all_uses_with(q_out)
    key.output.replace_all_uses_with(build.like(k_out, key.output), delete_user_cb=lambda user: user is not node)
    build.move(moved)
    erase_unused(graph, [*results, node, cat, *region_of(query.output), *region_of(key.output), given["k_pe"]])
    return Taken(key.producer, key.rounding)


def _values(inputs: dict[str, Any], cache: Node) -> list[Any]:
    """The op's arguments in schema order, as fake tensors."""
    named = {**inputs, "kv_cache": cache}
    order_of: tuple[str, ...] = (
        "q_nope",
        "q_pe",
        "kv_c",
        "k_pe",
        "positions",
        "cos_sin_cache",
        "kv_cache",
        "slot_mapping",
        "k_scale",
    )
    order_of += ("q_scale", "q_out_dtype", "is_neox", "pe_first", "rounding")
    return [value(named[name]) if isinstance(named[name], Node) else named[name] for name in order_of]


def _check(inputs: dict[str, Any], cache: Node, support: Support) -> None:
    op, values = OPS["mla_rope_cache"], _values(inputs, cache)
    queries, keys = tensor(inputs["q_pe"]), tensor(inputs["kv_c"])
    if queries is None or keys is None or queries.dim() != 3:
        raise NoMatchError("q_pe is not [tokens, heads, rope dim]")
    try:
        with fake_mode_of(values):
            op.check(*values)
    except OpInputError as error:
        raise NoMatchError(str(error)) from error
    support.check(op.name, op.variant(*values), queries.device, **op.shape(*values))


def check_in_place(
    q_pe: torch.Tensor | None,
    kv_c: torch.Tensor | None,
    table: torch.Tensor | None,
    is_neox: bool,
    kv_cache_dtype: str,
    rounding: str,
    support: Support,
) -> None:
    """That the pack's in-place op takes what one of vLLM's layers hands it, and has a kernel for it.

    Args:
        q_pe: [tokens, heads, rope dim].
        kv_c: [tokens, rank].
        table: [positions, rope dim].
        is_neox: Of the RoPE.
        kv_cache_dtype: vLLM's name.
        rounding: Of the RoPE.
        support: What the pack has kernels for.

    Raises:
        NoMatchError: It does not; says why.
    """
    if q_pe is None or q_pe.dim() != 3 or kv_c is None or kv_c.dim() != 2:
        raise NoMatchError("q_pe is not [tokens, heads, rope dim], or kv_c not [tokens, rank]")
    if table is None or table.dtype not in TABLE_DTYPES or table.dim() != 2 or table.shape[1] != q_pe.shape[2]:
        raise NoMatchError("the table of cos and sin is not [positions, rope dim] in a dtype that the pack takes")
    if kv_cache_dtype not in ("auto", *FP8_CACHE_NAMES):
        raise NoMatchError(f"the cache is {kv_cache_dtype}")
    variant = Variant(rounding, is_neox, fp8=kv_cache_dtype in FP8_CACHE_NAMES)
    sizes = {"num_heads": q_pe.shape[1], "kv_lora_rank": kv_c.shape[1], "rope_dim": q_pe.shape[2]}
    known = {name: static(size) for name, size in sizes.items()}
    missing = [name for name, size in known.items() if size is None]
    if missing:
        raise NoMatchError(f"{', '.join(missing)}: not known to the graph; compile with a fixed one")
    support.check(IN_PLACE, str(variant), q_pe.device, **{name: size for name, size in known.items() if size})


def _fuse_fused_update(node: Node, op: Any, support: Support) -> Taken:
    """vLLM's own fused op, with the same arguments; it rounds every product and sum."""
    call = Functionalized.of(node)
    assert call is not None  # find_writes
    given, q_pe = call.given, call.given_value("q_pe")
    kv_c, table = tensor(given["kv_c"]), tensor(given["cos_sin_cache"])
    check_in_place(q_pe, kv_c, table, given["is_neox"], given["kv_cache_dtype"], "act", support)
    node.args = (op, *node.args[1:])
    node.kwargs = {**node.kwargs, "rounding": "act"}
    node.meta["eager_input_vals"] = torch.fx.map_arg((node.args, node.kwargs), value)
    return Taken("vllm", "act")


def _query_of(graph: Graph, key: Rope, node: Node) -> Rope:
    """The q that is turned with a key: of the same call, or put into q by a slice_scatter, the nearest one."""
    call = Functionalized.of(key.output.args[0]) if key.producer == "_C" else None
    if call is not None:
        output = call.result("query")
        rope = None if output is None or output is key.output else find_rope(output)
        if rope is None:
            raise NoMatchError(f"{shown(call.node)} rotates no q")
        return rope
    places = order(graph)
    scattered = [n for n in graph.nodes if op_name(n) == "aten::slice_scatter"]
    for scatter in sorted(scattered, key=lambda n: abs(places[n] - places[node])):
        source = scatter.args[1]
        if op_name(source) == "aten::copy":
            source = source.args[1]
        try:
            query = _rope_of(source, "q_pe")
        except NoMatchError:
            continue
        if _agree(key, query):
            return query
    raise NoMatchError("no q is rotated alike")


def _fuse_update(graph: Graph, node: Node, op: Any, support: Support) -> Taken:
    """RoPE and vLLM's update of a layer's cache, which returns a token that orders it before attention."""
    given = arguments(node)
    key = _rope_of(given["k_pe"], "k_pe")
    query = _query_of(graph, key, node)
    if key.rounding == "none":
        raise NoMatchError("RoPE is not rounded as vLLM's cache write asks: its table is wider than the activations")
    q_pe, kv_c, table = (tensor(at) for at in (query.x, given["kv_c_normed"], key.table))
    check_in_place(q_pe, kv_c, table, key.is_neox, given["kv_cache_dtype"], key.rounding, support)
    inputs = {
        "positions": key.positions,
        "q_pe": query.x,
        "k_pe": key.x,
        "kv_c": given["kv_c_normed"],
        "cos_sin_cache": key.table,
        "is_neox": key.is_neox,
        "kv_cache_dtype": given["kv_cache_dtype"],
        "kv_cache_scale": given["k_scale"],
        "layer_name": given["layer_name"],
        "rounding": key.rounding,
    }
    replaced = [query.output, key.output, node]
    last, moved = make_room(graph, replaced, set(), [n for n in inputs.values() if isinstance(n, Node)])
    build = Builder(graph, last, like=node)
    new = build.higher_order(auto_functionalized, op, inputs, (value(node), value(query.x), value(key.x)))
    token, q_new, k_new = build.items(new, 3)
    node.replace_all_uses_with(token)
    for rope, fresh in ((query, q_new), (key, k_new)):
        rope.output.replace_all_uses_with(build.like(fresh, rope.output), delete_user_cb=lambda user: user is not node)
    build.move(moved)
    graph.erase_node(node)
    erase_unused(graph, [*region_of(query.output), *region_of(key.output), given["k_pe"]])
    return Taken(key.producer, key.rounding)
