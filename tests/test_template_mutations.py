"""Conformance notices when one line of a kernel is wrong.

Each mutation is a mistake someone could make in a template. They run in the interpreter, GPU or not: a kernel that
is known to be wrong has no business on one.
"""

from __future__ import annotations

from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tunegen.codegen.render import Rendered
from tunegen.evaluate.conformance import fewest_lanes_per_row
from tunegen.evaluate.conformance.rows import Case, matrix
from tunegen.evaluate.interpreter import Interpreter, interpretable
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.ops.rmsnorm_mxfp4 import DYNAMIC, NORM, NORM_ADD
from tunegen.targets import get_target

SIZES = {"hidden_size": 512}
TOKENS = (17,)

# Every mutated kernel is one of these; a lane has few enough elements for the loop to turn and tiles to be ragged.
ONE_ROW: Config = {"cover": "2x256", "num_warps": 1}
TILED: Config = {"cover": "2x256", "num_warps": 2, "rows": 4}
LOOPING: Config = {**ONE_ROW, "programs_per_unit": 1}
SPLIT: Config = {**ONE_ROW, "splits": 2}
WIDTHS: Config = {"cover": "256+2x128", "num_warps": 1}
WIDE: Config = {"cover": "512", "num_warps": 1}
SMALL_PACKS: Config = {"cover": "2x256", "num_warps": 4}


@dataclass(frozen=True)
class Mutation:
    """One line of one kernel, broken.

    Attributes:
        name: What is wrong.
        old: What the rendered source has, everywhere it has it.
        new: What replaces it.
        op: The kernel's op.
        rounding: Its rounding.
        config: What differs from its default config.
        target: Its target; those without an instruction for FP4 differ in how they convert.
    """

    name: str
    old: str
    new: str
    op: str = NORM
    rounding: str = "none"
    config: Config = field(default_factory=lambda: ONE_ROW)
    target: str = "sm90"


ACT = "x_ptr.dtype.element_ty"
LEAST = "tl.minimum(tl.minimum(below_2, below_4), above_4)"

