"""A DeepSeek-style decoder layer compiled with and without the pack's fusion pass: matches, equal outputs, time.

    pip install build/pack
    python examples/decoder_layer.py --json layer.json      # real sizes (deepseek-r1, one rank of eight) on the GPU
    python examples/decoder_layer.py --small --device cpu

The layer: residual norm, MLA with absorbed weights (projections, RoPE, write of the KV-cache row, attention of every
token to the whole cache), residual norm, feed-forward part, with random weights. Both columns are the same model,
compiled with the same options, and differ in the pass alone. Without it the norms and RoPE are the kernels that
Inductor makes of the PyTorch code, quantisation is the pack's own tuned `dynamic_mxfp4_quant`, and the cache write is
vLLM's op, or where that is not installed a Triton kernel that does the same.

A GPU without MXFP4 instructions has no MXFP4 GEMM. There the linear layers quantise their input to MXFP4, and multiply
what the codes stand for in bfloat16 by a weight that was dequantised beforehand: exact operands, a tuned bfloat16 GEMM.
On a ROCm build of torch they call the pack's `mxfp4_gemm`, which is AITER's kernel where that is installed.

Inductor is told to keep the roundings of the model (`emulate_precision_casts`) in both columns, as the fused ops do, so
that outputs can be compared bit by bit; `--fold-casts` leaves it its own way.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.library import Library, register_fake

CACHE_OP = (
    "concat_and_cache_mla(Tensor kv_c, Tensor k_pe, Tensor! kv_cache, Tensor slot_mapping, str kv_cache_dtype,"
    " Tensor scale) -> ()"
)
ROUNDS, CALLS = 20, 10
FORMS = {"launched": "launched one by one", "graph": "CUDA graph"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layer; the defaults are those of deepseek-r1 on one rank of eight, and its experts' feed-forward."""

    hidden: int = 7168
    q_rank: int = 1536
    kv_rank: int = 512
    heads: int = 16
    nope: int = 128
    rope: int = 64
    value: int = 128
    ffn: int = 2048
    positions: int = 4096
    slots: int = 4096


SMALL = Sizes(hidden=128, q_rank=96, kv_rank=64, heads=4, nope=32, rope=32, value=32, ffn=96, positions=64, slots=512)


@triton.jit
def write_row(kv_c, k_pe, cache, slots, kv_stride, pe_stride, rank: tl.constexpr, rope: tl.constexpr):
    """One program a token; strides are in elements. A negative slot is none."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        row, of_kv, of_pe = cache + slot * (rank + rope), tl.arange(0, rank), tl.arange(0, rope)
        tl.store(row + of_kv, tl.load(kv_c + token * kv_stride + of_kv))
        tl.store(row + rank + of_pe, tl.load(k_pe + token * pe_stride + of_pe))


def define_gemm() -> Library:
    """Defines ``decoder_layer::gemm(x [T, K], weight [N, K])``: an op that Inductor leaves whole, as an MXFP4 GEMM."""
    library = Library("decoder_layer", "FRAGMENT")
    library.define("gemm(Tensor x, Tensor weight) -> Tensor")
    library.impl("gemm", nn.functional.linear, "CompositeExplicitAutograd")
    register_fake("decoder_layer::gemm", lambda x, weight: x.new_empty(x.shape[0], weight.shape[0]), lib=library)
    return library


def define_cache_write() -> Library | None:
    """Defines vLLM's op that writes cache rows, for the dtype of the rows, where vLLM is not imported."""
    if hasattr(torch.ops._C_cache_ops, "concat_and_cache_mla"):
        return None

    def on_gpu(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slots: Tensor, dtype: str, scale: Tensor) -> None:
        strides = kv_c.stride(0), k_pe.stride(0)
        write_row[(slots.shape[0],)](kv_c, k_pe, cache, slots, *strides, kv_c.shape[1], k_pe.shape[1], num_warps=1)

    def on_cpu(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slots: Tensor, dtype: str, scale: Tensor) -> None:
        kept = slots >= 0
        cache.view(-1, cache.shape[-1])[slots[kept]] = torch.cat((kv_c, k_pe), dim=-1)[kept]

    library = Library("_C_cache_ops", "FRAGMENT")
    library.define(CACHE_OP)
    library.impl("concat_and_cache_mla", on_gpu, "CUDA")
    library.impl("concat_and_cache_mla", on_cpu, "CPU")
    register_fake("_C_cache_ops::concat_and_cache_mla", lambda *_: None, lib=library)
    return library


