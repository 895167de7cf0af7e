"""From a listing to steps that run."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from tunegen.execute.errors import ListingError
from tunegen.execute.isa import convert, crosslane, local, memory, packed, scalar, vector_decode
from tunegen.execute.listing import Instruction, Listing
from tunegen.execute.step import Step

FAMILIES = (vector_decode, packed, convert, crosslane, memory, local)


@dataclass
class Program:
    """A listing, decoded.

    Attributes:
        listing: It.
        steps: Its instructions.
        ends: For each step, the index behind the block that it is in: where waves may come together or part.
        num_vectors: Vector registers that it names, accumulation ones included.
        lds_unit: Bytes of the unit in which LDS is accessed: 4, or 1 if some access takes less.
    """

    listing: Listing
    steps: list[Step]
    ends: list[int]
    num_vectors: int
    lds_unit: int


def decode(listing: Listing) -> Program:
    """Makes all instructions ready to run.

    Raises:
        ListingError: One that the executor does not know, with its line; nothing is skipped or guessed.
    """
    steps = [decode_instruction(instruction, listing) for instruction in listing.instructions]
    if not steps or steps[-1].flow not in ("end", "branch"):
        raise ListingError(f"The last instruction of {listing.name} is neither s_endpgm nor a branch.")
    _keep_what_meets(steps)
    # A block ends behind a branch, barrier or end, and in front of what is branched to.
    cuts = {i + 1 for i, step in enumerate(steps) if step.flow} | {step.target for step in steps if step.target >= 0}
    ordered = sorted(cuts | {len(steps)})
    ends = [ordered[bisect.bisect_right(ordered, i)] for i in range(len(steps))]
    used = [register for step in steps for register in step.registers if register < 512]
    sizes = [local.least_access(step.instruction.name) for step in steps]
    unit = 1 if any(size is not None and size < 4 for size in sizes) else 4
    return Program(listing, steps, ends, max(used, default=0) + 1, unit)


def decode_instruction(instruction: Instruction, listing: Listing) -> Step:
    """The step of one instruction; raises ListingError, with its line, for one that is not known."""
    try:
        step = scalar.decode(instruction, listing.labels)
        for family in FAMILIES:
            if step is None:
                step = family.decode(instruction, listing.arch)
    except (ValueError, IndexError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise ListingError(
            f"line {instruction.line}: {instruction.text}: {reason}. The executor cannot run this form."
        ) from error
    if step is None:
        raise ListingError(
            f"line {instruction.line}: {instruction.text}: the executor does not know the opcode {instruction.name}"
            f" on {listing.arch}. Add it to a table in tunegen/execute/isa/."
        )
    return step


def _keep_what_meets(steps: list[Step]) -> None:
    """Drops hazards of which a program has only one side: following them would take time and show nothing."""
    produced = {(kind, register) for step in steps for kind, registers in step.produces for register in registers}
    needed = {(need.producer, need.register) for step in steps for need in step.needs}
    for step in steps:
        step.needs = [need for need in step.needs if (need.producer, need.register) in produced]
        kept = [
            (kind, tuple(register for register in registers if (kind, register) in needed))
            for kind, registers in step.produces
        ]
        step.produces = [(kind, registers) for kind, registers in kept if registers]
