"""What all commands share: the packages they need, and system errors said in words."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import re
from typing import Any

import click

from tunegen.errors import UsageError

# As in pyproject.toml; what is installed without pip, or upgraded past it, is met here.
OLDEST = {"torch": (2, 8), "triton": (3, 6)}
# Names that builds of one package are distributed under.
DISTRIBUTIONS = {"torch": ("torch",), "triton": ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton")}
INSTALL = {
    "torch": "Install the build for your GPU from https://pytorch.org, or pip install 'torch>=2.8' for the CPU.",
    "triton": "pip install 'triton>=3.6,<3.10'; builds of torch for ROCm bring their own.",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# What SQLite and PostgreSQL say through optuna.
DATABASE_FULL = re.compile(r"disk is full|No space left|DiskFull", re.IGNORECASE)
DATABASE_READONLY = re.compile(r"readonly database|read-only", re.IGNORECASE)


def _version(package: str) -> str | None:
    for name in DISTRIBUTIONS[package]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None  # built in place, without metadata: only running it can tell


def require_packages() -> None:
    """Raises UsageError if torch or triton is missing or too old; imports neither."""
    for package, oldest in OLDEST.items():
        needed = f"tunegen needs {package} {'.'.join(map(str, oldest))} or newer"
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{needed}; none is installed. {INSTALL[package]}")
        version = _version(package)
        numbers = re.match(r"(\d+)\.(\d+)", version or "")
        if numbers and (int(numbers[1]), int(numbers[2])) < oldest:
            raise UsageError(f"{needed}; this is {package} {version}. {INSTALL[package]}")


def _in_words(error: OSError) -> UsageError | None:
    place = error.filename or "a file"
    if error.errno in FULL:
        return UsageError(
            f"There is no room left to write {place}: {error.strerror}. Free some or write elsewhere; what was there"
            " before is as it was, and the same command can be given again."
        )
    if error.errno in FORBIDDEN:
        return UsageError(f"{place} cannot be written: {error.strerror}. Name a folder that is yours to write to.")
    return None


class Commands(click.Group):
    """The group of commands; whatever a user can mend ends as a TunegenError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command.

        Raises:
            UsageError: A package is missing or old, or a disk is full or not to be written to.
        """
        if not {"-h", "--help"} & set(ctx.args):
            require_packages()
        try:
            return super().invoke(ctx)
        except OSError as error:
            said = _in_words(error)
            if said is None:
                raise
            raise said from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("tunegen"):
                raise
            raise UsageError(
                f"tunegen needs the package {error.name.partition('.')[0]}, which is not installed: pip install tunegen"
                " again, or that package."
            ) from error
        except Exception as error:
            text = f"{error} {error.__cause__ or ''}"
            first = str(error.__cause__ or error).partition("\n")[0]
            if type(error).__module__.startswith(("optuna", "sqlalchemy", "sqlite3", "psycopg")):
                if DATABASE_FULL.search(text):
                    raise UsageError(
                        f"There is no room left where --storage is: {first}. Free some; the same command goes on from"
                        " what is recorded."
                    ) from error
                if DATABASE_READONLY.search(text):
                    raise UsageError(f"--storage cannot be written: {first}. Name one in a folder of yours.") from error
            raise
