"""Calls that look alike are launched from a plan, as Triton would launch them.

Triton compiles for an H100; in the place of its launcher is one that takes up what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from synthetic import ROPE_SIZES, make_entry, make_rope_entry

from tunegen.execute.driver import TargetDriver
from tunegen.oppack import emit_pack
from tunegen.runtime import dispatch, plan
from tunegen.runtime.dispatch import Dispatcher
from tunegen.runtime.families import OPS
from tunegen.runtime.forms import LARGE
from tunegen.runtime.manifest import read_manifest
from tunegen.runtime.table import Table
from tunegen.targets import get_target

SM90 = get_target("sm90")
CPU = torch.device("cpu")
STREAM = 7
ADD, DYNAMIC, ROPE = "rmsnorm_add_mxfp4_quant", "dynamic_mxfp4_quant", "mla_rope_cache"
Launch = tuple[tuple[int, ...], str, tuple[Any, ...]]


class RecordingDriver(TargetDriver):
    """Triton's driver for an H100 that is not there: its launcher keeps grid, kernel and arguments."""

    def __init__(self) -> None:
        super().__init__(SM90)
        self.launches: list[Launch] = []
        self.loaded = 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": 2**17}, load_binary=self.load, unload_module=id
        )

    def load(self, *_: Any) -> tuple[int, int, int, int, int]:
        self.loaded += 1
        return self.loaded, self.loaded, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            assert stream == STREAM
            args = tuple(arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in rest[4:])
            self.launches.append(((x, y, z), metadata.name + str(function), args))

        return launch

    def get_current_device(self) -> int:
        return -1  # where PyTorch has the CPU

    def get_current_stream(self, device: int) -> int:
        return STREAM


@pytest.fixture(scope="module")
def active() -> Iterator[RecordingDriver]:
    attributes = vars(triton.runtime.driver)
    before = dict(attributes)
    made = RecordingDriver()
    triton.runtime.driver.set_active(made)
    yield made
    attributes.clear()
    attributes.update(before)


