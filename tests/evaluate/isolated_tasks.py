"""Tasks for the worker processes of test_isolated.py, which import them by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tunegen.evaluate.isolated import WorkerUnusableError


def own_pid() -> int:
    return os.getpid()


def raises() -> None:
    raise ValueError("planted")


def unusable() -> None:
    raise WorkerUnusableError("planted fault")


def exits() -> None:
    print("last words", flush=True)
    os._exit(3)


def exits_in_python() -> None:
    sys.exit(4)


def aborts() -> None:
    os.abort()


def sleeps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def starts_a_child_and_hangs(note: str) -> None:
    import subprocess

    with subprocess.Popen(["sleep", "1000"]) as child:
        Path(note).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(1000)


def eats_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1)) * (16 << 20))
        time.sleep(0.005)


def killed_the_first_time(note: str) -> str:
    """As the system's out-of-memory killer or an operator would."""
    with Path(note).open("a") as file:
        file.write("x")
    if len(Path(note).read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(note).read_text()


def killed_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_set_up() -> None:
    raise RuntimeError("no such device")
