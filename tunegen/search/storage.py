"""Opens the storages of optuna that tuning results are kept in."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from tunegen.errors import UsageError

# A tuner says this often that it is alive, and is given up for dead after this long.
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 150
# How long a writer waits for another one of the same SQLite file.
SQLITE_WAIT_SECONDS = 120
OPEN_TRIES = 6


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Opens a storage that several tuners, on several hosts, may use at once.

    Args:
        url: ``sqlite:///FILE``, ``journal:///FILE`` (for a shared file system) or ``postgresql://...``; a fourth
            slash makes the path of a file absolute. Folders of files are made.

    Raises:
        UsageError: Not such a URL, or a place that cannot be reached or written.
    """
    scheme, separator, rest = url.partition(":///")
    try:
        if separator and scheme in ("sqlite", "journal"):
            path = Path(rest).absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            if scheme == "journal":
                return _journal(path)
        return optuna.storages.get_storage(_database(_with_driver(url)))
    except UsageError:
        raise
    except Exception as error:  # SQLAlchemy has no common base for a bad URL, a missing driver, a locked file
        reason = str(error).partition("\n")[0]
        raise UsageError(
            "--storage must be a database URL such as sqlite:///.tunegen/studies.sqlite3, journal:///FILE or"
            f" postgresql://USER@HOST/NAME; {url!r} cannot be opened: {reason}"
        ) from error


def exists(url: str) -> bool:
    """False if the URL names a file that is not there; what is on a server cannot be told before it is opened."""
    scheme, separator, rest = url.partition(":///")
    return not separator or scheme not in ("sqlite", "journal") or Path(rest).exists()


def _with_driver(url: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            if importlib.util.find_spec("psycopg") is None:
                raise UsageError("--storage postgresql://... needs psycopg: pip install 'tunegen[postgres]'.")
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def _database(url: str) -> optuna.storages.RDBStorage:
    sqlite = url.startswith("sqlite:")
    engine = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}} if sqlite else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for left in reversed(range(OPEN_TRIES)):
            try:
                storage = optuna.storages.RDBStorage(
                    url, engine_kwargs=engine, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
                )
                if sqlite:
                    sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
                    storage.engine.dispose()
                return storage
            except Exception as error:
                # Two that open a new database at once both make its tables, and one of them finds them made.
                if not left or not _made_by_another(error):
                    raise
                time.sleep(random.uniform(0.1, 0.6))
    raise AssertionError


def _write_ahead(connection: Any, _: Any) -> None:
    """Commits that wait for no disk: nothing is lost with a process, and with the power the last moments at most."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _made_by_another(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in ("already exists", "UNIQUE constraint", "UniqueViolation", "locked"))


def _journal(path: Path) -> optuna.storages.JournalStorage:
    lock = _FileLock(path.with_name(path.name + ".lock"))
    with _held(lock):
        _drop_half_written_line(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


class _FileLock(JournalFileOpenLock):
    """A lock that the kernel releases with the process that holds it.

    One of optuna's own that a killed tuner has left behind keeps everyone waiting for half a minute.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def _held(lock: JournalFileOpenLock) -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _drop_half_written_line(path: Path) -> None:
    """A tuner that was killed while it wrote leaves a line without an end, which the next one would write on to."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
