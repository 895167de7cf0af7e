"""AITER's own kernels against the numerics contract, in Triton's interpreter: an oracle that is not ours.

Compiled for gfx950 and executed on the CPU (`tunegen.execute`) they give the interpreter's bits.

Runs with the amd-aiter that is installed, or with an unpacked wheel: `pytest --aiter-root FOLDER tests/bench`, which is
what `make test` does; without it a warning says what was not run. benchmarks/f2_table.py and f3_table.py check the
same on a GPU.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreting_aiter import prepare
from numpy.typing import NDArray

from tunegen.bench.agreement import RopeOutputs, mxfp4_agreement, rope_failures
from tunegen.bench.aiter import load_aiter
from tunegen.bench.aiter.ops import mla_rope_cache, mxfp4_quant
from tunegen.errors import UsageError
from tunegen.evaluate import interpreter as bf16_interpreter
from tunegen.execute.driver import executing
from tunegen.runtime.families import OPS
from tunegen.runtime.families.mla_rope import MlaRopeCache
from tunegen.targets import get_target

CPU = torch.device("cpu")

Outcome = tuple[list[str], list[NDArray[Any]]]

# --- In the interpreting process, and executed in this one ---


def bits(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor's bits, which processes can exchange."""
    bits: NDArray[Any] = tensor.contiguous().view(torch.uint8).numpy()
    return bits


def quantise(root: Path | None, op: str, hidden_size: int, tokens: int, dtype: torch.dtype) -> Outcome:
    args = OPS[op].inputs({"hidden_size": hidden_size}, tokens, dtype, CPU, torch.Generator().manual_seed(tokens))
    outputs = mxfp4_quant(load_aiter(root), args)
    return mxfp4_agreement(args, "none", outputs).failures, [bits(output) for output in outputs]


def rotate(root: Path | None, heads: int, tokens: int, variant: str) -> Outcome:
    """In bfloat16: later releases refuse a cache in float16."""
    sizes = {"num_heads": heads, "kv_lora_rank": 512, "rope_dim": 64}
    args = MlaRopeCache().inputs(sizes, tokens, torch.bfloat16, CPU, torch.Generator().manual_seed(tokens), variant)
    args[7][::3] = -1
    width = args[6].shape[-1]
    before = args[6].clone()
    q_out, k_pe_out = mla_rope_cache(load_aiter(root), args)
    found = rope_failures(args, before.view(-1, width), RopeOutputs(q_out, k_pe_out, args[6].view(-1, width)))
    # The interpreter fuses no multiply-adds: AITER rounds where `act` does, and nowhere else.
    rounded_alike, _ = MlaRopeCache().reference(*args[:6], before, *args[7:-1], "act")
    if not torch.equal(q_out, rounded_alike):
        found.append("q_out is not that of rounding act")
    # Of tokens without a slot AITER writes no k_pe_out.
    return found, [bits(q_out), bits(k_pe_out[args[7] >= 0]), bits(args[6])]


def interpreted(function: Callable[..., Outcome], *args: Any) -> Outcome:
    """In the interpreting process."""
    prepare()
    return function(*args)


# --- Here ---


@pytest.fixture(scope="module")
def root(pytestconfig: pytest.Config) -> Path | None:
    """What load_aiter is given, where there is an AITER."""
    given: Path | None = pytestconfig.getoption("--aiter-root")
    try:
        load_aiter(given)
    except UsageError as error:
        if given is not None:
            raise
        warnings.warn(f"AITER's kernels were not compared with ours: {error}", stacklevel=1)
        pytest.skip("no amd-aiter here; see the warning")
    return given


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=bf16_interpreter.start_worker) as executor:
        yield executor


def failures(pool: ProcessPoolExecutor, function: Callable[..., Outcome], *args: Any) -> list[str]:
    """What is wrong in the interpreter, and where the executed listings for gfx950 give other bits."""
    found, expected = pool.submit(interpreted, function, *args).result()
    with executing(get_target("gfx950")):
        others, got = function(*args)
    found += [f"executed: {failure}" for failure in others]
    return found + [
        f"output {i}: executed, {int((one != other).sum())} of {one.size} bytes are not the interpreter's"
        for i, (one, other) in enumerate(zip(expected, got, strict=True))
        if not np.array_equal(one, other)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"])
@pytest.mark.parametrize(("hidden_size", "tokens"), [(7168, 3), (1536, 1), (512, 40)])
def test_quantisation(
    op: str, hidden_size: int, tokens: int, dtype: torch.dtype, root: Path | None, pool: ProcessPoolExecutor
) -> None:
    assert failures(pool, quantise, root, op, hidden_size, tokens, dtype) == []


@pytest.mark.parametrize("variant", ["none", "none,neox", "none,fp8", "none,neox,fp8"])
@pytest.mark.parametrize(("heads", "tokens"), [(16, 7), (128, 1)])
def test_rope_and_cache(heads: int, tokens: int, variant: str, root: Path | None, pool: ProcessPoolExecutor) -> None:
    assert failures(pool, rotate, root, heads, tokens, variant) == []
