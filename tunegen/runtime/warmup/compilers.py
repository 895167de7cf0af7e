"""Processes that compile kernels into Triton's cache, for this one to find there.

Threads do not get far: while Triton makes its first intermediate representation of a kernel, a tenth of a second for
one of a row of 7168, Python's lock lets no other thread do so. A process of this kind has no context on the GPU, and so
takes none of its memory: it compiles for the GPU's name, with examples of calls on the CPU.

They are not of `multiprocessing`, whose processes run the main script again up to what stands under ``if __name__ ==
"__main__"``; and scripts have `warmup` anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..device import DeviceKey
from ..manifest import read_manifest
from ..table import Table
from .jobs import Job, jobs_of
from .wanted import Wanted

BOOTSTRAP = (
    "import sys; del sys.path[0]; import importlib, json; setup = json.loads(sys.stdin.readline());"
    " sys.path[:] = setup['path']; importlib.import_module(setup['module']).main(setup)"
)


@dataclass(frozen=True)
class Task:
    """What `jobs_of` is given, so that both sides number the same jobs."""

    root: Path
    key: DeviceKey
    dtypes: tuple[torch.dtype, ...] | None
    wanted: Wanted

    def jobs(self, device: torch.device) -> list[Job]:
        """The jobs, with examples whose tensors are on a device."""
        return list(jobs_of(self.root, Table(read_manifest(self.root)), self.key, device, self.dtypes, self.wanted))


class CompileOnly:
    """A kernel function that ``function[grid](...)`` compiles as a launch would, without launching it.

    Args:
        function: The ``@triton.jit`` function.
        compiled: Takes each compiled kernel.
    """

    def __init__(self, function: Any, compiled: Callable[[Any], None]) -> None:
        self._function = function
        self._compiled = compiled

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **options: self._compiled(self._function.warmup(*args, grid=grid, **options))


class Compiler:
    """A process that compiles jobs; a context manager.

    Args:
        task: The jobs.
        target: For what: Triton's backend, architecture and lanes a warp.

    Raises:
        OSError: No process can be started.
    """

    def __init__(self, task: Task, target: tuple[str, Any, int]) -> None:
        import triton

        # Not standard output, to which anything may print.
        ours, theirs = os.pipe()
        self._answers = os.fdopen(ours)
        setup = {
            "answers": theirs,
            "path": [place for place in sys.path if isinstance(place, str)],
            "module": __name__,
            "cache": triton.knobs.cache.dir,
            "root": str(task.root),
            "key": asdict(task.key),
            "dtypes": task.dtypes and [str(dtype).removeprefix("torch.") for dtype in task.dtypes],
            "wanted": asdict(task.wanted),
            "target": target,
        }
        first, command = json.dumps(setup), [sys.executable, "-c", BOOTSTRAP]
        try:
            # Ctrl-C is for this process: it ends the others.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, text=True, pass_fds=[theirs], start_new_session=True
            )
        except OSError:
            self._answers.close()
            raise
        finally:
            os.close(theirs)
        self._say(first)

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._answers.close()

    def compile(self, number: int) -> str:
        """Compiles a job; if that fails, says why."""
        self._say(str(number))
        answer = self._answers.readline()
        return str(json.loads(answer)) if answer else "it has ended"

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer that does not come says so
            print(line, file=self._process.stdin, flush=True)


class _Driver:
    """In the place of Triton's driver, which needs a GPU."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def compile_for(target: tuple[str, Any, int]) -> None:
    """Has this process compile for a GPU, from now on, that it does not look at."""
    import triton
    from triton.backends.compiler import GPUTarget

    triton.runtime.driver.set_active(_Driver(GPUTarget(*target)))


def main(setup: dict[str, Any]) -> None:
    """What the process runs: for each number of a job on standard input a line that says why it failed, or ``""``."""
    import triton

    torch.set_num_threads(1)
    triton.knobs.cache.dir = setup["cache"]
    compile_for(setup["target"])
    dtypes = setup["dtypes"] and tuple(getattr(torch, name) for name in setup["dtypes"])
    task = Task(Path(setup["root"]), DeviceKey(**setup["key"]), dtypes, Wanted(**setup["wanted"]))
    jobs = task.jobs(torch.device("cpu"))
    with os.fdopen(setup["answers"], "w") as answers:
        for line in sys.stdin:
            why = ""
            try:
                jobs[int(line)].run(lambda function: CompileOnly(function, lambda kernel: None), task.key.units)
            except Exception as error:  # who asked compiles it too, and raises what is wrong with it
                why = f"{type(error).__name__}: {error}"
            print(json.dumps(why), file=answers, flush=True)
