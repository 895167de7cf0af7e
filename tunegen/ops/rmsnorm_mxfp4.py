"""Ops that take and return rows: norms, gated activations and quantisers, all from one template.

What an op is put together from is its recipe (`tunegen.runtime.families.recipe`). Recipes whose kernels are tuned and
tested together are a family.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from tunegen.errors import ConfigError, ShapeError, UnknownNameError
from tunegen.ops._family import Argument, Config, Family, Knob, Problem
from tunegen.runtime.families.recipe import RECIPES, Recipe
from tunegen.runtime.families.rows import MAX_HIDDEN_SIZE
from tunegen.runtime.reference.quantisers import QUANTISERS
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS
from tunegen.targets import Target

DYNAMIC = "dynamic_mxfp4_quant"
NORM = "rmsnorm_mxfp4_quant"
NORM_ADD = "rmsnorm_add_mxfp4_quant"

BLOCK = 32
MAX_SEGMENTS = 16
# A lane keeps its elements as fp32 through the row reduction, beside the weight: more than 128 spill.
MAX_ELEMENTS_PER_LANE = 128
# What a layout change of a tile of rows takes beside the pipeline's buffers.
EXCHANGE_BYTES = 8192
# Lanes load 16 bytes at a time: 8 activations.
ELEMENTS_PER_LOAD = 8
# Triton's name of each e4m3, and its largest value.
FP8_TYPES = {"float8_e4m3fn": ("float8e4nv", 448.0), "float8_e4m3fnuz": ("float8e4b8", 240.0)}


def parse_cover(text: str) -> list[int]:
    """Segment widths of a cover: ``"3x2048+1024"`` is [2048, 2048, 2048, 1024].

    Raises:
        ConfigError: Not of that form.
    """
    widths: list[int] = []
    for part in text.split("+"):
        match = re.fullmatch(r"(?:(\d+)x)?(\d+)", part)
        if not match:
            raise ConfigError(f"A cover is segment widths such as 7x1024 or 3x2048+1024; got {text!r}.")
        widths += [int(match[2])] * int(match[1] or 1)
    return widths


def format_cover(widths: list[int]) -> str:
    """The inverse of `parse_cover`; equal neighbours are merged."""
    parts: list[list[int]] = []
    for width in widths:
        if parts and parts[-1][0] == width:
            parts[-1][1] += 1
        else:
            parts.append([width, 1])
    return "+".join(f"{count}x{width}" if count > 1 else str(width) for width, count in parts)


def greedy_cover(hidden_size: int, largest: int) -> list[int]:
    """The widest powers of two, none above ``largest``, that add up to the hidden size exactly."""
    widths = []
    width = largest
    while hidden_size:
        while width > hidden_size:
            width //= 2
        widths.append(width)
        hidden_size -= width
    return widths


def split_choices(hidden_size: int, multiple: int = BLOCK) -> tuple[int, ...]:
    """Into how many equal parts of whole blocks a row may be split: up to 8, and 7168 into 7 of 1024."""
    odd = hidden_size // (hidden_size & -hidden_size)
    choices = {1, 2, 4, 8, *((odd,) if odd < 8 else ())}
    return tuple(sorted(n for n in choices if hidden_size % (multiple * n) == 0))


def place_segments(widths: list[int], rows: int, lanes: int) -> list[dict[str, int]]:
    """Segments of a row with where each begins, and how many codes a word is stored of it."""
    segments = []
    start = 0
    for index, width in enumerate(widths):
        per_lane = rows * width // lanes
        pack = next((p for p in (8, 4) if per_lane >= p), 2)
        segments.append({"index": index, "start": start, "width": width, "pack": pack})
        start += width
    return segments


def _splits(recipe: Recipe, hidden_size: int) -> tuple[int, ...]:
    """As of `split_choices`; the maximum of a whole row is not shared."""
    whole = recipe.quant is not None and not recipe.quant.block
    return (1,) if whole else split_choices(hidden_size, recipe.multiple)


def _inputs(recipe: Recipe) -> int:
    """Rows of activations that a row of output is made from."""
    return 2 if recipe.residual or recipe.activation else 1


def _power_of_two_at_most(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def _power_of_two_at_least(value: int) -> int:
    return 1 << (value - 1).bit_length()


class Rows(Family):
    """One program takes ``rows`` rows, whole, in registers; see templates/rmsnorm_mxfp4.py.jinja.

    Args:
        name: Family name.
        recipes: Its ops; all have the same sizes.
        preset: Those that are tuned unless others are asked for.
    """

    template = "rmsnorm_mxfp4.py.jinja"
    twin_template = "rmsnorm_mxfp4_twin.py.jinja"

    def __init__(self, name: str, recipes: list[Recipe], preset: tuple[str, ...] = ()) -> None:
        self.name = name
        self.preset = preset
        self.ops = tuple(recipe.name for recipe in recipes)
        (self.sizes,) = {recipe.sizes for recipe in recipes}

    def check_shape(self, problem: Problem) -> None:
        recipe, sizes = RECIPES[problem.op], problem.sizes
        if set(sizes) != set(self.sizes):
            raise ShapeError(
                f"{problem.op} has {'one size' if len(self.sizes) == 1 else 'the sizes'}, {', '.join(self.sizes)}; got"
                f" {', '.join(sizes) or 'none'}."
            )
        for name, size in sizes.items():
            multiple = recipe.multiple if name == recipe.width_name else BLOCK
            if size % multiple or not multiple <= size <= MAX_HIDDEN_SIZE:
                raise ShapeError(
                    f"The {name.replace('_', ' ')} must be a multiple of {multiple} from {multiple} to"
                    f" {MAX_HIDDEN_SIZE}; got {size}. The next multiple is {-(-size // multiple) * multiple}."
                )
        rounding, _, layout = problem.rounding.partition(",")
        # A norm without a residual has the roundings of one with a residual as synonyms, and so has no norm at all.
        known = recipe.roundings if recipe.activation else ROUNDINGS
        if rounding not in known:
            raise UnknownNameError("rounding", rounding, known)
        if layout and layout not in recipe.layouts[1:]:
            raise UnknownNameError("scale layout", layout, recipe.layouts)

    def tuned_variants(self, op: str) -> tuple[str, ...]:
        return ("none",)

    def served(self, problem: Problem) -> list[Problem]:
        """All roundings, which differ by a conversion or two an element, and all layouts of the scales."""
        return [Problem(problem.op, problem.shape, variant) for variant in RECIPES[problem.op].variants()]

    def canonical_problem(self, problem: Problem) -> Problem:
        recipe = RECIPES[problem.op]
        return Problem(problem.op, problem.shape, str(recipe.canonical(recipe.parse(problem.rounding))))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - the family lives as long as the module
    def knobs(self, problem: Problem, target: Target) -> tuple[Knob, ...]:
        self.check_shape(problem)
        recipe = RECIPES[problem.op]
        hidden_size = recipe.width(problem.sizes)
        covers: list[str] = []
        largest = _power_of_two_at_most(hidden_size)
        while largest >= recipe.multiple:
            cover = greedy_cover(hidden_size, largest)
            if len(cover) > MAX_SEGMENTS:
                break
            if largest <= 4096 or not covers:
                covers.append(format_cover(cover))
            largest //= 2
        knobs = [
            Knob("splits", _splits(recipe, hidden_size), "programs that share a row; each reads all of it"),
            Knob("rows", (1, 2, 4, 8), "rows a program handles at a time"),
            Knob("programs_per_unit", (0, 1, 2, 4, 8), "0: a program a tile; k: k programs a unit loop over tiles"),
            Knob("num_stages", (1, 2, 3), "software pipeline depth of that loop"),
            Knob("cover", tuple(dict.fromkeys(covers)), "the row as unmasked segments"),
            Knob("num_warps", (1, 2, 4, 8, 16), "warps (waves) a program"),
            # AMD's code is the same with and without.
            Knob(
                "load_policy",
                ("default", "evict_first")[: 1 if target.backend == "hip" else 2],
                "cache policy of the activation loads",
            ),
            Knob("store_policy", ("default", "streaming"), "cache policy of the stores"),
        ]
        if target.backend == "hip":
            knobs.append(Knob("waves_per_eu", (0, 1, 2, 4), "waves a SIMD the register allocator aims at; 0: its own"))
        else:
            knobs.append(Knob("max_registers", (0, 64, 128), "registers a lane the assembler aims at; 0: its own"))
        return tuple(knobs)

    def canonical(self, config: Config) -> Config:
        return config if config["programs_per_unit"] else {**config, "num_stages": 1}

    def check(self, problem: Problem, target: Target, config: Config) -> None:
        recipe = RECIPES[problem.op]
        hidden_size = recipe.width(problem.sizes)
        for knob in self.knobs(problem, target):
            value = config[knob.name]
            if knob.name != "cover" and value not in knob.choices:
                choices = ", ".join(map(str, knob.choices))
                raise ConfigError(f"{knob.name} must be one of {choices} on {target.name}; got {value!r}.")
        widths = parse_cover(str(config["cover"]))
        if any(width < recipe.multiple or width & (width - 1) for width in widths) or sum(widths) != hidden_size:
            raise ConfigError(
                f"The segments of a cover must be powers of two of at least {recipe.multiple} that add up to the hidden"
                f" size {hidden_size}; {config['cover']} has {widths}, in all {sum(widths)}."
            )
        if len(widths) > MAX_SEGMENTS:
            raise ConfigError(f"A cover has at most {MAX_SEGMENTS} segments; {config['cover']} has {len(widths)}.")
        rows, warps, splits = int(config["rows"]), int(config["num_warps"]), int(config["splits"])
        if splits > 1 and (rows > 1 or config["programs_per_unit"]):
            raise ConfigError(
                f"Programs that share a row (splits {splits}) take one row each, without a loop: rows 1 and"
                f" programs_per_unit 0; got rows {rows}, programs_per_unit {config['programs_per_unit']}."
            )
        if warps > target.max_warps:
            raise ConfigError(f"{target.name} runs at most {target.max_warps} warps a program; got {warps}.")
        lanes = warps * target.warp_size
        per_lane = rows * hidden_size / lanes
        # Of a gated activation a lane holds both halves.
        most = MAX_ELEMENTS_PER_LANE // (2 if recipe.activation else 1)
        if per_lane > most:
            raise ConfigError(
                f"A lane holds at most {most} elements; {rows} rows of {hidden_size} on {lanes} lanes"
                f" are {per_lane:g}. Take more warps or fewer rows."
            )
        if warps > 1 and rows * max(widths) < 2 * lanes:
            raise ConfigError(
                f"The widest segment must give each of the {lanes} lanes at least 2 elements; {rows} x {max(widths)}"
                " is too narrow. Take fewer warps or wider segments."
            )
        copies = (int(config["num_stages"]) - 1) * _inputs(recipe)
        pipelined = copies * rows * 2 * hidden_size + EXCHANGE_BYTES * (copies > 0)
        if pipelined > target.shared_memory_of_program:
            raise ConfigError(
                f"A pipeline of {config['num_stages']} stages keeps {pipelined} bytes of {rows} rows of {hidden_size}"
                f" in shared memory; {target.name} gives a program {target.shared_memory_of_program}."
                " Take fewer stages or rows."
            )

    def default(self, problem: Problem, target: Target) -> Config:
        """A row a program; about ``target.default_elements_per_lane`` elements a lane, half with a residual;
        segments of one 16-byte load a lane; nothing else set.
        """
        self.check_shape(problem)
        recipe = RECIPES[problem.op]
        hidden_size = recipe.width(problem.sizes)
        per_lane = target.default_elements_per_lane // _inputs(recipe)
        # In the log domain: 7168 / (32 * 64) = 3.5 lies nearer to 4 than to 2.
        warps = _power_of_two_at_least(-(-hidden_size // (target.warp_size * per_lane)))
        warps = min(max(warps, 1), 16)
        largest = min(ELEMENTS_PER_LOAD * warps * target.warp_size, _power_of_two_at_most(hidden_size))
        while len(greedy_cover(hidden_size, largest)) > MAX_SEGMENTS:
            largest *= 2
        config: Config = {knob.name: knob.choices[0] for knob in self.knobs(problem, target)}
        return {**config, "cover": format_cover(greedy_cover(hidden_size, largest)), "num_warps": warps}

    def context(self, problem: Problem, target: Target, config: Config) -> dict[str, Any]:
        recipe = RECIPES[problem.op]
        quant, variant = recipe.quant, recipe.parse(problem.rounding)
        hidden_size = recipe.width(problem.sizes)
        rows = int(config["rows"])
        lanes = int(config["num_warps"]) * target.warp_size
        splits = int(config["splits"])
        cover = parse_cover(str(config["cover"]))
        part = hidden_size // splits
        row_segments = place_segments(cover, rows, lanes)
        segments = row_segments
        if splits > 1:
            segments = place_segments(greedy_cover(part, max(cover)), rows, lanes)
        fp8_type, fp8_max = FP8_TYPES[target.fp8 if quant and quant.native else "float8_e4m3fn"]
        return {
            "norm": recipe.norm,
            "residual": recipe.residual,
            "activation": recipe.activation,
            "output_norm": recipe.output_norm or not quant,
            "second": self._second(problem, rows, lanes) if recipe.second else None,
            "quantiser": recipe.quantiser,
            "block": quant.block if quant else 0,
            "q_width": hidden_size // quant.codes if quant else 0,
            "fp8_type": fp8_type,
            "fp8_max": fp8_max,
            "layout": variant.layout,
            "rounding": variant.rounding,
            "hidden_size": hidden_size,
            "reciprocal": repr(1.0 / hidden_size),
            "splits": splits,
            "part": part,
            "row_segments": row_segments,
            "row_widths": list(dict.fromkeys(cover)),
            "segments": segments,
            "widths": list(dict.fromkeys(segment["width"] for segment in segments)),
            # Codes of a byte each are not packed.
            "packs": sorted({segment["pack"] for segment in segments}, reverse=True)
            if quant and quant.codes == 2
            else [],
            "rows": rows,
            "lanes": lanes,
            # Lane by lane only if each lane has a value (on gfx950 a pair) of each segment.
            "one_sum": rows == 1
            and len(set(cover)) > 1
            and min(cover) >= lanes * (2 if target.fp4_conversion == "cvt_scalef32" else 1),
            "persistent": bool(config["programs_per_unit"]),
            "num_stages": config["num_stages"],
            "load_policy": config["load_policy"],
            "store_policy": config["store_policy"],
            "conversion": target.fp4_conversion,
            "backend": target.backend,
        }

    def _second(self, problem: Problem, rows: int, lanes: int) -> dict[str, Any]:
        """What the template is told of the row that is normalised beside the first."""
        size = problem.sizes["second_size"]
        widest = min(ELEMENTS_PER_LOAD * lanes, _power_of_two_at_most(size))
        return {
            "size": size,
            "reciprocal": repr(1.0 / size),
            "segments": place_segments(greedy_cover(size, widest), 1, lanes),
            "load": "load_one_row" if rows > 1 else "load_row",
        }

    def launch_options(self, target: Target, config: Config) -> dict[str, Any]:
        # Contraction is off: the kernels spell their fused multiply-adds out, and Triton's default changes.
        options: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": 1, "enable_fp_fusion": False}
        if config.get("waves_per_eu"):
            options["waves_per_eu"] = config["waves_per_eu"]
        if config.get("max_registers"):
            options["maxnreg"] = config["max_registers"]
        return options

    def arguments(self, problem: Problem) -> tuple[Argument, ...]:
        recipe = RECIPES[problem.op]
        act, quant = "*{act}", recipe.quant
        scale_types = {"mxfp4": "*u8", "mxfp8": "*u8", "nvfp4": "*u8", "fp8_group": "*fp32", "fp8_token": "*fp32"}
        pointers = {
            "x_ptr": act,
            **({"residual_ptr": act} if recipe.residual else {}),
            **({"weight_ptr": act} if recipe.norm else {}),
            **({"x2_ptr": act, "weight2_ptr": act} if recipe.second else {}),
            **({"global_scale_ptr": "*fp32"} if recipe.quantiser == "nvfp4" else {}),
            **({"q_ptr": "*u8", "scales_ptr": scale_types[recipe.quantiser]} if quant else {}),
            **({"residual_out_ptr": act} if recipe.residual else {}),
            **({"norm_ptr": act} if recipe.output_norm or not quant else {}),
            **({"norm2_ptr": act} if recipe.second else {}),
        }
        strides = ["x_stride", *(["residual_stride"] * recipe.residual), *(["x2_stride"] * recipe.second)]
        return (
            *(Argument(name, type_, aligned=True) for name, type_ in pointers.items()),
            Argument("num_tokens", "i32"),
            *(Argument(name, "i32", aligned=True) for name in strides),
            *([Argument("epsilon", "fp32")] if recipe.norm else []),
            *([Argument("epsilon2", "fp32"), Argument("first_programs", "i32")] if recipe.second else []),
            Argument("PAIRS", "constexpr", true_for=("bfloat16",)),
        )

    def grid(self, problem: Problem, config: Config, num_tokens: int, units: int) -> tuple[int, int]:
        tiles = -(-num_tokens // int(config["rows"])) * int(config["splits"])
        most = int(config["programs_per_unit"]) * units
        second = num_tokens if RECIPES[problem.op].second else 0
        return tiles + second, (min(tiles, most) if most else tiles) + second

    def bytes_moved(self, problem: Problem, num_tokens: int) -> int:
        recipe = RECIPES[problem.op]
        quant, width = recipe.quant, recipe.width(problem.sizes)
        activations = _inputs(recipe) + recipe.residual + (recipe.output_norm or not quant)
        a_row = activations * 2 * width
        if quant:
            a_row += width // quant.codes + quant.blocks(width) * quant.scale_dtype.itemsize
        second = problem.sizes["second_size"] if recipe.second else 0
        weight = 2 * (width * recipe.norm + second) if num_tokens else 0
        return num_tokens * (a_row + 4 * second) + weight

    def bytes_requested(self, problem: Problem, config: Config, num_tokens: int) -> int:
        recipe, splits = RECIPES[problem.op], int(config["splits"])
        width = recipe.width(problem.sizes)
        moved = self.bytes_moved(problem, num_tokens)
        if not recipe.norm:
            return moved
        # Programs that share a row read all of it, and their part once more; each program reads its weight.
        again = num_tokens * 2 * width * _inputs(recipe) * splits if splits > 1 else 0
        second = problem.sizes["second_size"] if recipe.second else 0
        return moved + again + 2 * (width + second) * num_tokens

    def twin_configs(self, problem: Problem, target: Target) -> list[Config]:
        """Covers of narrow and wide segments over warps, with and without a loop over rows, and split rows."""
        base = self.default(problem, target)
        configs = []
        for warps in (2, 4, 8, 16):
            for programs in (0, 4, 8):
                for largest in (ELEMENTS_PER_LOAD * target.warp_size * warps, 4096):
                    widest = min(largest, _power_of_two_at_most(RECIPES[problem.op].width(problem.sizes)))
                    cover = format_cover(greedy_cover(RECIPES[problem.op].width(problem.sizes), widest))
                    config = {**base, "cover": cover, "num_warps": warps, "programs_per_unit": programs}
                    if config not in configs and self.valid(problem, target, config):
                        configs.append(config)
        for splits in _splits(RECIPES[problem.op], RECIPES[problem.op].width(problem.sizes))[1:]:
            config = {**base, "splits": splits, "num_warps": 4}
            if self.valid(problem, target, config):
                configs.append(config)
        return configs or [base]

    def twin_of(self, problem: Problem, target: Target, config: Config) -> Config | None:
        """A twin takes a row at a time; a config that is valid for several alone has none."""
        alone = {**config, "rows": 1}
        return alone if self.valid(problem, target, alone) else None


def _family(name: str, *ops: str, preset: tuple[str, ...] = ()) -> Rows:
    return Rows(name, [RECIPES[op] for op in ops], preset)


def _norms_of(quantiser: str) -> Rows:
    ops = (f"dynamic_{quantiser}_quant", f"rmsnorm_{quantiser}_quant", f"rmsnorm_add_{quantiser}_quant")
    return _family(f"rmsnorm_{quantiser}", *ops, preset=ops if quantiser == "mxfp4" else ())


RMSNORM_MXFP4 = _norms_of("mxfp4")
ACTIVATION_MXFP4 = _family("activation_mxfp4", *(op for op in RECIPES if "_mul_" in op))
NORM_AND_MXFP4 = _family("norm_and_mxfp4", "rmsnorm_and_mxfp4_quant", "rmsnorm_add_and_mxfp4_quant")
DUAL_RMSNORM = _family("dual_rmsnorm", *(op for op in RECIPES if op.startswith("dual_")))
OTHER_QUANTISERS = tuple(_norms_of(quantiser) for quantiser in QUANTISERS if quantiser != "mxfp4")
ROWS_FAMILIES = (RMSNORM_MXFP4, ACTIVATION_MXFP4, NORM_AND_MXFP4, DUAL_RMSNORM, *OTHER_QUANTISERS)
