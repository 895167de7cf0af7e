"""What the runtime asks of an op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from ..kernel import Kernel

Shape = dict[str, int]


class OpInputError(ValueError):
    """Arguments that an op does not accept; says the rule, what came and what to do."""


class Op(ABC):
    """One op: everything about a call except which kernel serves it.

    ``args`` are always the op's arguments in schema order, defaults filled in.

    Attributes:
        name: Name under ``torch.ops.<pack>``.
        schema: Torch schema without the name: ``"(Tensor x) -> (Tensor, Tensor)"``.
        sizes: Names of the sizes that kernels are rendered for.
    """

    name: str
    schema: str
    sizes: tuple[str, ...]

    @abstractmethod
    def check(self, *args: Any) -> None:
        """Raises OpInputError unless shapes, dtypes, devices and strides are those the op accepts."""

    @abstractmethod
    def num_tokens(self, *args: Any) -> int:
        """Number of tokens, which chooses the bucket."""

    @abstractmethod
    def shape(self, *args: Any) -> Shape:
        """The sizes that kernels are rendered for."""

    @abstractmethod
    def variant(self, *args: Any) -> str:
        """What else is resolved when rendering: the rounding, with synonyms merged."""

    @abstractmethod
    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """Uninitialised outputs; also the fake implementation."""

    @abstractmethod
    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        """Runs the kernel on the current device's current stream; ``num_tokens`` is not 0. Returns what its function
        does: Triton's compiled kernel.

        Beside the tensors, what the kernel is given follows from sizes, strides, dtypes and alignment alone.
        """

    @abstractmethod
    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """The outputs, in plain PyTorch."""

    @abstractmethod
    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "none",
    ) -> tuple[Any, ...]:
        """Random arguments of a variant, as a model would have them, for tuning, warm-up and tests."""

    def specialisations(
        self, args: tuple[Any, ...], everything: bool, large: torch.Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        """Calls of the same variant that Triton compiles the kernel anew for: the usual ones, or all.

        Beside alignment, which all ops have in common: memory layouts, optional arguments, and dtypes that are no
        part of the variant.

        Args:
            args: A call.
            everything: Also calls that are rare.
            large: Bytes, more than 2 GiB of them, on devices for which Triton tells such storages from others.
        """
        return [args]

    def check_values(self, *args: Any) -> None:  # noqa: B027 - most ops take any values
        """Raises OpInputError for values that a kernel cannot report; waits for the device."""
