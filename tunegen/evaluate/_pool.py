"""What the pools of processes that run cases have in common."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Entered = TypeVar("Entered", bound="Pool")


class Pool:
    """Fresh processes that run one function each; a context manager.

    Args:
        workers: Number of processes.
        start: Called in each process first.
        args: Its arguments.
    """

    def __init__(self, workers: int, start: Callable[..., object], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start, initargs=args)

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; cases that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
