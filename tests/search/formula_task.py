"""The task of tuner_process.py; it imports nothing that takes time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path


def timed(key: str, tokens: Sequence[int], folder: str, name: str, seconds: float) -> dict[int, float]:
    """Times a config by a formula; notes it and the process."""
    note = Path(folder, f"worker-{name}.{os.getpid()}")
    note.write_text(str(os.getpid()))
    note.replace(Path(folder, f"worker-{name}.pid"))
    time.sleep(seconds)
    with Path(folder, f"timed-{name}.log").open("a") as file:
        file.write(key + "\n")
    config = json.loads(key)
    return {count: 20.0 - config["rows"] - config["num_warps"] / 8 + count for count in tokens}
