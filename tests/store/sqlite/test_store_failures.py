"""A write the medium refuses leaves the log as it was, and the store usable."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.store.errors import StoreError, WriteError
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite import store as sqlite_module


@pytest.fixture
def store(tmp_path: Path, author: Any) -> Iterator[SqliteStore]:
    """A store of 5 rows that waits for no lock."""
    with SqliteStore(tmp_path / "log.db", busy_seconds=0.0) as store:
        store.append(author.decisions(3, request_id=["a", "b", "c"]))
        store.append(author.outcomes(2))
        yield store


def unchanged(store: SqliteStore, before: Any, log_of: Any) -> None:
    """As before, in this connection and on disk."""
    assert (store.next_seq, store.decisions, log_of(store)) == before
    with SqliteStore(store.path, read_only=True) as reader:
        assert (reader.next_seq, reader.decisions, log_of(reader)) == before


def test_a_full_disk(store: SqliteStore, author: Any, log_of: Any) -> None:
    before = store.next_seq, store.decisions, log_of(store)
    pages = store._session.connection.execute("PRAGMA page_count").fetchone()[0]
    store._session.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    large = author.decisions(20_000)
    with pytest.raises(WriteError, match=r"store .*log.db: the disk or the database is full"):
        store.append(large)
    unchanged(store, before, log_of)
    store._session.connection.execute("PRAGMA max_page_count = 1000000")
    assert store.append(large) == 5
    assert store.decisions == 20_003


def test_a_database_locked_by_another_program(store: SqliteStore, author: Any, log_of: Any) -> None:
    before = store.next_seq, store.decisions, log_of(store)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    batch = author.decisions(2)
    for write in (lambda: store.append(batch), lambda: store.freeze("a", "b")):
        with pytest.raises(WriteError, match="another program has locked the database"):
            write()
    unchanged(store, before, log_of)
    other.close()
    assert store.append(batch) == 5


def test_a_refused_row_takes_its_whole_batch_along(
    store: SqliteStore, author: Any, log_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the batch travels in several statements."""
    monkeypatch.setattr(sqlite_module, "ROWS_AT_ONCE", 2)
    before = store.next_seq, store.decisions, log_of(store)
    names = [f"new-{row}" for row in range(6)] + ["b"]
    with pytest.raises(StoreError, match="request_id 'b' already has a decision"):
        store.append(author.decisions(7, request_id=names))
    unchanged(store, before, log_of)


def test_an_unknown_rate_is_refused(store: SqliteStore, author: Any, log_of: Any) -> None:
    before = store.next_seq, store.decisions, log_of(store)
    batch = author.decisions(2)
    with pytest.raises(WriteError, match=r"NOT NULL constraint failed: decisions\.rate"):
        store.append(dataclasses.replace(batch, rate=np.array([0.5, np.nan])))
    unchanged(store, before, log_of)
    assert store.append(batch) == 5


def test_text_that_is_no_text_is_refused(store: SqliteStore, author: Any, log_of: Any) -> None:
    before = store.next_seq, store.decisions, log_of(store)
    batch = author.decisions(2)
    with pytest.raises(ValueError, match="surrogates"):
        store.append(dataclasses.replace(batch, unit_id=["u", "\ud800"]))
    unchanged(store, before, log_of)


def test_an_interrupt_between_commit_and_return_does_not_lose_count(
    store: SqliteStore, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """A connection on which an interrupt arrives right after the commit."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def execute(self, sql: str, *values: Any) -> Any:
            result = self.connection.execute(sql, *values)
            if sql == "COMMIT":
                raise KeyboardInterrupt
            return result

    real = store._session.connection
    monkeypatch.setattr(store._session, "connection", Interrupted(real))
    with pytest.raises(KeyboardInterrupt):
        store.append(author.decisions(2))
    monkeypatch.setattr(store._session, "connection", real)
    assert (store.next_seq, store.decisions) == (7, 5)
    assert store.append(author.decisions(1)) == 7
