"""Which entry of a pack serves an op of some shape on some device, and saying so when it is not the one asked for."""

from __future__ import annotations

import warnings
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


def _tune_command(op: str, shape: Shape) -> str:
    sizes = " ".join(f"--{name.replace('_', '-')} {size}" for name, size in shape.items())
    return f"run `tunegen tune --op {op} {sizes}` on it and emit the pack again"


def _preference(entry: Entry) -> tuple[bool, bool]:
    return (entry.evidence != "measured", entry.dtype != "bfloat16")


class Table:
    """The entries of a manifest, by op, shape and device.

    An entry serves a device that its key matches. Failing that, in this order: one of the same
    architecture and number of units and the nearest memory size; one of the same architecture and the
    nearest number of units; none. Among equals a measured entry goes before a predicted one, and one tuned
    with bfloat16 before the others.

    Args:
        manifest: The pack's.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.pack = manifest.pack
        self._entries: dict[tuple[str, frozenset[tuple[str, int]]], list[Entry]] = {}
        for entry in manifest.entries:
            self._entries.setdefault((entry.op, frozenset(entry.shape.items())), []).append(entry)
        self._said: set[tuple[object, ...]] = set()

    def shapes(self, op: str) -> list[Shape]:
        """The shapes of an op that there are entries for, on any device."""
        return [entries[0].shape for (name, _), entries in self._entries.items() if name == op]

    def match(self, op: str, shape: Shape, device: DeviceKey) -> Match:
        """What serves the op at that shape on that device."""
        asked = f"{self.pack} is not tuned for {op}, {shape_text(shape)}, on {device}"
        entries = self._entries.get((op, frozenset(shape.items())), [])
        exact = [entry for entry in entries if entry.device.matches(device)]
        if exact:
            return Match(min(exact, key=_preference), "")
        same_arch = [entry for entry in entries if entry.device.arch == device.arch]
        if not same_arch:
            return Match(
                None,
                f"{asked}, nor on another {device.arch}: the reference in PyTorch serves it, right but slow."
                f" To tune for it {_tune_command(op, shape)}.",
            )

        def distance(entry: Entry) -> tuple[int | bool, ...]:
            units = abs(entry.device.units - device.units)
            return (units, abs(entry.device.memory_gib - device.memory_gib), *_preference(entry))

        nearest = min(same_arch, key=distance)
        return Match(
            nearest,
            f"{asked}: the kernels for {nearest.device} serve it, right but perhaps slower than they could be."
            f" To tune for it {_tune_command(op, shape)}.",
        )

    def serve(self, op: str, shape: Shape, variant: str, device: DeviceKey) -> Entry | None:
        """The entry for calls that are about to run on a device, warning once of whatever is not as tuned."""
        match = self.match(op, shape, device)
        if match.miss:
            self._warn((op, frozenset(shape.items()), device), match.miss)
        entry = match.entry
        if entry is None:
            return None
        if any(variant not in bucket.kernels for bucket in entry.buckets):
            self._warn(
                (op, frozenset(shape.items()), device, variant),
                f"{self.pack} has no kernels of variant {variant!r} of {op}, {shape_text(shape)}, for {entry.device}:"
                " the reference in PyTorch serves it, right but slow. Emit the pack again.",
            )
            return None
        if entry.evidence == "predicted":
            self._warn(
                (device,),
                f"{self.pack} runs kernels on {device} whose configs are predicted, not measured (the first: {op},"
                f" {shape_text(shape)}). To measure them run `tunegen tune` on this device and emit the pack again.",
            )
        return entry

    def _warn(self, about: tuple[object, ...], message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(message, TunegenPackWarning, stacklevel=2)
