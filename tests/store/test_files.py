"""The writer's lock, where processes come and go at the same moment."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from equipoise.store import files as lock_module
from equipoise.store.errors import StoreInUseError
from equipoise.store.files import WriterLock


def test_a_released_lock_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        lock = WriterLock(tmp_path / "log.db")
        assert os.listdir(tmp_path) == ["log.db.lock"]
        lock.release()
        lock.release()
        assert os.listdir(tmp_path) == []


def test_a_lock_file_replaced_before_it_was_locked_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before us may remove its file just after we have opened it."""
    real, path = fcntl.flock, tmp_path / "log.db.lock"
    replaced = []

    def flock(file: int, operation: int) -> None:
        if not replaced:
            path.unlink()
            path.touch()
            replaced.append(file)
        real(file, operation)

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    lock = WriterLock(tmp_path / "log.db")
    assert replaced
    with pytest.raises(StoreInUseError):
        WriterLock(tmp_path / "log.db")
    lock.release()