class RMSNorm(nn.Module):
    """As Hugging Face models write it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def dequantised(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """What MXFP4 codes [T, N/2] and E8M0 scales [T, N/32] stand for, as bfloat16, exactly. ``values``: of 16 codes."""
    elements = values[torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).int()]
    powers = (scales.int() << 23).view(torch.float32)  # 2**(scale - 127); NaN and subnormal scales do not occur here
    return (elements.unflatten(-1, (-1, 32)) * powers.unsqueeze(-1)).flatten(-2).bfloat16()


class Mxfp4Linear(nn.Module):
    """A linear layer with MXFP4 weights and activations; see the top of this file for its GEMM."""

    def __init__(self, pack: Any, inputs: int, outputs: int, device: torch.device) -> None:
        super().__init__()
        weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).bfloat16()
        codes, scale = pack.dynamic_mxfp4_quant(weight)
        self.quantise, self.gemm = pack.dynamic_mxfp4_quant, None
        self.values = nn.Buffer(torch.tensor((*E2M1, *(-value for value in E2M1)), device=device))
        if torch.version.hip:
            self.gemm = getattr(torch.ops, pack.__name__).mxfp4_gemm
            self.codes, self.scale = nn.Buffer(codes), nn.Buffer(scale.T.contiguous())
        else:
            self.weight = nn.Buffer(dequantised(codes, scale, self.values))

    def forward(self, x: Tensor) -> Tensor:
        codes, scales = self.quantise(x)
        if self.gemm is not None:
            result: Tensor = self.gemm(codes, scales, self.codes, self.scale, x.dtype)
            return result
        product: Tensor = torch.ops.decoder_layer.gemm(dequantised(codes, scales, self.values), self.weight)
        return product


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved RoPE, each product and sum in the dtype of x."""
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + swapped * sin


