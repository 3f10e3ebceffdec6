"""Numbered migrations: how a store of any older schema version becomes one of this version.

This page is history, like those of versions 1 and 2.

History, like the first schema: a change is a new migration, never an edit here.

History, like the first schema: a change is a new migration, never an edit here.

History, like the first schema: a change is a new migration, never an edit here.

A part that was logged after its decision expired is kept and never used: the views for people
take rewards, deliveries and metrics from `outcomes_in_time` alone, and say how many came late.

This page is history, like that of version 1.

What counts is the delivered attempt with the highest number (docs/guarantees.md). An attempt was
delivered unless a part says that it was not, and answered by the model that a part names; where
none does, by the assigned model if it was delivered, by the routed one if not. Tables stay as they
were: a part speaks of attempt `abs(attempt)`, of none where that is 0, and names nobody where it
is negative.

This page is history, like that of version 1.

`PRAGMA user_version` holds the number of the last migration that ran and `PRAGMA application_id`
says that the database is ours. All missing migrations run in one transaction, or none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from equipoise.store.errors import NotAStoreError, SchemaVersionError
from equipoise.store.sqlite.chain import create_chain
from equipoise.store.sqlite.log_start import create_gaps, create_roots
from equipoise.store.sqlite.schema import create_first_schema

if TYPE_CHECKING:
    from sqlite_utils import Database


def add_leader(database: Database) -> None:
    """Migration 3: the column `leader`, NULL in every row that drew for itself alone."""
    database.table("decisions").add_column("leader", int)


def create_controls(database: Database) -> None:
    """Migration 4: the table of controls, in the order they were set."""
    columns = {"id": int, "at": float, "name": str, "value": str}
    database.create_table(
        "controls", columns, pk="id", not_null=columns.keys() - {"id"}, strict=True
    )


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


def add_closed_by(database: Database) -> None:
    """A migration: the column `closed_by`, NULL in rows that were written before."""
    database.table("decisions").add_column("closed_by", int)


_OUTCOMES_IN_TIME = """
SELECT o.*
FROM outcomes AS o
WHERE NOT EXISTS (SELECT 1 FROM expiries AS x WHERE x.number = o.number AND x.seq < o.seq)
"""

_DECISION_LOG = """
SELECT
    'd' || d.number AS decision_id,
    d.request_id,
    d.unit_id,
    d.context_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', d.at, 'unixepoch') AS time,
    d.era,
    json_extract(e.models, '$[' || d.routed || ']') AS routed,
    json_extract(e.models, '$[' || d.model || ']') AS model,
    d.randomized,
    d.rate * (1 - d.capped) AS e,
    d.rate * (1 - d.capped) * json_extract(d.probabilities, '$[' || d.model || ']')
        + (1 - d.rate * (1 - d.capped)) * (d.model = d.routed) AS propensity,
    d.capped,
    json_extract(
        e.models,
        '$[' || (SELECT o.served FROM outcomes_in_time AS o WHERE o.number = d.number
                 ORDER BY o.attempt DESC, o.seq DESC LIMIT 1) || ']'
    ) AS served,
    (SELECT min(o.delivered) FROM outcomes_in_time AS o WHERE o.number = d.number) AS delivered,
    (SELECT o.reward FROM outcomes_in_time AS o WHERE o.number = d.number AND o.reward IS NOT NULL
     ORDER BY o.seq LIMIT 1) AS reward,
    EXISTS (SELECT 1 FROM expiries AS x WHERE x.number = d.number) AS expired,
    d.rule_id,
    (SELECT nullif(json_group_object(
         coalesce(json_extract(c.value, '$.guardrails[' || m.key || '].name'), m.key), m.value
     ), '{}')
     FROM outcomes_in_time AS o
     JOIN json_each(o.metrics) AS m
     LEFT JOIN settings AS c ON c.name = 'config'
     WHERE o.number = d.number AND m.type <> 'null') AS metrics,
    (SELECT count(*) FROM outcomes AS o WHERE o.number = d.number)
        - (SELECT count(*) FROM outcomes_in_time AS o WHERE o.number = d.number) AS late
