"""The schema of a store: tables, indexes and views, and how a store of an older schema gets them.

`PRAGMA user_version` holds the schema version and `PRAGMA application_id` says that the database is
ours. A new store is made at the newest version. An older one runs every migration that it has not
seen, all in one transaction or none; a change of the schema is a new migration for the stores that
exist and a change of `create_schema` for those to come. Versions below 6 were never released.

The views are for people: the log with names and readable times, for any SQLite tool. Model names
come from the model list of the decision's era, times are UTC. A part that was logged after its
decision expired is kept and never used: the views take rewards, deliveries and metrics from
`outcomes_in_time` alone, and say how many came late. What counts is the delivered attempt with the
highest number (docs/guarantees.md). An attempt was delivered unless a part says that it was not,
and answered by the model that a part names; where none does, by the assigned model if it was
delivered, by the routed one if not. A part speaks of attempt `abs(attempt)`, of none where that is
0, and names nobody where it is negative.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from equipoise.store.errors import NotAStoreError, SchemaVersionError
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.sql import chain

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = 0x45515053  # "EQPS", shown by `file` and kept through backups
STORE_ID = "store_id"
"""The fact that tells a store from every other one: 16 random bytes in hexadecimal."""

_MAY_BE_NULL = frozenset(
    {"request_id", "unit_id", "context_id", "eligible", "at", "reward", "cost", "negative_zeros"}
)
_ADDED = ("metrics", "leader", "closed_by", "attempts", "draw")
"""Columns of the log that came later and stand last in their tables; they may be NULL too."""
_RECORDS: dict[str, dict[str, type]] = {
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
    "controls": {"id": int, "at": float, "name": str, "value": str},
}
_ROOTS: dict[str, type] = {
    "id": int,
    "seq": int,
    "decisions": int,
    "at": float,
    "checksum": str,
    "state": bytes,
    "sealed_at": float,
    "digest": str,
}
_CHAIN: dict[str, type] = {"id": int, "kind": str, "position": int, "digest": str}
_GAPS: dict[str, type] = {
    "id": int,
    "at": float,
    "first": int,
    "numbers": int,
    "row": int,
    "rows": int,
    "reason": str,
    "kept": str,
}
_FACTS: dict[str, type] = {"name": str, "value": str}

_OUTCOMES_IN_TIME = """
SELECT o.*
FROM outcomes AS o
WHERE NOT EXISTS (SELECT 1 FROM expiries AS x WHERE x.number = o.number AND x.seq < o.seq)
"""

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

_DECISION_LOG = """
SELECT
    CASE
        WHEN d.draw IS NULL THEN 'd' || d.number
        ELSE 'd' || (d.draw >> 40) || '-' || (d.draw & 1099511627775)
    END AS decision_id,
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
_EXP_SUMMARY = """
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

# A part that repeats the reward of its decision, of a second attempt say, is no second reward, and
# neither is one that came after the window; the rows of both are among the outcome parts.
_DAILY_COUNTS = """
SELECT
    day,
    sum(kind = 'decision') AS decisions,
    sum(kind = 'decision' AND flag) AS randomized,
    sum(kind = 'outcome') AS outcome_parts,
    sum(kind = 'outcome' AND flag) AS rewards,
    sum(kind = 'observation') AS observations,
    sum(kind = 'simulation') AS simulations,
    sum(kind = 'expiry') AS expiries
