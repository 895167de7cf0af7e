"""Host side of the ops that take and return rows: norms, activations and quantisers, as `recipe` puts them together."""

from __future__ import annotations

from typing import Any

import torch

from ..device import device_key
from ..kernel import Kernel
from ..reference import rows as reference
from ..reference.mla_rope import FP8_DTYPES, native_fp8
from ..reference.scale_layout import empty_scales
from ._op import Op, OpInputError, Shape
from .recipe import RECIPES, Recipe, Variant

MAX_HIDDEN_SIZE = 16384
ACT_DTYPES = (torch.bfloat16, torch.float16)
QUANT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _check_rows(name: str, x: torch.Tensor, dtypes: tuple[torch.dtype, ...], multiple: int, halves: int = 1) -> None:
    """That x is rows of ``halves`` times a hidden size."""
    if x.dim() != 2:
        raise OpInputError(f"{name} must be two-dimensional, [tokens, hidden size]; got {list(x.shape)}. Flatten it.")
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise OpInputError(f"{name} must be one of {names}; got {x.dtype}. Cast it.")
    hidden_size = x.shape[1]
    if hidden_size % (halves * multiple) or not multiple <= hidden_size // halves <= MAX_HIDDEN_SIZE:
        of = f"the hidden size of {name}" if halves == 1 else f"the last dimension of {name}, gate and up,"
        raise OpInputError(
            f"{of} must be a multiple of {halves * multiple} from {halves * multiple} to {halves * MAX_HIDDEN_SIZE};"
            f" got {hidden_size}. Pad the last dimension to the next multiple of {halves * multiple}."
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


def _check_epsilon(name: str, epsilon: float) -> None:
    if not epsilon >= 0:
        raise OpInputError(f"{name} must not be negative or NaN; got {epsilon}.")


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


def _bytes(output: torch.Tensor) -> torch.Tensor:
    """What a kernel is given for an output: it writes the bits of fp8."""
    return output.view(torch.uint8) if output.element_size() == 1 and output.dtype != torch.uint8 else output


def _schema(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The torch schema, and the default values of arguments that have one."""
    quant = recipe.quant
    arguments = ["Tensor x"]
    defaults: dict[str, Any] = {}
    if recipe.residual:
        arguments.append("Tensor residual")
    if recipe.norm:
        arguments += ["Tensor weight", "float epsilon"]
    if recipe.second:
        arguments += ["Tensor x2", "Tensor weight2", "float epsilon2"]
    if recipe.quantiser == "nvfp4":
        arguments.append("Tensor? global_scale=None")
        defaults["global_scale"] = None
    if len(recipe.roundings) > 1:
        arguments.append('str rounding="none"')
        defaults["rounding"] = "none"
    if len(recipe.layouts) > 1:
        arguments.append('str scale_layout="rows"')
        defaults["scale_layout"] = "rows"
    if quant and quant.native:
        arguments.append("ScalarType? dtype=None")
        defaults["dtype"] = None
    outputs = 2 * bool(quant) + recipe.residual + (recipe.output_norm or not quant) + recipe.second
    returned = ", ".join(["Tensor"] * outputs)
    return f"({', '.join(arguments)}) -> ({returned})", defaults


_DONE = {"plain": "x", "norm": "RMSNorm of {x}"}


def _summary(recipe: Recipe) -> str:
    """What an op does, for its documentation."""
    source = _DONE.get(recipe.source, f"{recipe.source}(gate) * up of x[T, 2N] = gate | up")
    source = source.format(x="x + residual" if recipe.residual else "x")
    outputs = ["q", "scales"] if recipe.quant else []
    outputs += ["residual_out"] * recipe.residual + ["norm"] * (recipe.output_norm or not recipe.quant)
    outputs += ["norm2"] * recipe.second
    quantised = f", quantised to {recipe.quantiser}" if recipe.quant else ""
    second = ", and RMSNorm of x2" if recipe.second else ""
    return f"{source}{quantised}{second} -> ({', '.join(outputs)})."


class RowsOp(Op):
    """The op of a recipe. Trailing arguments that have a default may be left out of ``args``."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.sizes = recipe.sizes
        self.schema, self._defaults = _schema(recipe)
        self.__doc__ = _summary(recipe)
        names = [part.split()[-1].partition("=")[0] for part in self.schema[1:].partition(")")[0].split(",")]
        self._at = {name: index for index, name in enumerate(names)}
        self._rows = [self._at[name] for name in ("x", "residual", "x2") if name in self._at]
        self._tensors = [self._at[name] for name in ("x", "residual", "weight", "x2", "weight2") if name in self._at]

    def argument(self, args: tuple[Any, ...], name: str) -> Any:
        """An argument by name, or what it is where the op has none of that name."""
        index = self._at.get(name, len(args))
        return args[index] if index < len(args) else self._defaults.get(name)

    def check(self, *args: Any) -> None:
        recipe, x = self.recipe, args[0]
        dtypes = QUANT_DTYPES if recipe.source == "plain" else ACT_DTYPES
        _check_rows("x", x, dtypes, recipe.multiple, 2 if recipe.activation else 1)
        if recipe.residual:
            _check_like("residual", args[1], x, tuple(x.shape))
        if recipe.norm:
            _check_like("weight", args[self._at["weight"]], x, (x.shape[1],))
            _check_epsilon("epsilon", args[self._at["epsilon"]])
        if recipe.second:
            x2, weight2 = self.argument(args, "x2"), self.argument(args, "weight2")
            _check_rows("x2", x2, dtypes, 32)
            _check_like("x2", x2, x, (x.shape[0], x2.shape[1]))
            _check_like("weight2", weight2, x, (x2.shape[1],))
            _check_epsilon("epsilon2", self.argument(args, "epsilon2"))
        for name, known in (("rounding", recipe.roundings), ("scale_layout", recipe.layouts)):
            value = self.argument(args, name)
            if value is not None and value not in known:
                raise OpInputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
        self._check_dtype(x.device, self.argument(args, "dtype"))
        g = self.argument(args, "global_scale")
        if g is not None and (g.numel() != 1 or g.dtype != torch.float32 or g.device != x.device):
            raise OpInputError(
                f"global_scale must be one float32 on {x.device}; got {list(g.shape)}, {g.dtype}, {g.device}."
            )

    def _check_dtype(self, device: torch.device, dtype: torch.dtype | None) -> None:
        if dtype is None:
            return
        if dtype not in FP8_DTYPES:
            raise OpInputError(f"dtype must be float8_e4m3fn or float8_e4m3fnuz; got {dtype}.")
        if device.type == "cuda" and dtype != native_fp8(device):
            key = device_key(torch.cuda.current_device() if device.index is None else device.index)
            raise OpInputError(
                f"dtype must be that of the instructions of {key.arch}, {native_fp8(device)}; got {dtype}."
            )

    def num_tokens(self, *args: Any) -> int:
        return int(args[0].shape[0])

    def shape(self, *args: Any) -> Shape:
        recipe = self.recipe
        shape = {recipe.width_name: int(args[0].shape[1]) // (2 if recipe.activation else 1)}
        if recipe.second:
            shape["second_size"] = int(args[self._at["x2"]].shape[1])
        return shape

    def variant(self, *args: Any) -> str:
        rounding, layout = self.argument(args, "rounding"), self.argument(args, "scale_layout")
        return str(self.recipe.canonical(Variant(rounding or "none", layout or "rows")))

    def allocate(self, *args: Any) -> tuple[torch.Tensor, ...]:
        recipe, quant, x = self.recipe, self.recipe.quant, args[0]
        tokens, columns = x.shape
        width = columns // (2 if recipe.activation else 1)
        outputs: list[torch.Tensor] = []
        if quant:
            asked = self.argument(args, "dtype")
            dtype = quant.q_dtype(asked or (native_fp8(x.device) if quant.native else None))
            layout = self.argument(args, "scale_layout") or "rows"
            outputs += [
                torch.empty((tokens, width // quant.codes), dtype=dtype, device=x.device),
                empty_scales(tokens, quant.blocks(width), layout, quant.scale_dtype, x.device),
            ]
        wide = recipe.residual + (recipe.output_norm or not quant)
        outputs += [torch.empty((tokens, width), dtype=x.dtype, device=x.device) for _ in range(wide)]
        if recipe.second:
            x2 = args[self._at["x2"]]
            outputs.append(torch.empty(x2.shape, dtype=x.dtype, device=x.device))
        return tuple(outputs)

    def launch(self, kernel: Kernel, units: int, outputs: tuple[torch.Tensor, ...], *args: Any) -> Any:
        recipe, x = self.recipe, args[0]
        num_tokens = x.shape[0]
        tensors = [args[index] for index in self._tensors]
        strides = [_row_stride(args[index]) for index in self._rows]
        (programs,) = kernel.grid(num_tokens, units)
        given: list[Any] = [*tensors]
        if "global_scale" in self._at:
            given.append(self.argument(args, "global_scale"))
        given += [*map(_bytes, outputs), num_tokens, *strides]
        if recipe.norm:
            given.append(args[self._at["epsilon"]])
        grid = programs
        if recipe.second:
            # The programs after the first so many normalise a row of x2 each.
            given += [args[self._at["epsilon2"]], programs]
            grid += num_tokens
        return kernel.function[(grid,)](*given, _pairs(*tensors), **kernel.options)

    def reference(self, *args: Any) -> tuple[torch.Tensor, ...]:
        recipe = self.recipe
        named = {name: self.argument(args, name) for name in self._at}
        if recipe.quant is not None and recipe.quant.native:
            named["dtype"] = named["dtype"] or native_fp8(args[0].device)
        return reference.rows(recipe.source, recipe.quant, recipe.output_norm or recipe.quant is None, **named)

    def inputs(
        self,
        shape: Shape,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        variant: str = "none",
    ) -> tuple[Any, ...]:
        recipe = self.recipe
        wanted = recipe.parse(variant)
        if wanted.rounding not in recipe.roundings:
            raise OpInputError(
                f"{self.name} has the roundings {', '.join(recipe.roundings)}; got {wanted.rounding!r} in {variant!r}."
            )

        def normal(*dims: int) -> torch.Tensor:
            return torch.randn(dims, dtype=torch.float32, device=device, generator=generator)

        def weight(size: int) -> torch.Tensor:
            return (1.0 + 0.1 * normal(size)).to(dtype)

        width = recipe.width(shape)
        rows = (num_tokens, 2 * width if recipe.activation else width)
        args: list[Any] = [normal(*rows).to(dtype) for _ in range(2 if recipe.residual else 1)]
        if recipe.norm:
            args += [weight(width), 1e-6]
        if recipe.second:
            args += [normal(num_tokens, shape["second_size"]).to(dtype), weight(shape["second_size"]), 1e-6]
        if "global_scale" in self._at:
            args.append(torch.full((1,), 100.0, dtype=torch.float32, device=device))
        if "rounding" in self._at:
            args.append(wanted.rounding)
        if "scale_layout" in self._at and wanted.layout != "rows":
            args.append(wanted.layout)
        return tuple(args)

    def specialisations(
        self, args: tuple[Any, ...], everything: bool, large: torch.Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        at = self._at.get("global_scale")
        if at is None or not everything:
            return [args]
        return [args, (*args[:at], None, *args[at + 1 :])]


ROWS_OPS = [RowsOp(recipe) for recipe in RECIPES.values()]
