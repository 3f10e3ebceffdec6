"""Schema version 8: views that merge what parts of an outcome say of its attempts.

What counts is the delivered attempt with the highest number (docs/guarantees.md). An attempt was
delivered unless a part says that it was not, and answered by the model that a part names; where
none does, by the assigned model if it was delivered, by the routed one if not. Tables stay as they
were: a part speaks of attempt `abs(attempt)`, of none where that is 0, and names nobody where it
is negative.

This page is history, like that of version 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

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

_VIEWS = {"attempts": _ATTEMPTS, "decision_log": _DECISION_LOG, "exp_summary": _EXP_SUMMARY}
"""By name, each after those it reads."""


def merge_attempts(database: Database) -> None:
    """Migration 7: the view `attempts`, and those that read it made anew."""
    for name, query in _VIEWS.items():
        database.create_view(name, query, replace=True)
