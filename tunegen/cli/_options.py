"""Options that several commands share, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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
# Where `tunegen tune` keeps what it has evaluated.
STORAGE = "sqlite:///.tunegen/studies.sqlite3"


# Tables keep their columns in a log file, which has no width of its own.
LOG_WIDTH = 140


def plain_console() -> Console:
    """A console for standard output, wide enough for the tables where that is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


# What sizes are unless they are given; those that are not here have to be.
USUAL_SIZES = {"kv_lora_rank": 512, "rope_dim": 64}
SIZE_HELP = {
    "hidden_size": "Width of a normalised row",
    "intermediate_size": "Width of a gated activation",
    "second_size": "Width of the row that is normalised beside another",
    "num_heads": "Query heads of a rank",
    "kv_lora_rank": "Width of the compressed key/value",
    "rope_dim": "Rotated part of a head",
}


def size_options(function: Function, usual: Mapping[str, int] = USUAL_SIZES) -> Function:
    """An option for each size that ops have; the function gets them by name, as tuples."""
    for name, meaning in reversed(SIZE_HELP.items()):
        help_text = f"{meaning}; may be repeated." + (f" Default: {usual[name]}." if name in usual else "")
        function = click.option(f"--{name.replace('_', '-')}", name, type=int, multiple=True, help=help_text)(function)
    return function


def _problem_options(function: Function, op_help: str, model_help: str) -> Function:
    """--model, --tp and --op beside the sizes."""
    function = click.option("--op", "ops", multiple=True, help=op_help)(function)
    function = click.option(
        "--tp", type=int, default=1, show_default=True, help="Ranks that the model's heads are divided among."
    )(function)
    return click.option("--model", help=f"{model_help}; see `tunegen models`.")(function)


def shape_options(function: Function) -> Function:
    """--model, --tp, --op and the sizes: which problems."""
    ops = "An op; may be repeated. Default: those of models; see `tunegen ops`."
    return _problem_options(size_options(function), ops, "A model preset")


def part_options(function: Function) -> Function:
    """The same options, to choose among the problems that there are."""
    every = size_options(function, usual={})
    return _problem_options(every, "Only this op; may be repeated.", "Only the shapes of this model preset")


def part(
    model: str | None, tp: int, ops: Iterable[str], sizes: Mapping[str, tuple[int, ...]]
) -> Callable[[Problem], bool]:
    """Whether `part_options` mean a problem: it has a shape of the model or one of the sizes. Without any, all are."""
    from tunegen.models import get_model, problems_of
    from tunegen.ops import OP_NAMES, get_family
    from tunegen.runtime.table import has_sizes

    asked = [op for op in ops if get_family(op)]
    given = {name: values for name, values in sizes.items() if values}
    of_model = problems_of(get_model(model), list(OP_NAMES), tp) if model else []
    shapes = {(problem.op, problem.shape) for problem in of_model}

    def meant(problem: Problem) -> bool:
        if asked and problem.op not in asked:
            return False
        in_model = (problem.op, problem.shape) in shapes
        return in_model or (has_sizes(problem.sizes, given) if given else not model)

    return meant


def chosen_problems(model: str | None, tp: int, ops: Iterable[str], **sizes: tuple[int, ...]) -> list[Problem]:
    """The problems that --model, --tp, --op and the sizes name; raises UsageError if they name none."""
    from tunegen.models import get_model, problems_of, problems_with
    from tunegen.ops import PRESET_OPS, get_family

    asked = [op for op in ops if get_family(op)]
    names = asked or list(PRESET_OPS)
    problems = problems_of(get_model(model), names, tp) if model else []
    given = {name: list(values) for name, values in sizes.items() if values}
    every = {**{name: [size] for name, size in USUAL_SIZES.items()}, **given}
    for op in names:
        made = problems_with(op, every) if given else []
        if asked and not made and not model:
            missing = ", ".join(f"--{name.replace('_', '-')}" for name in get_family(op).sizes if name not in every)
            raise UsageError(f"Say what for: {op} needs {missing}, or --model NAME (see `tunegen models`).")
        problems += made
    if not problems:
        raise UsageError("Say what for: --model NAME (see `tunegen models`), --hidden-size N or --num-heads N.")
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


def parse_devices(text: str) -> list[int]:
    """GPU indices of ``"0,1"``, each once; raises UsageError for others and for GPUs that are not here."""
    import torch

    try:
        devices = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        devices = []
    if not devices or min(devices) < 0:
        raise UsageError(f"--devices takes GPU indices with commas between them, such as 0,1; got {text!r}.")
    count = torch.cuda.device_count()
    if max(devices) >= count:
        here = f"the GPUs here are 0 to {count - 1}" if count else "there is no GPU here"
        raise UsageError(f"--devices names GPU {max(devices)}, but {here}.")
    return devices


def parse_seconds(text: str) -> float:
    """Seconds of ``"90s"``, ``"10m"``, ``"1.5h"`` or ``"90"``; raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]):
        raise UsageError(f"--timeout takes a time such as 90s, 10m or 1h; got {text!r}.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


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
