"""Which hub an experiment has: by where its store is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.store.address import Where, beside, is_url
from equipoise.store.lanes.contract import Hub, HubError
from equipoise.store.lanes.sqlite import SqliteHub
from equipoise.store.sql.connection import Connection
from equipoise.store.sqlite.connection import Durability

if TYPE_CHECKING:
    from equipoise.store.lanes.postgres import Sight

SUFFIX = ".lanes"


def hub_path(store: Where) -> Path:
    """The file of the hub of a SQLite store."""
    return beside(store, SUFFIX)


def open_hub(where: Where, durability: Durability = "process", seconds: float = 10.0) -> Hub:
    """The hub beside a store. where: the path of a SQLite store, or a URL `postgresql://…`.

    durability: as of the store, for SQLite; PostgreSQL waits for its disk. seconds: patience with
    others and with the server. Raises HubError.
    """
    if not is_url(where):
        return SqliteHub(hub_path(where), durability, seconds)
    try:
        # Not everybody has it, and it takes its time.
        from equipoise.store.lanes.postgres import PostgresHub
    except ImportError as error:
        raise HubError(
            f"a PostgreSQL hub needs psycopg ({error}): install equipoise[postgres]"
        ) from error
    return PostgresHub(str(where), seconds)


def hub_within(where: Where, connection: Connection | None) -> Hub:
    """A hub to be filled: of a PostgreSQL store in the open transaction of `connection`, of a file
    (None) by itself. Raises HubError."""
    if connection is None:
        return open_hub(where)
    from equipoise.store.lanes.postgres import HubWithin
    from equipoise.store.postgres.connection import PostgresConnection

    assert isinstance(connection, PostgresConnection)
    return HubWithin(connection.raw, str(where))


def look(url: str, seconds: float = 3.0) -> Sight:
    """What a role finds in the database of a URL, without making anything. Raises HubRefusedError
    where the login is refused, HubError where nobody answers."""
    try:
        from equipoise.store.lanes import postgres
    except ImportError as error:
        raise HubError(
            f"a PostgreSQL hub needs psycopg ({error}): install equipoise[postgres]"
        ) from error
    return postgres.look(url, seconds)
