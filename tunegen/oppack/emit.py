"""Emits an op pack: winning kernels as sources, the runtime, a manifest, and what makes a package of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import keyword
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunegen import __version__
from tunegen.codegen.render import render
from tunegen.configs import TunedEntry
from tunegen.errors import StaleEntryError, UsageError
from tunegen.oppack.texts import aiter_text, fusion_text, init_text, pyproject_text, readme_text, vllm_plugin_text
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime import manifest as runtime_manifest
from tunegen.runtime.manifest import FILE_NAME, Bucket, Entry, Manifest
from tunegen.runtime.table import shape_text
from tunegen.targets import get_target

# torch.ops namespaces and packages that a pack must not shadow.
RESERVED_NAMES = {"torch", "triton", "tunegen", "aten", "prim", "prims", "quantized", "inductor", "aiter", "vllm"}
# What may lie beside an emitted package and be lost.
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True)
class EmittedPack:
    """A pack that was written.

    Attributes:
        path: The project folder.
        name: Name of the package in it.
        version: Version of the pack.
        entries: Number of entries.
        kernels: Number of kernel files.
        skipped: The stale entries that were left out, for people.
        wheel: The wheel, if one was asked for.
    """

    path: Path
    name: str
    version: str
    entries: int
    kernels: int
    skipped: tuple[str, ...]
    wheel: Path | None

    @property
    def package(self) -> Path:
        """The package folder."""
        return self.path / self.name

    def __str__(self) -> str:
        about = f"{self.name} {self.version}: {self.entries} entries, {self.kernels} kernels, in {self.path}"
        return f"{about}\nwheel: {self.wheel}" if self.wheel else about


def _check_name(name: str) -> None:
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(f"The name of a pack must be a Python identifier that a package can have; got {name!r}.")
    if name in RESERVED_NAMES or name in sys.stdlib_module_names:
        raise UsageError(f"A pack cannot be called {name!r}: another package or torch.ops namespace is. Take another.")


def _emitted_name(folder: Path) -> str | None:
    """The name of the pack that tunegen emitted to a folder; None if it holds none."""
    for path in sorted(folder.glob(f"*/{FILE_NAME}")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(data, dict) and data.get("pack") == path.parent.name and "tunegen" in data:
            return path.parent.name
    return None


def _check_folder(out: Path) -> None:
    """Raises UsageError unless ``out`` is free, empty, or a pack with nothing of someone else's beside it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"A pack is a folder; {out} is a file. Give another --out.")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    emitted = _emitted_name(out)
    if emitted is None:
        raise UsageError(f"{out} is not empty and not a pack that tunegen emitted. Give another --out, or empty it.")
    foreign = sorted(names - {emitted, "pyproject.toml", "README.md", "dist"} - CACHES)
    if foreign:
        raise UsageError(
            f"Emitting replaces {out} as a whole, and it holds what tunegen did not write: {', '.join(foreign)}."
            " Move that elsewhere, or give another --out."
        )


def _fresh(entries: Sequence[TunedEntry], allow_stale: bool) -> tuple[list[TunedEntry], tuple[str, ...]]:
    """The entries to emit, in a fixed order, and what is said of those that are left out."""
    if not entries:
        raise UsageError("There is nothing to emit: no tuned entry was given. Run `tunegen tune` first.")
    kept = [entry for entry in entries if allow_stale or not entry.stale]
    skipped = tuple(
        f"{entry.op}, {shape_text(entry.shape)}, for {entry.device}" for entry in entries if entry not in kept
    )
    if skipped:
        rule = "made from another version of their template"
        advice = "Tune again, or emit them as they are with --allow-stale."
        if not kept:
            raise StaleEntryError(f"All {len(skipped)} tuned entries are {rule}: {'; '.join(skipped)}. {advice}")
        message = f"{len(skipped)} tuned entries are left out, {rule}: {'; '.join(skipped)}. {advice}"
        warnings.warn(message, UserWarning, stacklevel=3)

    def order(entry: TunedEntry) -> tuple[object, ...]:
        device = entry.device
        place = (device.arch, device.units, device.memory_gib)
        shape = sorted(entry.shape.items())
        return (entry.target, *place, entry.op, shape, entry.variant, entry.dtype, entry.evidence)

    kept.sort(key=order)
    for one, other in itertools.combinations(kept, 2):
        if one.replaces(other):
            what = f"{one.problem}, {one.dtype}, on {one.device}"
            raise UsageError(f"Two entries are for {what}. Give one of them.")
    return kept, skipped