FROM (
    SELECT 'decision' AS kind, randomized AS flag, date(at, 'unixepoch') AS day FROM decisions
    UNION ALL
    SELECT
        'outcome',
        o.reward IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM outcomes AS b
            WHERE b.number = o.number AND b.reward IS NOT NULL AND b.seq < o.seq
        ) AND NOT EXISTS (
            SELECT 1 FROM expiries AS x WHERE x.number = o.number AND x.seq < o.seq
        ),
        date(o.at, 'unixepoch')
    FROM outcomes AS o
    UNION ALL
    SELECT 'observation', 0, date(at, 'unixepoch') FROM observations
    UNION ALL
    SELECT 'simulation', 0, date(at, 'unixepoch') FROM simulations
    UNION ALL
    SELECT 'expiry', 0, date(at, 'unixepoch') FROM expiries
)
GROUP BY day
ORDER BY day
"""

VIEWS = {
    "outcomes_in_time": _OUTCOMES_IN_TIME,
    "attempts": _ATTEMPTS,
    "decision_log": _DECISION_LOG,
    "exp_summary": _EXP_SUMMARY,
    "daily_counts": _DAILY_COUNTS,
}
"""By name, each after those it reads."""


def create_schema(database: Database) -> None:
    """Every table, index and view of a new store."""
    for table in LOG_TABLES:
        columns = {name: kind for name, kind in table.types.items() if name not in _ADDED}
        required = columns.keys() - _MAY_BE_NULL - {"seq"}
        database.create_table(table.name, columns, pk="seq", not_null=required, strict=True)
        for name in _ADDED:
            if name in table.types:
                database.table(table.name).add_column(name, table.types[name])
    for name, columns in _RECORDS.items():
        _create_table(database, name, columns)
    required = _ROOTS.keys() - {"id", "sealed_at", "digest"}
    database.create_table("roots", _ROOTS, pk="id", not_null=required, strict=True)
    database.table("decisions").create_index(["number"], unique=True)
    database.table("outcomes").create_index(["number"])
    database.table("expiries").create_index(["number"])
    database.table("rules").create_index(["rule_id"], unique=True)
    database.table("alerts").create_index(["at", "check_name", "status", "sentence"], unique=True)
    # sqlite-utils makes no partial indexes, and rows without a name need no entry. That of
    # observations is not unique: older stores may hold a name twice.
    for name, unique in (("decisions", "UNIQUE "), ("observations", "")):
        database.execute(
            f"CREATE {unique}INDEX idx_{name}_request_id ON {name} (request_id)"
            " WHERE request_id IS NOT NULL"
        )
    index_simulations(database)
    _index_draws(database)
    create_views(database)
    create_chain(database)
    create_gaps(database)


def _create_table(database: Database, name: str, columns: dict[str, type]) -> None:
    key = next(iter(columns))
    database.create_table(name, columns, pk=key, not_null=columns.keys() - {"id"}, strict=True)


def create_views(database: Database) -> None:
    """The views, in place of those of their names."""
    for name, query in VIEWS.items():
        database.create_view(name, query, replace=True)


def add_closed_by(database: Database) -> None:
    """The column `closed_by`, NULL in rows that were written before."""
    database.table("decisions").add_column("closed_by", int)


def add_attempts(database: Database) -> None:
    """The column `attempts`, NULL in rows that were written before."""
    database.table("outcomes").add_column("attempts", str)


def add_draw(database: Database) -> None:
    """The column `draw`, NULL in rows that were written before; ids in the views follow it."""
    database.table("decisions").add_column("draw", int)
    _index_draws(database)
    create_views(database)


def _index_draws(database: Database) -> None:
    database.execute(
        "CREATE UNIQUE INDEX idx_decisions_draw ON decisions (draw) WHERE draw IS NOT NULL"
    )


def index_simulations(database: Database) -> None:
    """Not unique: rows of more contexts than the state keeps may hold a pair twice."""
    database.execute("CREATE INDEX idx_simulations_context ON simulations (context, model)")


def create_chain(database: Database) -> None:
    """The table of the chain, which begins behind the rows that are there already."""
    _create_table(database, "chain", _CHAIN)
    chain.begin(database.conn)


def create_gaps(database: Database) -> None:
    """The table of gaps, and facts about the file itself."""
    _create_table(database, "gaps", _GAPS)
    _create_table(database, "facts", _FACTS)
    database.table("facts").insert({"name": STORE_ID, "value": secrets.token_hex(16)})


Migration: TypeAlias = "tuple[int, Callable[[Database], None]]"

OLDEST = 6
"""The oldest schema version that can be upgraded."""
MIGRATIONS: Sequence[Migration] = (
    (7, add_closed_by),
    (8, create_views),
    (9, index_simulations),
    (10, create_chain),
    (11, create_gaps),
    (12, create_views),
    (13, add_attempts),
    (14, add_draw),
)
"""Each with the schema version that it leads to: 7, 8, …; append only."""


def newest() -> int:
    """The schema version this equipoise writes."""
    return MIGRATIONS[-1][0]


def check_identity(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a store, 0 of a database without any content.

    Raises NotAStoreError where the database is somebody else's, SchemaVersionError where its
    version is one that this equipoise does not know.
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
    if version < OLDEST:
        raise SchemaVersionError(
            f"store {path} has schema version {version}, this equipoise upgrades from {OLDEST} on:"
            " older ones were never released"
        )
    return version


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema of a new store, or run every migration that an older one has not seen: in
    one transaction, nothing of it where one step fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_identity(connection, path)
        steps = MIGRATIONS if version else ((newest(), create_schema),)
        database = _database(connection)
        for number, step in steps:
            if number > version:
                step(database)
                connection.execute(f"PRAGMA user_version = {number:d}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def schema_version(connection: sqlite3.Connection) -> int:
    """The schema version that this database is at."""
    return _pragma(connection, "user_version")


def _database(connection: sqlite3.Connection) -> Database:
    # Imported late: sqlite-utils brings pandas along, which is most of a second at start-up.
    from sqlite_utils import Database

    return Database(connection, recursive_triggers=False, execute_plugins=False)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _has_content(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
