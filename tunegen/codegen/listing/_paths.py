"""The ways through a kernel that a program may take."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunegen.codegen.listing._instruction import Instruction

# A conditional branch past fewer instructions than this is a mask; past more, it tells kinds of programs apart.
LEAST_ARM = 24
MOST_PATHS = 16


@dataclass
class Path:
    """One way through a kernel.

    Attributes:
        instructions: What is executed, of a loop one turn.
        loops: First and last position in ``instructions`` of the body of each loop.
    """

    instructions: list[Instruction] = field(default_factory=list)
    loops: list[tuple[int, int]] = field(default_factory=list)


def paths_of(instructions: list[Instruction]) -> list[Path]:
    """The ways through a kernel, at most `MOST_PATHS`.

    Masked code is executed; loops are entered, and left after a turn.
    """
    index_of = {instruction.line: index for index, instruction in enumerate(instructions)}
    finished: list[Path] = []
    # Where to go on, what was executed so far, and at which position of it each instruction stands.
    waiting: list[tuple[int, Path, dict[int, int]]] = [(0, Path(), {})]
    while waiting and len(finished) < MOST_PATHS:
        at, path, places = waiting.pop()
        while at < len(instructions):
            instruction = instructions[at]
            places[at] = len(path.instructions)
            path.instructions.append(instruction)
            target = index_of.get(instruction.target, -1)
            if instruction.kind == "exit" and not instruction.predicated:
                break
            if target < 0:
                at += 1
            elif target in places:
                path.loops.append((places[target], places[at]))
                at += 1
            elif not instruction.predicated:
                at = target
            else:
                skipped = instructions[at + 1 : target] if target > at else []
                if len(skipped) >= LEAST_ARM and any(other.kind.startswith(("global", "async")) for other in skipped):
                    waiting.append((target, Path(list(path.instructions), list(path.loops)), dict(places)))
                at += 1
        finished.append(path)
    return finished
