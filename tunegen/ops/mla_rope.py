"""Fused MLA RoPE, concatenation of the absorbed query, and write of the KV-cache row."""

from __future__ import annotations

import itertools
from typing import Any

from tunegen.errors import ConfigError, ShapeError
from tunegen.ops._family import Argument, Config, Family, Knob, Problem
from tunegen.runtime.families.mla_rope import MAX_HEADS, SIZE_MULTIPLE, SIZES, Variant
from tunegen.runtime.reference.mla_rope import ROUNDINGS
from tunegen.targets import Target

FUNCTIONAL = "mla_rope_cache"
INPLACE = "mla_rope_cache_"

MAX_RANK = 4096
MAX_ROPE_DIM = 512
# Lanes load 16 bytes at a time: 8 activations.
ELEMENTS_PER_LOAD = 8
# 16 loads of 16 bytes a lane, 64 registers: more of them in flight hide nothing more. As fp32, on their way to fp8,
# twice as many registers: 128 spill on sm90.
MAX_ELEMENTS_PER_LANE = 128
MAX_CONVERTED_PER_LANE = 64
# Below two words a lane there are more lanes than the memory system has use for.
MIN_ELEMENTS_PER_LANE = 4
# A program's code is unrolled over tokens and chunks of heads.
MAX_CHUNKS = 16
# The default config gives a lane this many activations of q_nope (four loads), or of q_pe where nothing is copied.
DEFAULT_COPIED_PER_LANE = 32
DEFAULT_ROTATED_PER_LANE = 16

# Triton's name of each e4m3, and its largest value.
FP8_TYPES = {"float8_e4m3fn": ("float8e4nv", 448.0), "float8_e4m3fnuz": ("float8e4b8", 240.0)}

COUNTS = ("num_q_tokens", "num_tokens", "num_mapped", "num_positions", "num_slots", "block_size")


