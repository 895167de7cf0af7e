"""The tables of the F3 kernels at DeepSeek's sizes: `tunegen bench` on the heads that a rank has.

Usage: python benchmarks/f3_table.py [--aiter-root FOLDER] [--configs tuned_configs] [--out DIR]

AITER rotates in the activation dtype and tunegen in fp32 (rounding "none"): the bytes are the same, a third of the
rotated values is not.
"""

from __future__ import annotations

from tables import Lines, command

from tunegen.bench.baselines import ROPE
from tunegen.ops import Problem

# Heads, variant, token counts: a rank of DeepSeek-R1, one of V2-Lite or of R1 at TP 8, one of Kimi-K2.
ROWS: tuple[tuple[int, str, tuple[int, ...]], ...] = (
    (128, "none", (1, 16, 64, 256, 4096)),
    (16, "none", (1, 64, 256, 1024, 4096)),
    (64, "none", (64, 1024)),
    (128, "none,fp8", (1, 64, 256, 4096)),
    (16, "none,fp8", (64, 1024)),
)


def lines() -> Lines:
    """Every row at its token counts."""
    return [
        (Problem.of(ROPE, {"num_heads": heads, "kv_lora_rank": 512, "rope_dim": 64}, variant), tokens)
        for heads, variant, token_counts in ROWS
        for tokens in token_counts
    ]


main = command("f3_table", lines, lambda _: [])

if __name__ == "__main__":
    main()
