"""Kernels that break a GPU's context, planted among real ones: on a GPU only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from quiet import Quiet

from tunegen.codegen.render import Rendered
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.evaluators import MeasuredEvaluator
from tunegen.search.record import read_studies
from tunegen.search.storage import open_storage
from tunegen.search.tune import Plan, tune
from tunegen.targets import Device, present_device

PROBLEM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 512})
TOKENS = (1, 64, 1024)
STORE = "    tl.store(words_ptr,"
LAUNCH = '\nKERNEL = "rmsnorm_mxfp4_quant"\n'
# Only the worker that owns a GPU has begun to use it; those that compile have not.
ON_GPU = "\nimport os\nimport torch\n\nif torch.cuda.is_initialized():\n    "

# What is replaced in a kernel's file by what, and what of the reason is the same on every GPU.
FAULTS = {
    "illegal address": (STORE, "    tl.store(words_ptr + (1 << 40),", ""),
    "never ends": (
        STORE,
        f"    while tl.load(scales_ptr, volatile=True) < 256:\n        tl.store(scales_ptr, 1)\n{STORE}",
        "ran longer than the limit of",
    ),
    "writes beside its output": (STORE, "    tl.store(words_ptr - 1,", "computes wrong results: "),
    "wrong values": ("8388608.0)", "8388609.0)", "computes wrong results: "),
    "too many warps": ('"num_warps": ', '"num_warps": 64 * ', "out of resources"),
    "takes the GPU's memory": (
        LAUNCH,
        f"{ON_GPU}held = torch.empty(int(0.999 * torch.cuda.mem_get_info()[0] / 4), device='cuda')\n{LAUNCH}",
        "",
    ),
    "exits": (LAUNCH, f"{ON_GPU}os._exit(9)\n{LAUNCH}", "its process exited with status 9"),
    "exhausts memory": (
        LAUNCH,
        f"{ON_GPU}eaten = []\n    while True:\n        eaten.append(bytes([1]) * (64 << 20))\n{LAUNCH}",
        "GiB of memory",
    ),
}


class Planted(MeasuredEvaluator):
    """Breaks the first configs after the default one, each in its own way."""

    run_seconds = (30.0, 10.0)
    memory = 12 << 30

    def __init__(self, device: Device) -> None:
        super().__init__([device], list(TOKENS))
        self.faults: dict[str, str] = {}
        self.waiting = list(FAULTS)

    def render(self, problem: Problem, config: Config, twin: bool = False) -> Rendered:
        rendered, key = super().render(problem, config, twin), config_key(config)
        if twin or config == get_family(problem.op).default(problem, self.target):
            return rendered
        if key not in self.faults:
            # A conversion by instruction has nothing that could be made wrong by a number.
            fits = [fault for fault in self.waiting if FAULTS[fault][0] in rendered.source]
            if not fits:
                return rendered
            self.faults[key] = fits[0]
            self.waiting.remove(fits[0])
        old, new, _ = FAULTS[self.faults[key]]
        return Rendered(problem, rendered.target, config, rendered.source.replace(old, new))


def test_the_run_ends_with_a_winner_and_every_reason(tmp_path: Path, show_failures: Callable[[str], str]) -> None:
    device = present_device()
    if device is None:
        pytest.skip("no GPU here")
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    evaluator = Planted(device)
    with evaluator:
        (entry,) = tune([PROBLEM], evaluator, Plan(TOKENS, 24, 0), open_storage(url), [], Quiet())
    planted = dict(evaluator.faults)
    assert len(planted) >= len(FAULTS) - 1
    (study,) = read_studies(open_storage(url))
    failures = {config_key(o.config): o.failure for o in study.outcomes if o.failure}
    assert set(failures) == set(planted)
    shown = show_failures(url)
    for key, fault in planted.items():
        assert FAULTS[fault][2] in failures[key]
        assert failures[key] in shown
    assert entry.trials == 24 - len(planted)
    for bucket in entry.buckets:
        assert config_key(bucket.config) not in planted
        assert bucket.fields["median_us"] <= bucket.fields["default_us"] * (1 + bucket.fields["margin"])
        if bucket.tokens in TOKENS:  # between them winners are raced alone
            assert 0 < bucket.fields["empty_us"] < bucket.fields["median_us"]
            assert bucket.fields["twin_us"] > 0

    class Untouched(MeasuredEvaluator):
        def submit(self, problem: Problem, config: Config):
            raise AssertionError("a config was timed twice")

    with Untouched([device], list(TOKENS)) as again:
        assert list(tune([PROBLEM], again, Plan(TOKENS, 24, 0), open_storage(url), [], Quiet())) == [entry]