FROM decisions AS d
LEFT JOIN eras AS e ON e.era = d.era
ORDER BY d.number
"""

# Plain means, as counted: comparable between models only while probabilities stay constant.
_EXP_SUMMARY = """
WITH assigned AS (
    SELECT
        d.era,
        d.model,
        (SELECT min(o.delivered) FROM outcomes_in_time AS o WHERE o.number = d.number)
            AS delivered,
        (SELECT o.reward FROM outcomes_in_time AS o
         WHERE o.number = d.number AND o.reward IS NOT NULL ORDER BY o.seq LIMIT 1) AS reward
    FROM decisions AS d
    WHERE d.randomized = 1
),
totals AS (
    SELECT era, model, count(*) AS assigned, count(reward) AS rewards, avg(reward) AS mean_reward
    FROM assigned
    WHERE coalesce(delivered, 1) = 1
    GROUP BY era, model
)
SELECT
    e.era,
    m.value AS model,
    coalesce(t.assigned, 0) AS assigned,
    coalesce(t.rewards, 0) AS rewards,
    t.mean_reward
FROM eras AS e
JOIN json_each(e.models) AS m
LEFT JOIN totals AS t ON t.era = e.era AND t.model = m.key
ORDER BY e.era, m.key
"""

VIEWS = {
    "outcomes_in_time": _OUTCOMES_IN_TIME,
    "decision_log": _DECISION_LOG,
    "exp_summary": _EXP_SUMMARY,
}
"""By name, each after those it reads."""


def add_metrics(database: Database) -> None:
    """Migration 2: the column `metrics`, NULL in every older row, and the views made anew."""
    database.table("outcomes").add_column("metrics", str)
    for name, query in VIEWS.items():
        database.create_view(name, query, replace=True)


_ATTEMPTS = """
SELECT
    o.number,
    abs(o.attempt) AS attempt,
    min(o.delivered) AS delivered,
    coalesce(
        max(CASE WHEN o.attempt > 0 AND o.served <> d.model THEN o.served END),
        max(CASE WHEN o.attempt > 0 THEN o.served END),
        CASE WHEN min(o.delivered) THEN d.model ELSE d.routed END
    ) AS served
FROM outcomes_in_time AS o
JOIN decisions AS d ON d.number = o.number
WHERE o.attempt <> 0
GROUP BY o.number, abs(o.attempt)
"""

_DECISION_LOG_8 = """
SELECT
    'd' || d.number AS decision_id,
    d.request_id,
    d.unit_id,
    d.context_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', d.at, 'unixepoch') AS time,
    d.era,
    json_extract(e.models, '$[' || d.routed || ']') AS routed,
    json_extract(e.models, '$[' || d.model || ']') AS model,
    d.randomized,
    d.rate * (1 - d.capped) AS e,
    d.rate * (1 - d.capped) * json_extract(d.probabilities, '$[' || d.model || ']')
        + (1 - d.rate * (1 - d.capped)) * (d.model = d.routed) AS propensity,
    d.capped,
    json_extract(
        e.models,
        '$[' || coalesce(
            (SELECT a.served FROM attempts AS a WHERE a.number = d.number
             ORDER BY a.delivered DESC, a.attempt DESC LIMIT 1),
            (SELECT d.model FROM outcomes_in_time AS o WHERE o.number = d.number LIMIT 1)
        ) || ']'
    ) AS served,
    coalesce(
        (SELECT max(a.delivered) FROM attempts AS a WHERE a.number = d.number),
        (SELECT 1 FROM outcomes_in_time AS o WHERE o.number = d.number LIMIT 1)
    ) AS delivered,
    (SELECT o.reward FROM outcomes_in_time AS o WHERE o.number = d.number AND o.reward IS NOT NULL
     ORDER BY o.seq LIMIT 1) AS reward,
    EXISTS (SELECT 1 FROM expiries AS x WHERE x.number = d.number) AS expired,
    d.rule_id,
    (SELECT nullif(json_group_object(
         coalesce(json_extract(c.value, '$.guardrails[' || m.key || '].name'), m.key), m.value
     ), '{}')
     FROM outcomes_in_time AS o
     JOIN json_each(o.metrics) AS m
     LEFT JOIN settings AS c ON c.name = 'config'
     WHERE o.number = d.number AND m.type <> 'null') AS metrics,
    (SELECT count(*) FROM outcomes AS o WHERE o.number = d.number)
        - (SELECT count(*) FROM outcomes_in_time AS o WHERE o.number = d.number) AS late
