"""A log in memory and the same log in a database answer alike, whichever it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.store.batches import DecisionBatch
from equipoise.store.contract import Store
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import MemoryStore
from equipoise.store.postgres import PostgresStore, schema
from equipoise.store.sql import store as sql_module
from equipoise.store.sqlite import SqliteStore

LOGS: dict[str, Any] = {
    "seed": st.integers(0, 2**32 - 1),
    "sizes": st.lists(st.integers(0, 9), max_size=30),
    "window": st.integers(1, 40),
    "data": st.data(),
}


@pytest.mark.parametrize("kind", [SqliteStore, JournaledStore])
@settings(deadline=None, max_examples=25)
@given(**LOGS)
def test_random_interleaved_logs(
    new_author: Any,
    log_of: Any,
    rows_of: Any,
    kind: type[SqliteStore] | type[JournaledStore],
    **log: Any,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _compare(new_author, log_of, rows_of, lambda: kind(Path(folder) / "log.db"), **log)


@settings(deadline=None, max_examples=8)
@given(**LOGS)
def test_random_interleaved_logs_in_small_partitions(
    new_author: Any, log_of: Any, rows_of: Any, new_postgres_url: Callable[[], str], **log: Any
) -> None:
    with patch.object(schema, "PARTITION_ROWS", 48):
        _compare(new_author, log_of, rows_of, lambda: PostgresStore(new_postgres_url()), **log)


def _compare(
    new_author: Any,
    log_of: Any,
    rows_of: Any,
    opened: Callable[[], AbstractContextManager[Store]],
    seed: int,
    sizes: list[int],
    window: int,
    data: Any,
) -> None:
    """The log is read in windows of a few rows, so that their borders are met often."""
    author = new_author(seed)
    with (
        patch.object(sql_module, "ROWS_AT_ONCE", window),
        opened() as kept,
        MemoryStore() as memory,
    ):
        names = ["", "absent"]
        for size in sizes:
            batch = author.anything(size)
            assert kept.append(batch) == memory.append(batch)
            if isinstance(batch, DecisionBatch):
                names += batch.request_id or ()
        assert (kept.next_seq, kept.decisions) == (memory.next_seq, memory.decisions)
        assert log_of(kept) == log_of(memory)
        since = data.draw(st.integers(0, kept.next_seq))
        until = data.draw(st.integers(since, kept.next_seq))
        assert log_of(kept, since, until) == log_of(memory, since, until)
        assert kept.find_requests(names) == memory.find_requests(names)
        number = data.draw(st.integers(0, kept.decisions))
        ours, theirs = kept.decision(number), memory.decision(number)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert rows_of(0, ours) == rows_of(0, theirs)
        parts = [store.outcome_parts(number) for store in (kept, memory)]
        assert [rows_of(0, part) for part in parts[0]] == [rows_of(0, part) for part in parts[1]]
