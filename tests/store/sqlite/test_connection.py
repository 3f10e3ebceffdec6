"""Files that are no store of ours: one clear line each, and nothing is touched."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from equipoise.store.errors import (
    CorruptStoreError,
    MissingStoreError,
    NotAStoreError,
    SchemaVersionError,
    StoreError,
)
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite.schema import newest

BOTH_WAYS = pytest.mark.parametrize("read_only", [False, True], ids=["write", "read"])


@pytest.fixture
def path(tmp_path: Path, author: Any) -> Path:
    """A closed store with a few hundred rows."""
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for _ in range(10):
            store.append(author.decisions(50))
            store.append(author.outcomes(20))
        store.checkpoint(100, b"s" * 5000, at=0.0)
    return path


def refused(path: Path, read_only: bool, kind: type[StoreError], words: str) -> None:
    """Opening fails in one line that names the file, and leaves the folder as it was."""
    before = sorted(os.listdir(path.parent)) if path.parent.exists() else []
    content = path.read_bytes() if path.is_file() else b""
    with pytest.raises(kind, match=words) as caught:
        SqliteStore(path, read_only=read_only)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert (sorted(os.listdir(path.parent)) if path.parent.exists() else []) == before
    assert (path.read_bytes() if path.is_file() else b"") == content


@BOTH_WAYS
def test_a_folder(tmp_path: Path, read_only: bool) -> None:
    refused(tmp_path, read_only, NotAStoreError, "is a directory, expected a file")


@BOTH_WAYS
def test_a_missing_folder(tmp_path: Path, read_only: bool) -> None:
    refused(tmp_path / "no" / "log.db", read_only, MissingStoreError, "does not exist")


def test_a_missing_file_to_read(tmp_path: Path) -> None:
    refused(tmp_path / "log.db", True, MissingStoreError, "does not exist")


@BOTH_WAYS
@pytest.mark.parametrize("content", [b"hello", b"x,y\n1,2\n" * 100], ids=["short", "long"])
def test_another_kind_of_file(tmp_path: Path, read_only: bool, content: bytes) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    refused(path, read_only, NotAStoreError, "is not a SQLite database")


@BOTH_WAYS
def test_a_header_and_then_noise(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(7, 207)) * 50)
    with pytest.raises(StoreError):
        SqliteStore(path, read_only=read_only)


@BOTH_WAYS
def test_somebody_elses_database(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    refused(path, read_only, NotAStoreError, "no equipoise store: application_id is 0x0, expected")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.execute("PRAGMA application_id = 7")
    connection.close()
    refused(path, read_only, NotAStoreError, "application_id is 0x7, expected")


@BOTH_WAYS
def test_a_newer_schema(path: Path, read_only: bool) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    words = f"has schema version 99, this equipoise reads up to {newest()}: upgrade equipoise"
    if read_only:  # reading beside a journal leaves SQLite's shared memory behind
        with pytest.raises(SchemaVersionError, match=words):
            SqliteStore(path, read_only=True)
    else:
        refused(path, read_only, SchemaVersionError, words)


@BOTH_WAYS
@pytest.mark.parametrize("left", [10, 50, 99, 100, 4000, 4096, 20000, -4096, -1])
def test_a_truncated_store(path: Path, read_only: bool, left: int) -> None:
    os.truncate(path, left if left > 0 else path.stat().st_size + left)
    refused(path, read_only, CorruptStoreError, "is truncated: |cut short or damaged")


@BOTH_WAYS
def test_an_empty_file(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "log.db"
    path.touch()
    if read_only:
        refused(path, read_only, NotAStoreError, "is empty, expected an equipoise store")
    else:  # a new store, as with a name from a temporary-file maker
        SqliteStore(path).close()
        SqliteStore(path, read_only=True).close()


@BOTH_WAYS
def test_truncated_beside_its_journal(path: Path, read_only: bool, author: Any) -> None:
    crashed = path.with_name("crashed.db")
    with SqliteStore(path) as store:
        store._session.connection.execute("PRAGMA wal_autocheckpoint = 0")
        author.written = store.decisions
        store.append(author.decisions(5))
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", f"{crashed}{end}")
    with SqliteStore(crashed, read_only=True) as store:
        assert store.decisions == 505
    shutil.copy(path, crashed)
    os.truncate(crashed, 0)
    with pytest.raises(CorruptStoreError, match="is truncated: empty beside its journal"):
        SqliteStore(crashed, read_only=read_only)


def test_a_store_half_made_by_a_killed_process_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.stat().st_size > 0
    with pytest.raises(NotAStoreError, match="is empty"):
        SqliteStore(path, read_only=True)
    with SqliteStore(path) as store:
        assert store.next_seq == 0


ANOTHER_USER = """
import os, sys
from equipoise.store.sqlite.schema import newest
from equipoise.store.sqlite import SqliteStore

path = sys.argv[1]
if os.geteuid() == 0:
    os.setuid(65534)
try:
    SqliteStore(path)
except ValueError as error:
    print(type(error).__name__, error)
with SqliteStore(path, read_only=True) as store:
    print(store.decisions)
"""


def test_a_file_and_a_folder_one_may_only_read(path: Path) -> None:
    """As another user where we are root, for whom nothing is read-only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not all(parent.stat().st_mode & 0o001 for parent in folder.parents):
            pytest.skip("another user cannot reach the folder of temporary files")
        copied = folder / "log.db"
        shutil.copy(path, copied)
        copied.chmod(0o444)
        folder.chmod(0o555)
        ran = subprocess.run(
            [sys.executable, "-c", ANOTHER_USER, str(copied)], capture_output=True, text=True
        )
        assert os.listdir(folder) == ["log.db"]
        folder.chmod(0o755)
    assert ran.stderr == ""
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"ReadOnlyStoreError store {copied} is a read-only file")
    assert second == "500"


def test_damaged_pages_are_reported_when_they_are_read(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):  # the schema on the first page stays
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptStoreError), SqliteStore(path, read_only=True) as store:
        list(store.read())


def test_a_damaged_vector_is_reported_with_its_place(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE decisions SET x = '[1.0,' WHERE number = 3")
    connection.commit()
    connection.close()
    with (
        SqliteStore(path, read_only=True) as store,
        pytest.raises(CorruptStoreError, match="table decisions, seq 3 to 3, cannot be read"),
    ):
        store.decision(3)


def test_a_new_store_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: Any) -> None:
        database.execute("CREATE TABLE half (a)")
        database.execute("SELECT * FROM nowhere")

    monkeypatch.setattr("equipoise.store.sqlite.schema.create_schema", fail)
    with pytest.raises(StoreError, match="no such table: nowhere"):
        SqliteStore(tmp_path / "log.db")
    assert os.listdir(tmp_path) == []
