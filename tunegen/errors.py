"""Errors a caller may catch. Each message states the rule, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TunegenError(Exception):
    """Base of every error that tunegen raises for bad input or a missing prerequisite."""


class UnknownNameError(TunegenError):
    """A name (op, model, target, config key, ...) that is not among the known ones.

    Args:
        kind: What the name should have been, e.g. ``"op"``.
        got: The name that came.
        known: The names there are.
    """

    def __init__(self, kind: str, got: str, known: Iterable[str]) -> None:
        names = list(known)
        near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"There is no {kind} '{got}'.{hint} Known: {', '.join(names)}.")


class ShapeError(TunegenError):
    """A shape that the op's kernels cannot have."""


class ConfigError(TunegenError):
    """A kernel config that is malformed or not valid for its shape and target."""


class TargetError(TunegenError):
    """A target or device that cannot do what was asked of it."""


class TunedFileError(TunegenError):
    """A tuned_configs file that cannot be read as one."""


class StaleEntryError(TunegenError):
    """A tuned entry made from another version of its template."""


class CompileError(TunegenError):
    """A rendered kernel that the compiler refuses."""


class ConformanceError(TunegenError):
    """A kernel whose outputs are not those of the numerics contract."""


class BenchError(TunegenError):
    """Something that was to be timed computes something else."""


class UsageError(TunegenError):
    """Options that do not fit together, or an environment that lacks what was asked for."""