class _Kernels:
    """The kernel files of a pack, by path relative to the package."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}

    def of(self, entry: TunedEntry, config: Config) -> dict[str, str]:
        """Renders every variant that a config serves and returns the paths by variant."""
        problems = get_family(entry.op).served(entry.problem)
        return {problem.rounding: self._add(problem, entry.target, config) for problem in problems}

    def _add(self, problem: Problem, target: str, config: Config) -> str:
        rendered = render(problem, get_target(target), config)
        sizes = "_".join(f"{name[0]}{size}" for name, size in problem.shape)
        variant = problem.rounding.replace(",", "-")
        path = f"kernels/{target}/{problem.op}/{sizes}_{variant}_{rendered.digest}.py"
        self.sources[path] = rendered.source
        return path


def _manifest_entry(entry: TunedEntry, kernels: _Kernels) -> Entry:
    family, target = get_family(entry.op), get_target(entry.target)
    buckets = []
    for bucket in entry.buckets:
        config = family.resolve(entry.problem, target, bucket.config)
        files = kernels.of(entry, config)
        buckets.append(Bucket(bucket.tokens, bucket.max_tokens, config, files, bucket.fields))
    return Entry(
        op=entry.op,
        shape=entry.shape,
        variant=entry.variant,
        device=entry.device,
        target=entry.target,
        dtype=entry.dtype,
        evidence=entry.evidence,
        environment=entry.environment,
        template_hash=entry.template_hash,
        stale=entry.stale,
        trials=entry.trials,
        buckets=buckets,
        held_out_regret=entry.held_out_regret,
    )


def _runtime() -> dict[str, str]:
    """The files of tunegen.runtime as they stand, by path relative to the package."""
    folder = Path(runtime_manifest.__file__).parent
    paths = sorted(folder.rglob("*.py"))
    return {f"runtime/{path.relative_to(folder).as_posix()}": path.read_text(encoding="utf-8") for path in paths}


def _build_wheel(project: Path) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    return Path(next(WheelBuilder(str(project)).build(directory=str(project / "dist"), versions=["standard"])))


def _replace(folder: Path, out: Path) -> None:
    """Puts ``folder`` in the place of ``out``, which is there again if that fails."""
    folder.chmod(0o755)  # mkdtemp makes folders that only their owner enters
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    out.rename(old / out.name)
    try:
        folder.rename(out)
    except BaseException:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old)


def emit_pack(
    entries: Sequence[TunedEntry],
    out: Path,
    name: str = "tunegen_ops",
    wheel: bool = False,
    allow_stale: bool = False,
) -> EmittedPack:
    """Writes a pack: a project folder with the package in it.

    The same entries give the same files, byte for byte. ``out`` is replaced as a whole, and only once all is
    written.

    Args:
        entries: Tuned entries of any targets.
        out: The project folder: new, empty, or an emitted pack.
        name: Name of the package and of its torch.ops namespace.
        wheel: Also build a wheel, into ``out/dist``.
        allow_stale: Emit entries that were tuned with another version of their template too.

    Raises:
        UsageError: The name, the folder or the entries are not fit.
        StaleEntryError: All entries are stale.
        ConfigError, UnknownNameError: A stale entry's config is none any more.
    """
    _check_name(name)
    _check_folder(out)
    kept, skipped = _fresh(entries, allow_stale)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    project = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        kernels = _Kernels()
        manifest = Manifest(name, "", __version__, [_manifest_entry(entry, kernels) for entry in kept])
        content = {**_runtime(), **kernels.sources}
        digest = hashlib.sha256(manifest.text().encode())
        for path in sorted(content):
            digest.update(f"{path}\0{content[path]}\0".encode())
        manifest = replace(manifest, version=f"{__version__}+{digest.hexdigest()[:12]}")
        content |= {
            "__init__.py": init_text(manifest),
            "fusion.py": fusion_text(manifest),
            "vllm_plugin.py": vllm_plugin_text(manifest),
            "compat/__init__.py": '"""Functions with the arguments and returns of other libraries."""\n',
            "compat/aiter.py": aiter_text(manifest, "Aiter", "0.1.20"),
            "compat/aiter_0_1_7.py": aiter_text(manifest, "Aiter017", "0.1.7"),
            FILE_NAME: manifest.text(),
            "py.typed": "",
        }
        files = {f"{name}/{path}": text for path, text in content.items()}
        files |= {"pyproject.toml": pyproject_text(name, manifest.version), "README.md": readme_text(manifest)}
        for path, text in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(text, encoding="utf-8", newline="")
        built = _build_wheel(project).name if wheel else None
        _replace(project, out)
    except BaseException:
        shutil.rmtree(project, ignore_errors=True)
        raise
    return EmittedPack(
        path=out,
        name=name,
        version=manifest.version,
        entries=len(kept),
        kernels=len(kernels.sources),
        skipped=skipped,
        wheel=out / "dist" / built if built else None,
    )
