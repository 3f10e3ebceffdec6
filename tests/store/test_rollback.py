"""Back to an older schema: no row lost, all steps or none."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from equipoise.store.errors import NotAStoreError, SchemaVersionError, StoreInUseError
from equipoise.store.journal.store import JournaledStore
from equipoise.store.sqlite import SqliteStore, migrations, rollback
from equipoise.store.sqlite.connection import inspect_store
from equipoise.store.sqlite.rollback import Reversal, roll_back

LOWEST = max(n for n, migration in migrations.MIGRATIONS if migration not in rollback.REVERSALS)
"""The oldest version that everything above can be undone to."""


@pytest.fixture
def path(tmp_path: Path, author: Any) -> Path:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(3))
        store.append(author.observations(4))
    return path


def schema(path: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    connection.close()
    return found


def test_an_older_program_finds_the_schema_it_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = [each for each in migrations.MIGRATIONS if each[0] <= LOWEST]
    assert roll_back(path, LOWEST) == [
        "budgets and pauses that operators set",
        "what closed requests to randomizing",
        "the hash chain over what is there so far",
    ]
    with monkeypatch.context() as past:
        past.setattr(migrations, "MIGRATIONS", tuple(older))
        made = sqlite3.connect(tmp_path / "made.db", isolation_level=None)
        migrations.upgrade(made, tmp_path / "made.db")
        made.close()
        assert schema(path) == schema(tmp_path / "made.db")
    with SqliteStore(path) as store:
        assert (store.decisions, store.next_seq) == (3, 7)
    assert inspect_store(path).schema_version == migrations.newest()


def test_rows_in_a_tail_are_taken_in_first(path: Path, author: Any, tmp_path: Path) -> None:
    with JournaledStore(path) as store:
        author.written = 3
        store.append(author.decisions(5))
        tail = next(tmp_path.glob("log.db.tail.*"))
        shutil.copy(tail, tmp_path / "kept")
        # As if it had been killed before SQLite had them.
        connection = sqlite3.connect(path)
        store.settle()
        connection.execute("DELETE FROM decisions WHERE number >= 3")
        connection.commit()
        connection.close()
    shutil.copy(tmp_path / "kept", tail)
    roll_back(path, migrations.newest() - 1)
    assert not list(tmp_path.glob("log.db.tail.*"))
    with SqliteStore(path) as store:
        assert store.decisions == 8


def test_what_cannot_be_undone_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = migrations.newest()
    before = schema(path)
    for version in (newest, newest + 1, 0):
        with pytest.raises(SchemaVersionError):
            roll_back(path, version)
    last = migrations.MIGRATIONS[-1][1]
    monkeypatch.setattr(rollback, "REVERSALS", {last: Reversal(("DROP TABLE nowhere",))})
    with pytest.raises(ValueError, match="nowhere"):
        roll_back(path, newest - 1)
    monkeypatch.setattr(rollback, "REVERSALS", {})
    with pytest.raises(SchemaVersionError, match="restore a backup"):
        roll_back(path, newest - 1)
    assert schema(path) == before
    assert inspect_store(path).schema_version == newest


def test_never_beside_a_writer_nor_on_somebody_elses_file(path: Path, tmp_path: Path) -> None:
    with SqliteStore(path), pytest.raises(StoreInUseError):
        roll_back(path, LOWEST)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (a)").connection.close()
    with pytest.raises(NotAStoreError):
        roll_back(tmp_path / "other.db", LOWEST)
