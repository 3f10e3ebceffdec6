"""Schema version 11: who a store is, and what its log is known to lack.

`create_gaps` is history, like the first schema. The other functions take an open connection; those
that write run inside the caller's transaction.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.store import chain
from equipoise.store.records import Gap

if TYPE_CHECKING:
    from sqlite_utils import Database

LOST_UNTIL = "coalesce((SELECT max(first + numbers) FROM gaps), 0)"
"""SQL: the number after the last one that was lost."""
STORE_ID, TAKEN = "store_id", "tail_taken"
"""Facts: the store's id; the tail files whose rows are in the log while they still stand there."""


def create_gaps(database: Database) -> None:
    """Migration 11: the table of gaps, and facts about the file itself."""
    columns = {
        "id": int,
        "at": float,
        "first": int,
        "numbers": int,
        "row": int,
        "rows": int,
        "reason": str,
        "kept": str,
    }
    database.create_table("gaps", columns, pk="id", not_null=columns.keys() - {"id"}, strict=True)
    facts = {"name": str, "value": str}
    database.create_table("facts", facts, pk="name", not_null=facts.keys(), strict=True)
    database.table("facts").insert({"name": STORE_ID, "value": secrets.token_hex(16)})


def lost_before(gaps: Sequence[Gap], end: int) -> int:
    """How many of the decision numbers before `end` were lost."""
    return sum(min(gap.end, end) - min(gap.first, end) for gap in gaps)


def insert_gap(connection: sqlite3.Connection, gap: Gap) -> None:
    connection.execute(
        'INSERT INTO gaps (at, first, numbers, "row", "rows", reason, kept)'
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (gap.at, gap.first, gap.numbers, gap.row, gap.rows, gap.reason, gap.kept),
    )
    chain.extend_records(connection, "gaps")


def read_gaps(connection: sqlite3.Connection) -> list[Gap]:
    rows = connection.execute(
        'SELECT at, first, numbers, "row", "rows", reason, kept FROM gaps ORDER BY id'
    )
    names = Gap.__struct_fields__
    return [Gap(**dict(zip(names, row, strict=True))) for row in rows]


def read_fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def write_fact(connection: sqlite3.Connection, name: str, value: str | None) -> None:
    """Set a fact; None removes it."""
    connection.execute("DELETE FROM facts WHERE name = ?", (name,))
    if value is not None:
        connection.execute("INSERT INTO facts (name, value) VALUES (?, ?)", (name, value))
