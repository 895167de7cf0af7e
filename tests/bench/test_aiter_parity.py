"""AITER's own kernels against the numerics contract, in Triton's interpreter: an oracle that is not ours.

Compiled for gfx950 and executed on the CPU (`tunegen.execute`) they give the interpreter's bits.

Runs with the amd-aiter that is installed, or with an unpacked wheel: `pytest --aiter-root FOLDER tests/bench`, which is
what `make test` does; without it a warning says what was not run. benchmarks/f2_table.py and f3_table.py check the
same on a GPU.
"""

from __future__ import annotations

import inspect
import itertools
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
from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures as truth_failures
from tunegen.execute.driver import executing
from tunegen.ops import Problem
from tunegen.runtime.compat.aiter import Aiter as Compat
from tunegen.runtime.compat.aiter import Aiter017 as Compat017
from tunegen.runtime.families import OPS
from tunegen.runtime.families.mla_rope import MlaRopeCache
from tunegen.runtime.reference.scale_layout import unplace
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


class References:
    """The pack's ops on the CPU: what they compute is the reference."""

    def __getattr__(self, op: str) -> Any:
        return OPS[op].reference


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def release_of(root: Path | None) -> tuple[Any, Compat]:
    """AITER's functions as they are, and ours of the same release."""
    aiter = load_aiter(root)
    earlier = "output_unquantized_inp1" not in inspect.signature(aiter.functions["fused_rms_mxfp4_quant"]).parameters
    return aiter.functions, (Compat017 if earlier else Compat)(References())


def differing_signatures(root: Path | None) -> list[str]:
    """Names, defaults and order of arguments, of all three functions."""
    prepare()
    theirs, ours = release_of(root)
    found = []
    for name in ("dynamic_mxfp4_quant", "fused_rms_mxfp4_quant", "fused_qk_rope_cat_and_cache_mla"):
        given = [inspect.signature(f).parameters.values() for f in (theirs[name], getattr(ours, name))]
        one, other = ([(p.name, p.default) for p in parameters] for parameters in given)
        found += [f"{name}: {one} and {other}"] if one != other else []
    return found


def differing_quantisers(root: Path | None, tokens: int, size: int) -> list[str]:
    """Codes and scales bit for bit, on ties and all magnitudes, where both define them: finite blocks, amax >= 2^-125
    (AITER's 2^-e of the scales below is a subnormal, and 0 where those are flushed).
    """
    prepare()
    theirs, ours = release_of(root)
    x = normal(tokens, size) * torch.logspace(-30, 30, size).bfloat16()
    x[:, :32] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 4).bfloat16()
    x[-1, 32:64] = 0.0
    found = []
    for name, op, dtypes in (
        ("dynamic_mxfp4_quant", "dynamic_mxfp4_quant", (torch.uint8, torch.uint8)),
        ("dynamic_mxfp8_quant", "dynamic_mxfp8_quant", (torch.uint8, torch.uint8)),
        ("dynamic_per_token_quant_fp8_i8", "dynamic_fp8_token_quant", (torch.uint8, torch.int32)),
    ):
        if name not in theirs:
            continue
        if name.endswith("i8"):
            given = (torch.empty(x.shape, dtype=torch.float8_e4m3fn), x, torch.empty(tokens))
            got = [out.view(tokens, -1) for out in theirs[name](*given)]
        else:
            got = theirs[name](x)
        right = ours.dynamic_mxfp4_quant(x) if name == op == "dynamic_mxfp4_quant" else OPS[op].reference(x)
        for what, one, other, dtype in zip(("codes", "scales"), got, right, dtypes, strict=True):
            differ = int((one.view(dtype) != other.view(dtype)).sum())
            if differ and what == "codes" and isinstance(ours, Compat017):
                # Of two neighbours at the same distance this release takes the larger: nothing else may differ.
                found += mxfp4_agreement((x,), "none", got).failures
                continue
            found += [f"{name}: {differ} {what} differ"] if differ else []
            found += (
                [f"{name}: strides of {what}"]
                if name == "dynamic_mxfp4_quant" and one.stride() != other.stride()
                else []
            )
    if "dynamic_nvfp4_quant" in theirs:
        # Its codes are made with the scale before it is rounded to E4M3, ours with what a reader will multiply by.
        near = normal(tokens, size, seed=1)
        scales = theirs["dynamic_nvfp4_quant"](near)[1]
        differ = int((scales.float() != OPS["dynamic_nvfp4_quant"].reference(near)[1].float()).sum())
        found += [f"dynamic_nvfp4_quant: {differ} scales differ"] if differ else []
    return found


