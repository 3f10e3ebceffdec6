"""Which hub an experiment has: by where its store is."""

from __future__ import annotations

from pathlib import Path

from equipoise.store.address import Where, beside, is_url
from equipoise.store.lanes.contract import Hub, HubError
from equipoise.store.lanes.sqlite import SqliteHub
from equipoise.store.sqlite.connection import Durability

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
