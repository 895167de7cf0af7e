"""Finds AMD's AITER and imports the few of its modules that hold Triton kernels, without the package around them.

``import aiter`` loads ROCm libraries and builds others; its Triton kernels need neither. They are imported here under
stubs of their parent packages, which have a ``__path__`` and nothing else. What the modules import besides and their
kernels do not use is replaced by the smallest thing that lets the import through:

    aiter.jit.utils.torch_guard    registers wrappers as torch ops. Here: a decorator that does nothing; called
                                   directly, a function does the same with it and without.
    aiter.utility.dtypes           asks ``rocminfo`` which fp8 the GPU has. Here: OCP's e4m3. It is the default of a
                                   parameter of other functions.
    ..._gluon_kernels.gfx1250...   kernels in Gluon, chosen on gfx1250 alone. Here: None.
    ...utils._triton.arch_info     asks Triton for the architecture when it is imported, which fails without a GPU,
                                   and AITER knows no architecture of NVIDIA's: it would take fp8 to be fnuz. Without
                                   ROCm: gfx950, whose fp8 is OCP's too and whose kernels are the plain Triton ones.
                                   With ROCm AITER's own module is used.

Without ROCm launches lose the options that Triton has for AMD alone: it refuses those that a back end does not know.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tunegen.errors import UsageError

DISTRIBUTION = "amd-aiter"
PACKAGE = "aiter"
TRITON_FOLDER = Path("ops", "triton")
REMEDY = (
    f"Install it with `pip install --no-deps --pre {DISTRIBUTION}` (ROCm: with its dependencies), or unpack its wheel"
    " and give that folder."
)
# Where each function has been: first in releases from 0.1.10, then in earlier ones.
HOMES = {
    "fused_rms_mxfp4_quant": ("quant.fused_mxfp4_quant", "fused_mxfp4_quant"),
    "dynamic_mxfp4_quant": ("quant.quant", "quant"),
    "fused_qk_rope_cat_and_cache_mla": ("fusions.fused_kv_cache", "fused_kv_cache"),
}
# Functions of later releases, beside the former: left out where a release has none of them.
LATER_HOMES = {
    "fused_reduce_act_mul_and_mxfp4_quant": ("quant.fused_mxfp4_quant",),
    "dynamic_mxfp8_quant": ("quant.quant",),
    "dynamic_nvfp4_quant": ("quant.quant",),
    "dynamic_per_token_quant_fp8_i8": ("quant.quant", "quant"),
}
STANDS_FOR_ARCH = "gfx950"
AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack", "schedule_hint")

Functions = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Location:
    """An AITER on this machine.

    Attributes:
        folder: The package's folder, named aiter.
        version: Its release; "unknown" for a source tree.
    """

    folder: Path
    version: str


def find(root: Path | None) -> Location:
    """Finds AITER in a folder, or among what is installed if none is given.

    Raises:
        UsageError: It is not there, or something else of that name is.
    """
    places = sys.path if root is None else [str(root)]
    found = next(iter(importlib.metadata.distributions(name=DISTRIBUTION, path=places)), None)
    version = found.version if found else "unknown"
    if root is not None:
        if _has_kernels(root / PACKAGE):
            return Location(root / PACKAGE, version)
        raise UsageError(
            f"The folder of an unpacked AITER must hold {PACKAGE / TRITON_FOLDER}; {root} does not."
            f" Give the folder that {PACKAGE}/ lies in."
        )
    if found:
        folder = Path(str(found.locate_file(PACKAGE)))
        if _has_kernels(folder):
            return Location(folder, version)
    for folder in _importable_folders():
        if _has_kernels(folder):
            return Location(folder, version)
        raise UsageError(
            f"AITER is AMD's library of kernels, with {PACKAGE / TRITON_FOLDER} in it; the package {PACKAGE} here,"
            f" {folder}, of the distribution {_owner()}, is another one of that name. {REMEDY}"
        )
    raise UsageError(
        f"AITER must be installed or its folder be given; {f'{DISTRIBUTION} {version}' if found else 'no distribution'}"
        f" is installed{' without its files' if found else f' that is named {DISTRIBUTION}'}. {REMEDY}"
    )


def _has_kernels(folder: Path) -> bool:
    return (folder / TRITON_FOLDER).is_dir()


def _importable_folders() -> list[Path]:
    """Where ``import aiter`` would look, without importing it."""
    spec = importlib.machinery.PathFinder.find_spec(PACKAGE)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _owner() -> str:
    names = importlib.metadata.packages_distributions().get(PACKAGE, [])
    return " and ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))) or "(unknown)"


def import_functions(location: Location) -> Functions:
    """Imports the functions of `HOMES` without the package root; sys.modules is afterwards what it was before.

    Not for several threads at once: while it runs, ``aiter`` is the stub for all of them.

    Raises:
        UsageError: A function is in none of the modules that it is known to have been in, or a module of this
            release needs more than is known to be needed.
    """
    with _private_modules():
        for name in (PACKAGE, f"{PACKAGE}.ops", f"{PACKAGE}.ops.triton"):
            _put_package_stub(name, location.folder)
        for name, contents in _stand_ins().items():
            _put_stand_in(name, contents)
        found = {name: _import(name, location) for name in HOMES}
        later = (name for name in LATER_HOMES if _home(name, location, LATER_HOMES, required=False))
        return found | {name: function for name in later if (function := _import_later(name, location))}


def import_real_functions(location: Location) -> Functions:
    """Imports them with ``import aiter``, as its own users do; raises whatever that raises."""
    importlib.import_module(PACKAGE)
    modules = {name: f"{PACKAGE}.ops.triton.{_home(name, location)}" for name in HOMES}
    return {name: getattr(importlib.import_module(module), name) for name, module in modules.items()}


@contextmanager
def _private_modules() -> Iterator[None]:
    """Takes every module of AITER's name out of sys.modules, and puts back what was there, and that alone."""

    def take() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
        return {name: sys.modules.pop(name) for name in names}

    before = take()
    try:
        yield
    finally:
        take()
        sys.modules.update(before)