@pytest.fixture
def driver(active: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    monkeypatch.setattr(dispatch, "device_key", lambda _: SM90.device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)
    active.launches.clear()
    return active


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [make_entry(op, 96, SM90) for op in (ADD, DYNAMIC)]
    return emit_pack([*rows, make_rope_entry(ROPE, "none,fp8", SM90)], tmp_path_factory.mktemp("p") / "p").package


def make_dispatcher(package: Path, op: str) -> Dispatcher:
    schema = torch._C.parse_schema(f"test::{op}{OPS[op].schema}")
    return Dispatcher(package, Table(read_manifest(package)), OPS[op], schema)


def inputs(op: str, tokens: int, seed: int = 0) -> list[Any]:
    sizes, variant = (ROPE_SIZES, "none,fp8") if op == ROPE else ({"hidden_size": 96}, "none")
    return list(OPS[op].inputs(sizes, tokens, torch.bfloat16, CPU, torch.Generator().manual_seed(seed), variant))


def places(args: tuple[Any, ...] | list[Any]) -> list[int]:
    return [arg.data_ptr() for arg in args if isinstance(arg, torch.Tensor)]


def relative(launch: Launch, args: list[Any], outputs: tuple[torch.Tensor, ...]) -> Launch:
    """The launch with each address replaced by whose it is."""
    owners = {place: f"tensor {at}" for at, place in enumerate([*places(args), *places(outputs)])}
    return launch[0], launch[1], tuple(owners.get(arg, arg) for arg in launch[2])


@pytest.mark.parametrize("op", [ADD, DYNAMIC, ROPE])
def test_a_plan_launches_what_triton_does(op: str, package: Path, driver: RecordingDriver) -> None:
    dispatcher = make_dispatcher(package, op)
    for tokens in (1, 5, 5, 64):
        launched = []
        for seed in (0, 1):
            args = inputs(op, tokens, seed)
            outputs = dispatcher.cuda(*args)
            launched.append(relative(driver.launches[-1], args, outputs))
            if seed:  # of what is returned nothing but the values differs
                assert [(o.shape, o.dtype, o.stride()) for o in outputs] == [
                    (o.shape, o.dtype, o.stride()) for o in OPS[op].allocate(*args)
                ]
        assert launched[0] == launched[1]
        assert sum(str(arg).startswith("tensor") for arg in launched[0][2]) >= len(outputs) + 1
    assert len(driver.launches) == 8
    assert len(dispatcher._plans) == 3


def test_planned_calls_ask_triton_for_nothing(
    package: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = make_dispatcher(package, ADD)
    dispatcher.cuda(*inputs(ADD, 5))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: pytest.fail("Triton was asked"))
    monkeypatch.setattr(type(OPS[ADD]), "check", lambda *_: pytest.fail("the call was checked again"))
    dispatcher.cuda(*inputs(ADD, 5, seed=1))
    assert len(driver.launches) == 2


def test_one_tensor_given_twice_is_no_plan_for_two(package: Path, driver: RecordingDriver) -> None:
    dispatcher = make_dispatcher(package, ADD)
    x, residual, *rest = inputs(ADD, 5)
    dispatcher.cuda(x, x, *rest)
    dispatcher.cuda(x, residual, *rest)
    assert driver.launches[0][2][:2] == (x.data_ptr(), x.data_ptr())
    assert driver.launches[1][2][:2] == (x.data_ptr(), residual.data_ptr())


def test_what_a_plan_is_not_for(package: Path, driver: RecordingDriver) -> None:
    """Another epsilon, stride, dtype or alignment; arguments that the op refuses are refused each time."""
    dispatcher = make_dispatcher(package, ADD)
    x, residual, weight, epsilon, rounding = inputs(ADD, 5)
    wide = torch.zeros(5, 128, dtype=torch.bfloat16)
    calls = [
        (x, residual, weight, epsilon, rounding),
        (x, residual, weight, 0.5, rounding),
        (wide[:, :96], residual, weight, epsilon, rounding),
        (x.half(), residual.half(), weight.half(), epsilon, rounding),
        (x, residual, weight, epsilon, "output"),
    ]
    for _ in range(2):
        for args in calls:
            dispatcher.cuda(*args)
    first, second = driver.launches[:5], driver.launches[5:]
    assert [launch[:2] for launch in first] == [launch[:2] for launch in second]
    assert len({(name, args[7:]) for _, name, args in first}) == 5
    assert len(dispatcher._plans) == 5
    misaligned = wide[:, 1:97]
    for _ in range(2):
        dispatcher.cuda(misaligned, residual, weight, epsilon, rounding)
        with pytest.raises(ValueError, match="residual must have shape"):
            dispatcher.cuda(x, residual[:4], weight, epsilon, rounding)
    assert driver.launches[-1][2][0] == misaligned.data_ptr()
    assert len({name for _, name, _ in driver.launches}) == 4
    assert len(dispatcher._plans) == 5


def test_a_plan_makes_its_device_the_current_one(
    package: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = make_dispatcher(package, DYNAMIC)
    dispatcher.cuda(*inputs(DYNAMIC, 5))
    entered: list[int] = []

    class Entered:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: Any) -> None:
            entered.append(len(driver.launches))

    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    dispatcher.cuda(*inputs(DYNAMIC, 5))
    assert entered == [-1, 2]


def test_outputs_lie_as_the_op_has_them(package: Path, driver: RecordingDriver) -> None:
    """Scales column by column, and those of a layout with padding."""
    dispatcher = make_dispatcher(package, DYNAMIC)
    for layout in ("columns", "shuffled"):
        args = [*inputs(DYNAMIC, 5), layout]
        planned = [dispatcher.cuda(*args) for _ in range(2)][1]
        for output, expected in zip(planned, OPS[DYNAMIC].allocate(*args), strict=True):
            assert (output.shape, output.stride(), output.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert len(dispatcher._plans) == 2


def test_plans_have_an_end(package: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MOST_PLANS", 3)
    dispatcher = make_dispatcher(package, DYNAMIC)
    for tokens in range(17, 25):
        dispatcher.cuda(*inputs(DYNAMIC, tokens))
        assert len(dispatcher._plans) <= 3


def test_outputs_that_are_not_aligned_are_launched_by_triton(
    package: Path, driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = make_dispatcher(package, DYNAMIC)
    dispatcher.cuda(*inputs(DYNAMIC, 5))
    outputs = tuple(
        torch.empty(1 + output.numel(), dtype=output.dtype)[1:] for output in dispatcher.cuda(*inputs(DYNAMIC, 5))
    )
    monkeypatch.setattr(plan.Plan, "allocate", lambda _: outputs)
    before = len(driver.launches)
    given = dispatcher.cuda(*inputs(DYNAMIC, 5))
    assert len(driver.launches) == before + 1
    assert not set(places(given)) & set(places(outputs))


def test_large_storages_are_told_apart_where_triton_does(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = torch.empty(64), torch.empty(LARGE // 4)[:64]  # memory is taken only where it is written
    for tells in (False, True):
        monkeypatch.setattr(plan, "_TELLS_LARGE", tells)
        assert (plan.describe((small,))[0] != plan.describe((large,))[0]) == tells