MUTATIONS = (
    # The scale.
    Mutation("scale rounded up from 1.5", "- 0xE00000)", "- 0xC00000)"),
    Mutation("scale boundary one ulp up", "- 0xE00000)", "- 0xE00001)", op=DYNAMIC),
    Mutation("scale truncated", "- 0xE00000)", "- 0x1000000)"),
    Mutation("scale off by one", "- 0xE00000)", "- 0x600000)"),
    Mutation(
        "scale not clamped",
        "tl.maximum((amax_bits - 0xE00000) >> 23, 0)",
        "(amax_bits - 0xE00000) >> 23",
        op=DYNAMIC,
    ),
    Mutation("scale truncated, gfx942", "+ 0x200000)", ")", target="gfx942"),
    Mutation("scale off by one, gfx942", ">> 23) - 2", ">> 23) - 1", target="gfx942"),
    Mutation(
        "scale not clamped, gfx942",
        "tl.maximum(((amax_bits + 0x200000) >> 23) - 2, 0)",
        "((amax_bits + 0x200000) >> 23) - 2",
        op=DYNAMIC,
        target="gfx942",
    ),
    Mutation("scale of the next block", "scales_ptr + COLUMN // 32 +", "scales_ptr + 1 + COLUMN // 32 +"),
    Mutation("amax of signed values", "tl.maximum(tl.abs(low), tl.abs(high)", "tl.maximum(low, high"),
    Mutation(
        "amax of every second value", "tl.maximum(tl.abs(low), tl.abs(high)", "tl.maximum(tl.abs(low), tl.abs(low)"
    ),
    Mutation("amax of signed bits", "& 0x7FFFFFFF\n    return tl.max", "\n    return tl.max", target="gfx942"),
    Mutation("amax without the norm", "tl.float32, bitcast=True) * norm).to", "tl.float32, bitcast=True)).to"),
    # Bad and zero blocks.
    Mutation("no zero blocks", "keep = finite & (amax_bits >= 0x1F800000)", "keep = finite"),
    Mutation("zero blocks below 2^-63", "0x1F800000", "0x20000000"),
    Mutation("zero blocks below 2^-65", "0x1F800000", "0x1F000000"),
    Mutation("Inf passes", "amax_bits < 0x7F800000", "amax_bits <= 0x7F800000", op=DYNAMIC),
    Mutation("NaN passes", "finite = amax_bits < 0x7F800000", "finite = amax_bits != 0x7F800000", op=DYNAMIC),
    Mutation("bad blocks keep their codes", "words & of_words(tl.where(keep, -1, 0), NUM_BLOCKS, PACK)", "words"),
    Mutation("bad blocks have scale 254", "tl.where(finite, 0, 255)", "tl.where(finite, 0, 254)"),
    Mutation("bad rows pass", 'tl.where(sum_of_squares < float("inf"), norm, float("nan"))', "norm"),
    # The codes.
    Mutation("nibbles swapped", "word += c1 << 4", "word += c0 << 4"),
    Mutation("sign of the lowest code lost", "signs & -0x77777778", "signs & -0x77777780"),
    Mutation("signs swapped", "append_sign(signs, b3)", "append_sign(signs, b2)"),
    Mutation("signs lost in small packs", "signs & -0x77777778", "signs & 0x70000008", config=SMALL_PACKS),
    Mutation("no step above 4", "tl.minimum(below_4, above_4)", "below_4"),
    Mutation("no step below 4", "tl.minimum(below_4, above_4)", "above_4"),
    Mutation("codes of signed values", "a = tl.abs(a)", "a = a"),
    Mutation("ties rounded up", "round_e2m1(values, scale)\n", "round_e2m1(values, scale * 1.0000001)\n", op=DYNAMIC),
    Mutation(
        "ties rounded down", "round_e2m1(values, scale)\n", "round_e2m1(values, scale * 0.99999994)\n", op=DYNAMIC
    ),
    Mutation("codes below 4 one up", "scale, 8388606.0)", "scale, 8388606.5)", op=DYNAMIC),
    Mutation("codes above 4 one down", "scale * 0.5, 8388608.0)", "scale * 0.5, 8388607.5)", op=DYNAMIC),
    Mutation("the exponent left in the word", "word + 0x49444444", "word + 0x49444440"),
    Mutation("nibbles swapped, gfx942", "word = (word << 4) + c1", "word = (word << 4) + c0", target="gfx942"),
    Mutation("signs swapped, gfx942", "append_sign(signs, b3)", "append_sign(signs, b2)", config=WIDE, target="gfx942"),
    Mutation("no step above 4, gfx942", LEAST, "tl.minimum(below_2, below_4)", target="gfx942"),
    Mutation("no step below 2, gfx942", LEAST, "tl.minimum(below_4, above_4)", target="gfx942"),
    Mutation("codes above 2 one up", "scale * 0.5, 4194305.0)", "scale * 0.5, 4194305.5)", op=DYNAMIC, target="gfx942"),
    Mutation(
        "codes above 4 one down, gfx942",
        "scale * 0.25, 4194306.0)",
        "scale * 0.25, 4194305.5)",
        op=DYNAMIC,
        target="gfx942",
    ),
    Mutation(
        "the exponent left in the word, gfx942",
        "word - 0x72800000",
        "word - 0x72000000",
        config=WIDE,
        target="gfx942",
    ),
    # Where things are.
    Mutation("segment read twice", "x_1 = load_row(x_row, 256,", "x_1 = load_row(x_row, 0,"),
    Mutation("segment read two columns on", "x_1 = load_row(x_row, 256,", "x_1 = load_row(x_row, 254,"),
    Mutation("segment of the weight", "load_row(weight_ptr, 256,", "load_row(weight_ptr, 0,"),
    Mutation("codes of a segment", "q_row, scales_row, 256, 256,", "q_row, scales_row, 224, 256,"),
    Mutation("codes of a row", "q_ptr + first_row * 256", "q_ptr + first_row * 255"),
    Mutation("pairs swapped", "tl.join(even, odd)", "tl.join(odd, even)"),
    Mutation("residual read at the stride of x", "first_row * residual_stride", "first_row * x_stride", op=NORM_ADD),
    Mutation(
        "residual_out at the stride of x",
        "residual_out_ptr + first_row * 512",
        "residual_out_ptr + first_row * x_stride",
        op=NORM_ADD,
    ),
    Mutation("rows of a tile past the end", "inside = row < rows_left", "inside = row < 4", config=TILED),
    Mutation("last row of a tile left out", "inside = row < rows_left", "inside = row < rows_left - 1", config=TILED),
    Mutation(
        "residual_out of rows past the end",
        "sum_1.to(" + ACT + "), mask=inside)",
        "sum_1.to(" + ACT + "))",
        op=NORM_ADD,
        config=TILED,
    ),
    Mutation("loop takes every second tile", "tl.num_programs(0),", "2 * tl.num_programs(0),", config=LOOPING),
    Mutation("weight of another part", "weight_ptr + part * 256", "weight_ptr", config=SPLIT),
    Mutation("codes of another part", "q_row + part * 128", "q_row + part * 112", config=SPLIT),
    Mutation("norm of a part alone", "row_1 = load_row(x_row, 256,", "row_1 = load_row(x_row, 0,", config=SPLIT),
    # The norm.
    Mutation("mean of one element less", "sum_of_squares * 0.001953125", "sum_of_squares / 511"),
    Mutation("no epsilon", "+ epsilon", "+ 0.0"),
    Mutation(
        "a segment left out of the sum", "squares_256 = tl.fma(x_1, x_1, squares_256)", "squares_256 = squares_256"
    ),
    Mutation("a width left out of the sum", "squares += lane_sums(squares_128, 128)", "", config=WIDTHS),
    Mutation("nothing written of few rows", "if num_tokens > 0:", "if num_tokens > 17:"),
    Mutation(
        "no rounding of the sum",
        f".to({ACT})\n    tl.store(residual_out_row + columns",
        "\n    tl.store(residual_out_row + columns",
        op=NORM_ADD,
        rounding="sum_output",
    ),
    Mutation("norm not rounded", f"* norm).to({ACT}).to(tl.float32)", "* norm)", rounding="norm_output"),
    Mutation("output not rounded", f"y_1 = y_1.to({ACT}).to(tl.float32)", "y_1 = y_1", rounding="output"),
    Mutation(
        "residual_out truncated",
        f"sum_0.to({ACT})",
        f"(sum_0.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True).to({ACT})",
        op=NORM_ADD,
    ),
)


