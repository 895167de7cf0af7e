"""The pass in vLLM's own PostGradPassManager and configuration, its plugin, and its layer."""

from __future__ import annotations

import functools
import importlib
import json
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import documents
import foreign_ops
import pytest
import torch
from graphs import Compiled
from layers import by_vllm
from packs import emit_for_tests
from torch import Tensor
from torch.fx import Graph
from vllm.compilation.passes.inductor_pass import CallableInductorPass, InductorPass, pass_context
from vllm.compilation.passes.pass_manager import PostGradPassManager
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.config.utils import Range
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tunegen.evaluate.truth.rmsnorm_mxfp4 import failures
from tunegen.ops import Problem
from tunegen.runtime.reference.rmsnorm_mxfp4 import dynamic_mxfp4_quant

N = 96
NAME = "vllm_test_ops"
KEY = "post_grad_custom_post_pass"
TO_GEMM, ADD_TO_GEMM = "rms_norm -> gemm_with_dynamic_quant", "fused_add_rms_norm -> gemm_with_dynamic_quant"
RANGE = Range(1, 4096)


# The option of each `vllm serve MODEL` in the documents, and the other options that docs/vllm.md names.
SERVED = {shlex.split(command.text)[3] for command in documents.commands() if command.text.startswith("vllm serve ")}
VLLM_PAGE = (documents.ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
OPTIONS = [shlex.split(option)[0] for option in re.findall(r"(?:^    |`)(-cc\.[^`#\n]+)", VLLM_PAGE, re.MULTILINE)]


@pytest.fixture(scope="module", autouse=True)
def _foreign() -> None:
    foreign_ops.define()


def managed(config: VllmConfig) -> PostGradPassManager:
    """vLLM's pass manager as its backend makes it: its own passes, then that of the configuration."""
    manager = PostGradPassManager()
    with set_current_vllm_config(config, check_compile=False):
        manager.configure(config)
    manager.add(config.compilation_config.inductor_compile_config[KEY])
    return manager


def config_with(pack: ModuleType, how: str) -> VllmConfig:
    """vLLM's configuration with the pass named on the command line, or given."""
    if how == "name":
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
        (passes,) = (option for option in SERVED if "tunegen_ops" in option)
        options = ["-cc.mode=3", passes.replace("tunegen_ops", NAME), "-cc.use_inductor_graph_partition=True"]
        options += [f"-cc.pass_config.{name}=False" for name in ("fuse_allreduce_rms", "fuse_mla_dual_rms_norm")]
        options += ["-cc.pass_config.fuse_rope_kvcache_cat_mla=False"]  # a pass that vLLM has on GPUs alone
        return VllmConfig(compilation_config=parser.parse_args(options).compilation_config)
    passes = {KEY: pack.vllm_plugin.inductor_pass()}
    return VllmConfig(compilation_config=CompilationConfig(mode=3, inductor_compile_config=passes))


def parsed(option: str) -> CompilationConfig:
    """What vLLM's command line makes of an option."""
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    config: CompilationConfig = parser.parse_args([option]).compilation_config
    return config


def test_documented_options() -> None:
    """vLLM takes the options that the documents name, each with its value."""
    assert len(OPTIONS) == 4
    for option in OPTIONS:
        path, _, text = option.removeprefix("-cc.").partition("=")
        value = {"True": True, "False": False}[text] if text in ("True", "False") else json.loads(text)
        assert functools.reduce(getattr, path.split("."), parsed(option)) == value, option


def test_documented_passes(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes that the documents have vLLM take by name, the pack's and the page's own module's, are found."""
    (own,) = (block for block in documents.python_blocks("vllm.md") if block.startswith("# my_passes.py"))
    (tmp_path / "my_passes.py").write_text(own.replace("tunegen_ops", NAME))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(SERVED) == 2
    for option in SERVED:
        config = VllmConfig(compilation_config=parsed(option.replace("tunegen_ops", NAME)))
        made = config.compilation_config.inductor_compile_config[KEY]
        assert isinstance(made, InductorPass), option
        assert made.uuid()


@contextmanager
def compile_range() -> Any:
    with pass_context(RANGE):
        yield


def run_all(manager: PostGradPassManager) -> Callable[[Graph], None]:
    def run(graph: Graph) -> None:
        with compile_range():
            manager(graph)

    return run


class Model(torch.nn.Module):
    """Two layers as vLLM has them: a norm by vLLM's IR and Quark's MXFP4 linear layer, then with a residual."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        q, scales = dynamic_mxfp4_quant(torch.randn(N, N, generator=generator).bfloat16())
        self.weight, self.scale = torch.nn.Buffer(q), torch.nn.Buffer(scales.T.contiguous())
        self.norms = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(N, generator=generator).bfloat16(), requires_grad=False) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = by_vllm(torch.ops.vllm_ir.rms_norm(x, self.norms[0], 9.999999974752427e-07), self.weight, self.scale)
        norm, residual = torch.ops.vllm_ir.fused_add_rms_norm(y, x, self.norms[1], 2e-5)
        return by_vllm(norm, self.weight, self.scale), residual


@pytest.mark.parametrize("how", ["name", "pass"])
def test_pass_manager(pack: ModuleType, how: str) -> None:
    manager = managed(config_with(pack, how))
    report = pack.vllm_plugin.report()
    report.matches.clear()
    compiled = Compiled(Model(), run_all(manager), dynamic=None)
    for tokens in (33, 7):
        x = torch.randn(tokens, N, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        torch._dynamo.mark_dynamic(x, 0)
        got = compiled(x)
        fused = [call for call in compiled.calls if "rmsnorm" in call[0]]
        assert [name for name, _, _ in fused] == [f"{NAME}::rmsnorm_mxfp4_quant", f"{NAME}::rmsnorm_add_mxfp4_quant"]
        for name, args, outputs in fused:
            problem = Problem.of(name.partition("::")[2], {"hidden_size": N}, args[-1])
            assert failures(problem, args, outputs, 1) == []
        # The reference computes as vLLM's own implementation of its IR does: not a bit differs.
        assert all(map(torch.equal, got, compiled.expected))
    ops = compiled.ops()
    assert not [name for name in ops if name.startswith(("vllm_ir::", "vllm::", "aten::rsqrt"))], ops
    assert report.counts() == {TO_GEMM: 1, ADD_TO_GEMM: 1}
    assert {match.rounding for match in report.matches} == {"norm_output"}


def test_config_pickles(pack: ModuleType) -> None:
    """Workers are other processes: the configuration goes to them pickled, and has the same compile cache there."""
    for how in ("name", "pass"):
        config = config_with(pack, how)
        again = pickle.loads(pickle.dumps(config))
        with compile_range():
            assert managed(again).uuid() == managed(config).uuid()
        assert isinstance(again.compilation_config.inductor_compile_config[KEY], InductorPass)


def test_cache_key_changes_with_the_pack(pack: ModuleType, tmp_path: Path) -> None:
    """vLLM hashes the function's source, which names the pack's version: other tuned configs are another key."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from vllm.compilation.passes.inductor_pass import CallableInductorPass;"
        f"import {NAME};"
        f"print(CallableInductorPass({NAME}.vllm_fusion_pass).uuid(), {NAME}.vllm_plugin.inductor_pass().uuid())"
    )

    first = [CallableInductorPass(pack.vllm_fusion_pass).uuid(), pack.vllm_plugin.inductor_pass().uuid()]
    projects = [emit_for_tests(tmp_path / "same", NAME), emit_for_tests(tmp_path / "other", NAME, programs_per_unit=1)]
    # Two processes, at once: importing vLLM takes seconds.
    running = [
        subprocess.Popen([sys.executable, "-c", code, project], stdout=subprocess.PIPE, text=True)
        for project in projects
    ]
    same, other = (process.communicate()[0].splitlines()[-1].split(maxsplit=1) for process in running)
    assert first == same
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_plugin_is_found_and_may_be_loaded_again(pack: ModuleType) -> None:
    found = [point for point in entry_points(group="vllm.general_plugins") if point.name == NAME]
    assert len({point.value for point in found}) == 1
    for _ in range(2):
        found[0].load()()
    importlib.import_module("vllm.model_executor.layers.attention.mla_attention")
    update = getattr(torch.ops, NAME).fused_rope_mla_kv_cache_update.default._schema
    vllm_update = torch.ops.vllm.unified_mla_kv_cache_update.default._schema
    kinds = [
        next(str(argument.real_type) for argument in schema.arguments if argument.name == "layer_name")
        for schema in (update, vllm_update)
    ]
    assert kinds[0] == kinds[1]


def test_plugin_without_vllm(pack: ModuleType) -> None:
    """Where vLLM is not installed the entry point does nothing and says nothing."""
    code = (
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'vllm' else real(name, *a);"
        f"import {NAME}.vllm_plugin as p; p.register(); p.register(); assert 'vllm' not in sys.modules"
    )
    site = Path(pack.__file__ or "").parent.parent
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=site, capture_output=True, text=True, check=True
    )
    assert ran.stdout + ran.stderr == ""
