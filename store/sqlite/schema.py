"""Views for people: the log with names and readable times, for any SQLite tool.

This page is history: stores made with it exist. A change of the schema is a new migration in
`migrations.py`, never an edit here.

Model names come from the model list of the decision's era. Times are UTC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        '$[' || (SELECT o.served FROM outcomes AS o WHERE o.number = d.number
                 ORDER BY o.attempt DESC, o.seq DESC LIMIT 1) || ']'
    ) AS served,
    (SELECT min(o.delivered) FROM outcomes AS o WHERE o.number = d.number) AS delivered,
    (SELECT o.reward FROM outcomes AS o WHERE o.number = d.number AND o.reward IS NOT NULL
     ORDER BY o.seq LIMIT 1) AS reward,
    EXISTS (SELECT 1 FROM expiries AS x WHERE x.number = d.number) AS expired,
    d.rule_id
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
        (SELECT min(o.delivered) FROM outcomes AS o WHERE o.number = d.number) AS delivered,
        (SELECT o.reward FROM outcomes AS o WHERE o.number = d.number AND o.reward IS NOT NULL
         ORDER BY o.seq LIMIT 1) AS reward
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
    SELECT 'outcome', reward IS NOT NULL, date(at, 'unixepoch') FROM outcomes
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
    "decision_log": _DECISION_LOG,
    "exp_summary": _EXP_SUMMARY,
    "daily_counts": _DAILY_COUNTS,
}
"""The views of schema version 1 by name, each after those it reads."""
