"""What stands beside a database when it is opened: recovered, refused in one line, or noted."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.agent.maintenance.audit_chain import check_chain
from equipoise.store.errors import DisplacedStoreError, LostRowsError, StoreError, StoreInUseError
from equipoise.store.format import frames as tail_module
from equipoise.store.format import mark as mark_module
from equipoise.store.format.frames import scan, tail_files
from equipoise.store.format.mark import BLOCK, Mark, mark_path, read_mark, wal_salts
from equipoise.store.journal import JournaledStore
from equipoise.store.records import Gap
from equipoise.store.sqlite import SqliteStore

DECISIONS, IN_SQLITE = 12, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def left(
    path: Path,
    author: Any,
    before: int = IN_SQLITE,
    after: int = DECISIONS,
    late: tuple[int, ...] = (),
) -> None:
    """Leave a store as a killed writer does: an outcome behind each decision, the last in the tail.
    late: decisions that get a second outcome behind them all.

    The writer is a process that ends without a word, for only so does it let go as a killed one."""
    child = os.fork()
    if child == 0:
        store = JournaledStore(path)
        for number in range(after):
            if number == before:
                store.settle()
                store._log.append_together = _never  # type: ignore[method-assign]
            store.append(author.decisions(1, request_id=[f"r{number}"]))
            store.append(author.outcomes(1, number=author.rng.integers(number, number + 1, 1)))
        for number in late:
            store.append(author.outcomes(1, number=np.array([number])))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def _never(segments: Any) -> None:
    raise OSError("killed before")


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in path.parent.iterdir()
        if file.is_file() and not file.name.endswith(("-shm", ".lock"))
    }


def damaged(path: Path, frame: int, bit: int = 1) -> Path:
    """Flip a bit in a frame of the only tail file."""
    (file,) = tail_files(path)
    data = bytearray(file.read_bytes())
    standing = read_mark(path)
    assert standing is not None
    start, _, _ = scan(bytes(data), standing.store_id).frames[frame]
    data[start + 20] ^= bit
    file.write_bytes(bytes(data))
    return file


def in_the_middle(path: Path) -> None:
    damaged(path, 2 * IN_SQLITE + 4)  # frames count from row 0: that of decision 6


def at_the_end(path: Path) -> None:
    (file,) = tail_files(path)
    standing = read_mark(path)
    assert standing is not None
    frames = scan(file.read_bytes(), standing.store_id).frames
    file.write_bytes(file.read_bytes()[: frames[-2][0] + 7])


def no_tail(path: Path) -> None:
    tail_files(path)[0].unlink()


def no_journal(path: Path) -> None:
    path.with_name("log.db-wal").unlink()


def test_a_late_row_about_a_lost_decision_is_lost_with_it(path: Path, author: Any) -> None:
    left(path, author, late=(6, 7))
    in_the_middle(path)
    with SqliteStore(path, accept_loss=True) as store:
        assert store.outcome_parts(6) == []
        assert len(store.outcome_parts(7)) == 2
        # Of decision 6, its first outcome and, behind decision 11, its second.
        gaps = [(gap.first, gap.numbers, gap.rows) for gap in store.gaps()]
        assert gaps == [(6, 1, 2), (DECISIONS, 0, 1)]


def test_a_file_that_begins_later_than_the_one_before_ends_is_named(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "FILE_BYTES", 2000)
    left(path, author)
    cut = tail_files(path)[-2]
    standing = read_mark(path)
    assert standing is not None
    frames = scan(cut.read_bytes(), standing.store_id).frames
    cut.write_bytes(cut.read_bytes()[: frames[-1][0] + 40])
    later = tail_files(path)[-1].name
    with pytest.raises(LostRowsError, match=rf"1 log row is missing .* {later} begins later"):
        SqliteStore(path)


def test_the_mark_knows_the_journal_that_is_written(path: Path, author: Any) -> None:
    with SqliteStore(path) as store:
        store.append(author.decisions(1))
        before = wal_salts(path)
        store._session.query("PRAGMA wal_checkpoint(TRUNCATE)")  # the next write begins it anew
        store.append(author.decisions(1))
        assert wal_salts(path) not in ((0, 0), before)
        assert read_mark(path).salts == wal_salts(path)


@pytest.mark.parametrize(
    ("damage", "first", "numbers", "kept"),
    [
        (in_the_middle, 6, 1, 1),
        (at_the_end, DECISIONS - 1, 1, 0),
        (no_tail, IN_SQLITE, DECISIONS - IN_SQLITE, 0),
        (no_journal, 0, 0, 0),
    ],
)
def test_what_is_missing_is_refused_and_then_noted(
    path: Path,
    author: Any,
    damage: Callable[[Path], None],
    first: int,
    numbers: int,
    kept: int,
) -> None:
    left(path, author)
    damage(path)
    before = contents(path)
    if damage is no_journal:
        # The tail alone holds every row: SQLite's part of them is taken from it once more.
        with SqliteStore(path) as store:
            assert (store.decisions, store.gaps()) == (DECISIONS, [])
        return
    for _ in range(2):
        with pytest.raises(LostRowsError, match=f"d{first} ") as refusal:
            SqliteStore(path)
        assert "\n" not in str(refusal.value)
        assert contents(path) == before
    with SqliteStore(path, accept_loss=True) as store:
        (gap,) = store.gaps()
        assert (gap.first, gap.numbers) == (first, numbers)
        assert store.decisions == DECISIONS
        names = [f"r{number}" for number in range(DECISIONS)]
        lost = set(range(first, first + numbers))
        there = {f"r{number}": number for number in range(DECISIONS) if number not in lost}
        assert store.find_requests(names) == there
        # Outcomes of lost decisions went with them; of others none.
        assert gap.rows == numbers + sum(number in lost for number in range(DECISIONS))
        assert store.next_seq == 2 * DECISIONS - gap.rows
        assert len(list(path.parent.glob("*.damaged"))) == kept
    # And now it is a store like any other, whose numbers go on.
    with JournaledStore(path) as journaled:
        assert journaled.gaps() == [gap]
        author.written = DECISIONS
        journaled.append(author.decisions(1))
        assert journaled.decisions == DECISIONS + 1
    with SqliteStore(path, read_only=True) as store:
        # What was taken in, what came later and the gap itself are chained like everything else.
        chained = check_chain(store)
        assert (chained.begins, chained.rows, chained.faults) == (0, store.next_seq, [])
        assert store.chained_records("gaps")[0] is not None


def test_an_accepted_loss_is_taken_in_once(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends when the rows are in and the files still stand there."""
    left(path, author)
    in_the_middle(path)

    def ends(self: SqliteStore) -> None:
        raise OSError("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "sync_journal", ends)
        with pytest.raises(StoreError):
            SqliteStore(path, accept_loss=True)
    assert len(tail_files(path)) == 1
    for _ in range(2):
        with SqliteStore(path, accept_loss=True) as store:
            assert store.next_seq == 2 * DECISIONS - 2
            assert len(store.gaps()) == 1
    assert tail_files(path) == []


def test_a_file_is_kept_until_its_rows_are_on_the_disk(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(path, author)
    synced: list[list[Path]] = []
    real = SqliteStore.sync_journal

    def sync(self: SqliteStore) -> None:
        synced.append(tail_files(path))
        real(self)

    monkeypatch.setattr(SqliteStore, "sync_journal", sync)
    SqliteStore(path).close()
    assert [len(files) for files in synced] == [1]
    assert tail_files(path) == []


def test_after_the_machine_stopped_numbers_go_on_beyond_what_was_reserved(
    path: Path, author: Any
) -> None:
    left(path, author)
    standing = read_mark(path)
    assert standing is not None
    Mark(path, replace(standing, boot=bytes(16)))  # as the machine's last run left it
    at_the_end(path)
    with SqliteStore(path, durability="process") as store:
        (gap,) = store.gaps()
        assert (gap.first, gap.end) == (DECISIONS - 1, standing.reserved)
        assert standing.reserved >= BLOCK
        assert store.decisions == standing.reserved


def test_what_only_power_durability_promised_is_refused_even_then(path: Path, author: Any) -> None:
    left(path, author)
    standing = read_mark(path)
    assert standing is not None
    Mark(path, replace(standing, boot=bytes(16)))
    at_the_end(path)
    with pytest.raises(LostRowsError):
        SqliteStore(path, durability="power")


@pytest.fixture
def other(tmp_path: Path, new_author: Any) -> Path:
    """Another store that was killed, of the same shape."""
    folder = tmp_path / "other"
    folder.mkdir()
    left(folder / "log.db", new_author(1))
    return folder / "log.db"


@pytest.mark.parametrize("name", ["log.db.tail.1", "log.db", "log.db-wal", "log.db.mark"])
def test_files_of_another_store_are_not_taken_for_its_own(
    path: Path, author: Any, other: Path, name: str
) -> None:
    left(path, author)
    shutil.copy(other.with_name(name), path.with_name(name))
    before = contents(path)
    with pytest.raises(StoreError) as refusal:
        SqliteStore(path)
    assert "\n" not in str(refusal.value)
    assert contents(path) == before


def test_a_copy_from_an_earlier_day_is_noticed(path: Path, author: Any, tmp_path: Path) -> None:
    with SqliteStore(path) as store:
        store.append(author.decisions(2))
    shutil.copy(path, tmp_path / "earlier")
    with SqliteStore(path) as store:
        store.append(author.decisions(3))
    shutil.copy(tmp_path / "earlier", path)
    with pytest.raises(LostRowsError, match="3 log rows are missing before row 2, d2 to d4"):
        SqliteStore(path)
    with SqliteStore(path, accept_loss=True) as store:
        assert store.decisions == 5


def test_without_its_mark_a_store_opens_as_before(path: Path, author: Any) -> None:
    left(path, author)
    mark_path(path).unlink()
    with SqliteStore(path) as store:
        assert (store.decisions, store.gaps()) == (DECISIONS, [])


@pytest.mark.parametrize("name", ["log.db.tail.1", "log.db.mark", "log.db-wal"])
def test_no_new_store_is_made_where_one_is_gone(path: Path, author: Any, name: str) -> None:
    left(path, author)
    path.unlink()
    for file in path.parent.iterdir():
        if file.name != name:
            file.unlink()
    with pytest.raises(LostRowsError, match=f"does not exist, but {name}"):
        SqliteStore(path)
    assert not path.exists()


def test_one_writer_a_file_whatever_it_is_called(path: Path, author: Any) -> None:
    with JournaledStore(path) as store:
        path.with_name("log.db.lock").unlink()
        with pytest.raises(StoreInUseError, match="in this process already"):
            SqliteStore(path)
        os.link(path, path.with_name("hard.db"))
        with pytest.raises(StoreError, match="2 names"):
            SqliteStore(path.with_name("hard.db"))
        path.with_name("hard.db").unlink()
        code = f"from equipoise.store.sqlite.store import SqliteStore; SqliteStore({str(path)!r})"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "StoreInUseError" in result.stderr
        with pytest.raises(DisplacedStoreError, match=r"log\.db\.lock is gone"):
            store.probe()
    with SqliteStore(path):
        pass


def test_another_program_that_opens_and_closes_leaves_the_journal(path: Path, author: Any) -> None:
    """SQLite's locks must outlive every look that this process takes at the file."""
    with JournaledStore(path) as store:
        SqliteStore(path, read_only=True).close()
        journal = path.with_name("log.db-wal")
        before = journal.stat().st_ino
        code = (
            f"import sqlite3; opened = sqlite3.connect({str(path)!r});"
            " opened.execute('SELECT count(*) FROM decisions'); opened.close()"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert journal.stat().st_ino == before
        store.append(author.decisions(3))
        assert store.settle(seconds=10)
        with sqlite3.connect(path) as opened:
            assert opened.execute("SELECT count(*) FROM decisions").fetchone() == (3,)
        opened.close()


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_nobody_else_may_read_the_files(path: Path, author: Any, no_umask: None) -> None:
    with JournaledStore(path) as store:
        store.append(author.decisions(1))
        store.settle()
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes) == {
        f"log.db{end}" for end in ("", "-wal", "-shm", ".lock", ".mark", ".tail.1")
    }
    assert set(modes.values()) == {0o600}


def test_numbers_are_reserved_before_they_are_given(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark_module, "BLOCK", 8)
    monkeypatch.setattr("equipoise.store.journal.BLOCK", 8)
    monkeypatch.setattr("equipoise.store.sqlite.store.BLOCK", 8)
    synced: list[int] = []
    real = Mark.sync

    def sync(self: Mark) -> None:
        real(self)
        synced.append(self.reserved)

    monkeypatch.setattr(Mark, "sync", sync)
    with JournaledStore(path) as store:
        for _ in range(50):
            store.append(author.decisions(1))
            # Two threads sync, and note it in any order; what is reserved only grows.
            assert store.decisions <= max(synced)
            assert store.decisions <= store._mark.reserved
        assert store.settle(seconds=10)
    standing = read_mark(path)
    assert standing is not None
    assert (standing.clean, standing.rows, standing.reserved) == (True, 50, 50)


def test_a_thread_that_counted_before_takes_no_reservation_back(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that commits reserves for the decisions it saw; more were given meanwhile."""
    monkeypatch.setattr(mark_module, "BLOCK", 8)
    with JournaledStore(path) as store:
        store.append(author.decisions(30))
        reserved = store._mark.reserved
        assert reserved >= 38
        store._mark.reserve(18)
        assert store._mark.reserved == reserved
        standing = read_mark(path)
        assert standing is not None
        assert standing.reserved == reserved


def test_a_gap_says_what_is_lost() -> None:
    gap = Gap(at=0.0, first=3, numbers=2, row=7, rows=5, reason="a file is gone", kept="x.damaged")
    assert gap.sentence == (
        "5 log rows are missing before row 7, d3 to d4 will be no decision: a file is gone;"
        " put aside: x.damaged"
    )
    assert tail_module.FILE_HEADER == 64


def test_another_database_in_its_place_is_no_loss_to_accept(tmp_path: Path) -> None:
    """The store's rows are elsewhere: opened all the same, its numbers would be given again."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        SqliteStore(tmp_path / name / "log.db").close()
    shutil.copy(tmp_path / "other" / "log.db", tmp_path / "own" / "log.db")
    before = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    for accept in (False, True):
        with pytest.raises(LostRowsError, match="another database lies in its place"):
            SqliteStore(tmp_path / "own" / "log.db", accept_loss=accept)
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()} == before