def rendered(op: str, rounding: str, config: Config, name: str) -> tuple[Rendered, list[Case]]:
    """The right kernel for the target of that name, and the cases for it."""
    problem, target = Problem.of(op, SIZES, rounding), get_target(name)
    complete = get_family(op).resolve(problem, target, config)
    return interpretable(problem, target, complete), matrix([problem], tokens=TOKENS)


def judge(interpreter: Interpreter, path: Path, kernel: Rendered, cases: list[Case]) -> list[str]:
    """What is wrong with a kernel, of the first case that fails."""
    lanes = fewest_lanes_per_row(get_target(kernel.target), kernel.config)
    futures = [interpreter.submit(path, case, lanes) for case in cases]
    try:
        return next((found for future in as_completed(futures) if (found := future.result())), [])
    finally:
        for future in futures:
            future.cancel()


BASES = list(dict.fromkeys((m.op, m.rounding, tuple(m.config.items()), m.target) for m in MUTATIONS))


@pytest.mark.parametrize(("op", "rounding", "config", "target_name"), BASES)
def test_the_kernels_pass_as_they_are(op, rounding, config, target_name, interpreter, kernel_folder) -> None:
    kernel, cases = rendered(op, rounding, dict(config), target_name)
    assert judge(interpreter, kernel.write(kernel_folder), kernel, cases) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_line_is_noticed(mutation: Mutation, interpreter: Interpreter, kernel_folder: Path) -> None:
    kernel, cases = rendered(mutation.op, mutation.rounding, mutation.config, mutation.target)
    source = kernel.source.replace(mutation.old, mutation.new)
    assert source != kernel.source, f"the template no longer has {mutation.old!r}"
    path = kernel_folder / f"mutation_{MUTATIONS.index(mutation)}.py"
    write_text_atomically(path, source)
    assert judge(interpreter, path, kernel, cases) != []
