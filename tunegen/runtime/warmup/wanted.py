"""Which kernels of a pack are warmed up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..manifest import Entry
from ..table import has_sizes


@dataclass(frozen=True)
class Wanted:
    """Which kernels to warm up.

    Attributes:
        ops: Of these ops; empty: of all.
        variants: Of these variants; empty: of those that calls mostly have, or of all if everything is asked for.
        sizes: Of shapes with these sizes, as in `tunegen.runtime.table.has_sizes`.
        everything: All variants, and all of `Op.specialisations`.
    """

    ops: Collection[str] = ()
    variants: Collection[str] = ()
    sizes: Mapping[str, Collection[int]] = field(default_factory=dict)
    everything: bool = False

    def of(self, entry: Entry) -> list[str]:
        """The variants of an entry that are meant; none if it is not."""
        if (self.ops and entry.op not in self.ops) or not has_sizes(entry.shape, self.sizes):
            return []
        if self.variants:
            return [variant for variant in entry.variants if variant in self.variants]
        return [variant for variant in entry.variants if self.everything or usual(entry, variant)]


def usual(entry: Entry, variant: str) -> bool:
    """True for the variants that differ from the tuned one in the rounding alone, which comes first in their names."""
    return variant.split(",")[1:] == entry.variant.split(",")[1:]
