"""Where the files that tunegen ships are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def _shipped(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _CHECKOUT / name


def templates_dir() -> Path:
    """The folder of kernel templates."""
    return _shipped("templates")


def tuned_configs_dir() -> Path:
    """The folder of tuned configs that ship with tunegen."""
    return _shipped("tuned_configs")
