"""Which entry of a pack serves an op of some shape on some device, and saying so when it is not the one asked for."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .device import DeviceKey
from .families import Shape
from .manifest import Entry, Manifest


class TunegenPackWarning(UserWarning):
    """A call that the pack was not tuned for; says what was used instead and how to tune."""


@dataclass(frozen=True)
class Match:
    """What the table has for a call.

    Attributes:
        entry: The entry that serves it; None: the reference does.
        miss: What was asked for, what is used instead, and what to do; empty if the entry was tuned for
            this very device.
    """

    entry: Entry | None
    miss: str


def shape_text(shape: Shape) -> str:
    """A shape for people: ``"hidden_size 7168"``."""
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def has_sizes(shape: Shape, sizes: Mapping[str, Collection[int]]) -> bool:
    """True if a shape has one of the sizes at least, and none with a value that is not among those given.

    So 7168 of ``hidden_size`` with 16 of ``num_heads`` are the norms of that width and the ops of so many heads.
    Without sizes every shape is meant.
    """
    common = shape.keys() & sizes.keys()
    return not sizes or (bool(common) and all(shape[name] in sizes[name] for name in common))


def _tune_command(op: str, shape: Shape) -> str:
    sizes = " ".join(f"--{name.replace('_', '-')} {size}" for name, size in shape.items())
    return f"run `tunegen tune --op {op} {sizes}` on it and emit the pack again"


def _preference(entry: Entry) -> tuple[bool, bool]:
    return (entry.evidence != "measured", entry.dtype != "bfloat16")


class Table:
    """The entries of a manifest, by op, shape, variant and device.

    An entry serves a device that its key matches. Failing that, in this order: one of the same
    architecture and number of units and the nearest memory size; one of the same architecture and the
    nearest number of units; none. Among equals one tuned for the very variant goes before one that has kernels
    of it, a measured entry before a predicted one, and one tuned with bfloat16 before the others.

    Args:
        manifest: The pack's.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.pack = manifest.pack
        self._entries: dict[tuple[str, frozenset[tuple[str, int]]], list[Entry]] = {}
        for entry in manifest.entries:
            self._entries.setdefault((entry.op, frozenset(entry.shape.items())), []).append(entry)
        self._said: set[tuple[object, ...]] = set()

    def entries(self, op: str, device: DeviceKey) -> list[Entry]:
        """The entries of an op that calls on a device may be served by."""
        matches = (
            self.match(name, entry.shape, variant, device).entry
            for (name, _), entries in self._entries.items()
            if name == op
            for entry in entries
            for variant in entry.variants
        )
        return list({id(entry): entry for entry in matches if entry is not None}.values())

    def variants(self, op: str, shape: Shape) -> list[str]:
        """The variants of an op at a shape that there are kernels of, on any device."""
        entries = self._entries.get((op, frozenset(shape.items())), [])
        return list(dict.fromkeys(variant for entry in entries for variant in entry.variants))

    def match(self, op: str, shape: Shape, variant: str, device: DeviceKey) -> Match:
        """What serves a variant of the op at that shape on that device."""
        asked = f"{self.pack} is not tuned for {op}, {shape_text(shape)}, on {device}"
        reference = "the reference in PyTorch serves it, right but slow."
        entries = self._entries.get((op, frozenset(shape.items())), [])
        same_arch = [entry for entry in entries if entry.device.arch == device.arch]
        if not same_arch:
            command = _tune_command(op, shape)
            return Match(None, f"{asked}, nor on another {device.arch}: {reference} To tune for it {command}.")
        having = [entry for entry in same_arch if variant in entry.variants]
        if not having:
            return Match(
                None,
                f"{self.pack} has no kernels of variant {variant!r} of {op}, {shape_text(shape)}, for {device.arch}:"
                f" {reference} To tune for {device} {_tune_command(op, shape)}.",
            )

        def distance(entry: Entry) -> tuple[int | bool, ...]:
            units = abs(entry.device.units - device.units)
            memory = abs(entry.device.memory_gib - device.memory_gib)
            place = (0, 0) if entry.device.matches(device) else (1 + units, memory)
            return (*place, entry.variant != variant, *_preference(entry))

        nearest = min(having, key=distance)
        if nearest.device.matches(device):
            return Match(nearest, "")
        return Match(
            nearest,
            f"{asked}: the kernels for {nearest.device} serve it, right but perhaps slower than they could be."
            f" To tune for it {_tune_command(op, shape)}.",
        )

    def serve(self, op: str, shape: Shape, variant: str, device: DeviceKey) -> Entry | None:
        """The entry for calls that are about to run on a device, warning once of whatever is not as tuned."""
        match = self.match(op, shape, variant, device)
        entry = match.entry
        if match.miss:
            # Which device is missing is said once; a missing variant for each.
            about = () if entry is not None or not self._has(op, shape, device) else (variant,)
            self._warn((op, frozenset(shape.items()), device, *about), match.miss)
        if entry is not None and entry.evidence == "predicted":
            self._warn(
                (device,),
                f"{self.pack} runs kernels on {device} whose configs are predicted, not measured (the first: {op},"
                f" {shape_text(shape)}). To measure them run `tunegen tune` on this device and emit the pack again.",
            )
        return entry

    def _has(self, op: str, shape: Shape, device: DeviceKey) -> bool:
        entries = self._entries.get((op, frozenset(shape.items())), [])
        return any(entry.device.arch == device.arch for entry in entries)

    def _warn(self, about: tuple[object, ...], message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(message, TunegenPackWarning, stacklevel=2)
