"""Host side of dynamic_mxfp4_quant, rmsnorm_mxfp4_quant and rmsnorm_add_mxfp4_quant."""

from __future__ import annotations

from typing import Any

import torch

from ..kernel import Kernel
from ..reference import rmsnorm_mxfp4 as reference
from ._op import Op, OpInputError, Shape

MAX_HIDDEN_SIZE = 16384
NORM_DTYPES = (torch.bfloat16, torch.float16)
QUANT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _check_rows(name: str, x: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if x.dim() != 2:
        raise OpInputError(f"{name} must be two-dimensional, [tokens, hidden size]; got {list(x.shape)}. Flatten it.")
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise OpInputError(f"{name} must be one of {names}; got {x.dtype}. Cast it.")
    hidden_size = x.shape[1]
    if hidden_size % 32 or not 32 <= hidden_size <= MAX_HIDDEN_SIZE:
        raise OpInputError(
            f"the hidden size of {name} must be a multiple of 32 from 32 to {MAX_HIDDEN_SIZE}; got {hidden_size}."
            " Pad the last dimension to the next multiple of 32."
        )
    if x.stride(1) != 1:
        raise OpInputError(
            f"the elements of a row of {name} must be contiguous (last stride 1); got strides {x.stride()}."
            " Call .contiguous() where it is made."
        )


def _check_like(name: str, tensor: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != x.dtype or tensor.device != x.device:
        raise OpInputError(
            f"{name} must have shape {list(shape)}, dtype {x.dtype} and device {x.device}, as x asks;"
            f" got {list(tensor.shape)}, {tensor.dtype}, {tensor.device}."
        )
    if tensor.stride(-1) != 1:
        raise OpInputError(
            f"the last dimension of {name} must be contiguous; got strides {tensor.stride()}."
            " Call .contiguous() where it is made."
        )


def _row_stride(x: torch.Tensor) -> int:
    # The stride of a dimension of size 1 is arbitrary; a fixed one keeps Triton from compiling anew for it.
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def _pairs(*tensors: torch.Tensor) -> bool:
    """True if all are bfloat16 with rows that begin on a four-byte boundary: loaded two values a word."""
    return all(
        tensor.dtype == torch.bfloat16
        and tensor.data_ptr() % 4 == 0
        and (tensor.dim() == 1 or tensor.stride(0) % 2 == 0)
        for tensor in tensors
    )


def _mxfp4_outputs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, hidden_size = x.shape
    q = torch.empty((tokens, hidden_size // 2), dtype=torch.uint8, device=x.device)
    scales = torch.empty((tokens, hidden_size // 32), dtype=torch.uint8, device=x.device)
    return q, scales


class DynamicMxfp4Quant(Op):
    """x[T, N] -> (q uint8 [T, N/2], scales uint8 [T, N/32])."""

    name = "dynamic_mxfp4_quant"
    schema = "(Tensor x) -> (Tensor, Tensor)"
    sizes = ("hidden_size",)

    def check(self, *args: Any) -> None:
        _check_rows("x", args[0], QUANT_DTYPES)

    def num_tokens(self, *args: Any) -> int:
        return int(args[0].shape[0])

    def shape(self, *args: Any) -> Shape:
        return {"hidden_size": int(args[0].shape[1])}

    def variant(self, *args: Any) -> str:
        return "none"

    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        return _mxfp4_outputs(args[0])

    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        (x,) = args
        grid = kernel.grid(x.shape[0], units)
        return kernel.function[grid](x, *outputs, x.shape[0], _row_stride(x), _pairs(x), **kernel.options)

    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        return reference.dynamic_mxfp4_quant(args[0])

    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "none",
    ) -> tuple[Any, ...]:
        if variant != "none":
            raise OpInputError(f"{self.name} has one variant, none: nothing is rounded on its way; got {variant!r}.")
        size = (num_tokens, shape["hidden_size"])
        return (torch.randn(size, dtype=torch.float32, device=device, generator=generator).to(dtype),)


class RmsnormMxfp4Quant(Op):
    """RMSNorm of x (or of x + residual), quantised: (q, scales) or (q, scales, residual_out)."""

    sizes = ("hidden_size",)

    def __init__(self, residual: bool) -> None:
        self.residual = residual
        if residual:
            self.name = "rmsnorm_add_mxfp4_quant"
            self.schema = (
                '(Tensor x, Tensor residual, Tensor weight, float epsilon, str rounding="none")'
                " -> (Tensor, Tensor, Tensor)"
            )
        else:
            self.name = "rmsnorm_mxfp4_quant"
            self.schema = '(Tensor x, Tensor weight, float epsilon, str rounding="none") -> (Tensor, Tensor)'

    def check(self, *args: Any) -> None:
        x, *residual, weight, epsilon, rounding = args
        _check_rows("x", x, NORM_DTYPES)
        for tensor in residual:
            _check_like("residual", tensor, x, tuple(x.shape))
        _check_like("weight", weight, x, (x.shape[1],))
        if rounding not in reference.ROUNDINGS:
            raise OpInputError(f"rounding must be one of {', '.join(reference.ROUNDINGS)}; got {rounding!r}.")
        if not epsilon >= 0:
            raise OpInputError(f"epsilon must not be negative or NaN; got {epsilon}.")

    def num_tokens(self, *args: Any) -> int:
        return int(args[0].shape[0])

    def shape(self, *args: Any) -> Shape:
        return {"hidden_size": int(args[0].shape[1])}

    def variant(self, *args: Any) -> str:
        rounding = str(args[-1])
        # Without a residual there is no sum to round: x has the activation dtype already.
        return rounding if self.residual else rounding.removeprefix("sum_")

    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        x = args[0]
        if not self.residual:
            return _mxfp4_outputs(x)
        return (*_mxfp4_outputs(x), torch.empty(x.shape, dtype=x.dtype, device=x.device))

    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        x, *residual, weight, epsilon, _ = args
        num_tokens = x.shape[0]
        grid = kernel.grid(num_tokens, units)
        return kernel.function[grid](
            x,
            *residual,
            weight,
            *outputs,
            num_tokens,
            _row_stride(x),
            *map(_row_stride, residual),
            epsilon,
            _pairs(x, *residual, weight),
            **kernel.options,
        )

    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        if self.residual:
            return reference.rmsnorm_add_mxfp4_quant(*args)
        return reference.rmsnorm_mxfp4_quant(*args)

    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "none",
    ) -> tuple[Any, ...]:
        size = (num_tokens, shape["hidden_size"])

        def normal(*dims: int) -> torch.Tensor:
            return torch.randn(dims, dtype=torch.float32, device=device, generator=generator)

        tensors = [normal(*size).to(dtype) for _ in range(2 if self.residual else 1)]
        weight = (1.0 + 0.1 * normal(shape["hidden_size"])).to(dtype)
        return (*tensors, weight, 1e-6, variant)
