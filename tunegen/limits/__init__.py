"""What a target can do: rates of its instructions, its memory, its clock. One data file a target, every constant with
its source.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegen.errors import TargetError


@dataclass(frozen=True)
class Rates:
    """Clocks of instructions, for one warp (wave).

    ``*_clocks``: how long one occupies its unit, a scheduler's own (float, integer, transcendental) or the compute
    unit's (shuffle, memory). ``*_bytes``: bytes a clock of the compute unit. ``*_latency``: clocks from issue until
    the result can be used.
    """

    float_clocks: float
    integer_clocks: float
    slow_integer_clocks: float
    transcendental_clocks: float
    shuffle_clocks: float
    shared_bytes: float
    global_bytes: float
    address_clocks: float
    arithmetic_latency: float
    slow_latency: float
    transcendental_latency: float
    shuffle_latency: float
    shared_latency: float
    scalar_latency: float
    scalar_load_latency: float
    special_register_latency: float
    barrier_latency: float
    scratch_latency: float


@dataclass(frozen=True)
class Limits:
    """Constants of a target's reference device, in the units their names say.

    ``cache`` is the last level in front of the memory.
    """

    bandwidth_gbs: float
    memory_latency_us: float
    cache_bytes: float
    cache_gbs: float
    cache_latency_us: float
    clock_ghz: float
    launch_us: float


@functools.cache
def _data(target: str) -> dict[str, Any]:
    path = Path(__file__).parent / f"{target}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def sources_of(target: str) -> dict[str, str]:
    """Where each constant of a target comes from."""
    return {name: item["source"] for part in _data(target).values() for name, item in part.items()}


@functools.cache
def rates_of(target: str) -> Rates:
    """The rates of a target's instructions."""
    return Rates(**{name: float(item["value"]) for name, item in _data(target)["rates"].items()})


@functools.cache
def limits_of(target: str) -> Limits:
    """The constants of a target's device.

    Raises:
        TargetError: None are known: kernels are compiled for the target, and nothing is predicted.
    """
    data = _data(target)
    if "device" not in data:
        files = sorted(Path(__file__).parent.glob("*.json"))
        known = ", ".join(file.stem for file in files if "device" in _data(file.stem))
        raise TargetError(f"There are no performance limits of {target} to predict with. There are of: {known}.")
    return Limits(**{name: float(item["value"]) for name, item in data["device"].items()})
