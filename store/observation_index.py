"""Schema: observations are found by request_id, so that a row counts once.

History, like the first schema: a change is a new migration, never an edit here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def index_observations(database: Database) -> None:
    """A migration. Not unique: older stores may hold a name twice; rows without one need none."""
    database.execute(
        "CREATE INDEX idx_observations_request_id ON observations (request_id)"
        " WHERE request_id IS NOT NULL"
    )
