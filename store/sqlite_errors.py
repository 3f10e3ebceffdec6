"""What an error of SQLite means for a store, in one line."""

from __future__ import annotations

import sqlite3

from equipoise.store.errors import (
    CorruptStoreError,
    FullStoreError,
    MissingStoreError,
    NotAStoreError,
    ReadOnlyStoreError,
    SlowStoreError,
    StoreError,
    WriteError,
)

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
