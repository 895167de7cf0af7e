"""Emits tuned kernels as an importable package of torch ops, which carries `tunegen.runtime` with it."""

from __future__ import annotations

from tunegen.oppack.emit import EmittedPack, emit_pack

__all__ = ["EmittedPack", "emit_pack"]
