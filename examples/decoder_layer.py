"""A DeepSeek-style decoder layer compiled with and without the pack's fusion pass: matches, equal outputs, time.

    pip install build/pack
    python examples/decoder_layer.py                    # real sizes (deepseek-r1, one rank) on the GPU
    python examples/decoder_layer.py --small --device cpu

The layer is the part of a decoder layer that the fusions are about: the residual norms, MLA's projections in MXFP4,
RoPE, the write of the KV-cache row and attention over the cache, with random weights. The MXFP4 linear layer is the
pack's quantiser and its GEMM (a reference in PyTorch where AITER is not there), so that its time is not that of a tuned
GEMM: what the pass saves is the difference between the two columns, not their ratio.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layer; the defaults are those of deepseek-r1 on one rank of eight."""

    hidden: int = 7168
    q_rank: int = 1536
    kv_rank: int = 512
    heads: int = 16
    nope: int = 128
    rope: int = 64
    value: int = 128
    ffn: int = 2304
    positions: int = 4096
    slots: int = 4096


SMALL = Sizes(hidden=128, q_rank=96, kv_rank=64, heads=4, nope=32, rope=32, value=32, ffn=96, positions=64, slots=512)


class RMSNorm(nn.Module):
    """As Hugging Face models write it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Mxfp4Linear(nn.Module):
    """A linear layer with MXFP4 weights and activations, by the pack's quantiser and its GEMM."""

    def __init__(self, pack: Any, inputs: int, outputs: int, device: torch.device) -> None:
        super().__init__()
        weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).bfloat16()
        codes, scale = pack.dynamic_mxfp4_quant(weight)
        self.codes, self.scale = nn.Buffer(codes), nn.Buffer(scale.T.contiguous())
        self.pack, self.gemm = pack, getattr(torch.ops, pack.__name__).mxfp4_gemm

    def forward(self, x: Tensor) -> Tensor:
        q, scales = self.pack.dynamic_mxfp4_quant(x)
        result: Tensor = self.gemm(q, scales, self.codes, self.scale, x.dtype)
        return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved RoPE, each product and sum in the dtype of x."""
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + swapped * sin


class DecoderLayer(nn.Module):
    """MLA attention over a cache and a feed-forward part, each behind a residual norm."""

    def __init__(self, pack: Any, sizes: Sizes, device: torch.device) -> None:
        super().__init__()
        s = self.sizes = sizes

        def linear(inputs: int, outputs: int) -> Mxfp4Linear:
            return Mxfp4Linear(pack, inputs, outputs, device)

        self.input_norm, self.ffn_norm = RMSNorm(s.hidden), RMSNorm(s.hidden)
        self.q_norm, self.kv_norm = RMSNorm(s.q_rank), RMSNorm(s.kv_rank)
        self.q_a, self.kv_a = linear(s.hidden, s.q_rank), linear(s.hidden, s.kv_rank + s.rope)
        self.q_b = linear(s.q_rank, s.heads * (s.nope + s.rope))
        self.o, self.up, self.down = (
            linear(s.heads * s.value, s.hidden),
            linear(s.hidden, s.ffn),
            linear(s.ffn, s.hidden),
        )
        self.w_uk = nn.Buffer(torch.randn(s.heads, s.nope, s.kv_rank) / s.nope**0.5)
        self.w_uv = nn.Buffer(torch.randn(s.heads, s.kv_rank, s.value) / s.kv_rank**0.5)
        angles = torch.outer(torch.arange(s.positions), 10000.0 ** (-torch.arange(0, s.rope, 2) / s.rope))
        self.table = nn.Buffer(torch.cat((angles.cos(), angles.sin()), dim=-1))
        self.write = getattr(torch.ops, pack.__name__).concat_and_cache_mla
        self.to(device=device)
        for module in (self, *self.modules()):
            for name, tensor in [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]:
                if tensor.is_floating_point():
                    setattr(module, name, type(tensor)(tensor.data.bfloat16()))
        self.scale = nn.Buffer(torch.ones(1, device=device))

    def attention(self, x: Tensor, positions: Tensor, slots: Tensor, cache: Tensor) -> Tensor:
        s = self.sizes
        q = self.q_b(self.q_norm(self.q_a(x))).view(-1, s.heads, s.nope + s.rope)
        kv_c, k_pe = self.kv_a(x).split([s.kv_rank, s.rope], dim=-1)
        kv_c = self.kv_norm(kv_c)
        q_nope = torch.bmm(q[..., : s.nope].transpose(0, 1), self.w_uk).transpose(0, 1)
        cos, sin = (part.repeat_interleave(2, dim=-1).unsqueeze(-2) for part in self.table[positions].chunk(2, dim=-1))
        q_pe, k_pe = rotate(q[..., s.nope :], cos, sin), rotate(k_pe.unsqueeze(1), cos, sin)
        self.write(kv_c, k_pe.squeeze(1), cache, slots, "auto", self.scale)
        query, rows = torch.cat((q_nope, q_pe), dim=-1), cache.view(-1, s.kv_rank + s.rope)
        latent = nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None], rows[None, None], rows[None, None, :, : s.kv_rank], enable_gqa=True
        )[0]
        return self.o(torch.bmm(latent, self.w_uv).transpose(0, 1).flatten(1))

    def forward(
        self, x: Tensor, residual: Tensor, positions: Tensor, slots: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual = residual + x
        x = self.attention(self.input_norm(residual), positions, slots, cache)
        residual = residual + x
        return self.down(nn.functional.silu(self.up(self.ffn_norm(residual)))), residual


def make_inputs(sizes: Sizes, tokens: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x, residual = torch.randn(2, tokens, sizes.hidden, generator=generator).bfloat16()
    positions = torch.randint(0, sizes.positions, (tokens,), generator=generator)
    slots = torch.randperm(sizes.slots, generator=generator)[:tokens]
    cache = torch.randn(sizes.slots // 64, 64, sizes.kv_rank + sizes.rope, generator=generator).bfloat16()
    tensors = [tensor.to(device) for tensor in (x, residual, positions, slots, cache)]
    for tensor in tensors[:4]:
        torch._dynamo.mark_dynamic(tensor, 0)
    return tensors


def microseconds(call: Callable[[], Any], device: torch.device, graph: bool) -> float:
    """Median time of a call: of 20 rounds of 10, by events on a GPU; with ``graph`` replayed from a CUDA graph."""
    for _ in range(3):
        call()
    if device.type == "cpu":
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - begin))
        return statistics.median(times)
    run = call
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        run = captured.replay
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            run()
        end.record()
        end.synchronize()
        times.append(100 * begin.elapsed_time(end))
    return statistics.median(times)


def difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm; 0: equal, bit for bit."""
    if torch.equal(one, other):
        return 0.0
    return float((one.float() - other.float()).norm() / other.float().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", default="tunegen_ops", help="name of the installed pack")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--tokens", default="1,16,64,256", help="token counts, with commas between")
    options = parser.parse_args()
    pack, device = importlib.import_module(options.pack), torch.device(options.device)
    sizes = SMALL if options.small else Sizes()
    if device.type == "cuda":
        pack.warmup(device)

    inductor_config.force_disable_caches = True  # a graph from Inductor's cache is not seen by the pass, nor reported
    torch.manual_seed(0)
    layer = DecoderLayer(pack, sizes, device)
    fusion = pack.fusion.FusionPass()
    plain = torch.compile(layer)
    torch._dynamo.reset()
    fused = torch.compile(layer, options={"post_grad_custom_post_pass": fusion})
    rows = []
    for tokens in map(int, options.tokens.split(",")):
        inputs = [make_inputs(sizes, tokens, device) for _ in range(3)]
        with torch.inference_mode():
            # Eager mode rounds after every op. Compiled code need not: without the pass Inductor keeps fp32 inside its
            # kernels; with it the fused ops round as eager mode does.
            expected = [*layer(*inputs[0]), inputs[0][4]]
            got = [[*model(*given), given[4]] for model, given in ((plain, inputs[1]), (fused, inputs[2]))]
            apart = [max(map(difference, outputs, expected)) for outputs in got]
            times = [
                microseconds(lambda model=model, given=given: model(*given), device, graph)
                for graph in ((False, True) if device.type == "cuda" else (False,))
                for model, given in ((plain, inputs[1]), (fused, inputs[2]))
            ]
        rows.append((tokens, apart, times))
    print(fusion.report())
    print(f"\n{'tokens':>6}  outputs and cache against eager mode; us a layer; each without and with the pass")
    for tokens, apart, times in rows:
        equal = " ".join("equal   " if not number else f"{number:8.1e}" for number in apart)
        pairs = zip(times[::2], times[1::2], strict=True)
        kinds = ("launched", "CUDA graph") if len(times) > 2 else ("launched",)
        shown = "; ".join(
            f"{kind} {one:9.1f} {two:9.1f} ({one - two:+.1f} saved)"
            for kind, (one, two) in zip(kinds, pairs, strict=True)
        )
        print(f"{tokens:>6}  {equal}   {shown}")


if __name__ == "__main__":
    main()
