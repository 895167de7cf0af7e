"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunegen.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tunegen.ops import Config, Problem
    from tunegen.targets import Target

Function = TypeVar("Function", bound=Callable[..., Any])

OUT_HELP = "Folder of tuned configs. Default: ./tuned_configs where there is one, else those that ship with tunegen."
# Where `tunegen tune` writes unless told otherwise, and where the other commands look first.
LOCAL_CONFIGS = Path("tuned_configs")


# Tables keep their columns in a log file, which has no width of its own.
LOG_WIDTH = 140


def plain_console() -> Console:
    """A console for standard output, wide enough for the tables where that is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def shape_options(function: Function) -> Function:
    """--model, --op and --hidden-size: which problems."""
    function = click.option(
        "--hidden-size", "hidden_sizes", type=int, multiple=True, help="A hidden size by hand; may be repeated."
    )(function)
    function = click.option("--op", "ops", multiple=True, help="An op; may be repeated. Default: all.")(function)
    return click.option("--model", help="A model preset; see `tunegen models`.")(function)


def chosen_problems(model: str | None, ops: Iterable[str], hidden_sizes: Iterable[int]) -> list[Problem]:
    """The problems that --model, --op and --hidden-size name; raises UsageError if they name none."""
    from tunegen.models import get_model, problems_of
    from tunegen.ops import OP_NAMES, Problem, get_family

    names = [op for op in ops if get_family(op)] or list(OP_NAMES)
    problems = problems_of(get_model(model), names) if model else []
    problems += [Problem.of(op, {"hidden_size": size}) for op in names for size in hidden_sizes]
    if not problems:
        raise UsageError("Say what for: --model NAME (see `tunegen models`) or --hidden-size N.")
    for problem in problems:
        get_family(problem.op).check_shape(problem)
    return list(dict.fromkeys(problems))


def parse_tokens(text: str) -> list[int]:
    """Token counts of ``"1,16,256"``, ascending; raises UsageError."""
    try:
        tokens = sorted({int(part) for part in text.split(",")})
    except ValueError:
        tokens = []
    if not tokens or tokens[0] < 1:
        raise UsageError(
            f"Token counts are positive integers with commas between them, such as 1,16,256; got {text!r}."
        )
    return tokens


def parse_settings(settings: Iterable[str]) -> Config:
    """A config of ``("num_warps=8", "cover=7x1024")``; raises UsageError."""
    config: Config = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name or not value:
            raise UsageError(f"--set takes key=value, such as num_warps=8; got {setting!r}.")
        config[name] = int(value) if value.isdigit() else value
    return config


def auto_target(name: str) -> Target:
    """The target of that name; of ``"auto"`` that of the GPU present, otherwise the default one."""
    from tunegen.targets import DEFAULT_TARGET, get_target, present_device

    if name != "auto":
        return get_target(name)
    device = present_device()
    return device.target if device else get_target(DEFAULT_TARGET)


def configs_folder(folder: Path | None) -> Path:
    """The folder of tuned configs: the one given, else ./tuned_configs, else the one that ships with tunegen."""
    from tunegen.paths import tuned_configs_dir

    if folder is not None:
        return folder
    return LOCAL_CONFIGS if LOCAL_CONFIGS.is_dir() else tuned_configs_dir()
