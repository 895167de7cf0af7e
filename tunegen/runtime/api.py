"""A pack's helpers: what it has for a call, and compiling it before serving."""

from __future__ import annotations

import difflib
import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .device import DeviceKey, device_key
from .families import OPS, Op, OpInputError, Shape
from .manifest import Bucket, Entry, read_manifest
from .registration import register
from .table import Table, shape_text
from .warmup import Wanted, WarmUp, warm_up

Device = torch.device | DeviceKey | str | int | None


class PackNameError(ValueError):
    """A name of an op or of a size that is not among the known ones, or that the pack has no kernels of."""


@dataclass(frozen=True)
class Explanation:
    """What would run for a call, and why; ``str()`` of it is for people.

    Attributes:
        op: Op name.
        num_tokens: Of the call.
        shape: Of the call.
        variant: Of the op: the rounding, with synonyms merged, and whatever else kernels are rendered for.
        device: Where it would run; None: on the CPU.
        kernel: The kernel file, relative to the package; None: the reference in PyTorch runs.
        bucket: The bucket it is of, with its config and figures.
        entry: The entry it is of, with its evidence.
        note: Why it is the reference, or in what the kernel is not as tuned; else empty.
    """

    op: str
    num_tokens: int
    shape: Shape
    variant: str
    device: DeviceKey | None
    kernel: str | None
    bucket: Bucket | None
    entry: Entry | None
    note: str

    def __str__(self) -> str:
        place = "the CPU" if self.device is None else str(self.device)
        lines = [f"{self.op}, {shape_text(self.shape)}, {self.num_tokens} tokens, variant {self.variant}, on {place}"]
        if self.bucket is None or self.entry is None:
            lines.append("  runs      the reference in PyTorch")
        else:
            upper = "any more" if self.bucket.max_tokens is None else f"at most {self.bucket.max_tokens}"
            figures = ", ".join(f"{name} {value}" for name, value in self.bucket.fields.items())
            about = ", ".join(f"{name} {value}" for name, value in self.entry.environment.items())
            lines += [
                f"  runs      {self.kernel}",
                f"  config    {', '.join(f'{name}={value}' for name, value in self.bucket.config.items())}",
                f"  bucket    tuned at {self.bucket.tokens} tokens, serves {upper}",
                f"  evidence  {self.entry.evidence}, {self.entry.device}{': ' if figures else ''}{figures}",
            ]
            if about:
                lines.append(f"  tuned on  {about}")
        if self.note:
            lines.append(f"  note      {self.note}")
        return "\n".join(lines)


