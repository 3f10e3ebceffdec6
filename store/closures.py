"""Schema: decisions say what closed them to randomizing.

History, like the first schema: a change is a new migration, never an edit here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def add_closed_by(database: Database) -> None:
    """A migration: the column `closed_by`, NULL in rows that were written before."""
    database.table("decisions").add_column("closed_by", int)
