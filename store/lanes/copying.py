"""A hub's tables into a new hub, so that no lane, token or version is ever given twice."""

from __future__ import annotations

from equipoise.store.lanes.contract import Hub, HubError
from equipoise.store.lanes.sql import SqlHub

_TABLES = {
    "lane_leases": "lane, token, name, joined, until, ended, lost, asked, adopted, places, spent,"
    " whole, forgotten",
    "lane_publications": "version, term, body",
    "lane_documents": "name, body",
    "lane_parcels": "lane, place, kind, version, rows, position, late, received, body",
    "lane_requests": "position, request_id",
}
_ORDER = {"lane_parcels": "arrival"}


def copy_hub(source: Hub, target: Hub) -> None:
    """Copy everything but who the authority is. Nobody may hold a lane of either.

    Raises HubError where anything was in the target.
    """
    assert isinstance(source, SqlHub)
    assert isinstance(target, SqlHub)
    tables = {
        name: source.read(
            lambda name=name, columns=columns: source.rows(  # type: ignore[misc]
                f"SELECT {columns} FROM {name} ORDER BY {_ORDER.get(name, '1')}"
            )
        )
        for name, columns in _TABLES.items()
    }
    [(lane, token, term)] = source.read(
        lambda: source.rows("SELECT lane, token, term FROM lane_state")
    )

    def write() -> None:
        [(before,)] = target.rows("SELECT token FROM lane_state FOR UPDATE")
        if before:
            raise HubError("deciders have met there already")
        target.rows("UPDATE lane_state SET lane = ?, token = ?, term = ?", lane, token, term)
        for name, rows in tables.items():
            columns = _TABLES[name]
            marks = ", ".join("?" * (columns.count(",") + 1))
            target.each(f"INSERT INTO {name} ({columns}) VALUES ({marks})", rows)

    target.transaction(write, lasting=True)
