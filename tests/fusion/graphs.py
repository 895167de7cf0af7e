"""Compiling a model up to and including Inductor's post-grad passes, and running the graph that comes out of them.

What Inductor does after that (code for the CPU) takes seconds a graph and is the business of one test. Running the
graph op by op has the roundings of eager mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, config
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule, Interpreter, Node

Model = Callable[..., Any]


Call = tuple[str, tuple[Any, ...], Any]


class _Recorder(Interpreter):
    """Runs a graph and takes down the calls of custom ops: name, arguments, outputs.

    The layout of scales is left out: the pass writes them in rows, and so does the contract's check take them.
    """

    def __init__(self, module: GraphModule, calls: list[Call]) -> None:
        super().__init__(module)
        self.calls = calls

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        outputs = super().call_function(target, args, kwargs)
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims"):
            left_out = target._schema.arguments[len(args) :]
            filled = (kwargs.get(a.name, a.default_value) for a in left_out if a.name != "scale_layout")
            given = (*args, *filled)
            self.calls.append((target._schema.name, given, outputs))
        return outputs


class Compiled:
    """A compiled model and the post-grad graphs that were made of it.

    Args:
        model: The model.
        fusion: The pass, None for none.
        dynamic: As torch.compile has it.
        run: Whether calls run the graph; else they return None for each of its outputs.

    Attributes:
        graphs: The graphs.
        calls: The calls of custom ops in the last run.
        expected: What the last run's graph would have returned as it was before the pass.
        written: What it would have left in the inputs.
        run_before: Whether the graph is run as it was, too; it must not be where it writes to what is no input.
    """

    def __init__(self, model: Model, fusion: Any, dynamic: bool | None = True, run: bool = True) -> None:
        self.graphs: list[GraphModule] = []
        self.calls: list[Call] = []
        self.expected: Any = None
        self.written: list[Any] = []
        self.run_before = True
        self._fusion, self._run = fusion, run
        torch._dynamo.reset()
        self._call = torch.compile(model, backend=self._backend, dynamic=dynamic, fullgraph=True)

    def __call__(self, *args: Any) -> Any:
        self.calls.clear()
        with torch.no_grad():
            return self._call(*args)

    def _backend(self, module: GraphModule, inputs: list[Any]) -> Any:
        return compile_fx.compile_fx(module, inputs, inner_compile=self._post_grad)

    def _post_grad(self, module: GraphModule, inputs: list[Any], **_: Any) -> Any:
        before = []

        def fuse(graph: Graph) -> None:
            copy = Graph()
            copy.output(copy.graph_copy(graph, {}))
            before.append(GraphModule(module, copy))
            if self._fusion is not None:
                self._fusion(graph)

        with V.set_fake_mode(detect_fake_mode(inputs)), config.patch(post_grad_custom_post_pass=fuse):
            compile_fx._recursive_post_grad_passes(module, is_inference=True)
        self.graphs.append(module)

        def run(args: list[Any]) -> Any:
            given = list(args)
            args.clear()
            if not self._run:
                return [None] * len(module.graph.output_node().args[0])
            if not self.run_before:
                return _Recorder(module, self.calls).run(*given)
            self.written = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in given]
            self.expected = before[0](*self.written)
            return _Recorder(module, self.calls).run(*given)

        run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd's way to hand over a list
        return run

    def nodes(self) -> list[Node]:
        """All nodes of the graphs."""
        return [node for graph in self.graphs for node in graph.graph.nodes]

    def ops(self) -> Counter[str]:
        """How often each op is called in the graphs."""
        names: Counter[str] = Counter()
        for node in self.nodes():
            if isinstance(node.target, torch._ops.OpOverload):
                names[node.target._schema.name] += 1
            elif node.op == "call_function":
                names[getattr(node.target, "__name__", str(node.target))] += 1
        return names
