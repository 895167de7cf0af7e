"""Estimates a kernel's time from what the compiler made of it, for a GPU that is not here.

A roofline with latency: time = launch + latency of the turns a compute unit takes + the larger of memory and
vector issue. It knows bytes, occupancy, instruction counts and how programs divide over compute units; it does
not know caches, the order of instructions or contention. Constants and their sources are in limits/.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from tunegen.codegen.resources import Resources
from tunegen.errors import TargetError
from tunegen.ops import Config, Problem, get_family
from tunegen.targets import Target

MODEL = "roofline/1"


@dataclass(frozen=True)
class Limits:
    """Constants of one target, in the units their names say."""

    bandwidth_gbs: float
    cache_gbs: float
    lanes_per_clock: float
    clock_ghz: float
    memory_latency_us: float
    barrier_us: float
    launch_us: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of a kernel at one token count.

    Attributes:
        microseconds: Estimated time a call.
        limiter: The largest term: ``"memory"``, ``"issue"`` or ``"latency"``.
        memory_us: Time that moving the bytes takes at the bandwidth in reach.
    """

    microseconds: float
    limiter: str
    memory_us: float


@functools.cache
def limits_of(target: str) -> Limits:
    """The constants of a target; raises TargetError if there are none."""
    path = Path(__file__).parent / "limits" / f"{target}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json")))
        raise TargetError(f"There are no performance limits of {target} to predict with. There are of: {known}.")
    data = json.loads(path.read_text(encoding="utf-8"))
    return Limits(**{name: float(item["value"]) for name, item in data.items()})


def predict(problem: Problem, target: Target, config: Config, resources: Resources, num_tokens: int) -> Prediction:
    """Estimates the time of one call.

    Args:
        problem: What is computed.
        target: For its reference device.
        config: Of the kernel.
        resources: Of the kernel as compiled for the target.
        num_tokens: Rows, at least 1.
    """
    limits = limits_of(target.name)
    family = get_family(problem.op)
    tiles, programs = family.grid(problem, config, num_tokens, target.device.units)
    units = target.device.units

    busiest = -(-programs // units)
    resident = min(resources.programs_per_unit, busiest)
    tiles_of_program = -(-tiles // programs)
    # Programs of a unit that cannot be resident together wait for one another; a loop's turns follow each other.
    turns = -(-busiest // max(resident, 1)) * tiles_of_program
    latency = turns * (limits.memory_latency_us + resources.barriers * limits.barrier_us)

    moved = family.bytes_moved(problem, num_tokens)
    # Little's law: bandwidth needs bandwidth * latency bytes in flight.
    in_flight = min(units, programs) * resident * moved / max(tiles, 1)
    needed = limits.bandwidth_gbs * 1e3 * limits.memory_latency_us
    cached = family.bytes_requested(problem, config, num_tokens) / (limits.cache_gbs * 1e3)
    memory = max(moved / (limits.bandwidth_gbs * 1e3) / min(1.0, in_flight / needed), cached)

    lanes = resources.vector_instructions * resources.warps * target.warp_size
    # A unit's four schedulers need a warp each.
    busy = min(1.0, resident * resources.warps / 4)
    issue = busiest * tiles_of_program * lanes / (limits.lanes_per_clock * busy * limits.clock_ghz * 1e3)

    terms = {"memory": memory, "issue": issue, "latency": latency}
    # The first turn's latency stands before everything; the later ones overlap with the streams.
    total = limits.launch_us + latency / turns + max(memory, issue, latency - latency / turns)
    return Prediction(total, max(terms, key=lambda name: terms[name]), moved / (limits.bandwidth_gbs * 1e3))
