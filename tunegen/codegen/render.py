"""Renders kernel templates."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from tunegen import __version__
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.paths import templates_dir
from tunegen.targets import Target


@dataclass(frozen=True)
class Rendered:
    """The source of one kernel.

    Attributes:
        problem: What it computes.
        target: Name of the target it is rendered for.
        config: Its config.
        source: A Python file: helpers, the ``@triton.jit`` kernel, and how to launch it.
    """

    problem: Problem
    target: str
    config: Config
    source: str

    @property
    def digest(self) -> str:
        """Names the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:12]

    def write(self, folder: Path) -> Path:
        """Writes the source to ``folder`` under its digest and returns the path."""
        path = folder / f"{self.problem.op}_{self.digest}.py"
        if not path.exists():
            write_text_atomically(path, self.source)
        return path


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dir()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _closure(template: str) -> set[str]:
    """A template and every macro file that it imports, directly or not."""
    environment = _environment()
    found: set[str] = set()
    waiting = [template]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            parsed = environment.parse((templates_dir() / name).read_text(encoding="utf-8"))
            waiting += [reference for reference in jinja2.meta.find_referenced_templates(parsed) if reference]
    return found


@functools.cache
def template_hash(template: str) -> str:
    """Hash of a template and of every macro file it uses."""
    digest = hashlib.sha256()
    for name in sorted(_closure(template)):
        digest.update(name.encode() + b"\0" + (templates_dir() / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _launch_lines(options: dict[str, Any], config: Config, op: str) -> str:
    items = ", ".join(f'"{name}": {value!r}' for name, value in options.items())
    return (
        f'\n\nKERNEL = "{op}"\n'
        f"ROWS = {config.get('rows', 1)}\n"
        f"SPLITS = {config.get('splits', 1)}\n"
        f"PROGRAMS_PER_UNIT = {config.get('programs_per_unit', 0)}\n"
        f"OPTIONS = {{{items}}}\n"
    )


def render(problem: Problem, target: Target, config: Config, twin: bool = False) -> Rendered:
    """Renders the kernel of a problem, or its traffic twin.

    Args:
        problem: Op, shape and rounding.
        target: The GPU it is for.
        config: A complete config; see ``Family.resolve``.
        twin: Render the kernel that only moves the same bytes.

    Raises:
        ShapeError, ConfigError: The shape or the config is not one the family has.
    """
    family = get_family(problem.op)
    family.check_shape(problem)
    problem = family.canonical_problem(problem)
    family.check(problem, target, config)
    template = family.twin_template if twin else family.template
    about = {
        "op": problem.op,
        "tunegen_version": __version__,
        "template": f"templates/{template}",
        "template_hash": template_hash(template),
        "target": target.name,
        "shape_text": ", ".join(f"{name}={size}" for name, size in problem.shape),
        "rounding": problem.rounding,
        "config_text": ", ".join(f"{name}={value}" for name, value in config.items()),
    }
    text = _environment().get_template(template).render(kernel=about, **family.context(problem, target, config))
    lines = [line.rstrip() for line in text.strip().splitlines()]
    source = "\n".join(lines) + "\n" + _launch_lines(family.launch_options(target, config), config, problem.op)
    return Rendered(problem, target.name, config, source)


def kernels_hash(problem: Problem, target: Target, configs: Iterable[Config]) -> str:
    """Hash of the code rendered from configs, comments aside: tuned entries that a template renders anew are stale."""
    digest = hashlib.sha256()
    for config in configs:
        for line in render(problem, target, config).source.splitlines():
            if not line.startswith("#"):
                digest.update(line.encode() + b"\0")
    return digest.hexdigest()[:12]
