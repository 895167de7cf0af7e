"""Registers a pack's ops under ``torch.ops.<pack>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.library import Library, register_fake

from .dispatch import Dispatcher
from .families import OPS
from .fusion.ops import register_graph_ops
from .manifest import Manifest
from .table import Table


class PackConflictError(RuntimeError):
    """Two different packs of one name in one process."""


@dataclass(frozen=True)
class _Registration:
    """What a process must keep: the ops go when their library does.

    Attributes:
        version: Version of the registered pack.
        root: Its package folder.
        library: What registered it.
    """

    version: str
    root: Path
    library: Library


def register(manifest: Manifest, root: Path, table: Table) -> None:
    """Defines every op with a CUDA (also ROCm), a CPU and a fake implementation.

    The ops are for inference: no autograd formula is registered. They accept tensors that require grad;
    PyTorch warns if their outputs are then differentiated.

    A second call for the same pack does nothing: the first registration serves.

    Raises:
        PackConflictError: A pack of this name but other content is registered already.
    """
    namespace: Any = getattr(torch.ops, manifest.pack)
    registration: _Registration | None = getattr(namespace, "_tunegen_registration", None)
    if registration is not None:
        if registration.version != manifest.version:
            raise PackConflictError(
                f"torch.ops.{manifest.pack} is that of {registration.root}, version {registration.version}; {root} has"
                f" version {manifest.version}. Restart Python to use it, or emit it under another name (--name)."
            )
        return
    library = Library(manifest.pack, "DEF")
    for op in OPS.values():
        library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
        dispatcher = Dispatcher(root, table, op, getattr(namespace, op.name).default._schema)
        library.impl(op.name, dispatcher.cuda, "CUDA")
        library.impl(op.name, dispatcher.cpu, "CPU")
        register_fake(f"{manifest.pack}::{op.name}", dispatcher.fake, lib=library)
    register_graph_ops(library, manifest.pack)
    namespace._tunegen_registration = _Registration(manifest.version, root, library)
