"""(Residual add +) RMSNorm + MXFP4 quantisation, and the quantisation alone."""

from __future__ import annotations

import functools
import re
from typing import Any

from tunegen.errors import ConfigError, ShapeError, UnknownNameError
from tunegen.ops._family import Argument, Config, Family, Knob, Problem
from tunegen.runtime.families.rmsnorm_mxfp4 import MAX_HIDDEN_SIZE
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


def split_choices(hidden_size: int) -> tuple[int, ...]:
    """Into how many equal parts of whole blocks a row may be split: up to 8, and 7168 into 7 of 1024."""
    odd = hidden_size // (hidden_size & -hidden_size)
    choices = {1, 2, 4, 8, *((odd,) if odd < 8 else ())}
    return tuple(sorted(n for n in choices if hidden_size % (BLOCK * n) == 0))


def _power_of_two_at_most(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def _power_of_two_at_least(value: int) -> int:
    return 1 << (value - 1).bit_length()


class RmsnormMxfp4(Family):
    """One program takes ``rows`` rows, whole, in registers; see templates/rmsnorm_mxfp4.py.jinja."""

    name = "rmsnorm_mxfp4"
    ops = (DYNAMIC, NORM, NORM_ADD)
    sizes = ("hidden_size",)
    template = "rmsnorm_mxfp4.py.jinja"
    twin_template = "rmsnorm_mxfp4_twin.py.jinja"

    def check_shape(self, problem: Problem) -> None:
        if tuple(problem.sizes) != self.sizes:
            raise ShapeError(f"{problem.op} has one size, hidden_size; got {', '.join(problem.sizes) or 'none'}.")
        hidden_size = problem.sizes["hidden_size"]
        if hidden_size % BLOCK or not BLOCK <= hidden_size <= MAX_HIDDEN_SIZE:
            raise ShapeError(
                f"The hidden size must be a multiple of {BLOCK} from {BLOCK} to {MAX_HIDDEN_SIZE}; got {hidden_size}."
                f" The next multiple is {-(-hidden_size // BLOCK) * BLOCK}."
            )
        if problem.rounding not in ROUNDINGS:
            raise UnknownNameError("rounding", problem.rounding, ROUNDINGS)

    def tuned_variants(self, op: str) -> tuple[str, ...]:
        return ("none",)

    def served(self, problem: Problem) -> list[Problem]:
        """All roundings: they differ by a conversion or two an element."""
        problems = (self.canonical_problem(Problem(problem.op, problem.shape, rounding)) for rounding in ROUNDINGS)
        return list(dict.fromkeys(problems))

    def canonical_problem(self, problem: Problem) -> Problem:
        rounding = problem.rounding
        if problem.op == DYNAMIC:
            rounding = "none"
        elif problem.op == NORM:
            rounding = rounding.removeprefix("sum_")
        return Problem(problem.op, problem.shape, rounding)

    @functools.lru_cache(maxsize=256)  # noqa: B019 - the family lives as long as the module
    def knobs(self, problem: Problem, target: Target) -> tuple[Knob, ...]:
        self.check_shape(problem)
        hidden_size = problem.sizes["hidden_size"]
        covers: list[str] = []
        largest = _power_of_two_at_most(hidden_size)
        while largest >= BLOCK:
            cover = greedy_cover(hidden_size, largest)
            if len(cover) > MAX_SEGMENTS:
                break
            if largest <= 4096 or not covers:
                covers.append(format_cover(cover))
            largest //= 2
        knobs = [
            Knob("splits", split_choices(hidden_size), "programs that share a row; each reads all of it"),
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
        hidden_size = problem.sizes["hidden_size"]
        for knob in self.knobs(problem, target):
            value = config[knob.name]
            if knob.name != "cover" and value not in knob.choices:
                choices = ", ".join(map(str, knob.choices))
                raise ConfigError(f"{knob.name} must be one of {choices} on {target.name}; got {value!r}.")
        widths = parse_cover(str(config["cover"]))
        if any(width < BLOCK or width & (width - 1) for width in widths) or sum(widths) != hidden_size:
            raise ConfigError(
                f"The segments of a cover must be powers of two of at least {BLOCK} that add up to the hidden size"
                f" {hidden_size}; {config['cover']} has {widths}, in all {sum(widths)}."
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
        if per_lane > MAX_ELEMENTS_PER_LANE:
            raise ConfigError(
                f"A lane holds at most {MAX_ELEMENTS_PER_LANE} elements; {rows} rows of {hidden_size} on {lanes} lanes"
                f" are {per_lane:g}. Take more warps or fewer rows."
            )
        if warps > 1 and rows * max(widths) < 2 * lanes:
            raise ConfigError(
                f"The widest segment must give each of the {lanes} lanes at least 2 elements; {rows} x {max(widths)}"
                " is too narrow. Take fewer warps or wider segments."
            )
        copies = (int(config["num_stages"]) - 1) * (2 if problem.op == NORM_ADD else 1)
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
        hidden_size = problem.sizes["hidden_size"]
        per_lane = target.default_elements_per_lane // (2 if problem.op == NORM_ADD else 1)
        # In the log domain: 7168 / (32 * 64) = 3.5 lies nearer to 4 than to 2.
        warps = _power_of_two_at_least(-(-hidden_size // (target.warp_size * per_lane)))
        warps = min(max(warps, 1), 16)
        largest = min(ELEMENTS_PER_LOAD * warps * target.warp_size, _power_of_two_at_most(hidden_size))
        while len(greedy_cover(hidden_size, largest)) > MAX_SEGMENTS:
            largest *= 2
        config: Config = {knob.name: knob.choices[0] for knob in self.knobs(problem, target)}
        return {**config, "cover": format_cover(greedy_cover(hidden_size, largest)), "num_warps": warps}

    def context(self, problem: Problem, target: Target, config: Config) -> dict[str, Any]:
        hidden_size = problem.sizes["hidden_size"]
        rows = int(config["rows"])
        lanes = int(config["num_warps"]) * target.warp_size
        splits = int(config["splits"])
        cover = parse_cover(str(config["cover"]))
        part = hidden_size // splits

        def placed(widths: list[int]) -> list[dict[str, int]]:
            segments = []
            start = 0
            for index, width in enumerate(widths):
                per_lane = rows * width // lanes
                pack = next((p for p in (8, 4) if per_lane >= p), 2)
                segments.append({"index": index, "start": start, "width": width, "pack": pack})
                start += width
            return segments

        row_segments = placed(cover)
        segments = placed(greedy_cover(part, max(cover))) if splits > 1 else row_segments
        return {
            "norm": problem.op != DYNAMIC,
            "residual": problem.op == NORM_ADD,
            "rounding": problem.rounding,
            "hidden_size": hidden_size,
            "reciprocal": repr(1.0 / hidden_size),
            "splits": splits,
            "part": part,
            "row_segments": row_segments,
            "row_widths": list(dict.fromkeys(cover)),
            "segments": segments,
            "widths": list(dict.fromkeys(segment["width"] for segment in segments)),
            "packs": sorted({segment["pack"] for segment in segments}, reverse=True),
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

    def launch_options(self, target: Target, config: Config) -> dict[str, Any]:
        # Contraction is off: the kernels spell their fused multiply-adds out, and Triton's default changes.
        options: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": 1, "enable_fp_fusion": False}
        if config.get("waves_per_eu"):
            options["waves_per_eu"] = config["waves_per_eu"]
        if config.get("max_registers"):
            options["maxnreg"] = config["max_registers"]
        return options

    def arguments(self, problem: Problem) -> tuple[Argument, ...]:
        residual, norm = problem.op == NORM_ADD, problem.op != DYNAMIC
        arguments = [Argument("x_ptr", "*{act}", aligned=True)]
        if residual:
            arguments.append(Argument("residual_ptr", "*{act}", aligned=True))
        if norm:
            arguments.append(Argument("weight_ptr", "*{act}", aligned=True))
        arguments += [Argument("q_ptr", "*u8", aligned=True), Argument("scales_ptr", "*u8", aligned=True)]
        if residual:
            arguments.append(Argument("residual_out_ptr", "*{act}", aligned=True))
        arguments += [Argument("num_tokens", "i32"), Argument("x_stride", "i32", aligned=True)]
        if residual:
            arguments.append(Argument("residual_stride", "i32", aligned=True))
        if norm:
            arguments.append(Argument("epsilon", "fp32"))
        arguments.append(Argument("PAIRS", "constexpr", true_for=("bfloat16",)))
        return tuple(arguments)

    def grid(self, problem: Problem, config: Config, num_tokens: int, units: int) -> tuple[int, int]:
        tiles = -(-num_tokens // int(config["rows"])) * int(config["splits"])
        most = int(config["programs_per_unit"]) * units
        return tiles, min(tiles, most) if most else tiles

    def bytes_moved(self, problem: Problem, num_tokens: int) -> int:
        hidden_size = problem.sizes["hidden_size"]
        activations = 3 if problem.op == NORM_ADD else 1
        a_row = activations * 2 * hidden_size + hidden_size // 2 + hidden_size // BLOCK
        weight = 0 if problem.op == DYNAMIC or not num_tokens else 2 * hidden_size
        return num_tokens * a_row + weight

    def bytes_requested(self, problem: Problem, config: Config, num_tokens: int) -> int:
        hidden_size, splits = problem.sizes["hidden_size"], int(config["splits"])
        moved = self.bytes_moved(problem, num_tokens)
        if problem.op == DYNAMIC:
            return moved
        # Programs that share a row read all of it, and their part once more; each program reads its weight.
        reads = 2 * hidden_size * (2 if problem.op == NORM_ADD else 1)
        again = num_tokens * reads * splits if splits > 1 else 0
        return moved + again + 2 * hidden_size * num_tokens

    def twin_configs(self, problem: Problem, target: Target) -> list[Config]:
        """Covers of narrow and wide segments over warps, with and without a loop over rows, and split rows."""
        base = self.default(problem, target)
        configs = []
        for warps in (2, 4, 8, 16):
            for programs in (0, 4, 8):
                for largest in (ELEMENTS_PER_LOAD * target.warp_size * warps, 4096):
                    widest = min(largest, _power_of_two_at_most(problem.sizes["hidden_size"]))
                    cover = format_cover(greedy_cover(problem.sizes["hidden_size"], widest))
                    config = {**base, "cover": cover, "num_warps": warps, "programs_per_unit": programs}
                    if config not in configs and self.valid(problem, target, config):
                        configs.append(config)
        for splits in split_choices(problem.sizes["hidden_size"])[1:]:
            config = {**base, "splits": splits, "num_warps": 4}
            if self.valid(problem, target, config):
                configs.append(config)
        return configs or [base]

    def twin_of(self, problem: Problem, target: Target, config: Config) -> Config | None:
        """A twin takes a row at a time; a config that is valid for several alone has none."""
        alone = {**config, "rows": 1}
        return alone if self.valid(problem, target, alone) else None


RMSNORM_MXFP4 = RmsnormMxfp4()
