"""Files that are never half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tunegen.errors import UsageError


def require_writable(folder: Path) -> None:
    """Makes a folder if need be and sees that files can be written there, before the work whose result they hold.

    Raises:
        UsageError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"The output folder {folder} must be one that files can be written to: {error}.") from error


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write knows no name
        raise
