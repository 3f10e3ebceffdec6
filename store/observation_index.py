"""Schema: observations and simulations are found by what names them, so that a row counts once.

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


def index_simulations(database: Database) -> None:
    """A migration. Not unique either: rows of the oldest stores, and of more contexts than the
    state keeps, may hold a pair twice."""
    database.execute("CREATE INDEX idx_simulations_context ON simulations (context, model)")
