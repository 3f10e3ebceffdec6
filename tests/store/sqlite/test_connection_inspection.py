"""Inspection: what is in the file, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from equipoise.store.errors import MissingStoreError
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite.connection import inspect_store
from equipoise.store.sqlite.schema import newest


def test_a_whole_store_beside_its_writer(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(4))
        store.append(author.expiries(2))
        found = inspect_store(path)
    assert (found.schema_version, found.damage) == (newest(), ())
    assert {name: count for name, count in found.rows.items() if count} == {
        "decisions": 4,
        "expiries": 2,
        "chain": 2,
        "facts": 1,
    }
    assert len(found.rows) == 15
    assert found.size > 4096


def test_damage_is_listed_and_the_rest_is_counted(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(30))
        store.append(author.expiries(2))
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'expiries'"
        page = store._session.connection.execute(query).fetchone()[0] - 1
    content = bytearray(path.read_bytes())
    content[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(bytes(content))
    found = inspect_store(path)
    assert found.damage
    assert found.rows["decisions"] == 30
    assert found.rows["alerts"] == 0


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="does not exist"):
        inspect_store(tmp_path / "no.db")
