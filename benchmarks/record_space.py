"""Records what the configs of several problems take on the GPU here, so that searches can be replayed without one.

Of each problem whole groups of configs that share their machine code are taken, in a random order that the seed
fixes: what is recorded when time is up is a random sample of the space, however far it came. A config is visited
twice, some time apart, with a graph captured anew. At the end the fastest are timed again, interleaved, at more
token counts. One JSON object a line is written as it comes; a fault of the GPU ends one process and costs one config.

Usage: python benchmarks/record_space.py --out space.jsonl [--seconds 350] [--most N] [--known EARLIER.jsonl ...]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import click
import torch
import triton
from timing_process import Candidate, Final, Look, serve

from tunegen import __version__
from tunegen.codegen.compile import compile_kernel
from tunegen.codegen.render import render, template_hash
from tunegen.errors import CompileError
from tunegen.evaluate.measure import POLICY
from tunegen.evaluate.predict import MODEL, predict
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.buckets import HELD_OUT
from tunegen.targets import Device, get_target, present_device

PROBLEMS = (
    Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 7168}),
    Problem.of("rmsnorm_add_mxfp4_quant", {"hidden_size": 1536}),
    Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168}),
    Problem.of("dynamic_mxfp4_quant", {"hidden_size": 7168}),
    Problem.of("mla_rope_cache", {"num_heads": 128, "kv_lora_rank": 512, "rope_dim": 64}, "none"),
    Problem.of("mla_rope_cache", {"num_heads": 16, "kv_lora_rank": 512, "rope_dim": 64}, "none,fp8"),
)
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
# The other counts that are tuned, and those half way to the next: on 132 units 256 rows are two turns and 300 three.
BETWEEN = (2, 4, 8, 32, 128, 512, 2048, 8192, 48, 96, 192, 384, 768, 1536, 3072, 6144, 12288)
# Samples of a visit; tuning's first look takes three.
SAMPLES = 4
# Seconds from a config's first visit to its second, at least.
APART = 30.0
FINAL_SAMPLES = 9
# Of each token count so many go on to be timed again.
FINALISTS_A_COUNT = 6
FINAL_SHARE = 0.27
# Longer than any kernel takes: one that has not answered hangs.
PATIENCE = 60.0
SEED = 20
DIGITS = 4


@dataclass
class Group:
    """Configs of a problem whose machine code is the same."""

    problem: int
    configs: list[Config]
    job: AsyncResult[dict[str, Any]] | None = None


@dataclass
class Space:
    """One problem and what is known of it."""

    problem: Problem
    default: Config
    configs: list[Config]
    default_candidate: Candidate | None = None
    medians: dict[str, list[list[float]]] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)


def machine_code_key(source: str) -> str:
    """The same for rendered files that compile to the same code: header and launch grid are left out."""
    return re.sub(r"^(#.*|PROGRAMS_PER_UNIT = .*)\n", "", source, flags=re.MULTILINE)


def groups_of(index: int, space: Space, most: int | None) -> list[Group]:
    """Groups in random order, the default config's first, until they hold ``most`` configs."""
    found: dict[str, Group] = {}
    for config in space.configs:
        # How many programs loop over the tiles is a matter of the launch; whether they loop is one of the code.
        code = {**config, "programs_per_unit": min(int(config.get("programs_per_unit", 0)), 1)}
        found.setdefault(config_key(code), Group(index, [])).configs.append(config)
    groups = list(found.values())
    random.Random(f"{SEED} {space.problem}").shuffle(groups)
    groups.sort(key=lambda group: space.default not in group.configs)
    if most is None:
        return groups
    counts = itertools.accumulate(len(group.configs) for group in groups)
    return [group for group, count in zip(groups, counts, strict=True) if count - len(group.configs) < most]