class DecoderLayer(nn.Module):
    """MLA attention over a cache and a feed-forward part, each behind a residual norm."""

    def __init__(self, pack: Any, sizes: Sizes, device: torch.device) -> None:
        super().__init__()
        s = self.sizes = sizes
        self.input_norm, self.ffn_norm = RMSNorm(s.hidden), RMSNorm(s.hidden)
        self.q_norm, self.kv_norm = RMSNorm(s.q_rank), RMSNorm(s.kv_rank)
        self.w_uk = nn.Buffer(torch.randn(s.heads, s.nope, s.kv_rank) / s.nope**0.5)
        self.w_uv = nn.Buffer(torch.randn(s.heads, s.kv_rank, s.value) / s.kv_rank**0.5)
        angles = torch.outer(torch.arange(s.positions), 10000.0 ** (-torch.arange(0, s.rope, 2) / s.rope))
        self.table = nn.Buffer(torch.cat((angles.cos(), angles.sin()), dim=-1))
        self.to(device=device, dtype=torch.bfloat16)

        def linear(inputs: int, outputs: int) -> Mxfp4Linear:
            return Mxfp4Linear(pack, inputs, outputs, device)

        self.qkv_a = linear(s.hidden, s.q_rank + s.kv_rank + s.rope)
        self.q_b, self.o = linear(s.q_rank, s.heads * (s.nope + s.rope)), linear(s.heads * s.value, s.hidden)
        self.gate_up, self.down = linear(s.hidden, 2 * s.ffn), linear(s.ffn, s.hidden)
        self.scale = nn.Buffer(torch.ones(1, device=device))

    def attention(self, x: Tensor, positions: Tensor, slots: Tensor, cache: Tensor) -> Tensor:
        s = self.sizes
        q_c, kv_c, k_pe = self.qkv_a(x).split([s.q_rank, s.kv_rank, s.rope], dim=-1)
        q = self.q_b(self.q_norm(q_c)).view(-1, s.heads, s.nope + s.rope)
        kv_c = self.kv_norm(kv_c)
        q_nope = torch.bmm(q[..., : s.nope].transpose(0, 1), self.w_uk).transpose(0, 1)
        cos, sin = (part.repeat_interleave(2, dim=-1).unsqueeze(-2) for part in self.table[positions].chunk(2, dim=-1))
        q_pe, k_pe = rotate(q[..., s.nope :], cos, sin), rotate(k_pe.unsqueeze(1), cos, sin)
        torch.ops._C_cache_ops.concat_and_cache_mla(kv_c, k_pe.squeeze(1), cache, slots, "auto", self.scale)
        query, rows = torch.cat((q_nope, q_pe), dim=-1), cache.view(-1, s.kv_rank + s.rope)
        scores = query.flatten(0, 1) @ rows.T
        weights = torch.softmax(scores.float() * (s.nope + s.rope) ** -0.5, dim=-1).to(x.dtype)
        latent = (weights @ rows[:, : s.kv_rank]).view(-1, s.heads, s.kv_rank)
        return self.o(torch.bmm(latent.transpose(0, 1), self.w_uv).transpose(0, 1).flatten(1))

    def forward(
        self, x: Tensor, residual: Tensor, positions: Tensor, slots: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual = residual + x
        residual = residual + self.attention(self.input_norm(residual), positions, slots, cache)
        gate, up = self.gate_up(self.ffn_norm(residual)).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up), residual


