"""Schema version 1: the tables as migration 1 makes them.

This page is history: stores made with it exist. A change of the schema is a new migration in
`migrations.py`, never an edit here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from equipoise.store.views import VIEWS

if TYPE_CHECKING:
    from sqlite_utils import Database

_LOG: dict[str, dict[str, type]] = {
    "decisions": {
        "seq": int,
        "number": int,
        "request_id": str,
        "unit": int,
        "unit_id": str,
        "context": int,
        "context_id": str,
        "at": float,
        "x": str,
        "routed": int,
        "eligible": str,
        "rate": float,
        "probabilities": str,
        "uniform": float,
        "model": int,
        "randomized": int,
        "capped": int,
        "rule_id": str,
        "era": int,
        "negative_zeros": str,
    },
    "outcomes": {
        "seq": int,
        "number": int,
        "served": int,
        "attempt": int,
        "delivered": int,
        "outputs": str,
        "reward": float,
        "at": float,
        "negative_zeros": str,
    },
    "observations": {
        "seq": int,
        "request_id": str,
        "unit": int,
        "unit_id": str,
        "at": float,
        "x": str,
        "routed": int,
        "outputs": str,
        "reward": float,
        "negative_zeros": str,
    },
    "simulations": {
        "seq": int,
        "context": int,
        "context_id": str,
        "model": int,
        "x": str,
        "outputs": str,
        "cost": float,
        "at": float,
        "negative_zeros": str,
    },
    "expiries": {"seq": int, "number": int, "at": float, "negative_zeros": str},
}
_MAY_BE_UNKNOWN = frozenset(
    {"request_id", "unit_id", "context_id", "eligible", "at", "reward", "cost", "negative_zeros"}
)
_REST: dict[str, dict[str, type]] = {
    "eras": {
        "era": int,
        "opened_at": float,
        "reason": str,
        "models": str,
        "key_hash": str,
        "schema_hash": str,
    },
    "rules": {"id": int, "rule_id": str, "era": int, "at": float, "body": str},
    "alerts": {"id": int, "at": float, "check_name": str, "status": str, "sentence": str},
    "checkpoints": {"id": int, "seq": int, "at": float, "checksum": str, "state": bytes},
    "settings": {"name": str, "value": str},
}


def create_first_schema(database: Database) -> None:
    """Migration 1: every table, index and view of a new store."""
    for name, columns in _LOG.items():
        known = columns.keys() - _MAY_BE_UNKNOWN - {"seq"}
        database.create_table(name, columns, pk="seq", not_null=known, strict=True)
    for name, columns in _REST.items():
        key = next(iter(columns))
        database.create_table(name, columns, pk=key, not_null=columns.keys() - {"id"}, strict=True)
    database.table("decisions").create_index(["number"], unique=True)
    database.table("outcomes").create_index(["number"])
    database.table("expiries").create_index(["number"])
    database.table("rules").create_index(["rule_id"], unique=True)
    database.table("alerts").create_index(["at", "check_name", "status", "sentence"], unique=True)
    # sqlite-utils makes no partial indexes, and rows without a name need no entry.
    database.execute(
        "CREATE UNIQUE INDEX idx_decisions_request_id ON decisions (request_id)"
        " WHERE request_id IS NOT NULL"
    )
    for name, query in VIEWS.items():
        database.create_view(name, query)
