"""Which GPU this is, in the terms that tuned kernels are looked up by."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

# total_memory is a little under the advertised size and moves with driver versions; an H100 80GB reports
# 79.2 GiB, an H200 139.8 GiB: a tenth tells the cards apart and forgives the rest.
MEMORY_TOLERANCE = 0.1


@dataclass(frozen=True)
class DeviceKey:
    """What decides how a kernel performs, and nothing else: no marketing name.

    Attributes:
        arch: Architecture, ``"sm90"`` or ``"gfx950"``.
        units: Number of streaming multiprocessors or compute units.
        memory_gib: Device memory in GiB, rounded; tells cards with different memory systems apart.
    """

    arch: str
    units: int
    memory_gib: int

    def matches(self, other: DeviceKey) -> bool:
        """True if tuned data of one is data of the other."""
        near = abs(self.memory_gib - other.memory_gib) <= MEMORY_TOLERANCE * max(self.memory_gib, other.memory_gib)
        return self.arch == other.arch and self.units == other.units and near

    def __str__(self) -> str:
        return f"{self.arch}, {self.units} units, {self.memory_gib} GiB"


@functools.cache
def device_key(index: int) -> DeviceKey:
    """The key of CUDA or ROCm device ``index``."""
    properties = torch.cuda.get_device_properties(index)
    arch = properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm{properties.major}{properties.minor}"
    return DeviceKey(arch, properties.multi_processor_count, round(properties.total_memory / 2**30))
