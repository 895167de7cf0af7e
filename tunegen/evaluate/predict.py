"""Estimates a kernel's time from what the compiler made of it, for a GPU that is not here.

The instructions of the listing are timed as one warp alone would execute them, in order, with published rates and
latencies (`tunegen.codegen.work`). From that, and from how many programs a compute unit gets and holds at once, follow
three times: of the schedulers and the units they share, of a program's own latency, and of memory. docs/prediction.md
has the formulas, the validation and what the model does not know. Constants and their sources are in tunegen/limits/.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunegen.codegen.resources import SCHEDULERS, Resources
from tunegen.limits import Limits, limits_of
from tunegen.ops import Config, Problem, get_family
from tunegen.targets import Target

__all__ = ["MODEL", "Prediction", "limits_of", "predict"]

MODEL = "issue-latency-memory/2"

# Execution and memory overlap, but not perfectly: the p-norm of their times is taken, between their maximum and their
# sum. 3 was chosen on an H100, where anything from 2 to 6 ranks configs alike; it tells nothing of a particular GPU.
OVERLAP = 3.0


@dataclass(frozen=True)
class Prediction:
    """What the model says of a kernel at one token count.

    Attributes:
        microseconds: Estimated time a call.
        limiter: The largest term: ``"memory"``, ``"issue"`` (arithmetic of the schedulers), ``"shared units"`` (LDS,
            shared memory and the first level of cache), ``"latency"`` or ``"launch"``.
        memory_us: Time that moving the bytes takes at the bandwidth in reach.
        issue_us: Time that the busiest compute unit's schedulers need to issue its programs.
        shared_us: Time that the units its schedulers share need.
        latency_us: Time its programs take one after another, as many at once as it holds, each as if it were alone.
        launch_us: Time of a kernel that does nothing.
        programs: Programs launched.
        turns: Tiles that a program handles, at most.
        rounds: How often the busiest unit fills up with programs.
        cached: Share of the bytes that come from the last level of cache.
    """

    microseconds: float
    limiter: str
    memory_us: float
    issue_us: float
    shared_us: float
    latency_us: float
    launch_us: float
    programs: int
    turns: int
    rounds: float
    cached: float

    @property
    def limit_us(self) -> float:
        """The least that any config can take: launch and memory."""
        return self.launch_us + self.memory_us


def _cached_share(limits: Limits, moved: int) -> float:
    """All of two input sets that fit into the cache in turn; nothing once a set alone fills it."""
    return min(max(2.0 - 2.0 * moved / limits.cache_bytes, 0.0), 1.0)


def predict(problem: Problem, target: Target, config: Config, resources: Resources, num_tokens: int) -> Prediction:
    """Estimates the time of one call.

    Args:
        problem: What is computed.
        target: For its reference device.
        config: Of the kernel.
        resources: Of the kernel as compiled for the target.
        num_tokens: Rows, at least 1.

    Raises:
        TargetError: Nothing is known of the target's device.
    """
    limits = limits_of(target.name)
    family = get_family(problem.op)
    units = target.device.units
    tiles, programs = family.grid(problem, config, num_tokens, units)
    turns = -(-tiles // max(programs, 1))
    once, turn = resources.once, resources.turn
    warps = resources.warps

    # The busiest unit's programs; where they are many, they spread evenly in the end.
    most = -(-programs // units)
    resident = max(min(resources.programs_per_unit, most), 1)
    share = float(most) if most < 4 * resident else programs / units
    schedulers = min(SCHEDULERS, warps * resident)

    scheduled = (once.scheduler_clocks + turns * turn.scheduler_clocks) * warps / schedulers
    shared = (once.unit_clocks + turns * turn.unit_clocks) * warps
    busy = max(scheduled, shared)
    alone = once.alone + turns * turn.alone
    trips = once.round_trips + turns * turn.round_trips

    moved = family.bytes_moved(problem, num_tokens)
    cached = _cached_share(limits, moved)
    latency_us = cached * limits.cache_latency_us + (1 - cached) * limits.memory_latency_us
    memory_us = moved * (cached / limits.cache_gbs + (1 - cached) / limits.bandwidth_gbs) / 1e3

    clocks_per_us = limits.clock_ghz * 1e3
    waiting = trips * latency_us * clocks_per_us
    # Programs that begin together wait for memory together, then compete for the schedulers; those that follow start
    # as others end, and one's waiting hides behind the work of the rest.
    first = waiting + max(alone, resident * busy)
    following = max(share - resident, 0.0) * max(busy, (waiting + alone) / resident)
    executing_us = (first + following) / clocks_per_us
    overlapped = (executing_us**OVERLAP + (memory_us + latency_us) ** OVERLAP) ** (1 / OVERLAP)

    terms = {
        "memory": memory_us,
        "issue": share * scheduled / clocks_per_us,
        "shared units": share * shared / clocks_per_us,
        "latency": max(share / resident, 1.0) * (waiting + alone) / clocks_per_us,
        "launch": limits.launch_us,
    }
    return Prediction(
        microseconds=limits.launch_us + overlapped,
        limiter=max(terms, key=lambda name: terms[name]),
        memory_us=memory_us,
        issue_us=terms["issue"],
        shared_us=terms["shared units"],
        latency_us=terms["latency"],
        launch_us=limits.launch_us,
        programs=programs,
        turns=turns,
        rounds=most / resident,
        cached=cached,
    )
