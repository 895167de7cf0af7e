"""What a suite calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Outputs = tuple[torch.Tensor, ...]
Arguments = tuple[Any, ...]
# Runs the kernel on outputs and arguments.
Launch = Callable[[Outputs, Arguments], None]