def make_inputs(sizes: Sizes, tokens: int, device: torch.device) -> list[Tensor]:
    """x and residual [tokens, hidden], positions and slots [tokens], cache [blocks, 64, rank + rope]."""
    generator = torch.Generator().manual_seed(tokens)
    x, residual = torch.randn(2, tokens, sizes.hidden, generator=generator).bfloat16()
    positions = torch.randint(0, sizes.positions, (tokens,), generator=generator)
    slots = torch.randperm(sizes.slots, generator=generator)[:tokens]
    cache = torch.randn(sizes.slots // 64, 64, sizes.kv_rank + sizes.rope, generator=generator).bfloat16()
    tensors = [tensor.to(device) for tensor in (x, residual, positions, slots, cache)]
    for tensor in tensors[:4]:
        torch._dynamo.mark_dynamic(tensor, 0)
    return tensors


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def elapsed(call: Callable[[], Any], device: torch.device) -> float:
    """Microseconds of a call, mean of CALLS in a row."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1e6 * (time.perf_counter() - begin) / CALLS
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(CALLS):
        call()
    last.record()
    last.synchronize()
    return 1e3 * first.elapsed_time(last) / CALLS


def compared(without: Callable[[], Any], fused: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Times of two calls, in turns: medians in microseconds, what is saved, and the quartiles of that."""
    for call in (without, fused) * 3:
        call()
    rounds = [(elapsed(without, device), elapsed(fused, device)) for _ in range(ROUNDS)]
    saved = [one - other for one, other in rounds]
    low, _, high = statistics.quantiles(saved, n=4)
    one, other = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {"without": one, "with": other, "saved": statistics.median(saved), "saved_low": low, "saved_high": high}


def difference(got: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """How many rows of all outputs differ in any bit, and the largest norm of a difference over that of the output."""
    pairs = [(one.flatten(0, -2), other.flatten(0, -2)) for one, other in zip(got, expected, strict=True)]
    rows = sum(int((one != other).any(dim=-1).sum()) for one, other in pairs)
    distance = max(float((one.float() - other.float()).norm() / other.float().norm()) for one, other in pairs)
    return {"rows": sum(len(one) for one, _ in pairs), "different_rows": rows, "distance": distance}


def measure(layer: DecoderLayer, plain: Any, fused: Any, tokens: int, device: torch.device) -> dict[str, Any]:
    """Outputs and times of a layer at one token count, as it is and compiled, without the pass and with it."""
    given = [make_inputs(layer.sizes, tokens, device) for _ in range(3)]
    eager, without, with_pass = (
        [*model(*inputs), inputs[4]] for model, inputs in zip((layer, plain, fused), given, strict=True)
    )
    calls = [lambda: plain(*given[1]), lambda: fused(*given[2])]
    result = {
        "tokens": tokens,
        "with_against_without": difference(with_pass, without),
        "with_against_eager": difference(with_pass, eager),
        "without_against_eager": difference(without, eager),
        "launched": compared(*calls, device),
    }
    if device.type == "cuda":
        result["graph"] = compared(*map(captured, calls), device)
    return result


def shown(result: dict[str, Any]) -> str:
    """A line of the table."""
    against, eager = result["with_against_without"], result["with_against_eager"]
    equal = f"{against['different_rows']} of {against['rows']} ({against['distance']:.1e}; {eager['distance']:.1e})"
    times = ""
    for time_of in (result[form] for form in FORMS if form in result):
        quartiles = f"({time_of['saved_low']:.1f} to {time_of['saved_high']:.1f})"
        times += f"  {time_of['without']:8.1f} {time_of['with']:8.1f} {time_of['saved']:7.1f} {quartiles:<18}"
    return f"{result['tokens']:>6}  {equal:<34}{times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", default="tunegen_ops", help="name of the pack to import")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--tokens", default="1,16,64,256", help="token counts, with commas between")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--dump", type=Path, help="folder to write the graphs to, before and after the pass")
    parser.add_argument("--fold-casts", action="store_true", help="let Inductor leave out roundings of the model")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small --device cpu takes minutes of a CPU")
    pack, device = importlib.import_module(options.pack), torch.device(options.device)
    libraries = define_gemm(), define_cache_write()  # kept: an op goes when its library does
    inductor_config.force_disable_caches = True  # a graph from Inductor's cache is not seen by the pass, nor reported

    torch.manual_seed(0)
    layer = DecoderLayer(pack, SMALL if options.small else Sizes(), device)
    fusion = pack.fusion.FusionPass(dump=options.dump)
    both = {"emulate_precision_casts": not options.fold_casts}
    plain = torch.compile(layer, options=both)
    fused = torch.compile(layer, options={**both, "post_grad_custom_post_pass": fusion})
    with torch.inference_mode():
        results = [measure(layer, plain, fused, tokens, device) for tokens in map(int, options.tokens.split(","))]
    print(fusion.report())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, triton {triton.__version__}, pack {pack.__name__} {pack.__version__}")
    print(f"cache write without the pass: {'vLLM' if libraries[1] is None else 'a Triton kernel of this file'}")
    print("us a layer without and with the pass, and what it saves (quartiles); outputs: rows that differ from those")
    print("without the pass (distance; distance from eager mode)")
    forms = "  ".join(f"{name:<44}" for form, name in FORMS.items() if form in results[0])
    print(f"\ntokens  {'rows that differ':<34}  {forms}".rstrip())
    for result in results:
        print(shown(result))
    if options.json is not None:
        about = {"device": name, "torch": torch.__version__, "triton": triton.__version__, "pack": pack.__version__}
        matches = [{"pattern": m.pattern, "rounding": m.rounding, "graph": m.graph} for m in fusion.report().matches]
        options.json.write_text(json.dumps({**about, "matches": matches, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
