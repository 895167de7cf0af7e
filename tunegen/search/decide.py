"""Chooses the winner among timed configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunegen.ops import Config, config_key


@dataclass(frozen=True)
class Decision:
    """The winner and what it won against.

    Attributes:
        config: The winner.
        time: Its time, in microseconds.
        runner_up: The fastest of the others, None if there is none.
        runner_up_time: Its time.
    """

    config: Config
    time: float
    runner_up: Config | None
    runner_up_time: float | None


def decide(
    times: list[tuple[Config, float]], default: Config, margin: float, complexity: Callable[[Config], Any]
) -> Decision:
    """The fastest config, unless the noise could have made it so.

    A challenger wins only if it beats the default by more than the margin. Among challengers that are
    within the margin of the fastest the simplest wins, so that two runs choose the same.

    Args:
        times: Configs and their times in microseconds, the default among them.
        default: The default config.
        margin: Relative difference that noise could make.
        complexity: Sort key of a config, smaller for a simpler one.
    """
    by_key = {config_key(config): (config, time) for config, time in times}
    default_time = by_key[config_key(default)][1]
    fastest = min(time for _, time in times)
    if fastest * (1 + margin) >= default_time:
        winner = default
    else:
        tied = [config for config, time in times if time <= fastest * (1 + margin)]
        winner = min(tied, key=complexity)
    others = [(config, time) for key, (config, time) in by_key.items() if key != config_key(winner)]
    runner_up, runner_up_time = min(others, key=lambda item: item[1]) if others else (None, None)
    return Decision(winner, by_key[config_key(winner)][1], runner_up, runner_up_time)