def compile_group(problem: Problem, target_name: str, configs: list[Config], folder: Path) -> dict[str, Any]:
    """Compiles the code that configs share; its file, resources, binary hash and predicted times, or why not."""
    target = get_target(target_name)
    rendered = [render(problem, target, config) for config in configs]
    if len({machine_code_key(one.source) for one in rendered}) != 1:
        raise AssertionError(f"{problem}: these configs were taken for one kernel and are not: {configs}")
    try:
        compiled = compile_kernel(rendered[0], folder=folder)
    except CompileError as error:
        return {"failure": f"does not compile: {error}"}
    predicted = [
        [round(predict(problem, target, c, compiled.resources, m).microseconds, 3) for m in TOKENS] for c in configs
    ]
    return {
        "path": rendered[0].write(folder),
        "resources": asdict(compiled.resources),
        "binary": hashlib.sha256(compiled.binary).hexdigest()[:16],
        "predicted_us": predicted,
    }


class Compilers:
    """Compile processes, kept busy but not far ahead of what is timed.

    Args:
        groups: What to compile, with its problem, in order.
        target: Name of the target.
        folder: Where sources lie.
        workers: Number of processes.
    """

    def __init__(self, groups: Iterator[tuple[Problem, Group]], target: str, folder: Path, workers: int) -> None:
        self._groups, self._target, self._folder, self._ahead = groups, target, folder, 3 * workers
        self._pool = multiprocessing.get_context("spawn").Pool(workers)
        self._under_way: list[Group] = []

    @property
    def done(self) -> bool:
        """True if everything was handed out; up to date after `next_ready`."""
        return not self._under_way

    def next_ready(self, wanted: Callable[[Group], bool]) -> Group | None:
        """A compiled group that is wanted now, or None."""
        for problem, group in itertools.islice(self._groups, self._ahead - len(self._under_way)):
            group.job = self._pool.apply_async(compile_group, (problem, self._target, group.configs, self._folder))
            self._under_way.append(group)
        for group in self._under_way:
            if group.job is not None and group.job.ready() and wanted(group):
                self._under_way.remove(group)
                return group
        return None

    def close(self) -> None:
        """Ends the processes, at work or not."""
        self._pool.terminate()


