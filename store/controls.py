"""Schema version 4: what operators set while an experiment runs (budget, pause).

History, like the first schema: a change is a new migration, never an edit here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def create_controls(database: Database) -> None:
    """Migration 4: the table of controls, in the order they were set."""
    columns = {"id": int, "at": float, "name": str, "value": str}
    database.create_table(
        "controls", columns, pk="id", not_null=columns.keys() - {"id"}, strict=True
    )
