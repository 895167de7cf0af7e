"""Rendered sources: golden files, formatting, and what a config resolves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunegen.codegen.render import kernels_hash, render, template_hash
from tunegen.errors import ConfigError, ShapeError, UnknownNameError
from tunegen.ops import Config, Problem, get_family
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4
from tunegen.targets import TARGETS, get_target

GOLDEN = Path(__file__).parents[1] / "golden"

# One of each thing that changes the structure of the source: residual, rounding, conversion, cover, loop, tile.
GOLDEN_KERNELS: list[tuple[str, str, int, str, str, Config]] = [
    ("add_7168_sm90", "rmsnorm_add_mxfp4_quant", 7168, "none", "sm90", {"cover": "7x1024", "num_warps": 4}),
    ("norm_7168_gfx950", "rmsnorm_mxfp4_quant", 7168, "none", "gfx950", {}),
    ("norm_96_gfx942_norm_output", "rmsnorm_mxfp4_quant", 96, "norm_output", "gfx942", {}),
    (
        "add_1536_sm90_loop",
        "rmsnorm_add_mxfp4_quant",
        1536,
        "sum_norm_output",
        "sm90",
        {"rows": 2, "num_warps": 4, "programs_per_unit": 2, "num_stages": 2, "store_policy": "streaming"},
    ),
    ("dynamic_512_sm100", "dynamic_mxfp4_quant", 512, "none", "sm100", {}),
]


def rendered(op: str, hidden_size: int, rounding: str, target: str, config: Config) -> str:
    problem = Problem.of(op, {"hidden_size": hidden_size}, rounding)
    gpu = get_target(target)
    return render(problem, gpu, get_family(op).resolve(problem, gpu, config)).source


@pytest.mark.parametrize(("name", "op", "hidden_size", "rounding", "gpu", "config"), GOLDEN_KERNELS)
def test_golden(
    name: str, op: str, hidden_size: int, rounding: str, gpu: str, config: Config, update_golden: bool
) -> None:
    """The rendered source is the committed one; `pytest --update-golden` writes it anew for review."""
    path = GOLDEN / f"{name}.py"
    source = rendered(op, hidden_size, rounding, gpu, config)
    # The hash says that some template has changed, which is no change of this kernel.
    source = source.replace(template_hash(get_family(op).template), "template hash")
    if update_golden:
        path.write_text(source)
    assert source == path.read_text(), f"{name} has changed: run pytest --update-golden and review the difference"


def some_sources() -> list[str]:
    sources = []
    for target in TARGETS.values():
        for op in RMSNORM_MXFP4.ops:
            for hidden_size, rounding in ((7168, "none"), (96, "sum_norm_output"), (1536, "output"), (16384, "none")):
                problem = Problem.of(op, {"hidden_size": hidden_size}, rounding)
                family = get_family(op)
                config = family.default(problem, target)
                sources.append(render(problem, target, config).source)
                sources.append(render(problem, target, config, twin=True).source)
                policies = next(knob.choices for knob in family.knobs(problem, target) if knob.name == "load_policy")
                sources.append(
                    render(problem, target, {**config, "programs_per_unit": 2, "load_policy": policies[-1]}).source
                )
                if hidden_size > 96:
                    sources.append(render(problem, target, {**config, "splits": 2}).source)
    return sources


def test_sources_are_formatted(tmp_path: Path) -> None:
    """Rendered kernels read like written ones: ruff format would not touch them, ruff check finds nothing."""
    for index, source in enumerate(some_sources()):
        (tmp_path / f"kernel_{index}.py").write_text(source)
    ruff = Path(sys.executable).parent / "ruff"
    formatted = subprocess.run(
        [ruff, "format", "--diff", "--line-length", "120", tmp_path], capture_output=True, text=True, check=False
    )
    assert formatted.returncode == 0, formatted.stdout[:3000]
    checked = subprocess.run(
        [ruff, "check", "--isolated", "--select", "E9,F", tmp_path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout[:3000]


def test_the_cover_is_exact_and_unmasked() -> None:
    """7168 is covered by segments that add up to it: no padding to 8192, and no mask on a whole row."""
    source = rendered("rmsnorm_add_mxfp4_quant", 7168, "none", "sm90", {"cover": "3x2048+1024"})
    kernel = source[source.index("def rmsnorm_add_mxfp4_quant") :]
    assert "load_row(x_row, 6144, 1024, PAIRS" in kernel
    assert "8192" not in source
    assert "mask" not in kernel


@pytest.mark.parametrize("op", RMSNORM_MXFP4.ops)
def test_contraction_is_set_explicitly(op: str) -> None:
    assert '"enable_fp_fusion": False' in rendered(op, 512, "none", "gfx950", {})


def test_synonymous_roundings_render_alike() -> None:
    """Without a residual there is no sum to round."""
    for plain, synonym in (("output", "sum_output"), ("norm_output", "sum_norm_output")):
        one = rendered("rmsnorm_mxfp4_quant", 512, plain, "sm90", {})
        assert one == rendered("rmsnorm_mxfp4_quant", 512, synonym, "sm90", {})
    assert rendered("rmsnorm_add_mxfp4_quant", 512, "output", "sm90", {}) != rendered(
        "rmsnorm_add_mxfp4_quant", 512, "sum_output", "sm90", {}
    )


def test_template_hash_depends_on_macros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from tunegen import paths
    from tunegen.codegen import render as module

    copied = tmp_path / "templates"
    shutil.copytree(paths.templates_dir(), copied)
    before = template_hash("rmsnorm_mxfp4.py.jinja")
    macro = copied / "lib" / "mxfp4.jinja"
    macro.write_text(macro.read_text().replace("0x200000", "0x300000"))
    monkeypatch.setattr(module, "templates_dir", lambda: copied)
    template_hash.cache_clear()
    changed = template_hash("rmsnorm_mxfp4.py.jinja")
    template_hash.cache_clear()
    assert changed != before


@pytest.mark.parametrize("hidden_size", [0, 31, 48, 16416, -32])
def test_bad_hidden_size(hidden_size: int) -> None:
    with pytest.raises(ShapeError, match=r"multiple of 32 from 32 to 16384"):
        rendered("rmsnorm_mxfp4_quant", hidden_size, "none", "sm90", {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cover": "7x1000"}, "powers of two"),
        ({"cover": "8x1024"}, "add up to the hidden size 7168"),
        ({"cover": "lots"}, "such as 7x1024"),
        ({"num_warps": 3}, "must be one of 1, 2, 4, 8, 16"),
        ({"num_warps": 1}, "A lane holds at most 128 elements"),
        ({"rows": 2, "splits": 2, "num_warps": 8}, "one row each, without a loop"),
        (
            {"rows": 8, "num_warps": 16, "programs_per_unit": 1, "num_stages": 3},
            "bytes of 8 rows of 7168 in shared memory",
        ),
        ({"store_policy": "fast"}, "must be one of default, streaming"),
    ],
)
def test_bad_config(config: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rendered("rmsnorm_mxfp4_quant", 7168, "none", "sm90", config)


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no config key 'num_warp'\. Did you mean 'num_warps'"):
        rendered("rmsnorm_mxfp4_quant", 7168, "none", "sm90", {"num_warp": 4})
    with pytest.raises(UnknownNameError, match="no config key 'waves_per_eu'"):
        rendered("rmsnorm_mxfp4_quant", 7168, "none", "sm90", {"waves_per_eu": 2})
    with pytest.raises(UnknownNameError, match="no config key 'max_registers'"):
        rendered("rmsnorm_mxfp4_quant", 7168, "none", "gfx950", {"max_registers": 64})
    with pytest.raises(UnknownNameError, match="no target 'gfx90'"):
        rendered("rmsnorm_mxfp4_quant", 7168, "none", "gfx90", {})
    with pytest.raises(UnknownNameError, match=r"no rounding 'outputs'\. Did you mean 'output'"):
        rendered("rmsnorm_mxfp4_quant", 7168, "outputs", "sm90", {})


def test_the_hash_of_kernels_is_of_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, target = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 96}), get_target("sm90")
    configs = [get_family(problem.op).default(problem, target)]
    rendered = render(problem, target, configs[0])
    before = kernels_hash(problem, target, configs)
    for old, new, same in (("# template ", "# a template ", True), ("tl.store(", "tl.stored(", False)):
        assert old in rendered.source
        changed = replace(rendered, source=rendered.source.replace(old, new))
        with monkeypatch.context() as patch:
            patch.setattr("tunegen.codegen.render.render", lambda *_, changed=changed: changed)
            assert (kernels_hash(problem, target, configs) == before) is same
