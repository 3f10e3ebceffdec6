"""Numbered migrations: how a store of any older schema version becomes one of this version.

`PRAGMA user_version` holds the number of the last migration that ran and `PRAGMA application_id`
says that the database is ours. All missing migrations run in one transaction, or none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from equipoise.store.answers import merge_attempts
from equipoise.store.chain import create_chain
from equipoise.store.closures import add_closed_by
from equipoise.store.controls import create_controls
from equipoise.store.errors import NotAStoreError, SchemaVersionError
from equipoise.store.gaps import create_gaps
from equipoise.store.leaders import add_leader
from equipoise.store.metrics import add_metrics
from equipoise.store.observation_index import index_observations, index_simulations
from equipoise.store.roots import create_roots
from equipoise.store.schema import create_first_schema

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = 0x45515053  # "EQPS", shown by `file` and kept through backups

Migration: TypeAlias = "tuple[int, Callable[[Database], None]]"

MIGRATIONS: Sequence[Migration] = (
    (1, create_first_schema),
    (2, add_metrics),
    (3, add_leader),
    (4, create_controls),
    (5, index_observations),
    (6, create_roots),
    (7, add_closed_by),
    (8, merge_attempts),
    (9, index_simulations),
    (10, create_chain),
    (11, create_gaps),
)
"""Every migration with its number: 1, 2, 3, …; append only."""


def newest() -> int:
    """The schema version this equipoise writes."""
    return MIGRATIONS[-1][0]


def check_identity(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a store, 0 of a database without any content.

    Raises NotAStoreError where the database is somebody else's, SchemaVersionError where it was
    written by a newer equipoise.
    """
    application, version = _pragma(connection, "application_id"), schema_version(connection)
    if application != APPLICATION_ID:
        if application or version or _has_content(connection):
            raise NotAStoreError(
                f"{path} is a SQLite database but no equipoise store: application_id is "
                f"{application:#x}, expected {APPLICATION_ID:#x}"
            )
        return 0
    if version > newest():
        raise SchemaVersionError(
            f"store {path} has schema version {version}, "
            f"this equipoise reads up to {newest()}: upgrade equipoise"
        )
    return version


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Run every migration the store has not seen, in one transaction; none if one fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_identity(connection, path)
        missing = [(number, migrate) for number, migrate in MIGRATIONS if number > version]
        if missing:
            database = _database(connection)
            for number, migrate in missing:
                migrate(database)
                connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def schema_version(connection: sqlite3.Connection) -> int:
    """The number of the last migration this database has seen."""
    return _pragma(connection, "user_version")


def _database(connection: sqlite3.Connection) -> Database:
    # Imported late: sqlite-utils brings pandas along, which is most of a second at start-up.
    from sqlite_utils import Database

    return Database(connection, recursive_triggers=False, execute_plugins=False)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _has_content(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
