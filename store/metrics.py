"""Schema version 2: guardrail metrics in outcomes, and views that know late outcomes.

A part that was logged after its decision expired is kept and never used: the views for people
take rewards, deliveries and metrics from `outcomes_in_time` alone, and say how many came late.

This page is history, like that of version 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

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
