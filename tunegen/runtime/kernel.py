"""A rendered kernel file, loaded."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """A rendered kernel and how it is launched.

    Attributes:
        function: The ``@triton.jit`` function.
        rows: Rows (tokens) a program handles at a time.
        splits: Programs that share a row.
        programs_per_unit: 0 for one program a tile; k for a grid of at most k programs a compute unit
            that loop over the tiles.
        options: Launch options of Triton (num_warps, enable_fp_fusion, ...).
        constants: Every upper-case name of the file, for families that launch by more than these.
    """

    function: Any
    rows: int
    splits: int
    programs_per_unit: int
    options: dict[str, Any]
    constants: dict[str, Any]

    def grid(self, num_tokens: int, units: int) -> tuple[int]:
        """Number of programs for ``num_tokens`` rows on a device of ``units`` compute units."""
        tiles = -(-num_tokens // self.rows) * self.splits
        return (min(tiles, self.programs_per_unit * units) if self.programs_per_unit else tiles,)


@functools.cache
def load_kernel(path: Path) -> Kernel:
    """Loads a kernel file. It must be a real file: Triton reads the source of a kernel back from it."""
    name = f"_tunegen_kernel_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    return Kernel(
        function=getattr(module, module.KERNEL),
        rows=module.ROWS,
        splits=module.SPLITS,
        programs_per_unit=module.PROGRAMS_PER_UNIT,
        options=dict(module.OPTIONS),
        constants=constants,
    )