def differing_norms(root: Path | None, tokens: int, flags: dict[str, bool]) -> list[str]:
    """fused_rms_mxfp4_quant as both have it, by the rule for values whose order of summation differs."""
    prepare()
    theirs, ours = release_of(root)
    size, second = 1536, 512
    x, weight = normal(tokens, size), 1 + normal(size, seed=1) / 8
    res, x2, weight2 = normal(tokens, size, seed=2), normal(tokens, second, seed=3), 1 + normal(second, seed=4) / 8
    options: dict[str, Any] = {"res1": res} if flags["res1"] else {}
    options |= {"x2": x2, "x2_weight": weight2, "x2_epsilon": 1e-5} if flags["x2"] else {}
    options |= {
        name: True for name in ("shuffle", "scale_shuffle_padding", "output_unquantized_inp1") if flags.get(name)
    }
    if isinstance(ours, Compat017) and options.pop("output_unquantized_inp1", False):
        return []
    one = theirs["fused_rms_mxfp4_quant"](x, weight, 1e-6, **options)
    other = ours.fused_rms_mxfp4_quant(x, weight, 1e-6, **options)
    if len(one) != len(other) or [out is None for out in one] != [out is None for out in other]:
        return [f"returns {len(one)} values, ours {len(other)}: {one}, {other}"]
    (q, scales), *rest = one
    if scales.shape != other[0][1].shape or scales.stride() != other[0][1].stride():
        return [f"scales are {scales.shape}, {scales.stride()}; ours {other[0][1].shape}"]
    layout = "shuffled" if flags.get("shuffle") else "padded" if flags.get("scale_shuffle_padding") else "rows"
    # Rows past the last are not written by AITER: what is in the padding is not compared.
    scales, _ = unplace(scales, layout, tokens, size // 32)
    args = (x, res, weight, 1e-6, "none") if flags["res1"] else (x, weight, 1e-6, "none")
    found = mxfp4_agreement(args, "none", (q, scales, *rest[-1:]) if flags["res1"] else (q, scales)).failures
    unquantised, norm2 = (None, *rest)[-3:-1] if isinstance(ours, Compat017) else rest[:2]
    total = x.float() + res.float() if flags["res1"] else x.float()
    for name, out, rows, by, epsilon in (
        ("norm", unquantised, total, weight, 1e-6),
        ("norm2", norm2, x2.float(), weight2, 1e-5),
    ):
        if out is not None:
            exact = rows.double() * torch.rsqrt((rows.double() ** 2).mean(-1, keepdim=True) + epsilon) * by.double()
            # A relative error of some hundred roundings of fp32, then one to the activation dtype.
            low, high = (exact * (1 - 2e-5)).bfloat16(), (exact * (1 + 2e-5)).bfloat16()
            wrong = int(((out < torch.minimum(low, high)) | (out > torch.maximum(low, high))).sum())
            found += [f"{name}: {wrong} of {out.numel()}"] if wrong else []
    return found


def differing_activations(root: Path | None, activation: str, tokens: int, shuffle: bool) -> list[str]:
    """fused_reduce_act_mul_and_mxfp4_quant against the truth of our op."""
    prepare()
    theirs, _ = release_of(root)
    if "fused_reduce_act_mul_and_mxfp4_quant" not in theirs:
        return []
    x = normal(tokens, 2 * 512)
    (q, scales), _ = theirs["fused_reduce_act_mul_and_mxfp4_quant"](x, activation, shuffle=shuffle)
    scales, _ = unplace(scales, "shuffled" if shuffle else "rows", tokens, 512 // 32)
    problem = Problem.of(f"{activation}_mul_mxfp4_quant", {"intermediate_size": 512})
    return truth_failures(problem, (x, "none"), (q, scales), 32)


def differing_rope(root: Path | None, is_neox: bool, fp8: bool, zeros: int) -> list[str]:
    """fused_qk_rope_cat_and_cache_mla bit for bit: AITER rounds where `act` does; with a scale of 1, and then to fp8
    from fp32 as the interpreter does.
    """
    prepare()
    theirs, ours = release_of(root)
    sizes = {"num_heads": 4, "kv_lora_rank": 64, "rope_dim": 16}
    variant = ",".join(["act", *(["neox"] if is_neox else []), *(["fp8"] if fp8 else [])])
    args = MlaRopeCache().inputs(sizes, 5, torch.bfloat16, CPU, torch.Generator().manual_seed(1), variant)
    q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots, k_scale, *_ = args
    caches = [cache.clone().view(-1, 1, 80) for _ in range(2)]
    cos, sin = table.chunk(2, -1)
    if k_scale is not None:
        k_scale.fill_(1.0)
    results = []
    for function, kv_cache in zip(
        (theirs["fused_qk_rope_cat_and_cache_mla"], ours.fused_qk_rope_cat_and_cache_mla), caches, strict=True
    ):
        results.append(
            function(
                q_nope,
                q_pe,
                kv_c.unsqueeze(1),
                k_pe.reshape(5, 1, 16),
                kv_cache,
                slots,
                positions,
                cos,
                sin,
                k_scale,
                is_neox,
                zeros,
            )
        )
    found = [f"returns {[len(result) for result in results]} values"] if len(results[0]) != len(results[1]) else []
    for at, (one, other) in enumerate(zip(*results, strict=True)):
        if one.shape != other.shape or not torch.equal(words(one), words(other)):
            found.append(f"output {at}: {one.shape} and {other.shape}, or other bits")
    return found if torch.equal(words(caches[0]), words(caches[1])) else [*found, "the caches differ"]


def words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8 if tensor.element_size() == 1 else torch.int16)


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
        # Nobody has to have AITER's wheel; `make test` has it, so that CI does not skip.
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


def test_signatures(root: Path | None, pool: ProcessPoolExecutor) -> None:
    assert pool.submit(differing_signatures, root).result() == []


@pytest.mark.parametrize(("tokens", "size"), [(3, 512), (40, 1536)])
def test_quantisers_bit_for_bit(tokens: int, size: int, root: Path | None, pool: ProcessPoolExecutor) -> None:
    assert pool.submit(differing_quantisers, root, tokens, size).result() == []


@pytest.mark.parametrize("scales", ["", "shuffle", "scale_shuffle_padding"])
@pytest.mark.parametrize(("x2", "res1", "norm"), list(itertools.product((False, True), repeat=3)))
def test_drop_in_norms(
    x2: bool, res1: bool, norm: bool, scales: str, root: Path | None, pool: ProcessPoolExecutor
) -> None:
    flags = {"x2": x2, "res1": res1, "output_unquantized_inp1": norm, **({scales: True} if scales else {})}
    assert pool.submit(differing_norms, root, 33 if scales else 3, flags).result() == []


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_activations(activation: str, shuffle: bool, root: Path | None, pool: ProcessPoolExecutor) -> None:
    assert pool.submit(differing_activations, root, activation, 33, shuffle).result() == []


# Zeros of all tokens or of none: the interpreter takes the other half of AITER's condition for true.
@pytest.mark.parametrize(
    ("is_neox", "fp8", "zeros"), [(False, False, 0), (True, False, 5), (False, True, 5), (True, True, 0)]
)
def test_drop_in_rope(is_neox: bool, fp8: bool, zeros: int, root: Path | None, pool: ProcessPoolExecutor) -> None:
    assert pool.submit(differing_rope, root, is_neox, fp8, zeros).result() == []
