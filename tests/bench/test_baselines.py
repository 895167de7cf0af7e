"""The references as Inductor's baseline is made of them: traced whole, with any number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from tunegen.bench import baselines
from tunegen.ops import get_family
from tunegen.runtime.families import OPS

SIZES = {"hidden_size": 96, "second_size": 64, "intermediate_size": 64, "num_heads": 3, "kv_lora_rank": 16}


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo's part of torch.compile, which refuses what it cannot trace; Inductor's would take minutes."""
    whole: Callable[..., Any] = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", whole)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def cloned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)


@pytest.mark.parametrize(
    "op",
    [
        *("dynamic_mxfp4_quant", "rmsnorm_add_mxfp4_quant", "silu_mul_mxfp4_quant", "dual_rmsnorm"),
        *("rmsnorm_fp8_token_quant", "rmsnorm_add_nvfp4_quant", "mla_rope_cache", "mla_rope_cache_"),
    ],
)
def test_references_are_traced_whole(op: str) -> None:
    sizes = {"rope_dim": 8, **SIZES}
    shape = {name: sizes[name] for name in get_family(op).sizes}
    run = baselines._compiled(OPS[op].reference)
    for tokens in (1, 5, 17):
        args = OPS[op].inputs(shape, tokens, torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(1))
        again = cloned(args)
        outputs, expected = run(*args), OPS[op].reference(*again)
        # What is written in place is compared too.
        tensors = [*zip(outputs, expected, strict=True), *zip(args, again, strict=True)]
        pairs = [(a, b) for a, b in tensors if isinstance(a, torch.Tensor)]
        assert pairs and all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs if a.dim())
