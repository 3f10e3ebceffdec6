"""A whole store into a schema in one transaction: it appears with its last row, or never."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import psycopg

from equipoise.store.address import Address, parse_address
from equipoise.store.errors import StoreError, StoreInUseError
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.postgres import schema
from equipoise.store.postgres.connection import (
    PostgresConnection,
    as_store_error,
    connect,
    copy_rows,
    try_lock,
)
from equipoise.store.sql.connection import Connection
from equipoise.store.sql.copying import Piece, Write

_LOG = frozenset(table.name for table in LOG_TABLES)


def check_empty(url: str) -> None:
    """Raise StoreError where anything is in the schema."""
    address = parse_address(url)
    with _connected(address, read_only=True) as connection:
        _refuse(connection, address)


def holds_hub(url: str) -> bool:
    """Whether many deciders ever met in the schema."""
    address = parse_address(url)
    with _connected(address, read_only=True) as connection:
        [(there,)] = connection.execute("SELECT to_regclass('lane_state') IS NOT NULL").fetchall()
    return bool(there)


def load(
    url: str,
    begins: int,
    rows: int,
    decisions: int,
    write: Write,
    before: Callable[[PostgresConnection], None],
) -> None:
    """Make a store of what `write` inserts, whose log has the rows from `begins` to `rows`.

    before: done just before the transaction is committed, in it. Raises StoreError; then there is
    nothing.
    """
    address = parse_address(url)
    with _connected(address, read_only=False) as connection:
        if not try_lock(connection, address.schema):
            raise StoreInUseError(f"store {address.shown} is open for writing already")
        connection.execute("BEGIN")
        _refuse(connection, address)
        schema.upgrade(connection, address.schema, 0)
        schema.add_partitions(connection, begins, rows)
        write(connection, _insert)
        connection.execute(
            "SELECT setval(pg_get_serial_sequence('settings', 'rowid'), max(rowid)) FROM settings"
        )
        connection.execute("UPDATE writer SET next_seq = ?, decisions = ?", (rows, decisions))
        before(connection)
        connection.execute("COMMIT")
        for table in LOG_TABLES:
            connection.execute(f"ANALYZE {table.name}")


def _insert(connection: Connection, piece: Piece) -> None:
    assert isinstance(connection, PostgresConnection)
    if piece.table in _LOG:
        copy_rows(connection, piece.table, piece.columns, piece.rows)
    else:
        connection.executemany(piece.insert, piece.rows)


def _refuse(connection: PostgresConnection, address: Address) -> None:
    row = connection.execute(
        "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = ? LIMIT 1",
        (address.schema,),
    ).fetchone()
    if row is not None:
        raise StoreError(
            f"{address.shown}: schema {address.schema} holds {row[0]}: name another one, nothing is"
            " replaced"
        )


@contextlib.contextmanager
def _connected(address: Address, read_only: bool) -> Iterator[PostgresConnection]:
    connection = connect(address, read_only)
    try:
        yield connection
    except psycopg.Error as error:
        raise as_store_error(f"store {address.shown}", error) from error
    finally:
        connection.raw.close()