FROM decisions AS d
LEFT JOIN eras AS e ON e.era = d.era
ORDER BY d.number
"""

# Plain means, as counted: comparable between models only while probabilities stay constant.
_EXP_SUMMARY_8 = """
WITH assigned AS (
    SELECT
        d.era,
        d.model,
        (SELECT a.delivered AND a.served = d.model FROM attempts AS a WHERE a.number = d.number
         ORDER BY a.delivered DESC, a.attempt DESC LIMIT 1) AS as_drawn,
        (SELECT o.reward FROM outcomes_in_time AS o
         WHERE o.number = d.number AND o.reward IS NOT NULL ORDER BY o.seq LIMIT 1) AS reward
    FROM decisions AS d
    WHERE d.randomized = 1
),
totals AS (
    SELECT era, model, count(*) AS assigned, count(reward) AS rewards, avg(reward) AS mean_reward
    FROM assigned
    WHERE coalesce(as_drawn, 1) = 1
    GROUP BY era, model
)
SELECT
    e.era,
    m.value AS model,
    coalesce(t.assigned, 0) AS assigned,
    coalesce(t.rewards, 0) AS rewards,
    t.mean_reward
FROM eras AS e
JOIN json_each(e.models) AS m
LEFT JOIN totals AS t ON t.era = e.era AND t.model = m.key
ORDER BY e.era, m.key
"""

_VIEWS = {"attempts": _ATTEMPTS, "decision_log": _DECISION_LOG_8, "exp_summary": _EXP_SUMMARY_8}
"""By name, each after those it reads."""


def merge_attempts(database: Database) -> None:
    """Migration 7: the view `attempts`, and those that read it made anew."""
    for name, query in _VIEWS.items():
        database.create_view(name, query, replace=True)


APPLICATION_ID = 0x45515053  # "EQPS", shown by `file` and kept through backups

Migration: TypeAlias = "tuple[int, Callable[[Database], None]]"

MIGRATIONS: Sequence[Migration] = (
    (1, create_first_schema),
    (2, add_metrics),
    (3, add_leader),
    (4, create_controls),
    (5, index_observations),
    (6, create_roots),
    (7, add_closed_by),
    (8, merge_attempts),
    (9, index_simulations),
    (10, create_chain),
    (11, create_gaps),
)
"""Every migration with its number: 1, 2, 3, …; append only."""


def newest() -> int:
    """The schema version this equipoise writes."""
    return MIGRATIONS[-1][0]


def check_identity(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a store, 0 of a database without any content.

    Raises NotAStoreError where the database is somebody else's, SchemaVersionError where it was
    written by a newer equipoise.
    """
    application, version = _pragma(connection, "application_id"), schema_version(connection)
    if application != APPLICATION_ID:
        if application or version or _has_content(connection):
            raise NotAStoreError(
                f"{path} is a SQLite database but no equipoise store: application_id is "
                f"{application:#x}, expected {APPLICATION_ID:#x}"
            )
        return 0
    if version > newest():
        raise SchemaVersionError(
            f"store {path} has schema version {version}, "
            f"this equipoise reads up to {newest()}: upgrade equipoise"
        )
    return version


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Run every migration the store has not seen, in one transaction; none if one fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_identity(connection, path)
        missing = [(number, migrate) for number, migrate in MIGRATIONS if number > version]
        if missing:
            database = _database(connection)
            for number, migrate in missing:
                migrate(database)
                connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def schema_version(connection: sqlite3.Connection) -> int:
    """The number of the last migration this database has seen."""
    return _pragma(connection, "user_version")


def _database(connection: sqlite3.Connection) -> Database:
    # Imported late: sqlite-utils brings pandas along, which is most of a second at start-up.
    from sqlite_utils import Database

    return Database(connection, recursive_triggers=False, execute_plugins=False)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _has_content(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
