"""Every row of a store as SQL holds it, from one database into another, with its chain.

What is copied is the content of the tables, key by key and digest by digest. Nothing is derived
anew: removed rules, sealed bases and the places where a chain was broken stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from equipoise.store.errors import CorruptStoreError
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.sql import chain
from equipoise.store.sql.connection import Connection, Row
from equipoise.store.sql.truncation import BEGINS

RECORD_TABLES: dict[str, tuple[str, ...]] = {
    "settings": ("rowid", "name", "value"),
    "eras": ("era", "opened_at", "reason", "models", "key_hash", "schema_hash"),
    "rules": ("id", "rule_id", "era", "at", "body"),
    "alerts": ("id", "at", "check_name", "status", "sentence"),
    "controls": ("id", "at", "name", "value"),
    "gaps": ("id", "at", "first", "numbers", '"row"', '"rows"', "reason", "kept"),
    "checkpoints": ("id", "seq", "at", "checksum", "state"),
    "roots": ("id", "seq", "decisions", "at", "checksum", "state", "sealed_at", "digest"),
    "chain": ("id", "kind", "position", "digest"),
}
"""Beside the log: the columns of each table, its key first. Facts are about one database only."""
ROWS_AT_ONCE = 4096
_STATES = ("checkpoints", "roots")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a table, values in the order of its columns."""

    table: str
    columns: Sequence[str]
    rows: list[Row]

    @property
    def insert(self) -> str:
        """The statement that writes one row."""
        marks = ", ".join("?" * len(self.columns))
        return f"INSERT INTO {self.table} ({', '.join(self.columns)}) VALUES ({marks})"


Insert: TypeAlias = Callable[[Connection, Piece], None]
Write: TypeAlias = Callable[[Connection, Insert], None]
"""Fills a new store over its connection, by a way to insert rows."""


def begins(connection: Connection) -> int:
    """The first row of the log."""
    return int(connection.execute(f"SELECT {BEGINS}").fetchone()[0])


def pieces(connection: Connection, until: int) -> Iterator[Piece]:
    """Every row of a store, those of the log up to row `until`, a few thousand at a time.

    Nobody may write meanwhile.
    """
    for table in LOG_TABLES:
        start = begins(connection)
        while start < until:
            select = f"{table.select('seq >= ? AND seq < ?')} LIMIT ?"
            rows = connection.execute(select, (start, until, ROWS_AT_ONCE)).fetchall()
            if rows:
                yield Piece(table.name, table.names, rows)
            start = until if len(rows) < ROWS_AT_ONCE else rows[-1][0] + 1
    for name, columns in RECORD_TABLES.items():
        key, listed = columns[0], ", ".join(columns)
        keys = [row[0] for row in connection.execute(f"SELECT {key} FROM {name} ORDER BY {key}")]
        # A state may take hundreds of megabytes: one at a time.
        step = 1 if name in _STATES else ROWS_AT_ONCE
        for first in range(0, len(keys), step):
            last = min(first + step, len(keys)) - 1
            query = f"SELECT {listed} FROM {name} WHERE {key} BETWEEN ? AND ? ORDER BY {key}"
            rows = connection.execute(query, (keys[first], keys[last])).fetchall()
            yield Piece(name, columns, rows)


def fill(
    connection: Connection,
    source: Iterator[Piece],
    insert: Insert,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write the rows into a new store in the caller's transaction; how many, of all tables.

    Its chain is not begun anew but is the source's.
    """
    connection.execute("DELETE FROM chain")
    count = 0
    for piece in source:
        insert(connection, piece)
        count += len(piece.rows)
        progress(count)
    return count


def check_copy(
    connection: Connection, ends: chain.Anchor, until: int, progress: Callable[[int], None]
) -> None:
    """Compute the chain from the rows that are there, as far as row `until`, and compare it with
    where the source's ended. Raises CorruptStoreError where they are not the same."""
    links, head = chain.links(connection)
    start = next((link for link in links if link.kind in (chain.LOG, chain.BEGINS)), None)
    if ends.log is not None and start is not None:
        digest = bytes.fromhex(start.digest)
        broken = {link.position: link.digest for link in links if link.kind == chain.BROKEN}
        for low in range(start.position, until, ROWS_AT_ONCE):
            for name, row in chain.rows_between(connection, low, min(low + ROWS_AT_ONCE, until)):
                if int(row[0]) in broken:
                    digest = bytes.fromhex(broken[int(row[0])])
                digest = chain.next_digest(digest, name, row)
            progress(min(low + ROWS_AT_ONCE, until))
        if head is None or digest.hex() != ends.log.digest or head.digest != ends.log.digest:
            raise CorruptStoreError(
                "the rows that were copied have another digest than the chain of the source says:"
                " audit the source"
            )
    for name, place in ends.records.items():
        if chain.record_digests(connection, name)[1].get(place.position) != place.digest:
            raise CorruptStoreError(f"the {name} that were copied are not those of the source")
