"""Old rows leave the store: what goes is written first, what stays is as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from equipoise.store.errors import (
    CorruptStoreError,
    SequenceError,
    StoreError,
    TrimmedError,
)
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.journal import JournaledStore
from equipoise.store.sql import truncation
from equipoise.store.sqlite import SqliteStore

CUT = 29


@pytest.fixture
def path(tmp_path: Path, author: Any) -> Path:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for count in (5, 7, 4):
            store.append(author.decisions(count, mask=True))
            store.append(author.outcomes(3))
            store.append(author.observations(2))
            store.append(author.simulations(2))
            store.append(author.expiries(1))
        assert store.next_seq == 40
        store.keep_base(CUT, b"state of 29 rows", 100.0)
    return path


def test_the_log_goes_on_from_its_root_as_if_nothing_had_happened(
    path: Path, tmp_path: Path, log_of: Any
):
    with SqliteStore(path) as store:
        before = [row for row in log_of(store) if row[0] >= CUT]
        decisions = store.decisions
        done = store.truncation.trim(100.0, 500.0, tmp_path / "old")
        assert (done.seq, done.rows) == (CUT, CUT)
        assert log_of(store) == before
        assert (store.next_seq, store.decisions) == (40, decisions)
        root = store.base_snapshot()
        assert (root.seq, root.state, root.sealed_at) == (CUT, b"state of 29 rows", 500.0)
        assert root.decisions == 13, "the cut goes through a batch"
        restored = store.restore()
        assert (restored.seq, restored.state) == (CUT, b"state of 29 rows")
        assert store.decision(3) is None
        assert store.decision(13) is not None
    with SqliteStore(path, read_only=True) as reader:
        assert log_of(reader) == before
        assert log_of(reader, 35) == [row for row in before if row[0] >= 35]


def test_a_root_is_ripe_only_when_it_is_old_enough(path: Path, tmp_path: Path):
    with SqliteStore(path) as store:
        assert store.truncation.trim(99.9, 500.0, tmp_path / "old") is None
        assert store.base_snapshot() is None
        assert not (tmp_path / "old").exists()
        store.keep_base(34, b"later", 200.0)
        assert store.truncation.last_kept(500.0) == 200.0
        assert store.truncation.last_kept(150.0) == 100.0
        assert store.truncation.trim(150.0, 500.0, None).seq == CUT
        assert store.truncation.trim(150.0, 500.0, None) is None, "each root once"
        assert store.truncation.trim(200.0, 600.0, None).seq == 34
        assert store.base_snapshot().state == b"later"


def test_the_files_hold_every_column_of_every_row(path: Path, tmp_path: Path):
    connection = sqlite3.connect(path)
    expected = {
        table.name: connection.execute(table.select(f"seq < {CUT}")).fetchall()
        for table in LOG_TABLES
    }
    connection.close()
    with SqliteStore(path) as store:
        done = store.truncation.trim(100.0, 500.0, tmp_path / "old")
    found = {}
    for file in done.files:
        table = pq.read_table(file)
        columns = [column.to_pylist() for column in table.columns]
        found[file.name.split(".")[-2]] = list(zip(*columns, strict=True))
        assert table.column_names[0] == "seq"
    assert found == expected
    assert sorted(file.name for file in (tmp_path / "old").iterdir()) == sorted(
        file.name for file in done.files
    )
    # The digest can be computed again from the files alone.
    rows = sorted((row[0], name, row) for name, rows in found.items() for row in rows)
    digest = sha256(b"")
    for _, name, row in rows:
        digest.update(msgspec.msgpack.encode([name, *row]))
    assert digest.hexdigest() == done.digest


def test_digests_form_a_chain(path: Path):
    with SqliteStore(path) as store:
        first = store.truncation.trim(100.0, 500.0, None)
        store.keep_base(35, b"x", 600.0)
        second = store.truncation.trim(600.0, 700.0, None)
        chained = sha256(first.digest.encode())
        assert second.digest != chained.hexdigest()
        assert store.base_snapshot().digest == second.digest


def test_a_log_of_which_nothing_is_left_counts_on(path: Path, author: Any):
    with SqliteStore(path) as store:
        store.keep_base(40, b"all", 150.0)
        assert store.truncation.trim(150.0, 500.0, None).rows == 40
    with SqliteStore(path) as store:
        assert (store.next_seq, store.decisions) == (40, 16)
        assert list(store.read()) == []
        assert store.append(author.outcomes(1)) == 40
        # And again, where no decision is left to count from.
        store.keep_base(41, b"all", 600.0)
        assert store.truncation.trim(600.0, 700.0, None).rows == 1
    with SqliteStore(path) as store:
        assert (store.decisions, store.gaps()) == (16, [])
        assert store.append(author.decisions(2)) == 41
        assert (store.next_seq, store.decisions) == (43, 18)


@pytest.mark.parametrize("when", ["reading", "sealing", "sweeping"])
def test_killed_at_any_point_it_loses_and_doubles_nothing(
    path: Path, tmp_path: Path, log_of: Any, when: str, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with SqliteStore(path) as store:
        whole = log_of(store)
        with monkeypatch.context() as patch:
            if when == "reading":
                patch.setattr(truncation._Archive, "finish", kill)
            elif when == "sealing":
                patch.setattr(store.truncation, "seal", kill)
            else:
                before = iter([0])  # the sweep before the root is sealed finds nothing
                patch.setattr(
                    store.truncation, "delete_some", lambda rows: kill() if next(before, 1) else 0
                )
            with pytest.raises(Killed):
                store.truncation.trim(100.0, 500.0, tmp_path / "old")
    with SqliteStore(path) as store:
        sealed = when == "sweeping"
        assert log_of(store) == [row for row in whole if row[0] >= CUT * sealed]
        # By another root, as after a while: what was written for the first is not read twice.
        if not sealed:
            store.keep_base(CUT + 2, b"state of 31 rows", 110.0)
        done = store.truncation.trim(110.0, 500.0, tmp_path / "old")
        assert (done is None) is sealed
        cut = CUT if sealed else CUT + 2
        assert log_of(store) == [row for row in whole if row[0] >= cut]
        left = store._session.connection.execute("SELECT min(seq) FROM decisions").fetchone()[0]
        assert left >= cut, "rows that nobody reads are gone"
    assert not list((tmp_path / "old").glob(".*"))
    seqs = [n for f in (tmp_path / "old").iterdir() for n in pq.read_table(f)["seq"].to_pylist()]
    assert sorted(seqs) == list(range(cut))


def test_a_trim_that_is_told_to_stop_changes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(truncation, "ROWS_AT_ONCE", 5)
    with SqliteStore(path) as store:
        assert store.truncation.trim(100.0, 500.0, tmp_path / "old", lambda: True) is None
        assert store.base_snapshot() is None
        assert list((tmp_path / "old").iterdir()) == []


def test_an_archive_that_cannot_be_written_leaves_the_log_whole(path: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with SqliteStore(path) as store:
        with pytest.raises(StoreError, match="archive"):
            store.truncation.trim(100.0, 500.0, tmp_path / "file")
        assert store.base_snapshot() is None
        assert len(list(store.read())) > 1


def test_rows_can_be_appended_between_bites(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(truncation, "ROWS_AT_ONCE", 3)
    with JournaledStore(path) as store:
        appended: list[int] = []

        def meanwhile(_: float) -> None:
            appended.append(store.append(author.decisions(1)))

        monkeypatch.setattr(truncation, "time", SimpleNamespace(sleep=meanwhile))
        done = store.trim(100.0, 500.0, None)
        assert done.rows == CUT
        assert appended == list(range(40, 40 + len(appended)))
        assert len(appended) > 5
    with SqliteStore(path) as reopened:
        assert reopened.next_seq == 40 + len(appended)
        assert reopened.truncation.begins == CUT


def test_a_root_beyond_the_log_is_refused(path: Path):
    with SqliteStore(path) as store, pytest.raises(SequenceError):
        store.keep_base(41, b"", 0.0)


@pytest.mark.parametrize("change", ["state = x'00'", "decisions = decisions + 1", "at = at + 1"])
def test_a_damaged_root_is_not_taken_for_the_log_s_beginning(path: Path, change: str):
    with SqliteStore(path) as store:
        store.truncation.trim(100.0, 500.0, None)
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE roots SET {change}")
    connection.commit()
    connection.close()
    with SqliteStore(path) as store, pytest.raises(CorruptStoreError, match="damaged"):
        store.restore()


@pytest.mark.parametrize("swept", [True, False])
def test_an_older_store_begins_where_it_began(
    path: Path, as_version_6: Callable[[Path], None], swept: bool
):
    with SqliteStore(path) as store:
        if swept:
            store.truncation.trim(100.0, 500.0, None)
        else:
            store.truncation.seal(CUT, 500.0, "x")
        store.keep_base(35, b"later", 600.0)
        next_seq, decisions = store.next_seq, store.decisions
    as_version_6(path)
    with SqliteStore(path) as store:
        assert (store.truncation.begins, store.next_seq, store.decisions) == (
            CUT,
            next_seq,
            decisions,
        )
        assert store.truncation.last_kept(1e9) == 600.0
        links, head = store.chain_links()
        assert [(link.kind, link.position) for link in links] == [("begins", next_seq)]
        assert head.position == next_seq
        store.truncation.sweep()


def test_an_older_store_of_removed_rows_alone_goes_on_behind_them(
    path: Path, author: Any, as_version_6: Callable[[Path], None]
):
    with SqliteStore(path) as store:
        store.keep_base(40, b"all", 150.0)
        store.truncation.trim(150.0, 500.0, None)
        decisions = store.decisions
    as_version_6(path)
    with SqliteStore(path) as store:
        assert (store.truncation.begins, store.next_seq, store.decisions) == (40, 40, decisions)
        assert store.chain_links()[0][0].position == 40
        author.written = decisions
        assert store.append(author.decisions(2)) == 40


def test_names_of_rows_that_are_still_to_be_deleted_are_taken(path: Path, author: Any):
    """The writer was stopped between sealing and sweeping: an old request must not come again."""
    with SqliteStore(path) as store:
        names = [name for segment in store.read() for name in _named(segment)]
        store.truncation.seal(CUT, 500.0, "x")
    with JournaledStore(path) as store:
        store._learner.join()
        known = store.find_requests(names)
        assert known.keys() == set(names)
        store.append(author.decisions(2))
        assert store.settle(seconds=10.0)
        assert store.trouble is None
        assert store.trim(0.0, 600.0, None) is None
        assert store.find_requests(names).keys() < set(names), "swept, they are free again"


def _named(segment: Any) -> list[str]:
    ids = getattr(segment.batch, "request_id", None) or []
    return [name for name in ids if name] if hasattr(segment.batch, "uniform") else []


def test_who_reads_while_rows_go_is_told(path: Path):
    with SqliteStore(path) as store, SqliteStore(path, read_only=True) as reader:
        segments = reader.read()
        next(segments)
        store.truncation.trim(100.0, 500.0, None)
        late = reader.read(0)
        assert next(late).seq >= CUT
    with SqliteStore(path) as store, SqliteStore(path, read_only=True) as reader:
        segments = reader.read()
        store.keep_base(38, b"x", 600.0)
        store.truncation.trim(600.0, 700.0, None)
        with pytest.raises(TrimmedError, match="run it again"):
            list(segments)


def test_a_clock_that_jumps_once_removes_nothing(path: Path):
    with SqliteStore(path) as store:
        # A year ahead for one look: the root of then is the only one after the first.
        store.keep_base(33, b"in a year", 3e7)
        assert store.truncation.trim(2e7, 3e7, None, newer=7) is None
        for step in range(7):
            store.keep_base(34 + step, b"later", 200.0 + step)
        assert store.truncation.last_kept(300.0) == 206.0, "the one in the future does not count"
        assert store.truncation.trim(150.0, 300.0, None, newer=7).seq == CUT


def test_roots_of_an_idle_store_do_not_pile_up(path: Path):
    with SqliteStore(path) as store:
        count = "SELECT count(*) FROM roots"
        for at in range(8):
            store.keep_base(40, b"idle", 200.0 + at)
        assert store.truncation.trim(200.0, 500.0, None, newer=7).seq == 40, (
            "an idle store is trimmed too"
        )
        assert store._session.connection.execute(count).fetchone()[0] == 1
        for at in range(8):
            store.keep_base(40, b"idle", 600.0 + at)
        assert store._session.connection.execute(count).fetchone()[0] == 1
        assert store.truncation.trim(700.0, 800.0, None) is None
