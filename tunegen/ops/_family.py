"""What tunegen asks of a kernel family, and the problem and config types."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from tunegen.errors import ConfigError, UnknownNameError
from tunegen.targets import Target

Config = dict[str, int | str]


def config_key(config: Config) -> str:
    """One string for one config: sorted JSON."""
    return json.dumps(config, sort_keys=True)


@dataclass(frozen=True)
class Problem:
    """One kernel to tune: an op at one shape.

    Attributes:
        op: Op name.
        shape: Sizes the kernel is rendered for, as sorted items: ``(("hidden_size", 7168),)``.
        rounding: The op's variant: its ``rounding``, and whatever else is resolved when rendering.
    """

    op: str
    shape: tuple[tuple[str, int], ...]
    rounding: str = "none"

    @classmethod
    def of(cls, op: str, shape: dict[str, int], rounding: str = "none") -> Problem:
        """A problem from a shape dict."""
        return cls(op, tuple(sorted(shape.items())), rounding)

    @property
    def sizes(self) -> dict[str, int]:
        """The shape as a dict."""
        return dict(self.shape)

    def __str__(self) -> str:
        about = [f"{name} {size}" for name, size in self.shape]
        if self.rounding != "none":
            about.append(self.rounding)
        return f"{self.op} ({', '.join(about)})"


@dataclass(frozen=True)
class Knob:
    """One tunable.

    Attributes:
        name: Key in a config.
        choices: Values the search may take, the simplest first: a tie goes to the earlier one.
        meaning: One line for people.
    """

    name: str
    choices: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Argument:
    """A run-time argument of a kernel, as an offline compile must see it.

    Attributes:
        name: Parameter name.
        type: Triton type; ``{act}`` stands for the activation dtype.
        aligned: A launch would find it divisible by 16, and Triton would specialise on that.
        true_for: Of a ``constexpr`` argument: the activation dtypes for which a launch would pass True.
    """

    name: str
    type: str
    aligned: bool = False
    true_for: tuple[str, ...] = ()


class Family(ABC):
    """A kernel family: one template that serves one or more ops.

    Attributes:
        name: Family name.
        ops: Names of the ops it serves.
        sizes: Names of the sizes that a shape of its has.
        template: Template file, relative to templates/.
        twin_template: Template of the traffic twin: the same loads and stores, no arithmetic.
        preset: The ops that are tuned for a model, or at a size, unless others are asked for.
    """

    name: str
    ops: tuple[str, ...]
    sizes: tuple[str, ...]
    template: str
    twin_template: str
    preset: tuple[str, ...]

    @abstractmethod
    def check_shape(self, problem: Problem) -> None:
        """Raises ShapeError for sizes that the family's kernels cannot have."""

    @abstractmethod
    def knobs(self, problem: Problem, target: Target) -> tuple[Knob, ...]:
        """What can be tuned for this problem on this target."""

    @abstractmethod
    def canonical(self, config: Config) -> Config:
        """The config with every knob that has no effect in it at its first value."""

    @abstractmethod
    def check(self, problem: Problem, target: Target, config: Config) -> None:
        """Raises ConfigError if the config has a value out of range or values that do not fit together."""

    @abstractmethod
    def default(self, problem: Problem, target: Target) -> Config:
        """The config of the family's analytic rule, used without tuning and as the baseline of tuning."""

    @abstractmethod
    def context(self, problem: Problem, target: Target, config: Config) -> dict[str, Any]:
        """What the template is rendered with."""

    @abstractmethod
    def launch_options(self, target: Target, config: Config) -> dict[str, Any]:
        """Triton's launch options."""

    @abstractmethod
    def arguments(self, problem: Problem) -> tuple[Argument, ...]:
        """Run-time arguments of the rendered kernel, in order."""

    @abstractmethod
    def grid(self, problem: Problem, config: Config, num_tokens: int, units: int) -> tuple[int, int]:
        """Tiles of work and programs launched for them on a device of ``units`` compute units."""

    @abstractmethod
    def bytes_moved(self, problem: Problem, num_tokens: int) -> int:
        """Bytes a call must read and write at two bytes an activation, each once."""

    def bytes_requested(self, problem: Problem, config: Config, num_tokens: int) -> int:
        """Bytes that the programs of a config load and store in all: what several of them read counts each time."""
        return self.bytes_moved(problem, num_tokens)

    @abstractmethod
    def twin_configs(self, problem: Problem, target: Target) -> list[Config]:
        """Launch choices that the traffic twin is taken the best of."""

    def twin_of(self, problem: Problem, target: Target, config: Config) -> Config | None:
        """The twin with the launch choices of a config; None if there is none."""
        return config

    @abstractmethod
    def tuned_variants(self, op: str) -> tuple[str, ...]:
        """The variants of an op that are tuned on their own, the usual one first."""

    @abstractmethod
    def served(self, problem: Problem) -> list[Problem]:
        """The problems whose kernels take the configs found for this one: itself and other variants of it."""

    def canonical_problem(self, problem: Problem) -> Problem:
        """The problem with a synonymous rounding replaced by the one that is rendered."""
        return problem

    def resolve(self, problem: Problem, target: Target, given: Config) -> Config:
        """The default config with ``given`` put over it, checked and canonical.

        Raises:
            UnknownNameError: A key that is not a knob here.
            ConfigError: A value that is not valid here.
        """
        names = [knob.name for knob in self.knobs(problem, target)]
        for name in given:
            if name not in names:
                raise UnknownNameError("config key", name, names)
        config = self.canonical({**self.default(problem, target), **given})
        self.check(problem, target, config)
        return config

    def valid(self, problem: Problem, target: Target, config: Config) -> bool:
        """True if the config passes `check`."""
        try:
            self.check(problem, target, config)
        except ConfigError:
            return False
        return True

    def space(self, problem: Problem, target: Target) -> Iterator[Config]:
        """Every distinct valid config."""
        knobs = self.knobs(problem, target)
        seen = set()
        for values in product(*(knob.choices for knob in knobs)):
            config = self.canonical(dict(zip((knob.name for knob in knobs), values, strict=True)))
            key = config_key(config)
            if key not in seen and self.valid(problem, target, config):
                seen.add(key)
                yield config

    def complexity(self, problem: Problem, target: Target, config: Config) -> tuple[int, ...]:
        """Orders configs from simple to elaborate: how far each knob is from its simplest value."""
        ranks = [
            knob.choices.index(config[knob.name]) if config[knob.name] in knob.choices else len(knob.choices)
            for knob in self.knobs(problem, target)
        ]
        return (sum(ranks), *ranks)
