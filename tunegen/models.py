"""Model presets: the shapes that an op has in a model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tunegen.errors import ShapeError, UnknownNameError
from tunegen.ops import OP_NAMES, PRESET_OPS, Problem, get_family
from tunegen.runtime.families.recipe import RECIPES


@dataclass(frozen=True)
class Model:
    """What of a model's configuration sizes its kernels.

    Attributes:
        name: Preset name.
        hidden_size: Width of the residual stream.
        q_lora_rank: Width of the compressed query, normalised by q_a_layernorm; 0 if there is none.
        kv_lora_rank: Width of the compressed key/value, normalised by kv_a_layernorm.
        num_heads: Query heads.
        intermediate_size: Width of an expert's gated activation (moe_intermediate_size).
        rope_dim: The part of a head's width that is rotated (qk_rope_head_dim).
    """

    name: str
    hidden_size: int
    q_lora_rank: int
    kv_lora_rank: int
    num_heads: int
    intermediate_size: int
    rope_dim: int = 64

    @property
    def norm_sizes(self) -> list[int]:
        """Widths that the model normalises, the largest first."""
        return [size for size in (self.hidden_size, self.q_lora_rank, self.kv_lora_rank) if size]


# From the models' published config.json files.
MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("deepseek-r1", 7168, 1536, 512, 128, 2048),
        Model("deepseek-v3", 7168, 1536, 512, 128, 2048),
        Model("deepseek-v2", 5120, 1536, 512, 128, 1536),
        Model("deepseek-v2-lite", 2048, 0, 512, 16, 1408),
        Model("kimi-k2", 7168, 1536, 512, 64, 2048),
    )
}


def get_model(name: str) -> Model:
    """The preset of that name; raises UnknownNameError."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownNameError("model", name, MODELS) from None


def heads_of_rank(model: Model, tensor_parallel: int) -> int:
    """Query heads of one rank; raises ShapeError if the heads cannot be split evenly."""
    if tensor_parallel < 1 or model.num_heads % tensor_parallel:
        raise ShapeError(f"--tp must divide the {model.num_heads} heads of {model.name} evenly; got {tensor_parallel}.")
    return model.num_heads // tensor_parallel


def problems_of(model: Model, ops: list[str] | None = None, tensor_parallel: int = 1) -> list[Problem]:
    """Every problem of one rank of a model, op by op, the widest first.

    Args:
        model: The model.
        ops: Ops; default: `PRESET_OPS`.
        tensor_parallel: Ranks that the heads are divided among. Experts are not: they are placed whole.

    Raises:
        ShapeError: The heads cannot be split evenly.
    """
    sizes: dict[str, list[int]] = {
        "hidden_size": model.norm_sizes,
        "intermediate_size": [model.intermediate_size],
        "kv_lora_rank": [model.kv_lora_rank],
        "num_heads": [heads_of_rank(model, tensor_parallel)],
        "rope_dim": [model.rope_dim],
    }
    chosen = [op for op in OP_NAMES if op in (PRESET_OPS if ops is None else ops)]
    # Two norms at a time are those of the compressed query and of the compressed key/value.
    pair = {"hidden_size": [model.q_lora_rank] if model.q_lora_rank else [], "second_size": [model.kv_lora_rank]}

    def of_op(op: str) -> dict[str, list[int]]:
        if "second_size" in get_family(op).sizes:
            return {**sizes, **pair}
        # Nothing is added to the compressed query and key/value.
        alone = op in RECIPES and RECIPES[op].residual
        return {**sizes, "hidden_size": [model.hidden_size]} if alone else sizes

    return [problem for op in chosen for problem in problems_with(op, of_op(op))]


def problems_with(op: str, sizes: dict[str, list[int]]) -> list[Problem]:
    """An op's problems at all combinations of the sizes that it has; none if one is missing."""
    family = get_family(op)
    if any(name not in sizes for name in family.sizes):
        return []
    return [
        Problem.of(op, dict(zip(family.sizes, values, strict=True)), variant)
        for values in itertools.product(*(sizes[name] for name in family.sizes))
        for variant in family.tuned_variants(op)
    ]
