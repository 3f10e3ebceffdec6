"""Opening the database of a store: checks, pragmas, migrations."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Literal, TypeAlias

from equipoise.store import migrations
from equipoise.store.errors import NotAStoreError, SchemaVersionError, StoreError
from equipoise.store.files import check_header, check_path
from equipoise.store.sqlite_errors import as_store_error

Durability: TypeAlias = Literal["process", "power"]

# Over a write-ahead log, NORMAL survives the death of the process and FULL that of the machine.
SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}


def open_for_writing(path: Path, durability: Durability, busy_seconds: float) -> sqlite3.Connection:
    """A connection to a store that is made or upgraded first where it needs to be.

    The caller has checked the path, made an empty file where there was none, and holds the
    writer's locks.
    """
    try:
        connection = connect(path, "rw", busy_seconds)
        try:
            # Before any pragma that writes: somebody else's database is left as it was.
            version = migrations.check_identity(connection, path)
            _set_up(connection, path, durability)
            if version < migrations.newest():
                migrations.upgrade(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise as_store_error(f"store {path}", error) from error
    return connection


def open_for_reading(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that cannot write; it sees what the writer has committed."""
    check_path(path, read_only=True)
    check_header(path, read_only=True)
    try:
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
    except sqlite3.Error as error:
        raise as_store_error(f"store {path}", error) from error


def _connect_reader(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    connection = connect(path, mode, busy_seconds)
    try:
        version = migrations.check_identity(connection, path)
        if version == 0:
            raise NotAStoreError(f"{path} is empty, expected an equipoise store")
        if version < migrations.newest():
            raise SchemaVersionError(
                f"store {path} has schema version {version}, this equipoise reads "
                f"{migrations.newest()}: open it once for writing to upgrade it"
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