def unknown_name(kind: str, got: str, known: Iterable[str]) -> PackNameError:
    """The error for a name that is not among the known ones; says the nearest."""
    names = list(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return PackNameError(f"There is no {kind} '{got}'.{hint} Known: {', '.join(names)}.")


def _several(one_or_more: Any) -> list[Any]:
    """A list of a name or number, or of several."""
    return (
        list(one_or_more) if isinstance(one_or_more, Iterable) and not isinstance(one_or_more, str) else [one_or_more]
    )


def _op(name: str) -> Op:
    if name not in OPS:
        raise unknown_name("op", name, OPS)
    return OPS[name]


def _example(op: Op, shape: Shape, variant: str | None) -> list[Any]:
    """Arguments of a call at that shape.

    Raises:
        PackNameError: It does not have the op's sizes.
        OpInputError: A size is not positive, or the op has no such variant.
    """
    for name in shape:
        if name not in op.sizes:
            raise unknown_name(f"size of {op.name}", name, op.sizes)
    missing = [name for name in op.sizes if name not in shape]
    if missing:
        raise PackNameError(f"{op.name} must be given its sizes: {', '.join(f'{name}=...' for name in missing)}.")
    for name, size in shape.items():
        if size < 1:
            raise OpInputError(f"{name} must be a positive integer; got {size}.")
    about = {} if variant is None else {"variant": variant}
    return list(op.inputs(shape, 1, torch.bfloat16, torch.device("cpu"), torch.Generator(), **about))


def check_values(op: str, *args: Any) -> None:
    """Raises OpInputError for arguments and values that the op does not accept; waits for the device."""
    OPS[op].check(*args)
    OPS[op].check_values(*args)


def _index(device: torch.device | str | int | None) -> int | None:
    """The index of a GPU; None for the CPU. No device means the current GPU, or the CPU if there is none."""
    if device is None:
        return torch.cuda.current_device() if torch.cuda.is_available() else None
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if place.type == "cpu":
        return None
    return torch.cuda.current_device() if place.index is None else place.index


def _key(device: Device) -> DeviceKey | None:
    if isinstance(device, DeviceKey):
        return device
    index = _index(device)
    return None if index is None else device_key(index)


class Pack:
    """An installed pack: reads its manifest and registers its ops.

    Args:
        root: The package's folder.

    Raises:
        ManifestError: The manifest is missing or damaged.
        PackConflictError: Another pack of that name is registered in this process.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        self.table = Table(self.manifest)
        register(self.manifest, root, self.table)

    def supports(self, op: str, device: Device = None, variant: str | None = None, **shape: int) -> bool:
        """True if a kernel of the pack serves the op at that shape on the device.

        False means that the reference in PyTorch does: right, but slow.

        Args:
            op: Op name.
            device: A device, a device index, or the `DeviceKey` of one that is not here. Default: the current
                GPU, or the CPU if there is none.
            variant: The op's variant, as in manifest.json, such as ``"none,fp8"``. Default: the op's usual one.
            shape: Sizes, such as ``hidden_size=7168``.

        Raises:
            PackNameError: There is no such op, or it has other sizes.
            OpInputError: The op does not accept these sizes, or has no such variant.
        """
        the_op = _op(op)
        args = _example(the_op, shape, variant)
        the_op.check(*args)
        wanted = the_op.variant(*args)
        key = _key(device)
        return key is not None and self.table.match(op, shape, wanted, key).entry is not None

    def explain(
        self, op: str, num_tokens: int, device: Device = None, variant: str | None = None, **about: Any
    ) -> Explanation:
        """Which kernel and config would serve a call, and on what evidence.

        Args:
            op: Op name.
            num_tokens: Tokens of the call.
            device: As in `supports`.
            variant: As in `supports`.
            about: Sizes, such as ``hidden_size=7168``, and arguments of the op that are no tensors, such as
                ``rounding="output"``.

        Raises:
            PackNameError: There is no such op, or it has other sizes.
            OpInputError: The op does not accept these sizes or arguments.
        """
        the_op = _op(op)
        schema = getattr(getattr(torch.ops, self.manifest.pack), op).default._schema
        names = [argument.name for argument in schema.arguments]
        shape = {name: size for name, size in about.items() if name not in names}
        args = _example(the_op, shape, variant)
        for name in about.keys() - shape.keys():
            args[names.index(name)] = about[name]
        the_op.check(*args)
        wanted = the_op.variant(*args)
        key = _key(device)

        def explanation(note: str, entry: Entry | None = None, bucket: Bucket | None = None) -> Explanation:
            kernel = bucket.kernels[wanted] if bucket else None
            return Explanation(op, num_tokens, shape, wanted, key, kernel, bucket, entry, note)

        if key is None:
            return explanation("tensors on the CPU always take it")
        match = self.table.match(op, shape, wanted, key)
        if match.entry is None:
            return explanation(match.miss)
        bucket = match.entry.buckets[bisect_left(match.entry.edges, num_tokens)]
        return explanation(match.miss, match.entry, bucket)

    def warmup(
        self,
        device: torch.device | str | int | None = None,
        dtypes: tuple[torch.dtype, ...] | None = None,
        everything: bool = False,
        verbose: bool = False,
        ops: str | Iterable[str] = (),
        variants: str | Iterable[str] = (),
        **sizes: int | Iterable[int],
    ) -> WarmUp:
        """Compiles and loads the kernels that calls on a device ask for, in parallel.

        At every token count and alignment, in all roundings. Of ops that quantise: with the scales in the layout
        that the entries were tuned with, and a global scale. Of mla_rope_cache and mla_rope_cache_: with the
        pairing, the cache's order and the dtypes that the entries were tuned with, flat and paged caches, int64
        positions, cos_sin_cache in the activation dtype, and a scale for all that is fp8.

        Call it once before serving, and before a CUDA graph is captured. Triton keeps what it compiled on
        disk: the next process takes a fraction of the time. If it is going to take long, up to 14 processes
        compile for each that calls this; they take a third of a GiB of the host's memory each and none of the
        GPU's. Ranks on one host that call it at the same time share what they compile: each begins with other
        kernels, if it knows which of several devices is its own.

        Args:
            device: A GPU or its index. Default: the current one. On the CPU there is nothing to do.
            dtypes: Activation dtypes that calls will have. Default: the one each entry was tuned with.
            everything: Also what is left out above. Takes several times as long.
            verbose: Print what is done.
            ops: Only these ops.
            variants: Only these variants, such as ``("norm_output", "act,fp8")``.
            sizes: Only shapes with these sizes, each one or several, such as ``hidden_size=(7168, 512)``; an op
                that has none of them is left out.

        Raises:
            PackNameError: There is no such op or size, or the pack has no kernels, for whatever device, of what is
                asked for.
        """
        chosen = {name: [operator.index(value) for value in _several(size)] for name, size in sizes.items()}
        wanted = self._wanted(_several(ops), _several(variants), chosen, everything)
        index = _index(device)
        if index is None:
            return WarmUp(0, 0.0)
        return warm_up(self.root, index, dtypes, wanted, verbose)

    def _wanted(self, ops: list[str], variants: list[str], sizes: dict[str, list[int]], everything: bool) -> Wanted:
        """What to warm up; raises PackNameError unless the pack has kernels, for some device, of each that is named."""
        known = dict.fromkeys(name for op in OPS.values() for name in op.sizes)
        for op in ops:
            _op(op)
        for name in sizes:
            if name not in known:
                raise unknown_name("size", name, known)
        asked: dict[str, Sequence[str | int]] = {"op": ops, "variant": variants, **sizes}
        wanted, alone = Wanted(ops, variants, sizes, everything=True), Wanted(everything=True)
        without = {"op": replace(wanted, ops=()), "variant": replace(wanted, variants=())}
        for kind, names in asked.items():
            self._require(kind, names, alone, "it")
        for kind, names in asked.items():
            self._require(kind, names, without.get(kind, replace(wanted, sizes={})), "with what else is asked for, it")
        if not any(wanted.of(entry) for entry in self.manifest.entries):
            raise PackNameError("warmup takes what the pack has kernels of; it has none of all these sizes together.")
        return replace(wanted, everything=everything)

    def _require(self, kind: str, names: Sequence[str | int], others: Wanted, it: str) -> None:
        """Raises PackNameError for one of the names that no kernel has, of those that else are asked for."""
        there: list[str | int] = []
        for entry in self.manifest.entries:
            variants = others.of(entry)
            if variants:
                there += {"op": [entry.op], "variant": variants}.get(kind, [])
                there += [size for name, size in entry.shape.items() if name == kind]
        missing = [name for name in names if name not in there]
        if missing:
            known = ", ".join(repr(name) for name in dict.fromkeys(there)) or "nothing"
            raise PackNameError(
                f"warmup takes what the pack has kernels of; {it} has no {kind} {missing[0]!r}, but {known}."
            )
