"""What is logged of a decision, read by another thread than the one that appends."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.store import journal
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import RecentOutcomes


@pytest.mark.parametrize("settled", [False, True])
def test_readers_look_at_memory_at_once_and_at_sqlite_when_they_are_called(
    tmp_path: Path, author: Any, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b", "c"]
    with JournaledStore(tmp_path / "log.db") as store, ThreadPoolExecutor(1) as pool:
        store.append(author.decisions(3, request_id=names))
        store.append(author.outcomes(2, number=np.array([1, 1]), reward=np.array([np.nan, 0.5])))
        if settled:
            store.settle(store.next_seq, 10.0)
            monkeypatch.setattr(store, "_recent", RecentOutcomes(3))
        with monkeypatch.context() as nobody:
            # Whoever makes the readers is the event loop, which waits for no database.
            nobody.setattr(store, "_reader", None)
            readers = store.number_reader("b"), store.decision_reader(1), store.parts_reader(1)
            nothing = store.number_reader("d"), store.decision_reader(3), store.parts_reader(2)
        number, decision, parts = (pool.submit(reader).result() for reader in readers)
        assert number == 1
        assert decision.request_id == ["b"]
        assert [float(part.reward[0]) for part in parts] == pytest.approx(
            [np.nan, 0.5], nan_ok=True
        )
        assert [pool.submit(reader).result() for reader in nothing] == [None, None, []]


def test_what_leaves_memory_before_a_reader_is_called_is_found_all_the_same(
    tmp_path: Path, author: Any
) -> None:
    with JournaledStore(tmp_path / "log.db") as store:
        store.append(author.decisions(3, request_id=["a", "b", "c"]))
        number, decision = store.number_reader("b"), store.decision_reader(1)
        store.settle(store.next_seq, 10.0)
        store.append(author.decisions(1, request_id=["d"]))  # memory lets go of what is in SQLite
        assert number() == 1
        assert decision().request_id == ["b"]


def test_rows_are_gathered_unless_somebody_waits_for_them(
    tmp_path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads, closes, or comes near the bound of what may wait, does not wait for a gathering
    that takes for ever here."""
    for name in ("_GATHER_SECONDS", "_BETWEEN_SECONDS"):
        monkeypatch.setattr(journal, name, 1e6)
    with JournaledStore(tmp_path / "log.db", waiting_rows=8) as store:
        store.append(author.outcomes(3))
        assert sum(len(segment.batch) for segment in store.read()) == 3
        store.append(author.outcomes(4))
        assert not store._hurry.is_set()
        assert store.waiting == 4
        store.append(author.outcomes(1))
        deadline = time.monotonic() + 20.0
        while store.waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        assert store.waiting == 0
        store.append(author.outcomes(2))
        assert store.settle(store.next_seq, 20.0)
        store.append(author.outcomes(2))
    with JournaledStore(tmp_path / "log.db") as store:
        assert store.next_seq == 12
