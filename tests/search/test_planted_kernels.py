"""Real kernels, broken one by one: compiled and interpreted in the workers, none of them harms the run or wins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from quiet import Quiet

from tunegen.codegen.render import Rendered
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.evaluators import PredictedEvaluator
from tunegen.search.evaluators._compilation import Compilation
from tunegen.search.record import Outcome, read_studies
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, tune
from tunegen.targets import get_target

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 96})
TARGET = get_target("gfx942")
TOKENS = (1, 256)
LAUNCH = '\nKERNEL = "rmsnorm_mxfp4_quant"\n'
ROUNDING = "def round_e2m1(a, scale):\n"

# What is replaced in a kernel's file by what, and the reason that is recorded.
FAULTS = {
    "refused by the compiler": (
        ROUNDING,
        f'{ROUNDING}    tl.static_assert(False, "planted")\n',
        "planted",
    ),
    "too many warps": ('"num_warps": ', '"num_warps": 64 * ', "out of resources: a program takes"),
    "loops for ever": (LAUNCH, f"\nwhile True:\n    pass\n{LAUNCH}", "ran longer than the limit of"),
    "exits the process": (LAUNCH, f"\nimport os\n\nos._exit(7)\n{LAUNCH}", "its process exited with status 7"),
    "crashes": (LAUNCH, f"\nimport ctypes\n\nctypes.string_at(0)\n{LAUNCH}", "its process was ended by SIGSEGV"),
    "exhausts memory": (
        LAUNCH,
        f"\neaten = []\nwhile True:\n    eaten.append(bytes([1]) * (32 << 20))\n{LAUNCH}",
        "GiB of memory",
    ),
    "wrong values": ("4194306.0)", "4194307.0)", "computes wrong results: "),
    "writes out of bounds": ("tl.store(words_ptr,", "tl.store(words_ptr - 1,", "computes wrong results: "),
}
# These compile: they are caught when they are about to win.
CAUGHT_LATE = ("wrong values", "writes out of bounds")


class Planted(PredictedEvaluator):
    """Breaks the first configs after the default one, each in its own way, and predicts that they are fast."""

    compile_seconds = (20.0, 10.0)
    memory = 2 << 30

    def __init__(self) -> None:
        super().__init__(TARGET, list(TOKENS), workers=2)
        self.default = config_key(get_family(PROBLEM.op).default(PROBLEM, TARGET))
        self.faults: dict[str, str] = {}
        self.left = list(FAULTS)

    def _plant(self, config: Config) -> str | None:
        key = config_key(config)
        if key != self.default and key not in self.faults and self.left:
            self.faults[key] = self.left.pop(0)
        return self.faults.get(key)

    def _break(self, rendered: Rendered, config: Config) -> Rendered:
        fault = self._plant(config)
        if fault is None:
            return rendered
        old, new, _ = FAULTS[fault]
        assert old in rendered.source, fault
        return Rendered(rendered.problem, rendered.target, config, rendered.source.replace(old, new))

    def render(self, problem: Problem, config: Config, twin: bool = False) -> Rendered:
        return self._break(super().render(problem, config, twin), config)

    def interpretable(self, problem: Problem, config: Config) -> Rendered:
        return self._break(super().interpretable(problem, config), config)

    def _outcome(self, problem: Problem, config: Config, compilation: Compilation) -> Outcome:
        outcome = super()._outcome(problem, config, compilation)
        if self._plant(config) is None:
            return outcome
        return Outcome(config, {m: time / 100 for m, time in outcome.times.items()}, "", outcome.details)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, Quiet, str, list[Config]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('planted')}/s.sqlite3"
    reporter = Quiet()
    evaluator = Planted()
    with evaluator:
        plan = Plan(TOKENS, len(FAULTS) + 4, 0)
        (entry,) = tune([PROBLEM], evaluator, plan, open_storage(url), [], reporter)
    return evaluator, reporter, url, [bucket.config for bucket in entry.buckets]


def test_no_broken_kernel_wins(run: tuple[Planted, Quiet, str, list[Config]]) -> None:
    evaluator, _, url, winners = run
    assert len(evaluator.faults) == len(FAULTS)
    (study,) = read_studies(open_storage(url))
    good = [outcome for outcome in study.outcomes if not outcome.failure]
    assert len(good) == 4
    for tokens, winner in zip(TOKENS, winners, strict=True):
        times = {config_key(outcome.config): outcome.times[tokens] for outcome in good}
        assert times[config_key(winner)] <= 1.01 * min(times.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_its_reason_is_recorded(
    run: tuple[Planted, Quiet, str, list[Config]], fault: str, show_failures: Callable[[str], str]
) -> None:
    evaluator, reporter, url, _ = run
    (key,) = [key for key, planted in evaluator.faults.items() if planted == fault]
    (study,) = read_studies(open_storage(url))
    (reason,) = [outcome.failure for outcome in study.outcomes if config_key(outcome.config) == key]
    assert FAULTS[fault][2] in reason
    assert reason in show_failures(url)
    assert reason in (reporter.rejections if fault in CAUGHT_LATE else reporter.failures)
