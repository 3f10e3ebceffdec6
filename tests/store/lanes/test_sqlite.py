from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from equipoise.store.lanes.contract import HubError, Parcel, Publication, Spent
from equipoise.store.lanes.sqlite import SqliteHub
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite import connection as sqlite

LONG = 1e6


class Machine:
    """A clock that a test sets."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_the_clock_never_goes_back(tmp_path: Path) -> None:
    path, machine = tmp_path / "s.db.lanes", Machine()
    with SqliteHub(path, clock=machine) as hub:
        assert hub.now() == 1000.0
        machine.time = 1010.0
        assert hub.now() == 1010.0
        machine.time = 900.0
        assert hub.now() == 1010.0
    # Nor for another process, which reads its own clock for the first time.
    with SqliteHub(path, clock=machine) as hub:
        assert hub.now() == 1010.0
        machine.time = 902.0
        assert hub.now() == 1011.0  # at half speed
        machine.time = 901.0
        assert hub.now() == 1011.0
        machine.time = 1021.0
        assert hub.now() == 1071.0
        machine.time = 1072.0
        assert hub.now() == 1096.5
        machine.time = 1300.0
        assert hub.now() == 1300.0
        machine.time = 1301.0
        assert hub.now() == 1301.0


def test_leases_lapse_though_the_clock_was_set_back(tmp_path: Path) -> None:
    machine = Machine()
    with SqliteHub(tmp_path / "s.db.lanes", clock=machine) as hub:
        term = hub.elect("a", LONG)
        assert term is not None
        hub.publish(term, Publication(version=1, rule_id="r", era=0), {})
        lease = hub.join("d", 10.0)
        machine.time = 400.0
        hub.ship(lease, [], adopted=1, spent=Spent())
        machine.time = 419.0
        assert hub.end_lapsed(term, 0.0) == []
        machine.time = 420.0
        assert hub.end_lapsed(term, 0.0) == [1]


def test_only_what_is_done_moves_the_clock(tmp_path: Path) -> None:
    machine = Machine()
    with SqliteHub(tmp_path / "s.db.lanes", clock=machine) as hub:
        machine.time = 5000.0
        with pytest.raises(HubError):
            hub.join("nobody published", 1.0)
        machine.time = 1001.0
        assert hub.now() == 1001.0


def test_patience_with_another_writer_ends(tmp_path: Path) -> None:
    path = tmp_path / "s.db.lanes"
    with SqliteHub(path) as other, SqliteHub(path, seconds=0.05) as hub:
        term = hub.elect("a", LONG)
        assert term is not None
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(HubError, match=r"s\.db\.lanes: .*locked"):
            hub.keep(term)
        assert hub.newest() is None  # readers do not wait
        blocker.execute("ROLLBACK")
        blocker.close()
        assert hub.keep(term) == other.keep(term)


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    store, others, text = tmp_path / "s.db", tmp_path / "others.db", tmp_path / "text"
    SqliteStore(store).close()
    with sqlite3.connect(others) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    text.write_text("not a database, " * 100)
    for path in (store, others, text):
        before = path.read_bytes()
        with pytest.raises(HubError, match=f"hub {path}: .*(another|not a) database"):
            SqliteHub(path)
        assert path.read_bytes() == before
    with pytest.raises(HubError, match=r"folder .*nowhere does not exist"):
        SqliteHub(tmp_path / "nowhere" / "s.db.lanes")
    with pytest.raises(HubError, match="the database refused"):
        SqliteHub(tmp_path)


class Interrupted:
    """A connection, before whose n-th statement another process opens the hub, and stays."""

    def __init__(self, connection: sqlite3.Connection, path: Path, before: int) -> None:
        self._connection, self._path, self._before = connection, path, before
        self.others: list[SqliteHub] = []

    def execute(self, *statement: Any) -> Any:
        if self._before == 0:
            self.others.append(SqliteHub(self._path))
        self._before -= 1
        return self._connection.execute(*statement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("before", range(5))
def test_another_process_makes_the_tables_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    path, made = tmp_path / "s.db.lanes", list[Interrupted]()

    def connect(*args: Any) -> Any:
        connection = sqlite.connect(*args)
        if made:
            return connection
        made.append(Interrupted(connection, path, before))
        return made[0]

    monkeypatch.setattr("equipoise.store.lanes.sqlite.connect", connect)
    with SqliteHub(path) as hub:
        [other] = made[0].others
        with other:
            term = other.elect("a", LONG)
            assert term is not None
            assert hub.keep(term) == term


def test_a_new_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself would not wait here: the change to a write-ahead log is refused at once."""
    path = tmp_path / "s.db.lanes"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HubError, match="locked"):
        SqliteHub(path, seconds=0.05)
    release = threading.Timer(0.1, other.execute, ["ROLLBACK"])
    release.start()
    with SqliteHub(path, seconds=60.0) as hub:
        assert hub.newest() is None
    release.join()
    other.close()


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db.lanes"
    SqliteHub(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE lane_state SET format = 2")
    connection.close()
    with pytest.raises(HubError, match="format 2, this equipoise knows 1"):
        SqliteHub(path)


def test_a_decision_in_two_parcels_is_refused(tmp_path: Path) -> None:
    with SqliteHub(tmp_path / "s.db.lanes") as hub:
        term = hub.elect("a", LONG)
        assert term is not None
        hub.publish(term, Publication(version=1, rule_id="r", era=0), {})
        lease = hub.join("d", LONG)
        sent = [
            Parcel(1, place, "decisions", 1, 1, b"", first=5, request_ids=(f"r{place}",))
            for place in range(2)
        ]
        with pytest.raises(HubError, match=r"UNIQUE constraint failed: lane_requests\.position"):
            hub.ship(lease, sent, adopted=1, spent=Spent())
        assert list(hub.decisions(1)) == []


def test_its_file_is_private_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.db.lanes"
    with SqliteHub(path, durability="power") as hub:
        assert path.stat().st_mode & 0o777 == 0o600
        hub.now()
        assert hub._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert path.with_name("s.db.lanes-wal").stat().st_mode & 0o777 == 0o600
    with SqliteHub(path) as hub:
        assert hub.elect("a", LONG) is not None  # must not be given twice
        assert hub._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        hub.now()
        assert hub._connection.execute("PRAGMA synchronous").fetchone() == (1,)
