"""Runs single instructions on waves whose registers a test sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunegen.execute.decode import Program, decode_instruction
from tunegen.execute.lds import LocalMemory
from tunegen.execute.listing import Listing, _read_instruction
from tunegen.execute.machine import Dispatch, Machine, Options
from tunegen.execute.memory import GlobalMemory
from tunegen.execute.operands import EXEC
from tunegen.execute.waves import Waves

LDS_BYTES = 4096
# Zeros, subnormals, the edges of normal numbers, ties of every format, infinities, quiet and signalling NaNs.
EDGES = np.array(
    [
        0.0,
        2.0 ** (-149),
        2.0 ** (-133),
        2.0 ** (-126),
        2.0 ** (-125),
        2.0 ** (-64),
        2.0 ** (-24),
        2.0 ** (-14),
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        1.75,
        2.0,
        2.5,
        3.0,
        3.5,
        4.0,
        5.0,
        6.0,
        6.5,
        7.0,
        240.0,
        448.0,
        464.0,
        480.0,
        65504.0,
        65520.0,
        1.0 + 2.0 ** (-23),
        1.0 + 2.0 ** (-8),
        2.0**24 + 2,
        2.0**64,
        2.0**127,
        3.4028234663852886e38,
        np.inf,
    ],
    np.float32,
)
EDGES = np.concatenate(
    [EDGES, -EDGES, np.array([0x7FC00000, 0xFFC12345, 0x7F800001, 0xFF812345], np.uint32).view("f4")]
)


def machine(arch: str = "gfx950", **options: Any) -> Machine:
    """A machine without a program."""
    listing = Listing("none", arch)
    listing.descriptor = {"private_segment_fixed_size": 4096, "fp16_overflow": 0}
    made = Machine(
        Program(listing, [], [], 512, 1), GlobalMemory(), Dispatch((1, 1, 1), 1, LDS_BYTES, 0, np.zeros(0, np.uint32)),
        Options(**options),
    )  # fmt: skip
    made.lds = LocalMemory(np.zeros((8, LDS_BYTES), np.uint8), LDS_BYTES)
    return made


def waves_of(count: int = 1, arch: str = "gfx950", on: Machine | None = None, **options: Any) -> Waves:
    """Waves, each the first of a workgroup of its own."""
    return Waves(on or machine(arch, **options), np.arange(count), np.zeros(count, np.int64))


def run(waves: Waves, *lines: str, arch: str = "gfx950") -> Waves:
    """Executes instructions, with the checks for waits and hazards."""
    listing = Listing("none", arch)
    for number, line in enumerate(lines, 1):
        step = decode_instruction(_read_instruction(number, line), listing)
        waves.board.check_pending(step)
        waves.board.check_hazards(step)
        with np.errstate(all="ignore"):
            step.run(waves)
        if step.counter is not None:
            waves.board.issue(step.counter, step.writes)
        waves.board.stamp(step)
        waves.board.clock += step.states
    return waves


def edges(rng: np.random.Generator, shape: tuple[int, ...] = (4, 64)) -> np.ndarray:
    """fp32 values: edges, and random ones of all magnitudes."""
    random = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    ordinary = rng.standard_normal(shape).astype(np.float32)
    kind = rng.integers(0, 3, shape)
    return np.choose(kind, [rng.choice(EDGES, shape), random, ordinary]).astype(np.float32)


def words(rng: np.random.Generator, shape: tuple[int, ...] = (4, 64)) -> np.ndarray:
    """uint32: edges, and random ones."""
    special = np.array(
        [0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFF, 0x10000], np.uint32
    )
    return np.where(rng.random(shape) < 0.4, rng.choice(special, shape), rng.integers(0, 2**32, shape, np.uint32))


def same_floats(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bit for bit, NaNs as one."""
    nan = np.isnan(expected)
    return bool((np.isnan(got) == nan).all() and (got.view(np.uint32)[~nan] == expected.view(np.uint32)[~nan]).all())


def set_exec(waves: Waves, mask: int) -> None:
    """The same active lanes for all waves."""
    waves.set_s64(EXEC, np.full(waves.n, mask, np.uint64))
