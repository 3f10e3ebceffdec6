"""Checkpoints in SQLite: three are kept, and a damaged one is passed over."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from equipoise.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path, author: Any) -> Path:
    """A store of 10 rows with checkpoints at 2, 4, 6 and 8."""
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.observations(10))
        for seq in (2, 4, 6, 8):
            store.checkpoint(seq, b"state %d" % seq, at=float(seq))
    return path


def spoil(path: Path, change: str, seq: int) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(f"UPDATE checkpoints SET {change} WHERE seq = ?", (seq,)).rowcount
    connection.commit()
    connection.close()


def restored(path: Path) -> tuple[int, bytes, float] | None:
    with SqliteStore(path) as store:
        found = store.restore()
        return None if found is None else (found.seq, found.state, found.at)


def test_the_newest_three_are_kept(path: Path) -> None:
    connection = sqlite3.connect(path)
    kept = connection.execute("SELECT seq FROM checkpoints ORDER BY id").fetchall()
    connection.close()
    assert kept == [(4,), (6,), (8,)]
    assert restored(path) == (8, b"state 8", 8.0)


@pytest.mark.parametrize(
    "change", ["state = x'00'", "state = x''", "at = 1.0", "seq = 9", "checksum = ''"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(path: Path, change: str) -> None:
    spoil(path, change, 8)
    assert restored(path) == (6, b"state 6", 6.0)
    spoil(path, "state = x'01'", 6)
    assert restored(path) == (4, b"state 4", 4.0)
    spoil(path, "state = x'02'", 4)
    assert restored(path) is None


def test_a_checkpoint_ahead_of_its_log_is_passed_over(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM observations WHERE seq >= 7")
    connection.commit()
    connection.close()
    # With its mark the store would say that rows are missing.
    path.with_name("log.db.mark").unlink()
    assert restored(path) == (6, b"state 6", 6.0)
