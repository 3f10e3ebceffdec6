"""What a store file holds and whether it is whole, for people and for `equipoise status`."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.store.migrations import schema_version
from equipoise.store.sqlite_connection import open_for_reading
from equipoise.store.sqlite_errors import as_store_error

if TYPE_CHECKING:
    from sqlite_utils import Database


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
    from sqlite_utils import Database  # late, see migrations

    resolved = Path(path).resolve()
    connection = open_for_reading(resolved, busy_seconds)
    try:
        database = Database(connection, recursive_triggers=False, execute_plugins=False)
        return Inspection(
            schema_version=schema_version(connection),
            size=_size(resolved),
            rows={name: _rows(database, name) for name in sorted(database.table_names())},
            damage=_damage(connection),
        )
    except sqlite3.Error as error:
        raise as_store_error(f"store {resolved}", error) from error
    finally:
        connection.close()


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
        found = [str(line) for (line,) in connection.execute("PRAGMA quick_check")]
    except sqlite3.DatabaseError as error:
        return (str(error),)
    return () if found == ["ok"] else tuple(found)
