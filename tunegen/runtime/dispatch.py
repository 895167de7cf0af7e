"""The implementations of one op that PyTorch's dispatcher calls."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch

from .device import device_key
from .families import Op, Shape
from .forms import is_aligned, load_form
from .kernel import Kernel
from .manifest import Entry
from .plan import MOST_PLANS, Plan, describe, make_plan
from .table import Table


class Selector:
    """The kernels of one op, shape, variant and device, loaded when first asked for.

    Args:
        root: The package's folder.
        entry: The entry that serves.
        variant: The op's variant.
        units: Compute units of the device that runs.
    """

    def __init__(self, root: Path, entry: Entry, variant: str, units: int) -> None:
        self.units = units
        self._edges = entry.edges
        self._paths = [root / bucket.kernels[variant] for bucket in entry.buckets]
        self._kernels: list[Kernel | None] = [None] * len(self._paths)

    def aligned(self, num_tokens: int) -> Kernel:
        """The kernel tuned for a number of tokens, for aligned inputs."""
        index = bisect_left(self._edges, num_tokens)
        kernel = self._kernels[index]
        if kernel is None:
            kernel = self._kernels[index] = load_form(self._paths[index], True)
        return kernel

    def general(self) -> Kernel:
        """The kernel for inputs that are not: that of the last bucket, where time is longest."""
        return load_form(self._paths[-1], False)


class Dispatcher:
    """One op of a pack: its CUDA (ROCm), CPU and fake implementations.

    Args:
        root: The package's folder.
        table: The pack's.
        op: The op; its first argument is a tensor.
        schema: Its schema as registered.
    """

    def __init__(self, root: Path, table: Table, op: Op, schema: torch.FunctionSchema) -> None:
        self._root = root
        self._table = table
        self._op = op
        self._defaults = tuple(argument.default_value for argument in schema.arguments)
        self._single = len(schema.returns) == 1
        self._selectors: dict[tuple[int | str, ...], Selector | None] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def _complete(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # The dispatcher leaves trailing arguments out that have their default value.
        return (*args, *self._defaults[len(args) :])

    def _returned(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        return outputs[0] if self._single else outputs or None

    def _select(self, key: tuple[int | str, ...], shape: Shape, variant: str, index: int) -> Selector | None:
        device = device_key(index)
        entry = self._table.serve(self._op.name, shape, variant, device)
        selector = Selector(self._root, entry, variant, device.units) if entry else None
        self._selectors[key] = selector
        return selector

    def cuda(self, *args: Any) -> Any:
        """Launches the kernel that was tuned for the call."""
        description, pointers, aligned = describe(args)
        plan = self._plans.get(description) if aligned else None
        if plan is not None:
            if torch.cuda.current_device() == plan.index:
                outputs = plan.run(pointers)
            else:
                with torch.cuda.device(plan.index):
                    outputs = plan.run(pointers)
            if outputs is not None:
                return self._returned(outputs)
        return self._cuda_without_plan(description if aligned and plan is None else None, args)

    def _cuda_without_plan(self, description: tuple[Any, ...] | None, args: tuple[Any, ...]) -> Any:
        """Checks a call, selects its kernel and launches it through Triton; plans for the next one of that
        description, which is None where addresses are not aligned.
        """
        op, args = self._op, self._complete(args)
        op.check(*args)
        num_tokens = op.num_tokens(*args)
        if not num_tokens:
            return self._returned(op.allocate(*args))
        index = args[0].get_device()
        shape, variant = op.shape(*args), op.variant(*args)
        key: tuple[int | str, ...] = (*shape.values(), variant, index)
        selector = self._selectors[key] if key in self._selectors else self._select(key, shape, variant, index)
        if selector is None:
            return self._reference(args)
        kernel = selector.aligned(num_tokens) if is_aligned(args) else selector.general()
        with torch.cuda.device(index):
            outputs = op.allocate(*args)
            compiled = op.launch(kernel, selector.units, outputs, *args)
            if description is not None and describe(outputs)[2]:
                self._plan(description, make_plan(op, kernel, compiled, selector.units, outputs, args, index))
        return self._returned(outputs)

    def _plan(self, description: tuple[Any, ...], plan: Plan | None) -> None:
        if plan is None:
            return
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        self._plans[description] = plan

    def cpu(self, *args: Any) -> Any:
        """The reference."""
        args = self._complete(args)
        self._op.check(*args)
        return self._reference(args) if self._op.num_tokens(*args) else self._returned(self._op.allocate(*args))

    def _reference(self, args: tuple[Any, ...]) -> Any:
        with torch.no_grad():  # an implementation below autograd must record nothing
            return self._returned(self._op.reference(*args))

    def fake(self, *args: Any) -> Any:
        """Outputs without values, for tracing."""
        args = self._complete(args)
        self._op.check(*args)
        return self._returned(self._op.allocate(*args))