def _home(
    function: str, location: Location, homes: Mapping[str, tuple[str, ...]] = HOMES, required: bool = True
) -> str:
    """The module that has a function in this release, relative to aiter.ops.triton; empty if it need not have one."""
    for home in homes[function]:
        if (location.folder / TRITON_FOLDER / Path(*home.split("."))).with_suffix(".py").is_file():
            return home
    if not required:
        return ""
    raise UsageError(
        f"AITER's {function} must be in one of {', '.join(homes[function])}; AITER {location.version} in"
        f" {location.folder} has none of them. Releases 0.1.7 to 0.1.20 have; take one of them."
    )


def _import_later(function: str, location: Location) -> Callable[..., Any] | None:
    """A function of `LATER_HOMES`, unless its module has it not yet."""
    home = _home(function, location, LATER_HOMES)
    path = (location.folder / TRITON_FOLDER / Path(*home.split("."))).with_suffix(".py")
    return _import(function, location, LATER_HOMES) if f"def {function}(" in path.read_text(encoding="utf-8") else None


def _import(function: str, location: Location, homes: Mapping[str, tuple[str, ...]] = HOMES) -> Callable[..., Any]:
    home = _home(function, location, homes)
    parent = home.rpartition(".")[0]
    if parent:
        # Its __init__ imports all that is in it.
        _put_package_stub(f"{PACKAGE}.ops.triton.{parent}", location.folder)
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"{PACKAGE}.ops.triton.{home}"), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"AITER's Triton kernels must import without the rest of it; {home} of AITER {location.version} in"
            f" {location.folder} does not: {error}. Releases 0.1.7 to 0.1.20 are known to; take one of them."
        ) from error
    if torch.version.hip is None:
        contents = vars(sys.modules[found.__module__])
        for name in [name for name, value in contents.items() if name.endswith("_kernel") and value is not None]:
            contents[name] = _WithoutAmdOptions(contents[name])
    return found


class _WithoutAmdOptions:
    """A Triton kernel whose launches leave `AMD_OPTIONS` out, but for those that it has as parameters."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        launch = self._kernel[grid]
        own = getattr(self._kernel, "arg_names", ())

        def run(*args: Any, **options: Any) -> Any:
            return launch(*args, **{k: v for k, v in options.items() if k in own or k not in AMD_OPTIONS})

        return run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def _put_package_stub(name: str, folder: Path) -> None:
    if name in sys.modules:
        return
    stub = ModuleType(name)
    stub.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    _put(name, stub)


def _put_stand_in(name: str, contents: dict[str, Any]) -> None:
    module = ModuleType(name)
    vars(module).update(contents)
    _put(name, module)


def _put(name: str, module: ModuleType) -> None:
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=hasattr(module, "__path__"))
    sys.modules[name] = module


def _stand_ins() -> dict[str, dict[str, Any]]:
    stand_ins: dict[str, dict[str, Any]] = {
        "aiter.jit.utils.torch_guard": {"torch_compile_guard": lambda **_: lambda function: function},
        "aiter.utility": {"__path__": []},
        "aiter.utility.dtypes": {"fp8": torch.float8_e4m3fn},
        "aiter.ops.triton._gluon_kernels.gfx1250.quant.fused_mxfp4_quant": {
            "_gluon_fused_rms_mxfp4_quant_kernel": None
        },
        "aiter.ops.triton._gluon_kernels.gfx1250.fusions.fused_kv_cache": {
            "_fused_qk_rope_cat_and_cache_mla_kernel": None,
            "_fused_qk_rope_reshape_and_cache_kernel": None,
        },
    }
    if torch.version.hip is None:
        stand_ins["aiter.ops.triton.utils._triton.arch_info"] = {"get_arch": lambda: STANDS_FOR_ARCH}
    return stand_ins
