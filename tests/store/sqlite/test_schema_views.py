"""The views for people, read with nothing but the sqlite3 module."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.store.batches import ExpiryBatch
from equipoise.store.records import Era
from equipoise.store.sqlite import SqliteStore

DAY = 86_400.0
NAN = np.nan


@pytest.fixture
def database(tmp_path: Path, author: Any) -> Iterator[sqlite3.Connection]:
    """Four decisions in two eras whose model lists differ, and what came of them."""
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for era, models in enumerate((["a", "b", "c"], ["c", "a", 'it\'s "b"'])):
            store.put(
                Era(
                    era=era,
                    opened_at=0.0,
                    reason="models",
                    models=models,
                    key_hash="k",
                    schema_hash="s",
                )
            )
        store.append(
            author.decisions(
                3,
                request_id=["q0", "q1", "q2"],
                at=np.array([0.0, 0.25, DAY + 1]),
                routed=np.array([0, 1, 2]),
                rate=np.array([0.5, 0.2, 0.4]),
                probabilities=np.array([[0.2, 0.3, 0.5], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]),
                model=np.array([2, 1, 2]),
                randomized=np.array([True, True, False]),
                capped=np.array([False, False, True]),
            )
        )
        store.append(
            author.decisions(
                1,
                era=1,
                request_id=None,
                at=np.array([2 * DAY]),
                routed=np.array([0]),
                rate=np.array([1.0]),
                probabilities=np.array([[0.0, 0.0, 1.0]]),
                model=np.array([2]),
                randomized=np.array([True]),
                capped=np.array([False]),
            )
        )
        store.append(
            author.outcomes(
                5,
                number=np.array([0, 0, 0, 1, 3]),
                served=np.array([2, 1, 1, 1, 2]),
                attempt=np.array([1, 2, 2, 1, 1]),
                delivered=np.array([True, True, True, False, True]),
                reward=np.array([NAN, NAN, 0.75, 9.0, 2.0]),
                at=np.array([1.0, 2.0, DAY, 3.0, NAN]),
            )
        )
        store.append(author.observations(2))
        store.append(ExpiryBatch(number=np.array([2]), at=np.array([2 * DAY])))
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def test_decision_log(database: sqlite3.Connection) -> None:
    rows = database.execute("SELECT * FROM decision_log").fetchall()
    columns = ["decision_id", "request_id", "time", "routed", "model", "served"]
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("d0", "q0", "1970-01-01T00:00:00.000Z", "a", "c", "b"),
        ("d1", "q1", "1970-01-01T00:00:00.250Z", "b", "b", "b"),
        ("d2", "q2", "1970-01-02T00:00:01.000Z", "c", "c", None),
        ("d3", None, "1970-01-03T00:00:00.000Z", "c", 'it\'s "b"', 'it\'s "b"'),
    ]
    assert [row["e"] for row in rows] == [0.5, 0.2, 0.0, 1.0]
    assert [row["propensity"] for row in rows] == pytest.approx([0.25, 0.9, 1.0, 1.0], abs=1e-15)
    assert [row["reward"] for row in rows] == [0.75, 9.0, None, 2.0]
    assert [row["delivered"] for row in rows] == [1, 0, None, 1]
    assert [row["expired"] for row in rows] == [0, 0, 1, 0]
    assert [row["randomized"] for row in rows] == [1, 1, 0, 1]


def test_exp_summary_counts_draws_that_were_carried_out(database: sqlite3.Connection) -> None:
    """d0 was drawn for c and answered by b at its second attempt."""
    rows = database.execute("SELECT * FROM exp_summary").fetchall()
    assert [tuple(row) for row in rows] == [
        (0, "a", 0, 0, None),
        (0, "b", 0, 0, None),
        (0, "c", 0, 0, None),
        (1, "c", 0, 0, None),
        (1, "a", 0, 0, None),
        (1, 'it\'s "b"', 1, 1, 2.0),
    ]


def test_daily_counts(database: sqlite3.Connection) -> None:
    database.execute("UPDATE observations SET at = 5.0")
    rows = database.execute("SELECT * FROM daily_counts WHERE day IS NOT NULL").fetchall()
    assert [tuple(row) for row in rows] == [
        ("1970-01-01", 2, 2, 3, 1, 2, 0, 0),
        ("1970-01-02", 1, 0, 1, 1, 0, 0, 0),
        ("1970-01-03", 1, 1, 0, 0, 0, 0, 1),
    ]
    (unknown,) = database.execute("SELECT * FROM daily_counts WHERE day IS NULL").fetchall()
    assert tuple(unknown)[1:] == (0, 0, 1, 1, 0, 0, 0)


def test_daily_counts_have_one_reward_a_decision(tmp_path: Path, author: Any) -> None:
    """A second attempt repeats the reward, another one comes late: as many as the decision log."""
    path = tmp_path / "twice.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(3))
        parts = {"served": np.array([0]), "delivered": np.array([True])}
        for attempt, number, at in ((1, 0, 1.0), (2, 0, 2.0), (1, 1, DAY)):
            found = author.outcomes(
                1,
                number=np.array([number]),
                attempt=np.array([attempt]),
                reward=np.array([0.5]),
                at=np.array([at]),
                **parts,
            )
            if number == 1:
                store.append(ExpiryBatch(number=np.array([1]), at=np.array([DAY])))
            store.append(found)
    with closing(sqlite3.connect(path)) as database:
        counts = database.execute(
            "SELECT day, outcome_parts, rewards FROM daily_counts WHERE outcome_parts"
        ).fetchall()
        rewards = database.execute(
            "SELECT count(*) FROM decision_log WHERE reward IS NOT NULL"
        ).fetchone()
    assert counts == [("1970-01-01", 2, 1), ("1970-01-02", 1, 0)]
    assert rewards == (1,)


def test_vectors_are_json_for_any_tool(database: sqlite3.Connection) -> None:
    query = "SELECT json_extract(probabilities, '$[2]') AS p FROM decisions ORDER BY seq"
    assert [row["p"] for row in database.execute(query)] == [0.5, 0.25, 0.8, 1.0]


def test_what_came_after_the_expiry_is_counted_and_shown_nowhere_else(
    tmp_path: Path, author: Any
) -> None:
    """The late part carries everything, and would change every figure if it were used."""
    path = tmp_path / "late.db"
    with SqliteStore(path) as store:
        store.put(
            Era(
                era=0,
                opened_at=0.0,
                reason="models",
                models=["a", "b", "c"],
                key_hash="k",
                schema_hash="s",
            )
        )
        model, drawn = np.array([1, 1]), np.array([True, True])
        store.append(author.decisions(2, era=0, model=model, randomized=drawn))
        in_time = {"served": np.array([1]), "attempt": np.array([1]), "delivered": np.array([True])}
        late = {"served": np.array([2]), "attempt": np.array([2]), "delivered": np.array([False])}
        number, none = np.array([0]), np.array([NAN])
        store.append(author.outcomes(1, number=number, reward=none, metrics=None, **in_time))
        store.append(ExpiryBatch(number=number, at=np.array([DAY])))
        gave = {"reward": np.array([0.5]), "metrics": np.array([[1.0, 2.0]])}
        store.append(author.outcomes(1, number=number, **late, **gave))
        store.append(author.outcomes(1, number=number + 1, **in_time, **gave))
    connection = sqlite3.connect(path)
    query = "SELECT served, delivered, reward, metrics, expired, late FROM decision_log"
    rows = connection.execute(query).fetchall()
    summary = connection.execute("SELECT * FROM exp_summary WHERE model = 'b'").fetchall()
    connection.close()
    assert rows == [("b", 1, None, None, 1, 1), ("b", 1, 0.5, '{"0":1.0,"1":2.0}', 0, 0)]
    assert summary == [(0, "b", 2, 1, 0.5)]


def test_metrics_are_shown_by_name_from_all_parts(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "metrics.db"
    with SqliteStore(path) as store:
        store.freeze("config", '{"guardrails":[{"name":"error"},{"name":"slow"}]}')
        store.append(author.decisions(2))
        metrics = np.array([[NAN, 0.5], [1.0, NAN], [NAN, NAN]])
        store.append(author.outcomes(3, number=np.array([0, 0, 1]), metrics=metrics))
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT metrics FROM decision_log").fetchall()
    connection.close()
    assert [json.loads(text) if text else None for (text,) in rows] == [
        {"slow": 0.5, "error": 1.0},
        None,
    ]
