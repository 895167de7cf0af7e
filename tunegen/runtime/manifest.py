"""manifest.json of a pack: which kernel serves which call, and on what evidence.

::

    {"format": 1,
     "pack": "tunegen_ops",           the package's name and its torch.ops namespace
     "version": "0.1.0+4c2e...",      the pack's version; the part after + is a hash of its content
     "tunegen": "0.1.0",              the version that emitted it
     "entries": [                     one for each op, shape, variant tuned, device and activation dtype
      {"op": "rmsnorm_mxfp4_quant", "shape": {"hidden_size": 7168}, "variant": "none",
       "device": {"arch": "gfx950", "units": 256, "memory_gib": 288}, "target": "gfx950", "dtype": "bfloat16",
       "evidence": "measured",        or "predicted"
       "environment": {...},          what was measured on, or which model predicted
       "template_hash": "...", "stale": false,    stale: the template renders other kernels now
       "trials": 60,
       "buckets": [                   ascending by token count
        {"tokens": 1,                 the count it was tuned at
         "max_tokens": 1,             the last count it serves; null for the last bucket
         "config": {"num_warps": 8, ...},
         "kernels": {"none": "kernels/gfx950/rmsnorm_mxfp4_quant/h7168_none_0123456789ab.py", ...},
                                      by variant of the op; relative to the package
         "median_us": 3.1, ...}]}]}   all else that is known of the winner, as tuned_configs has it
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .device import DeviceKey
from .families import OPS, Shape

FORMAT = 1
FILE_NAME = "manifest.json"
EVIDENCE = ("measured", "predicted")


class ManifestError(RuntimeError):
    """A pack whose manifest.json, or a kernel that it names, is missing or damaged."""


@dataclass(frozen=True)
class Bucket:
    """The kernels of a range of token counts.

    Attributes:
        tokens: Token count they were tuned at.
        max_tokens: The last token count they serve; None for the last bucket.
        config: Their config.
        kernels: Kernel files by variant of the op, relative to the package.
        fields: All else that is known: median_us, spread_us, default_us, ...
    """

    tokens: int
    max_tokens: int | None
    config: dict[str, int | str]
    kernels: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One op at one shape on one device, and the variants that are served alike.

    Attributes:
        op: Op name.
        shape: Sizes.
        variant: The op's variant it was tuned with; its buckets have the kernels of others too.
        device: The device it was tuned for.
        target: Name of the target its kernels are rendered for.
        dtype: Activation dtype it was tuned with; it serves the others too.
        evidence: ``"measured"`` or ``"predicted"``.
        environment: Device name, versions, timing policy or model.
        template_hash: Hash of the template that the configs were found with.
        stale: True if that template rendered other kernels from them.
        trials: Distinct configs evaluated.
        buckets: Ascending by token count.
        held_out_regret: What token counts that were never tuned lose, by count: the time of the config that serves
            it over that of the fastest found there, less 1. Empty if it was not measured.
    """

    op: str
    shape: Shape
    variant: str
    device: DeviceKey
    target: str
    dtype: str
    evidence: str
    environment: dict[str, Any]
    template_hash: str
    stale: bool
    trials: int
    buckets: list[Bucket]
    held_out_regret: dict[str, float] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """The variants that every bucket has a kernel of, the tuned one first."""
        every = [variant for variant in self.buckets[0].kernels if all(variant in b.kernels for b in self.buckets)]
        return sorted(every, key=lambda variant: variant != self.variant)

    @property
    def edges(self) -> list[int]:
        """The last token count of every bucket but the last."""
        return [bucket.max_tokens for bucket in self.buckets[:-1] if bucket.max_tokens is not None]


@dataclass(frozen=True)
class Manifest:
    """All of it.

    Attributes:
        pack: Name of the package and of its torch.ops namespace.
        version: Version of the pack.
        tunegen: Version of tunegen that emitted it.
        entries: See `Entry`.
    """

    pack: str
    version: str
    tunegen: str
    entries: list[Entry]

    def text(self) -> str:
        """The content of the file."""
        data: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        for entry in data["entries"]:
            entry["buckets"] = [{**bucket.pop("fields"), **bucket} for bucket in entry["buckets"]]
        return json.dumps(data, indent=1) + "\n"


def _bucket_from(data: dict[str, Any]) -> Bucket:
    rest = dict(data)
    bucket = Bucket(rest.pop("tokens"), rest.pop("max_tokens"), rest.pop("config"), rest.pop("kernels"), rest)
    if not all(isinstance(path, str) for path in bucket.kernels.values()):
        raise TypeError("a kernel is not a path")
    return bucket


def _entry_from(data: dict[str, Any]) -> Entry:
    device, buckets = DeviceKey(**data["device"]), [_bucket_from(bucket) for bucket in data["buckets"]]
    entry = Entry(**{**data, "device": device, "buckets": buckets})
    if entry.op not in OPS:
        raise ValueError(f"there is no op {entry.op!r}")
    if entry.evidence not in EVIDENCE:
        raise ValueError(f"evidence is {entry.evidence!r}, not one of {', '.join(EVIDENCE)}")
    edges = entry.edges
    if not buckets or len(edges) != len(buckets) - 1 or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"max_tokens of the buckets do not ascend: {[bucket.max_tokens for bucket in buckets]}")
    return entry


def _files(root: Path) -> set[str]:
    """Every file below a folder, relative to it; asking for each of thousands would take longer than all else."""
    found: set[str] = set()
    for folder, _, names in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix()
        found.update(f"{prefix}/{name}" for name in names)
    return found


def read_manifest(root: Path) -> Manifest:
    """Reads the manifest of the pack whose package folder is ``root``.

    Raises:
        ManifestError: It is missing, not of this format, or names a kernel file that is not there.
    """
    path = root / FILE_NAME
    advice = "Install the pack again, or emit it again with `tunegen emit`."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}. {advice}") from error
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != FORMAT:
        raise ManifestError(f"{path} must have format {FORMAT}; it has {found!r}. {advice}")
    try:
        entries = [_entry_from(entry) for entry in data["entries"]]
        manifest = Manifest(data["pack"], data["version"], data["tunegen"], entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path}: a field is missing or wrong: {error!r}. {advice}") from error
    kernels = {kernel for entry in entries for bucket in entry.buckets for kernel in bucket.kernels.values()}
    missing = sorted(kernels - _files(root))
    if missing:
        raise ManifestError(
            f"{path} names {len(missing)} kernel files that are not there, such as {missing[0]}. {advice}"
        )
    return manifest
