"""The forms beside the first three ops: their kernels, their quantisers, and that wrong outputs are found."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from tunegen.evaluate.conformance import fewest_lanes_per_row, pairwise
from tunegen.evaluate.conformance.rows import Case, candidates, case_factors, make_args
from tunegen.evaluate.interpreter import Interpreter, interpretable
from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.files import write_text_atomically
from tunegen.models import get_model, problems_of
from tunegen.ops import OP_NAMES, Config, Problem, get_family
from tunegen.ops.rmsnorm_mxfp4 import ROWS_FAMILIES
from tunegen.runtime.families import OPS, OpInputError
from tunegen.runtime.families.recipe import RECIPES
from tunegen.runtime.reference.fp8 import quantize_fp8, quantize_mxfp8
from tunegen.runtime.reference.nvfp4 import quantize_nvfp4
from tunegen.runtime.reference.scale_layout import LAYOUTS, place, unplace
from tunegen.targets import Target, get_target

CPU = torch.device("cpu")
SIZES = (256, 384)
TOKENS = (1, 5)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def sizes_of(op: str, size: int) -> dict[str, int]:
    recipe = RECIPES[op]
    return {recipe.width_name: size, **({"second_size": 160} if recipe.second else {})}


def problems_with(op: str, size: int) -> list[Problem]:
    return [Problem.of(op, sizes_of(op, size), variant) for variant in RECIPES[op].variants()]


def configs_of(problem: Problem, target: Target) -> dict[str, Config]:
    family = get_family(problem.op)
    changes: dict[str, Config] = {
        "default": {},
        "rows": {"rows": 2, "num_warps": 1},
        "rows, looping": {"rows": 4, "num_warps": 2, "programs_per_unit": 1, "store_policy": "streaming"},
        "looping": {"programs_per_unit": 1},
        "split": {"splits": 2, "num_warps": 1},
    }
    default = family.default(problem, target)
    configs = {name: family.canonical({**default, **change}) for name, change in changes.items()}
    return {name: config for name, config in configs.items() if family.valid(problem, target, config)}


# --- Kernels ---


def test_kernels_conform(target: Target, judge) -> None:
    """Every op meets every rounding, layout of scales, token count, dtype, layout of inputs and kind of config."""
    new = [op for op in RECIPES if op not in ROWS_FAMILIES[0].ops]
    problems = [problem for op in new for size in SIZES for problem in problems_with(op, size)]
    problems += [p for op in ROWS_FAMILIES[0].ops for p in problems_with(op, 384) if "," in p.rounding]
    pairs = []
    for case in candidates(problems, TOKENS, fp8=target.fp8):
        pairs += [(case, name) for name in configs_of(case.problem, target)]
    # All would be 50000; what pairs in a fifth of them are missing is not many.
    pairs = random.Random(target.name).sample(pairs, len(pairs) // 5)
    chosen = pairwise(pairs, lambda pair: (*case_factors(pair[0])[2:], pair[0].problem.op, pair[1]))
    # AMD's kernels differ from NVIDIA's in the width of a warp, in fp8 (gfx942) and in few lines.
    chosen = chosen[:: {"gfx942": 5, "gfx950": 10}.get(target.name, 1)]
    work = [(case, configs_of(case.problem, target)[name]) for case, name in chosen]
    assert judge(target, work) == []


def patterns(kind: str) -> torch.Tensor:
    """Every bfloat16 pattern, neighbours together; or the finite ones of all magnitudes that come near each other."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    if kind == "every":
        return every.view(torch.bfloat16).view(128, 512)
    generator = torch.Generator().manual_seed(0)
    values = every.view(torch.bfloat16).float()
    values = values[(values.abs() < 2.0**8) & (values.abs() > 2.0**-10)]
    shuffled = values[torch.randperm(len(values), generator=generator)]
    return shuffled[: len(shuffled) // 512 * 512].view(-1, 512).bfloat16()


@pytest.mark.parametrize("quantiser", ["mxfp8", "fp8_group", "fp8_token", "nvfp4"])
def test_quantisers_bit_for_bit(
    quantiser: str, interpreter: Interpreter, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every bfloat16, with ties of every scale among them; judged in the interpreter's process."""
    target = get_target("sm90")
    problem = Problem.of(f"dynamic_{quantiser}_quant", {"hidden_size": 512})
    config = {**get_family(problem.op).default(problem, target), "rows": 4, "num_warps": 2}
    path = interpretable(problem, target, config).write(tmp_path_factory.mktemp("kernels"))
    for kind in ("every", "near"):
        assert interpreter._pool.submit(_differences, path, problem.op, patterns(kind)).result() == []


def _differences(path, op: str, x: torch.Tensor) -> list[str]:
    from tunegen.evaluate import interpreter
    from tunegen.runtime.kernel import load_kernel

    interpreter._prepare_worker()
    args = (x, torch.full((1,), 3.0)) if "nvfp4" in op else (x,)
    outputs, right = OPS[op].allocate(*args), OPS[op].reference(*args)
    OPS[op].launch(load_kernel(path), interpreter.UNITS, outputs, *args)
    found = []
    for name, got, wanted in zip(("q", "scales"), outputs, right, strict=True):
        same = torch.nan_to_num(got.float(), nan=-1.0) == torch.nan_to_num(wanted.float(), nan=-1.0)
        if not bool(same.all()):
            found.append(f"{name}: {int((~same).sum())} differ, first at {(~same).nonzero()[0].tolist()}")
    return found


# --- References ---


def test_layouts_of_scales_are_aiters() -> None:
    """The shuffle spelled out as AITER's kernels compute an offset."""
    tokens, blocks = 300, 13
    scales = torch.randint(0, 255, (tokens, blocks), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shuffled = place(scales, "shuffled")
    assert shuffled.shape == (512, 16)
    flat = shuffled.flatten()
    for m in range(512):
        for n in range(16):
            offset = m // 32 * 32 * 16 + n // 8 * 256 + n % 4 * 64 + m % 16 * 4 + n % 8 // 4 * 2 + m % 32 // 16
            assert int(flat[offset]) == (int(scales[m, n]) if m < tokens and n < blocks else 127)
    for layout in LAYOUTS:
        placed = place(scales, layout)
        back, padding = unplace(placed, layout, tokens, blocks)
        assert torch.equal(back, scales)
        assert padding.numel() == placed.numel() - scales.numel()
        assert bool((padding == 127).all())
    assert place(scales, "columns").stride() == (1, tokens)


def test_quantisers_reproduce_what_they_can() -> None:
    """Values that a format has, with a scale that it has, come back; and errors are below half a step."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 64).unsqueeze(1)
    q, scales = quantize_mxfp8(x, zero_blocks=False)
    step = torch.ldexp(torch.ones_like(x[:, :16]), scales.int() - 127).repeat_interleave(32, dim=1)
    assert bool(((q.float() * step - x).abs() <= torch.maximum(x.abs() / 16, step * 2.0**-10)).all())
    assert float(q.float().abs().max()) <= 448
    for group in (128, 512):
        q, scale = quantize_fp8(x, group, torch.float8_e4m3fn)
        back = q.float() * scale.repeat_interleave(group, dim=1)
        error = (back - x).abs()
        assert bool((error <= x.abs() / 16 + scale.repeat_interleave(group, dim=1) * 2.0**-10 * 1.001).all())
    near = x / x.abs().amax(dim=1, keepdim=True)
    q, scale = quantize_nvfp4(near, torch.tensor([300.0]))
    values = torch.tensor(E2M1)[torch.stack((q & 7, q >> 4 & 7), dim=-1).flatten(1).long()]
    step = (scale.float() / 300).repeat_interleave(16, dim=1)
    assert bool(((values * step - near.abs()).abs() <= torch.maximum(near.abs() / 4, step / 4) + step / 2).all())
    mended = quantize_nvfp4(torch.full((1, 16), float("nan")), None)
    assert (int(mended[1].view(torch.uint8)), int(mended[0].sum())) == (0x7F, 0)


# --- Wrong outputs are found ---


def flip(at: int) -> Callable[[list[torch.Tensor]], None]:
    """Changes the least bit of one element in the middle of an output."""

    def change(outputs: list[torch.Tensor]) -> None:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[outputs[at].element_size()]
        row = outputs[at].view(bits)[1]
        row[5] ^= 1 << (3 if bits == torch.int32 else 0)

    return change


def pad(outputs: list[torch.Tensor]) -> None:
    outputs[1][-1, -1] = 0


WRONG = [
    ("silu_mul_mxfp4_quant", "none", 0, flip(0)),
    ("silu_mul_mxfp4_quant", "none,shuffled", 1, pad),
    ("rmsnorm_add_mxfp4_quant", "none,padded", 1, pad),
    ("gelu_mul_mxfp4_quant", "output", 1, flip(1)),
    ("rmsnorm_add_and_mxfp4_quant", "output", 3, flip(3)),
    ("dual_rmsnorm_mxfp4_quant", "norm_output", 2, flip(2)),
    ("dual_rmsnorm", "none", 0, flip(0)),
    ("rmsnorm_mxfp8_quant", "none", 0, flip(0)),
    ("rmsnorm_mxfp8_quant", "none", 1, flip(1)),
    ("rmsnorm_fp8_group_quant", "output", 0, flip(0)),
    ("rmsnorm_fp8_token_quant", "none", 0, flip(0)),
    ("rmsnorm_nvfp4_quant", "output", 0, flip(0)),
    ("rmsnorm_nvfp4_quant", "none", 1, flip(1)),
]


@pytest.mark.parametrize(("op", "variant", "at", "change"), WRONG)
def test_one_wrong_element_fails(op: str, variant: str, at: int, change) -> None:
    fp8 = "float8_e4m3fn" if "fp8_" in op else ""
    case = Case(Problem.of(op, sizes_of(op, 512), variant), 3, "bfloat16", "contiguous", special=False, fp8=fp8)
    args = make_args(case, CPU)
    outputs = [output.clone() for output in OPS[op].reference(*args)]
    assert failures(case.problem, args, outputs, 32) == []
    change(outputs)
    assert len(failures(case.problem, args, outputs, 32)) == 1


@pytest.mark.parametrize(
    ("computed", "asked"),
    [
        ("none", "output"),
        ("output", "act_output"),
        ("act_output", "output"),
        ("output", "none"),
        ("act_output", "none"),
    ],
)
def test_another_rounding_of_an_activation_fails(computed: str, asked: str) -> None:
    op = "silu_mul_mxfp4_quant"
    case = Case(Problem.of(op, sizes_of(op, 512), asked), 64, "bfloat16", "contiguous", special=False)
    (x, *_) = make_args(case, CPU)
    assert failures(case.problem, (x, asked), OPS[op].reference(x, computed), 32) != []


def test_another_activation_fails() -> None:
    x = make_args(
        Case(Problem.of("gelu_mul_mxfp4_quant", {"intermediate_size": 512}), 8, "float16", "strided", False), CPU
    )[0]
    for op, other in (("gelu", "gelu_tanh"), ("gelu_tanh", "gelu"), ("silu", "gelu")):
        problem = Problem.of(f"{op}_mul_mxfp4_quant", {"intermediate_size": 512})
        assert failures(problem, (x, "none"), OPS[problem.op].reference(x, "none"), 32) == []
        assert failures(problem, (x, "none"), OPS[f"{other}_mul_mxfp4_quant"].reference(x, "none"), 32) != []


MUTATIONS = [
    ("silu_mul_mxfp4_quant", "none", "gate for up", "load_row(x_row + 512,", "load_row(x_row,"),
    ("silu_mul_mxfp4_quant", "none,shuffled", "rows 16 on", "row % 32 // 16", "row % 16 // 8"),
    ("silu_mul_mxfp4_quant", "none,padded", "no padding", "padding & (index < end)", "padding & (index < 0)"),
    ("silu_mul_mxfp4_quant", "none,columns", "rows", "block.to(tl.int64) * num_tokens + row", "row * 16 + block"),
    ("gelu_mul_mxfp4_quant", "none", "erf of x", "x * 0.7071067811865476", "x"),
    ("gelu_tanh_mul_mxfp4_quant", "none", "no cube", "(x * x) * 0.1029", "x * 0.1029"),
    ("dual_rmsnorm", "none", "first row", "second_norm(x2_ptr, weight2_ptr", "second_norm(x2_ptr, weight_ptr"),
    ("dual_rmsnorm_mxfp4_quant", "none", "first epsilon", "x2_stride, epsilon2", "x2_stride, epsilon2 * 900"),
    (
        "rmsnorm_and_mxfp4_quant",
        "none",
        "norm left out",
        "tl.store(norm_row + columns_256, (y_0 * norm)",
        "tl.store(norm_row + columns_256, y_0",
    ),
    ("rmsnorm_mxfp8_quant", "none", "scale", ">> 23) - 8", ">> 23) - 7"),
    ("rmsnorm_fp8_group_quant", "none", "no least", "1e-10)", "1e-3)"),
    ("rmsnorm_fp8_token_quant", "none", "one segment", "row_amax = tl.maximum(row_amax, amax_1)", "row_amax = amax_0"),
    ("rmsnorm_nvfp4_quant", "none", "scale truncated", "return (value + shift) - shift", "return value"),
    ("rmsnorm_nvfp4_quant", "none", "global scale", "6.0) * global_scale", "6.0)"),
]


@pytest.mark.parametrize(("op", "variant", "name", "old", "new"), MUTATIONS)
def test_mutations_are_found(op: str, variant: str, name: str, old: str, new: str, interpreter, tmp_path) -> None:
    target = get_target("sm90")
    problem = Problem.of(op, sizes_of(op, 512), variant)
    config = {**get_family(op).default(problem, target), "cover": "2x256", "num_warps": 1}
    source = interpretable(problem, target, config).source
    assert old in source
    path = tmp_path / f"{op}.py"
    write_text_atomically(path, source.replace(old, new))
    fp8 = target.fp8 if "fp8_" in op else ""
    case = Case(problem, 17, "bfloat16", "contiguous", special=True, fp8=fp8)
    assert interpreter.run_case(path, case, fewest_lanes_per_row(target, config)) != []


# --- What is said of them ---


def test_every_op_is_of_one_family_and_a_model_takes_few() -> None:
    of_rows = [op for family in ROWS_FAMILIES for op in family.ops]
    assert sorted(of_rows) == sorted(RECIPES)
    assert set(of_rows) < set(OP_NAMES)
    chosen = problems_of(get_model("deepseek-r1"))
    assert {p.op for p in chosen if p.op in RECIPES} == set(ROWS_FAMILIES[0].ops)
    asked = ["rmsnorm_fp8_group_quant", "dual_rmsnorm", "silu_mul_mxfp4_quant"]
    assert [p.sizes for p in problems_of(get_model("deepseek-r1"), asked)] == [
        {"intermediate_size": 2048},
        {"hidden_size": 1536, "second_size": 512},
        *({"hidden_size": size} for size in (7168, 1536, 512)),
    ]


@pytest.mark.parametrize(
    ("op", "change", "said"),
    [
        ("silu_mul_mxfp4_quant", lambda a: [a[0][:, :-32], *a[1:]], "multiple of 64"),
        ("silu_mul_mxfp4_quant", lambda a: [a[0], "sum_output"], "rounding must be one of none, output, act_output"),
        ("silu_mul_mxfp4_quant", lambda a: [a[0], "none", "rowwise"], "scale_layout must be one of rows, columns"),
        ("dual_rmsnorm", lambda a: [*a[:3], a[3][:2], *a[4:]], "x2 must have shape"),
        ("dual_rmsnorm", lambda a: [*a[:5], float("nan"), *a[6:]], "epsilon2 must not be negative or NaN"),
        ("rmsnorm_fp8_group_quant", lambda a: [a[0][:, :96], a[1][:96], *a[2:]], "multiple of 128"),
        ("rmsnorm_fp8_token_quant", lambda a: [*a, torch.float16], "dtype must be float8_e4m3fn or"),
        ("dynamic_nvfp4_quant", lambda a: [a[0], torch.ones(2)], "global_scale must be one float32"),
    ],
)
def test_bad_arguments(op: str, change, said: str) -> None:
    args = list(OPS[op].inputs(sizes_of(op, 256), 3, torch.bfloat16, CPU, torch.Generator()))
    with pytest.raises(OpInputError, match=said):
        OPS[op].check(*change(args))
