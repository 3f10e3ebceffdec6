"""States larger than what is handed over at once: from memory or from a file, the same bytes."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import pytest

from equipoise.store.sqlite import SqliteStore

SIZE = (3 << 20) + 17


@pytest.mark.parametrize("mapped", [False, True])
def test_a_large_state_comes_back_whole(tmp_path: Path, mapped: bool) -> None:
    state = bytes(range(251)) * (SIZE // 251 + 1)
    state = state[:SIZE]
    with tempfile.TemporaryFile() as file, SqliteStore(tmp_path / "log.db") as store:
        file.write(state)
        file.flush()
        given = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ) if mapped else state
        for at in range(5):
            store.checkpoint(0, given, float(at))
        store.keep_base(0, given, 9.0)
        found = store.restore()
        assert found is not None
        assert (found.at, bytes(found.state)) == (4.0, state)
        kept = store._session.connection.execute(
            "SELECT count(*), max(length(state)) FROM checkpoints"
        )
        assert kept.fetchone() == (3, SIZE)
        root = store._session.connection.execute("SELECT state FROM roots").fetchone()
        assert root == (state,)


def test_a_large_checkpoint_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "log.db") as store:
        store.checkpoint(0, b"a" * SIZE, 1.0)
        store.checkpoint(0, b"b" * SIZE, 2.0)
        with store._session.connection.blobopen("checkpoints", "state", 2) as blob:
            blob.seek(SIZE // 2)
            blob.write(b"x")
        found = store.restore()
        assert found is not None
        assert found.at == 1.0
