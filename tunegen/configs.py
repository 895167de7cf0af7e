"""tuned_configs files: winners as data, with their evidence.

``tuned_configs/<target>/<op>.json`` holds a list of entries, one for each device, shape, variant and activation dtype.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunegen.codegen.render import kernels_hash, template_hash
from tunegen.errors import ConfigError, ShapeError, TunedFileError, TunegenError, UnknownNameError
from tunegen.files import write_text_atomically
from tunegen.ops import Config, Problem, get_family
from tunegen.runtime.device import DeviceKey
from tunegen.targets import TARGETS, get_target

FORMAT = 1
EVIDENCE = ("measured", "predicted")


@dataclass(frozen=True)
class TunedBucket:
    """The winner at one token count.

    Attributes:
        tokens: Token count it was tuned at.
        max_tokens: The last token count it serves; None for the last bucket.
        config: The winning config.
        fields: What is known of it: median_us, spread_us, default_us, twin_us, empty_us, margin, runner_up
            and its runner_up_us; of a prediction predicted_us, default_us and limiter.
    """

    tokens: int
    max_tokens: int | None
    config: Config
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def raced(self) -> bool:
        """True between two tuned counts: a race there chose the config, and measured neither spread nor twin."""
        return "median_us" in self.fields and "spread_us" not in self.fields


@dataclass(frozen=True)
class TunedEntry:
    """Winners of one op at one shape on one device.

    Attributes:
        op: Op name.
        target: Target name.
        device: Which device it is for.
        shape: Sizes.
        variant: The op's variant it was tuned with; it serves others too: see `Family.served`.
        dtype: Activation dtype it was tuned with; it serves the others too.
        evidence: ``"measured"`` or ``"predicted"``.
        template_hash: Hash of the template it was made from.
        environment: Device name, driver or runtime, versions, timing policy or model.
        trials: Distinct configs evaluated.
        buckets: Winners by token count, ascending.
        kernels_hash: Hash of the code that the template rendered from the winners; empty: the template's decides.
        held_out_regret: What token counts that were never tuned lose, by count: the time of the config that serves
            it over the fastest of the winners and of the neighbours' finalists, less 1. Empty if not measured.
    """

    op: str
    target: str
    device: DeviceKey
    shape: dict[str, int]
    variant: str
    dtype: str
    evidence: str
    template_hash: str
    environment: dict[str, Any]
    trials: int
    buckets: list[TunedBucket]
    kernels_hash: str = ""
    held_out_regret: dict[str, float] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """The problem this entry solves."""
        return Problem.of(self.op, self.shape, self.variant)

    @property
    def stale(self) -> bool:
        """True if the template has changed since, and with it the kernels of the winners."""
        if self.template_hash == template_hash(get_family(self.op).template):
            return False
        try:
            return self.kernels_hash != self.rendered_hash()
        except (UnknownNameError, ConfigError, ShapeError):
            return True  # its knobs or shapes are others now

    def rendered_hash(self) -> str:
        """Hash of the code that the template renders from the winners now.

        Raises:
            UnknownNameError, ConfigError, ShapeError: A winner is no config of the template.
        """
        family, target = get_family(self.op), get_target(self.target)
        configs = [family.resolve(self.problem, target, bucket.config) for bucket in self.buckets]
        return kernels_hash(self.problem, target, configs)

    def replaces(self, other: TunedEntry) -> bool:
        """True if this entry takes the place of ``other`` in a file."""
        mine = (self.problem, self.target, self.dtype)
        return mine == (other.problem, other.target, other.dtype) and self.device.matches(other.device)

    def bucket(self, num_tokens: int) -> TunedBucket:
        """The bucket that serves a token count."""
        for bucket in self.buckets:
            if bucket.max_tokens is None or num_tokens <= bucket.max_tokens:
                return bucket
        return self.buckets[-1]


def time_of(bucket: TunedBucket) -> float:
    """The winner's microseconds a call, measured or predicted."""
    fields = bucket.fields
    return float(fields["median_us"] if "median_us" in fields else fields["predicted_us"])


def bucket_edges(tokens: list[int]) -> list[int | None]:
    """Last token count that each tuned count serves: geometric midpoints between neighbours, None at the end."""
    edges: list[int | None] = [int((low * high) ** 0.5) for low, high in itertools.pairwise(tokens)]
    return [*edges, None]


