"""Connections to the database of a store: whether it is one, opening it, taking turns on it.

SQLite notices a file that misses whole pages, but not one whose last page is cut, and it takes
an empty file for a new database; so the header is compared with the file here first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import msgspec

from equipoise.store.errors import (
    CorruptStoreError,
    FullStoreError,
    LostRowsError,
    MissingStoreError,
    NotAStoreError,
    ReadOnlyStoreError,
    SchemaVersionError,
    SlowStoreError,
    StoreError,
    WriteError,
)
from equipoise.store.files import DatabaseFile
from equipoise.store.format.frames import tail_files
from equipoise.store.format.sql_rows import Row
from equipoise.store.sqlite.schema import check_identity, newest, schema_version, upgrade

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")

_MEANINGS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_FULL: (FullStoreError, "the disk or the database is full"),
    sqlite3.SQLITE_BUSY: (SlowStoreError, "another program has locked the database"),
    sqlite3.SQLITE_LOCKED: (SlowStoreError, "the database is locked"),
    sqlite3.SQLITE_IOERR: (WriteError, "the disk reports an error"),
    sqlite3.SQLITE_READONLY: (ReadOnlyStoreError, "it may not be written"),
    sqlite3.SQLITE_PERM: (ReadOnlyStoreError, "access is denied"),
    sqlite3.SQLITE_CANTOPEN: (MissingStoreError, "it cannot be opened"),
    sqlite3.SQLITE_CORRUPT: (CorruptStoreError, "the file is cut short or damaged"),
    sqlite3.SQLITE_NOTADB: (NotAStoreError, "it is not a SQLite database"),
    sqlite3.SQLITE_CONSTRAINT: (WriteError, "a row breaks a rule of the log"),
}


def as_store_error(store: str, error: sqlite3.Error) -> StoreError:
    """The StoreError that says what `error` means; SQLite's own words follow in brackets."""
    # Extended codes hold the primary code in their low byte. Errors of the Python module itself
    # (a closed connection) have none.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kind, meaning = _MEANINGS.get(code, (StoreError, "the database refused"))
    return kind(f"{store}: {meaning} ({error})")


@contextlib.contextmanager
def store_errors(store: str) -> Iterator[None]:
    """Errors of SQLite, and records that do not decode, become StoreErrors."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_store_error(store, error) from error
    except msgspec.MsgspecError as error:
        raise CorruptStoreError(f"{store}: a record cannot be read: {error}") from error


_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_SETTLE_SECONDS = 0.05


def check_path(path: Path, read_only: bool) -> None:
    """Refuse a path that cannot be a store: one clear StoreError each.

    A path without a file is fine for a writer (a new store), not for a reader.
    """
    if path.is_dir():
        raise NotAStoreError(f"store {path} is a directory, expected a file")
    if not path.exists():
        if read_only:
            raise MissingStoreError(f"store {path} does not exist")
        if not path.parent.is_dir():
            raise MissingStoreError(f"store {path}: folder {path.parent} does not exist")
        return
    if not os.access(path, os.R_OK):
        raise ReadOnlyStoreError(f"store {path} may not be read by this user")
    if not read_only and not os.access(path, os.W_OK):
        raise ReadOnlyStoreError(f"store {path} is a read-only file: open it with read_only=True")


def check_header(path: Path, read_only: bool) -> None:
    """Refuse a file that is no SQLite database, or is shorter than it says.

    A writer calls this while it holds the lock, so that nobody else changes the file meanwhile.
    """
    header, size = _header(path)
    if not header:
        if _has_journal(path):
            raise CorruptStoreError(f"store {path} is truncated: empty beside its journal")
        if read_only:
            raise NotAStoreError(f"{path} is empty, expected an equipoise store")
        return
    if not header.startswith(_MAGIC[: len(header)]):
        raise NotAStoreError(f"{path} is not a SQLite database")
    expected = _expected_size(header)
    if size >= expected:
        return
    if read_only:
        # A writer at work may have been between two writes; look again.
        time.sleep(_SETTLE_SECONDS)
        header, size = _header(path)
        expected = _expected_size(header)
    # While there is a journal it may hold the missing pages; then SQLite is the judge.
    if size < expected and not _has_journal(path):
        raise CorruptStoreError(
            f"store {path} is truncated: {size} bytes, its header says {expected}"
        )


def check_beside(path: Path) -> None:
    """Refuse to write a store that is gone from beside its own files, or has several names.

    Raises LostRowsError or StoreError, and has written nothing.
    """
    if path.exists():
        links = path.stat().st_nlink
        if links > 1:
            raise StoreError(
                f"store {path} has {links} names (hard links), and a journal and a tail for each:"
                " remove the others"
            )
        return
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", ".mark")]
    beside += tail_files(path)
    names = ", ".join(each.name for each in beside if each.exists())
    if names:
        raise LostRowsError(
            f"store {path} does not exist, but {names} of it does: put it back, or restore a"
            " backup; to begin anew move them away, and the key too"
        )


def set_aside(path: Path) -> str:
    """Keep a damaged file under a name that nothing reads; the name."""
    target = path.with_name(f"{path.name}.damaged")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.damaged.{count}")
    path.rename(target)
    return target.name


def _header(path: Path) -> tuple[bytes, int]:
    file = DatabaseFile(path)  # never opened and closed beside open connections
    try:
        descriptor = file.descriptor
        return os.pread(descriptor, _HEADER_BYTES, 0), os.fstat(descriptor).st_size
    finally:
        file.release()


def _expected_size(header: bytes) -> int:
    """Bytes by the database header: page size at 16, pages at 28, valid where 24 equals 92."""
    if len(header) < _HEADER_BYTES:
        return _HEADER_BYTES
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big") if header[24:28] == header[92:96] else 1
    return page_size * max(pages, 1)


def _has_journal(path: Path) -> bool:
    journal = path.with_name(path.name + "-wal")
    return journal.exists() and journal.stat().st_size > 0


Durability: TypeAlias = Literal["process", "power"]

# Over a write-ahead log, NORMAL survives the death of the process and FULL that of the machine.
SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}


def open_for_writing(path: Path, durability: Durability, busy_seconds: float) -> sqlite3.Connection:
    """A connection to a store that is made or upgraded first where it needs to be.

    The caller has checked the path, made an empty file where there was none, and holds the
    writer's locks.
    """
    with store_errors(f"store {path}"):
        connection = connect(path, "rw", busy_seconds)
        try:
            # Before any pragma that writes: somebody else's database is left as it was.
            version = check_identity(connection, path)
            _set_up(connection, path, durability)
            if version < newest():
                upgrade(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that cannot write; it sees what the writer has committed."""
    check_path(path, read_only=True)
    check_header(path, read_only=True)
    with store_errors(f"store {path}"):
        try:
            return _connect_reader(path, "ro", busy_seconds)
        except sqlite3.OperationalError as error:
            # In a folder we may not write SQLite cannot set up shared memory; without a journal
            # none is needed, for nobody is writing.
            refused = error.sqlite_errorcode & 0xFF in (
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_READONLY,
            )
            if not refused or path.with_name(path.name + "-wal").exists():
                raise
            return _connect_reader(path, "ro&immutable=1", busy_seconds)


