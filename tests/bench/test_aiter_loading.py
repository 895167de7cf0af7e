"""AITER is found and its Triton modules are imported alone, whatever else is there under its name.

The distributions are made here, with modules where several releases have them; `test_aiter_parity` runs AITER's own.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tunegen.bench.aiter import load_aiter
from tunegen.errors import UsageError

ROOT_THAT_FAILS = 'raise OSError("libamdhip64.so: cannot open shared object file")\n'

# Modules at ops/triton of a release, by path; {three} and {four} of them return what earlier and later ones do.
RMS_3 = """
from aiter.ops.triton.utils.logger import LOG
def fused_rms_mxfp4_quant(x1, x1_weight, x1_epsilon, res1=None):
    return ("q", "scales"), None, res1
"""
QUANT = """
def dynamic_mxfp4_quant(x):
    return "codes", "exponents"
"""
ROPE_OLD = """
import torch
def fused_qk_rope_cat_and_cache_mla(q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale,
                                    is_neox, num_decode_toks_for_zeros=0):
    n = num_decode_toks_for_zeros
    zeros = (torch.zeros(n, 1, 2),) if n else ()
    return "q_out", "decode", "k_pe_out", kv_cache, *zeros
"""
RMS_4 = """
from aiter.ops.triton._gluon_kernels.gfx1250.quant.fused_mxfp4_quant import _gluon_fused_rms_mxfp4_quant_kernel
from aiter.ops.triton.utils._triton.arch_info import get_arch
from aiter.utility import dtypes
def fused_rms_mxfp4_quant(x1, x1_weight, x1_epsilon, res1=None, quant_dtype=dtypes.fp8):
    return ("q", "scales"), get_arch(), _gluon_fused_rms_mxfp4_quant_kernel, res1
"""
ROPE_NEW = """
import torch
from aiter.jit.utils.torch_guard import torch_compile_guard
def fake(): pass
@torch_compile_guard(gen_fake=fake)
def fused_qk_rope_cat_and_cache_mla(q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale,
                                    is_neox, num_decode_toks_for_zeros=0):
    return "q_out", "decode", "k_pe_out", torch.zeros(num_decode_toks_for_zeros, 1, 2)
"""
EARLIER = {
    "__init__.py": ROOT_THAT_FAILS,
    "utils/__init__.py": "",
    "utils/logger.py": "LOG = None",
    "fused_mxfp4_quant.py": RMS_3,
    "quant.py": QUANT,
    "fused_kv_cache.py": ROPE_OLD,
}
LATER = {
    "__init__.py": ROOT_THAT_FAILS,
    "quant/__init__.py": ROOT_THAT_FAILS,
    "quant/fused_mxfp4_quant.py": RMS_4,
    "quant/quant.py": QUANT,
    "fusions/__init__.py": ROOT_THAT_FAILS,
    "fusions/fused_kv_cache.py": ROPE_NEW,
}
RELEASES = {"earlier": EARLIER, "later": LATER}


def unpack(site: Path, modules: dict[str, str], name: str = "amd-aiter", version: str = "0.1.7") -> Path:
    """A distribution as pip leaves it in site-packages; returns site."""
    package = site / "aiter"
    files = {"__init__.py": ROOT_THAT_FAILS, "ops/__init__.py": ROOT_THAT_FAILS}
    files |= {f"ops/triton/{path}": source for path, source in modules.items()}
    write(package, files)
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    records = "".join(f"aiter/{path},,\n" for path in files)
    write(about, {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "RECORD": records})
    return site


def write(folder: Path, files: dict[str, str]) -> None:
    for path, source in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))


@pytest.fixture
def no_aiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the tests run with it: what is looked for is what each test puts there."""
    kept = [place for place in sys.path if not (Path(place) / "aiter").exists()]
    monkeypatch.setattr(sys, "path", kept)


@pytest.fixture(params=["installed", "root"])
def load(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_aiter: None
) -> Callable[..., Any]:
    """Loads a made distribution: from sys.path, or from the folder."""

    def run(modules: dict[str, str]) -> Any:
        site = unpack(tmp_path, modules)
        if request.param == "root":
            return load_aiter(site)
        monkeypatch.syspath_prepend(site)
        return load_aiter()

    return run


def aiter_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "aiter"}


def rope(aiter: Any, zeros: int) -> Any:
    return aiter.fused_qk_rope_cat_and_cache_mla(
        *("q_nope", "q_pe", "k_nope", "k_pe", torch.zeros(3, 1, 2), "slots", "pos", "cos", "sin", None, False),
        num_decode_toks_for_zeros=zeros,
    )


@pytest.mark.parametrize("release", RELEASES)
def test_the_same_returns_in_all_releases(release: str, load: Callable[..., Any]) -> None:
    aiter = load(RELEASES[release])
    out = aiter.fused_rms_mxfp4_quant("x", "weight", 1e-6, res1="residual")
    assert (out.q, out.scales, out.second, out.residual_out) == ("q", "scales", None, "residual")
    assert aiter.dynamic_mxfp4_quant("x") == ("codes", "exponents")
    assert rope(aiter, 0) == ("q_out", "decode", "k_pe_out", None)
    *rest, zeros = rope(aiter, 2)
    assert rest == ["q_out", "decode", "k_pe_out"]
    assert zeros.shape == (2, 1, 2)
    assert "0.1.7" in aiter.origin