def _power_of_two_at_least(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _segments(size: int) -> list[dict[str, int]]:
    """The widest powers of two that add up to a size exactly, with where each begins."""
    segments = []
    start = 0
    while start < size:
        width = 1 << ((size - start).bit_length() - 1)
        segments.append({"start": start, "width": width})
        start += width
    return segments


class MlaRope(Family):
    """Programs for the heads of a token, and programs for its cache row; see templates/mla_rope_cache.py.jinja.

    ``Problem.rounding`` holds more than the rounding here: see `tunegen.runtime.families.mla_rope.Variant`.
    """

    name = "mla_rope"
    ops = (FUNCTIONAL, INPLACE)
    preset = ops
    sizes = SIZES
    template = "mla_rope_cache.py.jinja"
    twin_template = "mla_rope_cache_twin.py.jinja"

    def check_shape(self, problem: Problem) -> None:
        sizes = problem.sizes
        if tuple(sorted(sizes)) != self.sizes:
            raise ShapeError(f"{problem.op} has the sizes {', '.join(self.sizes)}; got {', '.join(sizes) or 'none'}.")
        if not 1 <= sizes["num_heads"] <= MAX_HEADS:
            raise ShapeError(f"num_heads must be from 1 to {MAX_HEADS}; got {sizes['num_heads']}.")
        for name, largest in (("kv_lora_rank", MAX_RANK), ("rope_dim", MAX_ROPE_DIM)):
            if sizes[name] % SIZE_MULTIPLE or not SIZE_MULTIPLE <= sizes[name] <= largest:
                raise ShapeError(
                    f"{name} must be a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {largest};"
                    f" got {sizes[name]}. The next multiple is {-(-sizes[name] // SIZE_MULTIPLE) * SIZE_MULTIPLE}."
                )
        try:
            variant = Variant.parse(problem.rounding)
        except ValueError as error:
            raise ShapeError(f"{problem.op}: {error}") from error
        if problem.op == INPLACE and (variant.pe_first or variant.q_fp8):
            raise ShapeError(
                f"{INPLACE} has no variants pe_first and q_fp8: it is vLLM's op; got {problem.rounding!r}."
            )

    def tuned_variants(self, op: str) -> tuple[str, ...]:
        """By the dtypes of the cache and of q_out: they decide the bytes that are written."""
        if op == INPLACE:
            return ("act", "act,fp8")
        return ("none", "none,fp8", "none,fp8,q_fp8")

    def served(self, problem: Problem) -> list[Problem]:
        """Both roundings, pairings and orders; an fp8 q_out beside any cache is served from that beside an fp8 one."""
        tuned = Variant.parse(problem.rounding)
        caches = (False, True) if tuned.q_fp8 else (tuned.fp8,)
        orders = (False, True) if problem.op == FUNCTIONAL else (False,)
        every = itertools.product(ROUNDINGS, (False, True), orders, caches)
        variants = [Variant(rounding, neox, pe_first, fp8, tuned.q_fp8) for rounding, neox, pe_first, fp8 in every]
        return [Problem(problem.op, problem.shape, str(variant)) for variant in variants]

    def canonical_problem(self, problem: Problem) -> Problem:
        return Problem(problem.op, problem.shape, str(Variant.parse(problem.rounding)))

    def knobs(self, problem: Problem, target: Target) -> tuple[Knob, ...]:
        self.check_shape(problem)
        variant = Variant.parse(problem.rounding)
        inplace = problem.op == INPLACE
        most_heads = _power_of_two_at_least(problem.sizes["num_heads"])
        heads = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= most_heads and (inplace or n <= 32))
        splits = ("rows_apart", "together") if inplace else ("rows_apart", "together", "rope_apart")
        vectors = (8, 16, 4) if variant.fp8 or variant.q_fp8 else (8, 4)
        knobs = [
            Knob("heads", heads, "heads a program handles"),
            Knob("tokens", (1, 2, 4), "tokens a program handles"),
            Knob("num_warps", (1, 2, 4, 8), "warps (waves) a program"),
            Knob(
                "split",
                splits,
                "rows_apart: cache rows in programs of their own; together: in a token's first program;"
                " rope_apart: rotation of q in programs of its own too",
            ),
            Knob("vector", vectors, "activations a lane copies at a time, at most"),
            Knob(
                "load_policy",
                # AMD's code is the same with evict_first and without.
                ("default", "l2") if target.backend == "hip" else ("default", "evict_first", "l2"),
                "cache policy of the loads of q and k; l2: past the first level",
            ),
            Knob("store_policy", ("default", "streaming"), "cache policy of the stores"),
        ]
        if target.backend == "hip":
            knobs.append(Knob("waves_per_eu", (0, 1, 2, 4), "waves a SIMD the register allocator aims at; 0: its own"))
        return tuple(knobs)

    def canonical(self, config: Config) -> Config:
        return config

    def check(self, problem: Problem, target: Target, config: Config) -> None:
        for knob in self.knobs(problem, target):
            value = config[knob.name]
            if value not in knob.choices:
                choices = ", ".join(map(str, knob.choices))
                raise ConfigError(f"{knob.name} must be one of {choices} on {target.name}; got {value!r}.")
        heads, tokens, warps = int(config["heads"]), int(config["tokens"]), int(config["num_warps"])
        lanes = warps * target.warp_size
        width = self._tile_width(problem)
        most = MAX_CONVERTED_PER_LANE if Variant.parse(problem.rounding).q_fp8 else MAX_ELEMENTS_PER_LANE
        if tokens * heads * width > most * lanes:
            raise ConfigError(
                f"A lane holds at most {most} activations; {tokens} tokens x {heads} heads x {width}"
                f" on {lanes} lanes are {tokens * heads * width / lanes:g}. Take more warps or fewer heads."
            )
        if warps > 1 and heads * width < MIN_ELEMENTS_PER_LANE * lanes:
            raise ConfigError(
                f"Each of the {lanes} lanes must have at least {MIN_ELEMENTS_PER_LANE} activations of a token; {heads}"
                f" heads x {width} are too few. Take fewer warps or more heads."
            )
        chunks = tokens * -(-self._rope_heads(problem, config) // self._rope_rows(problem, target, config))
        if chunks > MAX_CHUNKS:
            raise ConfigError(
                f"{tokens} tokens x {heads} heads are rotated in {chunks} chunks, more than {MAX_CHUNKS}."
                " Take more warps, fewer heads or fewer tokens."
            )

    def _tile_width(self, problem: Problem) -> int:
        """Activations of a head that a program holds at least: those it copies, or rotates if it copies none."""
        return problem.sizes["rope_dim" if problem.op == INPLACE else "kv_lora_rank"]

    def _rope_heads(self, problem: Problem, config: Config) -> int:
        """Heads that a program rotates; one that does nothing else takes as much as one that copies."""
        heads = int(config["heads"])
        if config["split"] != "rope_apart":
            return heads
        times = max(problem.sizes["kv_lora_rank"] // problem.sizes["rope_dim"], 1)
        return min(heads << (times.bit_length() - 1), _power_of_two_at_least(problem.sizes["num_heads"]))

    def _rope_rows(self, problem: Problem, target: Target, config: Config) -> int:
        """Heads in a chunk: so many that each lane has one 16-byte load of its rotary part."""
        half = _segments(problem.sizes["rope_dim"] // 2)[0]["width"]
        per_row = half if Variant.parse(problem.rounding).neox else 2 * half
        lanes = int(config["num_warps"]) * target.warp_size
        return min(max(lanes * ELEMENTS_PER_LOAD // per_row, 1), self._rope_heads(problem, config))

    def _least_rows(self, problem: Problem, target: Target, config: Config) -> int:
        """Rows of the smallest chunk: with fewer, a lane would not have both elements of an interleaved pair, and
        the compiler would bring them together through shared memory. Surplus rows are masked.
        """
        if Variant.parse(problem.rounding).neox:
            return 1
        narrowest = _segments(problem.sizes["rope_dim"] // 2)[-1]["width"]
        return max(int(config["num_warps"]) * target.warp_size // narrowest, 1)

    def default(self, problem: Problem, target: Target) -> Config:
        """Cache rows in programs of their own; the largest power of two of heads that divides their number, at most
        4 (32 where nothing is copied); as many warps as give a lane four 16-byte loads (two where nothing is copied).
        """
        self.check_shape(problem)
        inplace = problem.op == INPLACE
        num_heads = problem.sizes["num_heads"]
        heads = min(num_heads & -num_heads, 32 if inplace else 4)
        per_lane = DEFAULT_ROTATED_PER_LANE if inplace else DEFAULT_COPIED_PER_LANE
        warps = max(heads * self._tile_width(problem) // (per_lane * target.warp_size), 1)
        config: Config = {
            "heads": heads,
            "tokens": 1,
            "num_warps": min(1 << (warps.bit_length() - 1), 8),
            "split": "rows_apart",
            "vector": ELEMENTS_PER_LOAD,
            "load_policy": "default",
            "store_policy": "default",
        }
        if target.backend == "hip":
            config["waves_per_eu"] = 0
        return config

    def context(self, problem: Problem, target: Target, config: Config) -> dict[str, Any]:
        sizes = problem.sizes
        variant = Variant.parse(problem.rounding)
        heads, vector = int(config["heads"]), int(config["vector"])
        rope_heads = self._rope_heads(problem, config)
        rope_programs = -(-sizes["num_heads"] // rope_heads)
        head_programs = -(-sizes["num_heads"] // heads)
        fp8_type, fp8_max = FP8_TYPES[target.fp8]
        fp8 = variant.fp8 or variant.q_fp8
        return {
            "inplace": problem.op == INPLACE,
            "rounding": variant.rounding,
            "backend": target.backend,
            "neox": variant.neox,
            "pe_first": variant.pe_first,
            "cache_fp8": variant.fp8,
            "q_fp8": variant.q_fp8,
            "fp8_type": fp8_type,
            "fp8_max": fp8_max,
            "num_heads": sizes["num_heads"],
            "rank": sizes["kv_lora_rank"],
            "rope_dim": sizes["rope_dim"],
            "half": sizes["rope_dim"] // 2,
            "width": sizes["kv_lora_rank"] + sizes["rope_dim"],
            "rank_segments": _segments(sizes["kv_lora_rank"]),
            "rope_segments": _segments(sizes["rope_dim"]),
            "half_segments": _segments(sizes["rope_dim"] // 2),
            "heads": heads,
            "head_groups": head_programs,
            "rope_heads": rope_heads,
            "rope_groups": rope_programs,
            "rope_rows": self._rope_rows(problem, target, config),
            "least_rows": self._least_rows(problem, target, config),
            "head_programs": head_programs + (rope_programs if config["split"] == "rope_apart" else 0),
            "tokens": config["tokens"],
            "split": config["split"],
            # A lane takes 16 bytes at most, whatever it is told: eight 16-bit values.
            "run": vector if fp8 or vector < ELEMENTS_PER_LOAD else 0,
            "load_policy": config["load_policy"],
            "store_policy": config["store_policy"],
            "arguments": [argument.name for argument in self.arguments(problem) if argument.type != "constexpr"],
        }

    def launch_options(self, target: Target, config: Config) -> dict[str, Any]:
        # Contraction is off: every product is rounded, which the contract's `act` asks for.
        options: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": 1, "enable_fp_fusion": False}
        if config.get("waves_per_eu"):
            options["waves_per_eu"] = config["waves_per_eu"]
        return options

    def arguments(self, problem: Problem) -> tuple[Argument, ...]:
        variant = Variant.parse(problem.rounding)
        functional = problem.op == FUNCTIONAL
        cache = "*u8" if variant.fp8 else "*{act}"
        pointers = {
            **({"q_nope_ptr": "*{act}"} if functional else {}),
            "q_pe_ptr": "*{act}",
            "kv_c_ptr": "*{act}",
            "k_pe_ptr": "*{act}",
            "positions_ptr": "*i64",
            "cos_sin_ptr": "*{act}",
            "slot_mapping_ptr": "*i64",
            "kv_cache_ptr": cache,
            **({"k_scale_ptr": "*fp32"} if variant.fp8 else {}),
            **({"q_scale_ptr": "*fp32"} if variant.q_fp8 else {}),
            **({"q_out_ptr": "*u8" if variant.q_fp8 else "*{act}", "k_pe_out_ptr": "*{act}"} if functional else {}),
        }
        strides = [
            *(("q_nope_token_stride", "q_nope_head_stride") if functional else ()),
            *("q_pe_token_stride", "q_pe_head_stride", "kv_c_stride", "k_pe_stride"),
            *("cos_sin_stride", "block_stride", "entry_stride"),
        ]
        return (
            *(Argument(name, type_, aligned=True) for name, type_ in pointers.items()),
            *(Argument(name, "i32") for name in COUNTS),
            *(Argument(name, "i32", aligned=True) for name in strides),
            Argument("PAGED", "constexpr"),
        )

    def grid(self, problem: Problem, config: Config, num_tokens: int, units: int) -> tuple[int, int]:
        """Programs, all at once: there is no loop over tiles. Takes the problem, whose heads they are divided over."""
        num_heads = problem.sizes["num_heads"]
        a_tile = -(-num_heads // int(config["heads"]))
        if config["split"] == "rope_apart":
            a_tile += -(-num_heads // self._rope_heads(problem, config))
        if config["split"] != "together":
            a_tile += 1
        programs = -(-num_tokens // int(config["tokens"])) * a_tile
        return programs, programs

    def bytes_moved(self, problem: Problem, num_tokens: int) -> int:
        """With as many queries as tokens, a slot for each and every position another one."""
        sizes, variant = problem.sizes, Variant.parse(problem.rounding)
        num_heads, rank, rope_dim = sizes["num_heads"], sizes["kv_lora_rank"], sizes["rope_dim"]
        width = rank + rope_dim
        if problem.op == FUNCTIONAL:
            heads = num_heads * width * (2 + (1 if variant.q_fp8 else 2))
        else:
            heads = num_heads * rope_dim * (2 + 2)
        row = width * 2 + width * (1 if variant.fp8 else 2) + rope_dim * 2
        position, slot, angles = 8, 8, rope_dim * 2
        return num_tokens * (heads + row + position + slot + angles)

    def twin_configs(self, problem: Problem, target: Target) -> list[Config]:
        """All heads a program and warps that the kernel may have, cache rows apart; other knobs at their default."""
        base = self.default(problem, target)
        knobs = {knob.name: knob.choices for knob in self.knobs(problem, target)}
        configs = [{**base, "heads": h, "num_warps": w} for h in knobs["heads"] for w in knobs["num_warps"]]
        return [config for config in configs if self.valid(problem, target, config)]


MLA_ROPE = MlaRope()
