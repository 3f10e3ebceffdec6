"""Backups of a store that is being written, and what can be put back."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import run_as_users_do, run_command
from running import running, start, until

from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit_chain import MANIFEST
from equipoise.agent.maintenance.backups import back_up, put_back
from equipoise.store.errors import StoreError
from equipoise.store.format.frames import tail_files
from equipoise.store.sqlite import SqliteStore, schema
from equipoise.store.sqlite.connection import inspect_store


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(*arguments, cwd=folder)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_under_load_a_backup_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with running(tmp_path) as daemon:
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                name = f"r{len(acknowledged)}"
                daemon.decide(name)
                acknowledged.append(name)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            until(lambda: len(acknowledged) > 100)
            before = list(acknowledged)
            facts = back_up(daemon.store, tmp_path / "copy")
        finally:
            stop.set()
            thread.join()
    assert modes(tmp_path / "copy") == {
        "store.db": 0o600,
        "store.db.key": 0o600,
        "backup.json": 0o600,
    }
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    assert facts["key"] is True
    put_back(tmp_path / "copy", tmp_path / "again.db")
    assert modes(tmp_path)["again.db"] == modes(tmp_path)["again.db.key"] == 0o600
    with SqliteStore(tmp_path / "again.db", read_only=True) as store:
        assert store.next_seq == facts["log_rows"] >= len(before)
        assert len(store.find_requests(before)) == len(before)
    assert command(tmp_path, "audit", "again.db").returncode == 0
    (tmp_path / "chat.toml").unlink()
    (tmp_path / "log.db").rename(tmp_path / "old.db")
    (tmp_path / "log.db.key").unlink()
    put_back(tmp_path / "copy", tmp_path / "log.db")
    with running(tmp_path) as daemon:
        repeated = daemon.decide("r0")
        assert repeated["decision_id"] == "d0"
        # Requests served after the backup are not in it; their numbers are not given again.
        assert daemon.decide("new")["decision_id"] == f"d{len(acknowledged)}"
        assert (
            f"to d{len(acknowledged) - 1} will be" in daemon.ask("GET", "/readyz").json["losses"][0]
        )


def test_what_a_killed_daemon_left_in_its_tail_is_in_the_backup(tmp_path: Path) -> None:
    daemon = start(tmp_path)
    names = [f"r{i}" for i in range(50)]
    for name in names:
        daemon.decide(name)
    daemon.kill()
    assert tail_files(daemon.store)
    back_up(daemon.store, tmp_path / "copy")
    assert tail_files(daemon.store), "the store itself is left as it was"
    assert not tail_files(tmp_path / "copy" / "store.db")
    with SqliteStore(tmp_path / "copy" / "store.db", read_only=True) as store:
        assert len(store.find_requests(names)) == 50


def test_the_commands(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.decide("one")
    made = run_as_users_do("backup", "log.db", "--out", "copy", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["key"] is True
    again = command(tmp_path, "backup", "log.db", "--out", "copy")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "--force" in again.stderr
    (tmp_path / "copy" / MANIFEST).replace(tmp_path / "kept")
    foreign = command(tmp_path, "backup", "log.db", "--out", "copy", "--force")
    assert "not replacing what is not ours" in foreign.stderr
    (tmp_path / "kept").replace(tmp_path / "copy" / MANIFEST)
    forced = command(tmp_path, "backup", "log.db", "--out", "copy", "--force")
    assert forced.returncode == 0, forced.stderr
    assert modes(tmp_path / "copy")["store.db"] == 0o600
    taken = command(tmp_path, "restore", "copy", "--store", "log.db")
    assert taken.returncode == 2
    assert "nothing is replaced" in taken.stderr
    put = run_as_users_do("restore", "copy", "--store", "new.db", cwd=tmp_path)
    assert put.returncode == 0, put.stderr
    assert "with its key" in put.stdout
    missing = command(tmp_path, "backup", "nowhere.db", "--out", "other")
    assert missing.returncode == 2
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that is as it should be."""
    folder = tmp_path_factory.mktemp("whole")
    with running(folder) as daemon:
        daemon.decide("one")
    back_up(folder / "log.db", folder / "copy")
    return folder / "copy"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """One to damage, alone in its folder."""
    return shutil.copytree(whole, tmp_path / "copy")


def _cut(copy: Path) -> None:
    store = copy / "store.db"
    store.write_bytes(store.read_bytes()[:-100])


def _change(copy: Path) -> None:
    store = copy / "store.db"
    content = bytearray(store.read_bytes())
    content[5000] ^= 1
    store.write_bytes(content)


DAMAGES = {
    "cut": _cut,
    "changed": _change,
    "no key": lambda copy: (copy / "store.db.key").unlink(),
    "half a key": lambda copy: (copy / "store.db.key").write_bytes(b"x"),
    "no manifest": lambda copy: (copy / "backup.json").unlink(),
    "another manifest": lambda copy: (copy / "backup.json").write_text("{}"),
    "no store": lambda copy: (copy / "store.db").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_puts_nothing_back(copy: Path, damage: str) -> None:
    DAMAGES[damage](copy)
    before = sorted(copy.parent.iterdir())
    with pytest.raises(AgentError):
        put_back(copy, copy.parent / "new.db")
    assert sorted(copy.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["new.db", "new.db.key", "new.db-wal", "new.db.tail.3"])
def test_nothing_of_another_store_may_be_in_the_way(copy: Path, name: str) -> None:
    (copy.parent / name).write_text("mine")
    with pytest.raises(AgentError, match=name):
        put_back(copy, copy.parent / "new.db")
    assert (copy.parent / name).read_text() == "mine"
    assert len(list(copy.parent.glob("new.db*"))) == 1


def test_an_older_schema_is_copied_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a backup can be made with the new program before the first start upgrades it."""
    path = tmp_path / "old.db"
    SqliteStore(path).close()
    version = schema.newest()
    longer = (*schema.MIGRATIONS, (version + 1, lambda database: None))
    monkeypatch.setattr(schema, "MIGRATIONS", longer)
    facts: dict[str, Any] = back_up(path, tmp_path / "copy")
    assert (facts["schema_version"], facts["log_rows"], facts["key"]) == (version, 0, False)
    SqliteStore(path).close()
    assert inspect_store(path).schema_version == version + 1
    put_back(tmp_path / "copy", tmp_path / "back.db")
    monkeypatch.undo()
    assert inspect_store(tmp_path / "back.db").schema_version == version


def test_what_is_no_store_is_no_backup(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database")
    with pytest.raises(StoreError):
        back_up(tmp_path / "text.db", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
