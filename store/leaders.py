"""Schema version 3: decisions say whose draw they took over, where units are sticky.

This page is history, like those of versions 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def add_leader(database: Database) -> None:
    """Migration 3: the column `leader`, NULL in every row that drew for itself alone."""
    database.table("decisions").add_column("leader", int)