class TimingProcess:
    """Starts `serve` in a process of its own, and anew if it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(120) or self._connection.recv() != "ready":
            sys.exit("The timing process does not start.")

    def ask(self, request: Look | Final) -> list[list[float]] | str:
        """The answer, or what became of the process."""
        self._connection.send(request)
        try:
            if self._connection.poll(PATIENCE):
                answer: list[list[float]] | str = self._connection.recv()
                return answer
            failure = f"no answer in {PATIENCE:g} s"
        except EOFError:
            self._process.join(5)
            failure = f"the timing process died (exit code {self._process.exitcode})"
        self.close()
        self._start()
        return failure

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()


class Recording:
    """The file, and what of it later steps need."""

    def __init__(self, path: Path, spaces: list[Space], device: Device) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self.start = time.monotonic()
        self.spaces = spaces
        self.looks = self.failures = 0
        self.write(
            kind="header",
            device=asdict(device.key),
            device_name=device.name,
            target=device.target.name,
            environment={
                "torch": torch.__version__,
                "triton": triton.__version__,
                "tunegen": __version__,
                "cuda": torch.version.cuda,
                "python": platform.python_version(),
            },
            policy=POLICY,
            model=MODEL,
            seed=SEED,
            tokens=TOKENS,
            problems=[
                {
                    "op": space.problem.op,
                    "shape": space.problem.sizes,
                    "rounding": space.problem.rounding,
                    "valid_configs": len(space.configs),
                    "knobs": {
                        k.name: k.choices for k in get_family(space.problem.op).knobs(space.problem, device.target)
                    },
                    "default": space.default,
                    "template_hash": template_hash(get_family(space.problem.op).template),
                }
                for space in spaces
            ],
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def write(self, **fields: Any) -> None:
        self._file.write(json.dumps({**fields, "at": round(self.seconds, 1)}, separators=(",", ":")) + "\n")
        self._file.flush()

    def look(self, index: int, config: Config, visit: int, answer: list[list[float]] | str, about: Any) -> bool:
        """Writes a visit; True if it gave times."""
        if isinstance(answer, str):
            self.failures += 1
            self.write(kind="failure", problem=index, config=config, reason=answer, **about)
            return False
        self.looks += 1
        self.write(kind="look", problem=index, config=config, visit=visit, samples_us=rounded(answer), **about)
        known = self.spaces[index].medians.setdefault(config_key(config), [[] for _ in TOKENS])
        for samples, new in zip(known, answer, strict=True):
            samples.extend(new)
        return True


def rounded(samples: list[list[float]]) -> list[list[float]]:
    """Samples to four significant digits: a twentieth of a per cent at worst."""
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in samples]


def visits(recording: Recording, timer: TimingProcess, compilers: Compilers, until: float) -> None:
    """First visits as kernels come from the compilers, second ones in between and at last."""
    spaces = recording.spaces
    # When a config was visited, its problem, the config.
    once: deque[tuple[float, int, Config]] = deque()
    said = 0.0
    while recording.seconds < until:
        # The default's group was sent first; the others wait for it, to be compared with.
        ready = compilers.next_ready(lambda group: holds_default(spaces[group.problem], group))
        if ready is not None:
            first_visits(recording, timer, ready, once)
        elif once and recording.seconds - once[0][0] > (0.0 if compilers.done else APART):
            _, index, config = once.popleft()
            recording.look(index, config, 2, timer.ask(look_of(spaces[index], config)), {})
        elif compilers.done and not once:
            return
        else:
            time.sleep(0.01)
        if recording.seconds - said > 15:
            said = recording.seconds
            counts = [len(space.medians) for space in spaces]
            print(f"{said:5.0f} s: {counts} configs, {recording.looks} looks, {recording.failures} failed", flush=True)


def holds_default(space: Space, group: Group) -> bool:
    """True of the group with the default config, or if that is known already."""
    return space.default_candidate is not None or space.default in group.configs


def look_of(space: Space, config: Config) -> Look:
    """The request for a visit."""
    assert space.default_candidate is not None
    return Look(space.problem, space.default_candidate, space.candidates[config_key(config)], TOKENS, SAMPLES)


def first_visits(
    recording: Recording, timer: TimingProcess, group: Group, once: deque[tuple[float, int, Config]]
) -> None:
    """Times all configs of a compiled group."""
    space = recording.spaces[group.problem]
    assert group.job is not None
    result = group.job.get()
    if "failure" in result:
        for config in group.configs:
            recording.look(group.problem, config, 1, result["failure"], {})
        return
    about = {"binary": result["binary"], "resources": result["resources"]}
    for config in group.configs:
        candidate = Candidate(result["path"], int(config.get("programs_per_unit", 0)))
        space.candidates[config_key(config)] = candidate
        if config == space.default:
            space.default_candidate = candidate
    for config, predicted in zip(group.configs, result["predicted_us"], strict=True):
        answer = timer.ask(look_of(space, config))
        if recording.look(group.problem, config, 1, answer, {**about, "predicted_us": predicted}):
            once.append((recording.seconds, group.problem, config))


def finalists(space: Space) -> list[str]:
    """Keys of the configs that are among the fastest at any token count, and of the default."""
    chosen = {config_key(space.default): None}
    known = {key: [statistics.median(row) for row in rows] for key, rows in space.medians.items()}
    for at in range(len(TOKENS)):
        for key in sorted(known, key=lambda key: known[key][at])[:FINALISTS_A_COUNT]:
            chosen[key] = None
    return [key for key in chosen if key in space.candidates]


def finals(recording: Recording, timer: TimingProcess, until: float) -> None:
    """Times the fastest of each problem again, at every token count that there is time for."""
    for index, space in enumerate(recording.spaces):
        share = recording.seconds + (until - recording.seconds) / (len(recording.spaces) - index)
        keys = finalists(space)
        for count in (*TOKENS, *HELD_OUT, *BETWEEN):
            if recording.seconds > share or not keys:
                break
            candidates = tuple(space.candidates[key] for key in keys)
            answer = timer.ask(Final(space.problem, candidates, count, FINAL_SAMPLES))
            fields: dict[str, Any] = {"problem": index, "tokens": count}
            if isinstance(answer, str):
                recording.write(kind="final_failure", reason=answer, **fields)
            else:
                configs = [json.loads(key) for key in keys]
                recording.write(kind="final", configs=configs, samples_us=rounded(answer), **fields)
        print(f"{recording.seconds:5.0f} s: {len(keys)} finalists of {space.problem}", flush=True)


def already_recorded(paths: tuple[Path, ...]) -> set[tuple[str, str]]:
    """Problem and config key of what earlier recordings hold."""
    known = set()
    for path in paths:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        names = [str(Problem.of(p["op"], p["shape"], p["rounding"])) for p in lines[0]["problems"]]
        known |= {(names[line["problem"]], config_key(line["config"])) for line in lines if "config" in line}
    return known


def in_turn(ordered: list[list[Group]], recorded: list[int], spaces: list[Space]) -> Iterator[tuple[Problem, Group]]:
    """Groups of all problems, next always one of the problem with the fewest configs; the default's before others."""
    waiting = [deque(groups) for groups in ordered]
    for index, groups in enumerate(waiting):
        yield spaces[index].problem, groups.popleft()
    counts = [known + len(groups[0].configs) for known, groups in zip(recorded, ordered, strict=True)]
    while any(waiting):
        index = min((i for i, groups in enumerate(waiting) if groups), key=lambda i: counts[i])
        group = waiting[index].popleft()
        counts[index] += len(group.configs)
        yield spaces[index].problem, group


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON lines, written as they come")
@click.option("--seconds", type=float, default=350.0, show_default=True, help="in all, start and end included")
@click.option("--most", type=int, help="configs a problem; default: all that there is time for")
@click.option("--known", type=click.Path(path_type=Path, exists=True), multiple=True, help="recordings to go on from")
@click.option("--sizes", is_flag=True, help="only print how many valid configs the problems have")
@click.option("--workers", type=int, help="compile processes; default: all cores but one")
def main(
    out: Path, seconds: float, most: int | None, known: tuple[Path, ...], sizes: bool, workers: int | None
) -> None:
    """Records; see the top of the file."""
    device = present_device()
    if sizes:
        target = device.target if device else get_target("sm90")
        for problem in PROBLEMS:
            print(f"{problem}: {len(list(get_family(problem.op).space(problem, target)))} valid configs")
        return
    if device is None:
        sys.exit("There is no GPU here to record on.")
    start = time.monotonic()
    target, skip = device.target, already_recorded(known)
    spaces = []
    for problem in PROBLEMS:
        family = get_family(problem.op)
        spaces.append(Space(problem, family.default(problem, target), list(family.space(problem, target))))
    recording = Recording(out, spaces, device)
    recording.start = start
    ordered = [groups_of(index, space, most) for index, space in enumerate(spaces)]
    for groups, space in zip(ordered, spaces, strict=True):
        # The default's is always taken: outputs are compared with it, and times relate the recordings.
        groups[1:] = [g for g in groups[1:] if (str(space.problem), config_key(g.configs[0])) not in skip]
    queue = in_turn(ordered, [sum(name == str(space.problem) for name, _ in skip) for space in spaces], spaces)
    print(f"{recording.seconds:5.0f} s: {[len(space.configs) for space in spaces]} valid configs", flush=True)
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        compilers = Compilers(queue, target.name, Path(folder), workers or max((os.cpu_count() or 2) - 1, 1))
        timer = TimingProcess()
        try:
            visits(recording, timer, compilers, seconds * (1 - FINAL_SHARE))
            compilers.close()
            finals(recording, timer, seconds - 5)
        finally:
            compilers.close()
            timer.close()
    recording.write(kind="end", looks=recording.looks, failures=recording.failures)
    print(f"{recording.seconds:5.0f} s: {recording.looks} looks, {recording.failures} failed", flush=True)


if __name__ == "__main__":
    main()
