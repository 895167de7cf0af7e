"""(Residual add +) RMSNorm + MXFP4 for hidden size 7168, written by hand as a careful engineer would.

A baseline for the generated kernels, not part of tunegen: the row as seven unmasked segments of 1024 in registers,
block maxima of x * weight taken before the row reduction has ended, one multiplication an element after it, the
rounding to E2M1 by one of three magic constants chosen by comparison, the weight loaded early; 4 warps without
residual, 8 with. bfloat16, contiguous rows, rounding "none".
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

HIDDEN_SIZE = 7168


@triton.jit
def _amax(values):
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.reshape(bits, (32, 32)), axis=1)


@triton.jit
def _store(values, amax, norm, q_row, scales_row, START: tl.constexpr):
    amax = (amax.to(tl.float32, bitcast=True) * norm).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    finite = amax < 0x7F800000
    keep = finite & (amax >= 0x1F800000)
    e8 = tl.maximum(((amax + 0x200000) >> 23) - 2, 0)
    factor = ((254 - e8) << 23).to(tl.float32, bitcast=True) * norm
    q = tl.reshape(values, (32, 32)) * factor[:, None]
    a = tl.abs(q)
    magic = tl.where(a < 2.0, 0x4A800000, tl.where(a < 4.0, 0x4B000002, 0x4B800004))
    code = (a + magic.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) & 7
    code = code | ((q.to(tl.int32, bitcast=True) >> 28) & 8)
    even, odd = tl.split(tl.reshape(code, (32, 16, 2)))
    packed = tl.where(keep[:, None], even | (odd << 4), 0)
    tl.store(q_row + START // 2 + tl.arange(0, 512), tl.reshape(packed, (512,)).to(tl.uint8))
    scale = tl.where(keep, e8, tl.where(finite, 0, 255))
    tl.store(scales_row + START // 32 + tl.arange(0, 32), scale.to(tl.uint8))


@triton.jit(do_not_specialize=["num_tokens"])
def _kernel(
    x_ptr, residual_ptr, weight_ptr, q_ptr, scales_ptr, residual_out_ptr, num_tokens, epsilon, RESIDUAL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, 1024)
    x_row = x_ptr + row * 7168 + columns
    weight = weight_ptr + columns
    x0 = tl.load(x_row).to(tl.float32)
    x1 = tl.load(x_row + 1024).to(tl.float32)
    x2 = tl.load(x_row + 2048).to(tl.float32)
    x3 = tl.load(x_row + 3072).to(tl.float32)
    x4 = tl.load(x_row + 4096).to(tl.float32)
    x5 = tl.load(x_row + 5120).to(tl.float32)
    x6 = tl.load(x_row + 6144).to(tl.float32)
    if RESIDUAL:
        r_row = residual_ptr + row * 7168 + columns
        x0 += tl.load(r_row).to(tl.float32)
        x1 += tl.load(r_row + 1024).to(tl.float32)
        x2 += tl.load(r_row + 2048).to(tl.float32)
        x3 += tl.load(r_row + 3072).to(tl.float32)
        x4 += tl.load(r_row + 4096).to(tl.float32)
        x5 += tl.load(r_row + 5120).to(tl.float32)
        x6 += tl.load(r_row + 6144).to(tl.float32)
    w0 = tl.load(weight).to(tl.float32)
    w1 = tl.load(weight + 1024).to(tl.float32)
    w2 = tl.load(weight + 2048).to(tl.float32)
    w3 = tl.load(weight + 3072).to(tl.float32)
    w4 = tl.load(weight + 4096).to(tl.float32)
    w5 = tl.load(weight + 5120).to(tl.float32)
    w6 = tl.load(weight + 6144).to(tl.float32)
    if RESIDUAL:
        out = residual_out_ptr + row * 7168 + columns
        tl.store(out, x0.to(tl.bfloat16))
        tl.store(out + 1024, x1.to(tl.bfloat16))
        tl.store(out + 2048, x2.to(tl.bfloat16))
        tl.store(out + 3072, x3.to(tl.bfloat16))
        tl.store(out + 4096, x4.to(tl.bfloat16))
        tl.store(out + 5120, x5.to(tl.bfloat16))
        tl.store(out + 6144, x6.to(tl.bfloat16))
    squares = x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3 + x4 * x4 + x5 * x5 + x6 * x6
    x0 *= w0
    x1 *= w1
    x2 *= w2
    x3 *= w3
    x4 *= w4
    x5 *= w5
    x6 *= w6
    a0 = _amax(x0)
    a1 = _amax(x1)
    a2 = _amax(x2)
    a3 = _amax(x3)
    a4 = _amax(x4)
    a5 = _amax(x5)
    a6 = _amax(x6)
    norm = tl.rsqrt(tl.sum(squares) * (1.0 / 7168) + epsilon)
    q_row = q_ptr + row * 3584
    scales_row = scales_ptr + row * 224
    _store(x0, a0, norm, q_row, scales_row, 0)
    _store(x1, a1, norm, q_row, scales_row, 1024)
    _store(x2, a2, norm, q_row, scales_row, 2048)
    _store(x3, a3, norm, q_row, scales_row, 3072)
    _store(x4, a4, norm, q_row, scales_row, 4096)
    _store(x5, a5, norm, q_row, scales_row, 5120)
    _store(x6, a6, norm, q_row, scales_row, 6144)


def run(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, outputs: tuple[torch.Tensor, ...]
) -> None:
    """Launches the kernel; outputs are (q, scales) or (q, scales, residual_out)."""
    q, scales, *residual_out = outputs
    _kernel[(x.shape[0],)](
        x,
        x if residual is None else residual,
        weight,
        q,
        scales,
        residual_out[0] if residual_out else x,
        x.shape[0],
        1e-6,
        RESIDUAL=residual is not None,
        num_warps=4 if residual is None else 8,
    )