def _entry_from(data: dict[str, Any], op: str, target: str) -> TunedEntry:
    buckets = [TunedBucket(**bucket) for bucket in data["buckets"]]
    entry = TunedEntry(
        op=op,
        target=target,
        device=DeviceKey(**data["device"]),
        shape=data["shape"],
        variant=data["variant"],
        dtype=data["dtype"],
        evidence=data["evidence"],
        template_hash=data["template_hash"],
        environment=data["environment"],
        trials=data["trials"],
        buckets=buckets,
        kernels_hash=data.get("kernels_hash", ""),
        held_out_regret=data.get("held_out_regret", {}),
    )
    if entry.evidence not in EVIDENCE:
        raise ConfigError(f"evidence must be one of {', '.join(EVIDENCE)}; got {entry.evidence!r}")
    if not buckets:
        raise ConfigError("an entry needs at least one bucket")
    get_target(target)
    family = get_family(op)
    if entry.stale:  # the knobs of another template may be others
        return entry
    resolved = [
        replace(bucket, config=family.resolve(entry.problem, get_target(target), bucket.config)) for bucket in buckets
    ]
    return replace(entry, buckets=resolved)


def read_file(path: Path) -> list[TunedEntry]:
    """Reads ``<target>/<op>.json``.

    Raises:
        TunedFileError: Not JSON, not of this format, or with a config its op does not have; the message
            says where.
    """
    advice = "Restore it from version control or delete it and tune again."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TunedFileError(f"{path} is not JSON ({error}). {advice}") from error
    except OSError as error:
        raise TunedFileError(f"{path} cannot be read: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise TunedFileError(f"{path}: a tuned file has format {FORMAT}; this one has {found!r}. {advice}")
    op, target = data.get("op"), data.get("target")
    if path.stem != op or path.parent.name != target:
        raise TunedFileError(f"{path} says it is of op {op!r}, target {target!r}; a file is named <target>/<op>.json.")
    entries = []
    for index, item in enumerate(data.get("entries", [])):
        try:
            entries.append(_entry_from(item, op, target))
        except (KeyError, TypeError, AttributeError) as error:
            raise TunedFileError(f"{path}, entry {index}: a field is missing or wrong: {error!r}. {advice}") from error
        except TunegenError as error:
            raise TunedFileError(f"{path}, entry {index}: {error} {advice}") from error
    return entries


def load_entries(root: Path, targets: list[str] | None = None) -> list[TunedEntry]:
    """All entries under a tuned_configs folder, in a fixed order.

    Args:
        root: The folder.
        targets: Only these; default: all there are.

    Raises:
        UnknownNameError: A target that tunegen does not know.
        TunedFileError: A file that cannot be read as one, or no such folder.
    """
    if not root.is_dir():
        raise TunedFileError(f"There is no tuned_configs folder {root}. `tunegen tune --out {root}` makes one.")
    names = [get_target(name).name for name in targets] if targets is not None else list(TARGETS)
    entries = []
    for name in names:
        for path in sorted((root / name).glob("*.json")):
            entries += read_file(path)
    return entries


def _plain(entry: TunedEntry) -> dict[str, Any]:
    data = asdict(entry)
    del data["op"], data["target"]
    return data


def _order(entry: TunedEntry) -> tuple[Any, ...]:
    device = (entry.device.arch, entry.device.units, entry.device.memory_gib)
    return (*device, sorted(entry.shape.items()), entry.variant, entry.dtype)


def save_entries(root: Path, entries: list[TunedEntry]) -> list[Path]:
    """Merges entries into the files under ``root`` and returns the paths written.

    An entry replaces the one of the same op, target, device, shape, variant and dtype; all others stay.
    """
    written = []
    for op, target in sorted({(entry.op, entry.target) for entry in entries}):
        path = root / target / f"{op}.json"
        new = [entry for entry in entries if (entry.op, entry.target) == (op, target)]
        kept = [old for old in (read_file(path) if path.exists() else []) if not any(n.replaces(old) for n in new)]
        data = {
            "format": FORMAT,
            "op": op,
            "target": target,
            "entries": [_plain(e) for e in sorted(kept + new, key=_order)],
        }
        write_text_atomically(path, json.dumps(data, indent=1) + "\n")
        written.append(path)
    return written
