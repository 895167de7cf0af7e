"""Compiling the kernels of a pack before the first call."""

from .run import WarmUp, warm_up
from .wanted import Wanted

__all__ = ["Wanted", "WarmUp", "warm_up"]
