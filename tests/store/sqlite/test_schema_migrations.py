"""Upgrading older stores: every missing step in order, all or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.store.errors import SchemaVersionError, StoreError
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.records import Alert
from equipoise.store.sqlite import SqliteStore, schema
from equipoise.store.sqlite.connection import inspect_store

TODAY = tuple(schema.MIGRATIONS)
NEXT = TODAY[-1][0] + 1


def add_note(database: Any) -> None:
    database.table("alerts").add_column("note", str)


def copy_sentences(database: Any) -> None:
    database.execute("UPDATE alerts SET note = sentence")


def break_down(database: Any) -> None:
    database.execute("DELETE FROM decisions")
    database.execute("SELECT * FROM nowhere")


@pytest.fixture
def path(tmp_path: Path, author: Any, as_version_6: Callable[[Path], None]) -> Path:
    """A store of schema version 6 with 3 decisions and an alert."""
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(3, leader=None))
        store.put(Alert(at=0.0, check="c", status="s", sentence="Hello."))
    as_version_6(path)
    return path


def objects(path: Path) -> list[tuple[str, str, str]]:
    """(type, name, SQL) of everything that a database defines."""
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master"))


def test_numbers_count_up_from_the_oldest_version() -> None:
    numbers = [number for number, _ in schema.MIGRATIONS]
    assert numbers == list(range(schema.OLDEST + 1, schema.newest() + 1))


def test_an_older_store_is_upgraded_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = (*TODAY, (NEXT, add_note), (NEXT + 1, copy_sentences))
    monkeypatch.setattr(schema, "MIGRATIONS", longer)
    for _ in range(2):
        with SqliteStore(path) as store:
            assert store.decisions == 3
    found = inspect_store(path)
    assert (found.schema_version, found.rows["alerts"]) == (NEXT + 1, 1)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT note FROM alerts").fetchall() == [("Hello.",)]
    connection.close()


def test_a_store_of_the_oldest_version_gets_the_schema_of_a_new_one(
    path: Path, tmp_path: Path
) -> None:
    with SqliteStore(path) as store:
        assert store.decisions == 3
        assert store.find_observations(["a"]) == set()
        assert [alert.sentence for alert in store.alerts()] == ["Hello."]
    assert inspect_store(path).schema_version == schema.newest()
    SqliteStore(tmp_path / "new.db").close()
    assert objects(path) == objects(tmp_path / "new.db")


def test_a_new_store_runs_no_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteStore(tmp_path / "today.db").close()
    monkeypatch.setattr(schema, "MIGRATIONS", [(number, break_down) for number, _ in TODAY])
    SqliteStore(tmp_path / "new.db").close()
    assert inspect_store(tmp_path / "new.db").schema_version == TODAY[-1][0]
    assert objects(tmp_path / "new.db") == objects(tmp_path / "today.db")


@pytest.mark.parametrize("version", [1, 5])
def test_an_older_version_than_any_release_is_refused(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    words = f"has schema version {version}, this equipoise upgrades from 6 on: older ones"
    for read_only in (True, False):
        with pytest.raises(SchemaVersionError, match=words):
            SqliteStore(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_failing_step_undoes_them_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*TODAY, (NEXT, add_note), (NEXT + 1, break_down)))
    with pytest.raises(StoreError, match="no such table: nowhere"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (6,)
    monkeypatch.setattr(schema, "MIGRATIONS", TODAY)
    with SqliteStore(path) as store:
        assert store.decisions == 3
        columns = [row[1] for row in store._session.connection.execute("PRAGMA table_info(alerts)")]
        assert "note" not in columns


def test_a_reader_does_not_upgrade(path: Path) -> None:
    with pytest.raises(SchemaVersionError, match="open it once for writing to upgrade it"):
        SqliteStore(path, read_only=True)


def test_the_schema_holds_what_the_code_writes(path: Path) -> None:
    with SqliteStore(path) as store:
        for table in LOG_TABLES:
            found = store._session.connection.execute(f"PRAGMA table_info({table.name})").fetchall()
            # Statements name their columns; migrations append theirs at the end.
            assert sorted(column[1] for column in found) == sorted(table.names)
            assert [column[1] for column in found if column[5]] == ["seq"]
        strict = store._session.connection.execute(
            "SELECT name, strict FROM pragma_table_list"
        ).fetchall()
        ours = {name: flag for name, flag in strict if not name.startswith("sqlite_")}
        views = {"outcomes_in_time", "attempts", "decision_log", "exp_summary", "daily_counts"}
        assert all(flag == 1 for name, flag in ours.items() if name not in views)
        assert len(ours) == 20
        application = store._session.connection.execute("PRAGMA application_id").fetchone()
        assert application == (schema.APPLICATION_ID,)


def test_an_older_store_takes_what_it_did_not_know_after_its_upgrade(
    path: Path, author: Any, log_of: Any
) -> None:
    """Rows from before come back without it, in the bits they had."""
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO outcomes (seq, number, served, attempt, delivered, outputs, reward, at,"
        " negative_zeros) VALUES (3, 1, 0, 1, 1, '[0.5,null]', 0.0, 1.0, '[\"reward\"]')"
    )
    connection.commit()
    connection.close()
    with SqliteStore(path) as store:
        assert inspect_store(path).schema_version == schema.newest()
        (older,) = store.outcome_parts(1)
        assert older.metrics is None
        assert (older.outputs[0, 0], np.signbit(older.reward[0])) == (0.5, True)
        assert [store.decision(number).closed_by for number in range(3)] == [None] * 3
        store.append(author.decisions(2, closed_by=np.array([0, 3])))
        store.append(author.outcomes(2, number=np.array([0, 2]), metrics=np.array([[0.25], [1.0]])))
        kept = log_of(store)
    with SqliteStore(path) as store:
        assert log_of(store) == kept
        assert store.decision(4).closed_by.tolist() == [3]
        assert store.outcome_parts(2)[0].metrics.tolist() == [[1.0]]


def test_look_ups_use_an_index(path: Path) -> None:
    with SqliteStore(path) as store:
        for query, index in (
            ("decisions WHERE request_id IN ('a', 'b')", "idx_decisions_request_id"),
            ("observations WHERE request_id IN ('a', 'b')", "idx_observations_request_id"),
            ("decisions WHERE number = 1", "idx_decisions_number"),
            ("outcomes WHERE number = 1", "idx_outcomes_number"),
            ("outcomes WHERE seq >= 1 AND seq < 2", "INTEGER PRIMARY KEY"),
        ):
            plan = store._session.connection.execute(
                f"EXPLAIN QUERY PLAN SELECT * FROM {query}"
            ).fetchall()
            assert index in plan[0][3]