def test_stand_ins_of_later_releases(load: Callable[..., Any]) -> None:
    aiter = load(LATER)
    function = aiter.functions["fused_rms_mxfp4_quant"]
    assert function.__kwdefaults__ is None
    assert function.__defaults__ == (None, torch.float8_e4m3fn)
    # Where releases before return the norm of x2, and its arch_info before that.
    assert aiter.fused_rms_mxfp4_quant("x", "weight", 1e-6)[2:] == ("gfx950", None, None)


@pytest.mark.parametrize("release", RELEASES)
def test_modules_of_the_name_stay_as_they_were(release: str, load: Callable[..., Any]) -> None:
    load(RELEASES[release])
    assert aiter_modules() == {}
    users = {name: ModuleType(name) for name in ("aiter", "aiter.ops", "aiter.streams")}
    sys.modules.update(users)
    try:
        load(RELEASES[release])
        assert aiter_modules() == users
        with pytest.raises(UsageError):
            load({**RELEASES[release], "quant.py": "import no_such_module", "quant/quant.py": "import no_such_module"})
        assert aiter_modules() == users
    finally:
        for name in users:
            del sys.modules[name]


def test_unknown_arity(load: Callable[..., Any]) -> None:
    aiter = load({**EARLIER, "fused_mxfp4_quant.py": "def fused_rms_mxfp4_quant(*_): return 1, 2, 3, 4, 5"})
    with pytest.raises(UsageError, match=r"must return 3 or 4 values; that of AITER 0\.1\.7 returned 5"):
        aiter.fused_rms_mxfp4_quant("x", "weight", 1e-6)


def test_a_function_that_moved(load: Callable[..., Any]) -> None:
    modules = {path: source for path, source in EARLIER.items() if path != "fused_kv_cache.py"}
    with pytest.raises(UsageError, match=r"fused_qk_rope_cat_and_cache_mla must be in one of fusions.fused_kv_cache"):
        load(modules)


def test_a_module_that_needs_more(load: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"quant of AITER 0\.1\.7 in .* does not: No module named 'aiter\.jit'"):
        load({**EARLIER, "quant.py": "from aiter.jit.core import compile_ops"})


def test_nothing_installed(no_aiter: None) -> None:
    with pytest.raises(UsageError, match=r"no distribution is installed that is named amd-aiter.*pip install"):
        load_aiter()


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must hold aiter/ops/triton; .* does not"):
        load_aiter(tmp_path)


def test_the_asyncio_package_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_aiter: None) -> None:
    write(tmp_path / "aiter", {"__init__.py": "def map_aiter(): ..."})
    about = {"METADATA": "Metadata-Version: 2.1\nName: aiter\nVersion: 0.13\n", "RECORD": "aiter/__init__.py,,\n"}
    write(tmp_path / "aiter-0.13.dist-info", about)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"of the distribution aiter 0\.13, is another one of that name.*amd-aiter"):
        load_aiter()
    assert aiter_modules() == {}


def test_both_installed_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_aiter: None) -> None:
    """pip lets the asyncio package overwrite the root of AMD's; its kernels are there all the same."""
    unpack(tmp_path, EARLIER)
    write(tmp_path / "aiter", {"__init__.py": "def map_aiter(): ..."})
    monkeypatch.syspath_prepend(tmp_path)
    # What was made here takes and returns strings in place of tensors.
    assert load_aiter().dynamic_mxfp4_quant("x") == ("codes", "exponents")  # type: ignore[arg-type, comparison-overlap]  # stand-ins


def test_installed_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_aiter: None) -> None:
    about = {"METADATA": "Metadata-Version: 2.1\nName: amd-aiter\nVersion: 0.1.7\n", "RECORD": "x.pth,,\n"}
    write(tmp_path / "amd_aiter-0.1.7.dist-info", about)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"amd-aiter 0\.1\.7 is installed without its files.*give that folder"):
        load_aiter()


def test_real_aiter_on_rocm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_aiter: None) -> None:
    unpack(tmp_path, EARLIER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "`import aiter` failed: libamdhip64.so" in load_aiter().origin
    for init in tmp_path.rglob("__init__.py"):
        init.write_text("")
    before = set(sys.modules)
    try:
        aiter = load_aiter()
        assert aiter.origin == "aiter 0.1.7"
        assert "aiter" in sys.modules
        # What was made here takes and returns strings in place of tensors.
        assert aiter.dynamic_mxfp4_quant("x") == ("codes", "exponents")  # type: ignore[arg-type, comparison-overlap]  # stand-ins
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


LAUNCHED = """
class Kernel:
    arg_names = ("x", "kpack")
    def __getitem__(self, grid):
        return lambda *args, **options: (grid, args, options)
_quant_kernel = Kernel()
def dynamic_mxfp4_quant(x):
    return _quant_kernel[(3,)](x, kpack=2, num_warps=4, waves_per_eu=1), "exponents"
"""


@pytest.mark.skipif(torch.version.hip is not None, reason="with ROCm these options are AITER's to give")
def test_options_of_amd_are_left_out_elsewhere(tmp_path: Path) -> None:
    site = unpack(tmp_path, {**EARLIER, "quant.py": LAUNCHED})
    # What was made here takes and returns strings in place of tensors.
    launched, _ = load_aiter(site).dynamic_mxfp4_quant("x")  # type: ignore[arg-type]  # a stand-in
    assert launched == ((3,), ("x",), {"kpack": 2, "num_warps": 4})
