"""One SQLite file: opened safely, migrated, bounded, and shared by threads and processes.

* A write is one transaction, flushed to disk before the call returns (WAL, ``synchronous=FULL``).
  A process that is killed loses nothing that was acknowledged.
* One connection, used by one thread at a time; other processes wait for each other's writes.
* The file, its journal and its folder are readable by their owner alone. What is deleted is
  overwritten.
* ``max_bytes`` bounds the file. The caller's ``make_room`` is asked for space when it is reached.
* A damaged file is never repaired, replaced or removed: ``move_aside`` does that when asked to.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from gptoss.runtime.store.errors import CorruptStoreError, StoreError, StoreFullError
from gptoss.runtime.store.schema import APPLICATION_ID, MIGRATIONS
from gptoss.text import printable

Result = TypeVar("Result")

BUSY_SECONDS = 20
"""How long a write waits for another process's."""

_JOURNAL_BYTES = 16 << 20
"""The journal is cut to this after a checkpoint."""

_SMALLEST = 512
"""A SQLite file has at least one page of this size."""

_DAMAGED = "{}: the file is damaged; start with --reset-store to move it aside"

_BESIDE = ("", "-wal", "-shm")
"""What SQLite adds to a file's name for the files that belong to it."""


class Database:
    """A connection to one store file, or to memory. Safe to use from any thread."""

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int,
        make_room: Callable[[sqlite3.Connection], bool] = lambda _: False,
        migrations: Sequence[Sequence[str]] = MIGRATIONS,
    ) -> None:
        """``path`` None keeps everything in memory. ``make_room`` deletes what may go when the size
        limit is reached, and reports whether it found anything.

        Raises StoreError, CorruptStoreError.
        """
        self.path = path
        self._name = "the store in memory" if path is None else printable(str(path))
        self._make_room = make_room
        self._lock = threading.RLock()
        if path is not None:
            _prepare_file(path)
        with self._errors():
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._set_up(max_bytes, migrations)
            except BaseException:
                self._connection.close()
                raise

    def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run ``work`` on the database's connection, for reading only, and return its result."""
        with self._lock, self._errors():
            return work(self._connection)

    def write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run ``work`` in one transaction of the database and flush it to disk; its exceptions
        undo it.

        When the size limit is reached, ``make_room`` is asked once and the work is run again.
        Raises StoreFullError.
        """
        with self._lock, self._errors():
            try:
                return self._transaction(work)
            except sqlite3.OperationalError as error:
                if not _is(error, sqlite3.SQLITE_FULL) or not self._transaction(self._make_room):
                    raise
            return self._transaction(work)

    def used_bytes(self) -> int:
        """Return how many bytes of the database's file hold data."""
        return self.read(used_bytes)

    def close(self) -> None:
        """Close the database's connection. May be called twice."""
        with self._lock:
            self._connection.close()

    def _transaction(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result

    def _set_up(self, max_bytes: int, migrations: Sequence[Sequence[str]]) -> None:
        run = self._connection.execute
        application, version = _value(run("PRAGMA application_id")), self._version()
        new = application == version == 0 and not _value(run("SELECT count(*) FROM sqlite_master"))
        if not new and application != APPLICATION_ID:
            raise CorruptStoreError(f"{self._name}: not a store of gptoss; name another file")
        if new:
            run("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA secure_delete = ON")
        run("PRAGMA trusted_schema = OFF")
        run(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        self._transaction(lambda _: self._migrate(migrations))
        page = _value(run("PRAGMA page_size"))
        run(f"PRAGMA max_page_count = {max(1, max_bytes // page)}")

    def _version(self) -> int:
        return _value(self._connection.execute("PRAGMA user_version"))

    def _migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        """Bring the database to the newest version; in a transaction, since another process may be
        doing the same.
        """
        run, version = self._connection.execute, self._version()
        if version > len(migrations):
            raise StoreError(
                f"{self._name}: made by a newer version of this toolkit (schema {version}, "
                f"known are {len(migrations)}); update the toolkit or name another file"
            )
        for statements in migrations[version:]:
            for statement in statements:
                run(statement)
        run(f"PRAGMA application_id = {APPLICATION_ID}")
        run(f"PRAGMA user_version = {len(migrations)}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what SQLite reports about the database as one of the store's errors, in one
        line.
        """
        try:
            yield
        except sqlite3.Error as error:
            if _is(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise CorruptStoreError(_DAMAGED.format(self._name)) from error
            if _is(error, sqlite3.SQLITE_FULL):
                raise StoreFullError(
                    f"{self._name}: full; delete conversations, or free space on the disk"
                ) from error
            if _is(error, sqlite3.SQLITE_BUSY):
                raise StoreError(
                    f"{self._name}: another process has been writing for {BUSY_SECONDS} seconds; "
                    "try again"
                ) from error
            raise StoreError(f"{self._name}: {printable(str(error))}") from error


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how many bytes of a database's file hold data."""
    pages = _value(connection.execute("PRAGMA page_count"))
    free = _value(connection.execute("PRAGMA freelist_count"))
    return (pages - free) * _value(connection.execute("PRAGMA page_size"))


def move_aside(path: Path) -> Path:
    """Rename a damaged store and what belongs to it, so that a new one can be begun; return its
    new path. Raises StoreError.
    """
    to = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    try:
        for ending in _BESIDE:
            source = path.with_name(path.name + ending)
            if source.exists():
                source.rename(to.with_name(to.name + ending))
    except OSError as error:
        raise StoreError(f"{printable(str(path))}: cannot be moved: {error.strerror}") from error
    return to


def _prepare_file(path: Path) -> None:
    """Create the store's folder and file for their owner alone, or check those that are there.

    A file that is there is not opened: closing it would drop the locks that SQLite holds on it for
    another connection of this process.
    """
    name = printable(str(path))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{name}: not a regular file; name another one for the store")
        if 0 < status.st_size < _SMALLEST:  # SQLite would take it for a new file
            raise CorruptStoreError(_DAMAGED.format(name))
        if sys.platform != "win32":
            if status.st_uid != os.geteuid():
                raise StoreError(f"{name}: belongs to another user; name another file")
            if stat.S_IMODE(status.st_mode) != 0o600:
                path.chmod(0o600)
    except OSError as error:
        raise StoreError(f"{name}: the store cannot be opened: {error.strerror}") from error


def _is(error: sqlite3.Error, *codes: int) -> bool:
    """Report whether SQLite's error is one of these, by its primary code."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in codes


def _value(cursor: sqlite3.Cursor) -> int:
    return int(cursor.fetchone()[0])