def _connect_reader(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    connection = connect(path, mode, busy_seconds)
    try:
        version = check_identity(connection, path)
        if version == 0:
            raise NotAStoreError(f"{path} is empty, expected an equipoise store")
        if version < newest():
            raise SchemaVersionError(
                f"store {path} has schema version {version}, this equipoise reads "
                f"{newest()}: open it once for writing to upgrade it"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
    )


class Session:
    """A connection that the threads of a process take turns on.

    turn: held while anything is asked or written; whoever asks several things that belong together
    holds it over all of them. committed, undone: called after every transaction, in its turn.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        read_only: bool = True,
        committed: Callable[[], None] = lambda: None,
        undone: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = f"store {path}"
        self.connection = connection
        self.turn = threading.RLock()
        self._read_only = read_only
        self._committed, self._undone = committed, undone

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside, or nothing; errors of SQLite become StoreErrors."""
        if self._read_only:
            raise ReadOnlyStoreError(f"{self.name} was opened read-only")
        with self.turn:
            connection = self.connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
                self._committed()
            except BaseException as error:
                # An interrupt may have come just after the commit.
                self._undone()
                with contextlib.suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise as_store_error(self.name, error) from error
                raise

    def query(self, sql: str, values: Sequence[float | str] = ()) -> list[Row]:
        """The rows of a statement; errors as of `ask`."""
        return self.ask(lambda connection: connection.execute(sql, values).fetchall())

    def ask(self, question: Callable[..., T], *values: object) -> T:
        """question(connection, *values); errors of SQLite become StoreErrors."""
        with self.turn, store_errors(self.name):
            return question(self.connection, *values)


def _set_up(connection: sqlite3.Connection, path: Path, durability: Durability) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"store {path}: its file system allows no write-ahead log ({mode})")
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS[durability]}")


def remove(path: Path) -> None:
    """Take away a database that was made in vain."""
    for name in (path.name, path.name + "-wal", path.name + "-shm"):
        with contextlib.suppress(OSError):
            path.with_name(name).unlink()


@dataclass(frozen=True, slots=True)
class Inspection:
    """size: bytes on disk, journal included. rows: how many in each table, None where unreadable.

    damage: what SQLite's quick check found, one line each; empty where the file is whole.
    """

    schema_version: int
    size: int
    rows: dict[str, int | None]
    damage: tuple[str, ...]


def inspect_store(path: str | os.PathLike[str], busy_seconds: float = 1.0) -> Inspection:
    """Read the whole file once, beside a writer if there is one.

    Raises StoreError where the file cannot even be opened as a store; damage further inside is
    listed, not raised.
    """
    from sqlite_utils import Database  # late, see schema

    resolved = Path(path).resolve()
    with (
        contextlib.closing(open_for_reading(resolved, busy_seconds)) as connection,
        store_errors(f"store {resolved}"),
    ):
        database = Database(connection, recursive_triggers=False, execute_plugins=False)
        return Inspection(
            schema_version=schema_version(connection),
            size=_size(resolved),
            rows={name: _rows(database, name) for name in sorted(database.table_names())},
            damage=_damage(connection),
        )


def _size(path: Path) -> int:
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def _rows(database: Database, table: str) -> int | None:
    try:
        return int(database.table(table).count)
    except sqlite3.DatabaseError:
        return None


def _damage(connection: sqlite3.Connection) -> tuple[str, ...]:
    try:
        lines = [str(line) for (line,) in connection.execute("PRAGMA quick_check")]
    except sqlite3.DatabaseError as error:
        return (str(error),)
    return () if lines == ["ok"] else tuple(lines)
