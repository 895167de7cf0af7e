"""Reads a compiler's listing: which instructions there are, in what order, and what each occupies."""

from tunegen.codegen.listing._instruction import LANE_KINDS, MEMORY_KINDS, SHARED_UNITS, Instruction, Kind
from tunegen.codegen.listing._paths import Path, paths_of
from tunegen.codegen.listing.amdgcn import read_amdgcn
from tunegen.codegen.listing.sass import read_sass

__all__ = [
    "LANE_KINDS",
    "MEMORY_KINDS",
    "SHARED_UNITS",
    "Instruction",
    "Kind",
    "Path",
    "paths_of",
    "read_amdgcn",
    "read_sass",
]
