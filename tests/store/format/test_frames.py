"""The tail: what is in it survives, what is not whole is left out, what is too much is refused."""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.store import journal as journaled_module
from equipoise.store.batches import DecisionBatch, Segment
from equipoise.store.errors import (
    ContradictionError,
    CorruptStoreError,
    FullStoreError,
    ReadOnlyStoreError,
    SequenceError,
    SlowStoreError,
    StoreError,
    WriteError,
)
from equipoise.store.format import frames as tail_module
from equipoise.store.format.frames import (
    merge_frames,
    read_segment,
    scan,
    tail_files,
    to_frame,
)
from equipoise.store.format.sql_rows import merge, to_rows
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import MemoryStore
from equipoise.store.sql import chain
from equipoise.store.sqlite import SqliteStore


def read_frames(data: bytes) -> list[Segment]:
    """Every segment that a file of a store without an id holds."""
    return [read_segment(data, start, end) for start, end, _ in scan(data, b"").frames]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def stuck(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store whose SQLite takes nothing, until the returned event is set."""
    free = threading.Event()
    together = SqliteStore.append_together

    def refuse(self: SqliteStore, segments: Any) -> None:
        if not free.is_set():
            raise SlowStoreError("SQLite is stuck")
        together(self, segments)

    monkeypatch.setattr(SqliteStore, "append_together", refuse)
    monkeypatch.setattr(journaled_module, "_RETRY_SECONDS", 0.01)
    return free


def abandoned(path: Path, batches: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a store as a killed writer does: rows in the tail that SQLite never got."""
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append_together", _never)
        store = JournaledStore(path)
        for batch in batches:
            store.append(batch)
        store.close()


def _never(self: SqliteStore, segments: Any) -> None:
    raise SlowStoreError("killed before")


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_frames_come_back_bit_for_bit(new_author: Any, rows_of: Any, seed: int, sizes: Any) -> None:
    author, seq, written, data = new_author(seed), 0, [], b""
    for size in sizes:
        batch = author.anything(size)
        data += to_frame(seq, batch)
        written += rows_of(seq, batch)
        seq += size
    assert [row for part in read_frames(data) for row in rows_of(part.seq, part.batch)] == written


def test_the_frame_of_a_row_of_plain_values_is_that_of_arrays_of_one(new_author: Any) -> None:
    columns = [field.name for field in fields(DecisionBatch)]
    lacks: set[str] = set()
    for seed in range(60):
        batch = new_author(seed).decisions(1, mask=bool(seed % 2))
        values = [getattr(batch, name) for name in columns]
        row = tuple(
            value.item() if isinstance(value, np.ndarray) and value.ndim == 1 else value
            for value in values
        )
        alone = DecisionBatch.of_row(row)
        assert to_frame(seed, alone, 7) == to_frame(seed, batch, 7)
        lacks |= {name for name, value in zip(columns, row, strict=True) if value is None}
    assert lacks, "some columns are left out now and then"


def test_a_frame_of_an_older_version_lacks_the_newest_columns(author: Any, rows_of: Any) -> None:
    batch = author.decisions(3, closed_by=None)
    position, rows, *values = msgspec.msgpack.decode(to_frame(0, batch)[16:])
    payload = msgspec.msgpack.encode([position, rows, *values[:-1]])
    crc = zlib.crc32(payload, zlib.crc32(bytes(8)))
    frame = struct.pack("<IIQ", len(payload), crc, 0) + payload
    (segment,) = read_frames(frame)
    assert rows_of(0, segment.batch) == rows_of(0, batch)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_what_is_no_frame_ends_the_file_only_where_none_follows(
    new_author: Any, seed: int, data: st.DataObject
) -> None:
    author = new_author(seed)
    frames = [to_frame(number, author.outcomes(1)) for number in range(3)]
    whole = b"".join(frames)
    at = data.draw(st.integers(0, len(whole) - 1))
    before = sum(at >= len(b"".join(frames[: count + 1])) for count in range(3))
    assert len(list(read_frames(whole[:at]))) == before
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    hit = [part for part in range(3) if part != before]
    assert [part.seq for part in read_frames(bytes(flipped))] == hit
    scanned = scan(bytes(flipped), b"")
    assert (scanned.torn, bool(scanned.damaged)) == (before == 2, before < 2)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_merging_keeps_every_row_and_its_seq(
    new_author: Any, rows_of: Any, seed: int, sizes: Any
) -> None:
    author, seq, segments = new_author(seed), 0, []
    for size in sizes:
        if author.rng.random() < 0.2:
            author.outputs = author.features = 5 - author.features
        batch = author.anything(size)
        segments.append(Segment(seq, batch, to_frame(seq, batch, 7)))
        seq += size
    before = [row for part in segments for row in rows_of(part.seq, part.batch)]
    for way in (merge, merge_frames):
        after = []
        for seqs, batch in way(segments):
            assert (seqs[1:] > seqs[:-1]).all()
            for (_, *rest), number in zip(rows_of(0, batch), seqs.tolist(), strict=True):
                after.append((number, *rest))
        assert sorted(after, key=lambda row: row[0]) == before
    some = [replace(segment, frame=None) if segment.seq % 2 else segment for segment in segments]
    assert sum(len(seqs) for seqs, _ in merge_frames(some)) == len(before)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), most=st.sampled_from([1, 40]))
def test_frames_give_the_rows_and_the_digest_that_batches_give(
    new_author: Any, seed: int, most: int
) -> None:
    """Alone and in transactions of hundreds of rows, whatever of them is NULL."""
    author, seq, segments = new_author(seed), 0, []
    for _ in range(60):
        batch = author.anything(int(author.rng.integers(1, most + 1)))
        segments.append(Segment(seq, batch, to_frame(seq, batch)))
        seq += len(batch)
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("alone", "frames", "batches"):
            with SqliteStore(Path(folder, f"{name}.db")) as store:
                if name == "alone":
                    for segment in segments:
                        store.append(segment.batch)
                elif name == "frames":
                    store.append_together(segments)
                else:
                    store.append_together([replace(each, frame=None) for each in segments])
                kept.append((store.rows_in_order(0, seq), store.anchor(0.0)))
    assert kept[0] == kept[1] == kept[2]
    rows, anchor = kept[0]
    assert [row for _, row in rows] == [
        row for each in segments for row in to_rows(each.batch, each.seq)
    ]
    digest = chain.first_digest(0)
    for table, row in rows:
        digest = chain.next_digest(digest, table, row)
    assert anchor.log == chain.Place(seq, digest.hex())


@pytest.mark.parametrize("rows", [1, 3])
def test_misnumbered_decisions_never_follow_the_log(path: Path, author: Any, rows: int) -> None:
    wrong = author.decisions(rows, number=np.arange(1, rows + 1))
    alone = DecisionBatch.of_row(tuple(getattr(wrong, each.name) for each in fields(wrong)))
    object.__setattr__(alone, "row", (1, *alone.row[1:]))
    with SqliteStore(path) as store:
        for batch in (wrong, alone) if rows == 1 else (wrong,):
            with pytest.raises(SequenceError, match="has number 1, expected 0"):
                store.append_together([Segment(0, batch)])
        assert store.next_seq == 0


def test_the_next_writer_takes_the_tail_in(
    path: Path, author: Any, log_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [author.anything(1 + number % 4) for number in range(40)]
    monkeypatch.setattr(tail_module, "FILE_BYTES", 2000)
    abandoned(path, batches, monkeypatch)
    assert len(tail_files(path)) > 3
    with MemoryStore() as memory, SqliteStore(path) as store:
        for batch in batches:
            memory.append(batch)
        assert log_of(store) == log_of(memory)
        assert tail_files(path) == []
    with JournaledStore(path) as again:
        assert again.next_seq == memory.next_seq


def test_a_torn_last_frame_was_never_acknowledged(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned(path, [author.decisions(2), author.outcomes(3)], monkeypatch)
    (file,) = tail_files(path)
    data = file.read_bytes()
    _, (_, end, _) = scan(data, b"").frames
    file.write_bytes(data[: end - 1] + bytes(100))
    # The frame was written after the mark had heard of the one before.
    path.with_name("log.db.mark").unlink()
    with SqliteStore(path) as store:
        assert (store.next_seq, store.decisions) == (2, 2)


def test_a_tail_that_lacks_rows_in_between_is_not_taken(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "FILE_BYTES", 100)
    abandoned(path, [author.outcomes(3) for _ in range(6)], monkeypatch)
    tail_files(path)[2].unlink()
    with pytest.raises(
        CorruptStoreError, match=r"missing before row 6: log\.db\.tail\.4 begins later"
    ):
        SqliteStore(path)
    with pytest.raises(CorruptStoreError):
        SqliteStore(path)
    assert len(tail_files(path)) == 5, "nothing was thrown away"


def test_rows_that_sqlite_has_already_are_not_taken_twice(
    path: Path, author: Any, log_of: Callable[..., Any]
) -> None:
    batches = [author.decisions(2), author.outcomes(2), author.decisions(1)]
    with SqliteStore(path) as store:
        for batch in batches:
            store.append(batch)
        before = log_of(store)
    seq, frames = 0, b""
    for batch in [*batches, author.outcomes(1)]:
        frames += to_frame(seq, batch)
        seq += len(batch)
    path.with_name("log.db.tail.1").write_bytes(frames)
    with SqliteStore(path) as store:
        assert log_of(store, 0, 5) == before
        assert store.next_seq == 6


def test_look_ups_see_what_waits(path: Path, author: Any, stuck: Any, rows_of: Any) -> None:
    with JournaledStore(path) as store:
        batch = author.decisions(3, request_id=["a", "", "c"])
        store.append(batch)
        assert store.find_requests(["a", "b", "c"]) == {"a": 0, "c": 2}
        found = store.decision(2)
        assert found is not None
        assert rows_of(2, found) == rows_of(0, batch)[2:]
        with pytest.raises(ContradictionError, match="'c'"):
            store.append(author.decisions(1, number=batch.number[:1] + 3, request_id=["c"]))
        assert store.decisions == 3
        stuck.set()
        assert store.settle(seconds=10)
        assert store.waiting == 0
        assert store.find_requests(["a", "b", "c"]) == {"a": 0, "c": 2}


def test_parts_of_an_outcome_are_found_in_memory_and_in_sqlite(
    path: Path, author: Any, stuck: Any, rows_of: Any
) -> None:
    with JournaledStore(path) as store, MemoryStore() as memory:
        for batch in (author.decisions(4), *(author.outcomes(5) for _ in range(6))):
            store.append(batch)
            memory.append(batch)
        for turn in range(3):
            for number in range(5):
                kept, expected = store.outcome_parts(number), memory.outcome_parts(number)
                assert [rows_of(0, part) for part in kept] == [
                    rows_of(0, part) for part in expected
                ]
            if turn == 0:
                stuck.set()
                assert store.settle(seconds=10)
                stuck.clear()
                for batch in (author.outcomes(5), author.outcomes(2)):
                    store.append(batch)
                    memory.append(batch)
            else:
                stuck.set()


def test_what_waits_is_bounded(path: Path, author: Any, stuck: Any) -> None:
    with JournaledStore(path, waiting_rows=10) as store:
        store.append(author.outcomes(8))
        with pytest.raises(SlowStoreError, match=r"stuck|at most 10"):
            store.append(author.outcomes(3))
        assert store.next_seq == 8
        store.append(author.outcomes(2))
        assert store.settle(seconds=0.05) is False
        with pytest.raises(SlowStoreError):
            store.settle()
        stuck.set()
        assert store.settle(seconds=10)
        store.append(author.outcomes(3))
        assert store.next_seq == 13


def test_closing_while_sqlite_refuses_keeps_the_tail(
    path: Path, author: Any, stuck: Any, log_of: Callable[..., Any]
) -> None:
    store = JournaledStore(path)
    batch = author.decisions(5)
    store.append(batch)
    store.close()
    assert tail_files(path) != []
    stuck.set()
    with SqliteStore(path) as again:
        assert again.next_seq == 5


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, FullStoreError),
        (errno.EFBIG, FullStoreError),
        (errno.EDQUOT, FullStoreError),
        (errno.EROFS, ReadOnlyStoreError),
        (errno.EIO, WriteError),
    ],
)
def test_a_write_that_fails_leaves_the_log_as_it_was(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    with JournaledStore(path) as store:
        store.append(author.outcomes(1))
        refused = author.decisions(2, request_id=["a", "b"])
        with monkeypatch.context() as patch:
            patch.setattr(tail_module, "FILE_BYTES", 1)
            patch.setattr(store._tail, "_room", 0)

            def no_room(file: int, start: int, size: int) -> None:
                raise OSError(number, os.strerror(number))

            patch.setattr(os, "posix_fallocate", no_room)
            with pytest.raises(kind):
                store.append(refused)
            with pytest.raises(kind):
                store.probe()
            assert len(tail_files(path)) == 1
        assert (store.next_seq, store.decisions) == (1, 0)
        assert store.find_requests(["a"]) == {}
        store.append(refused)
        assert store.settle(seconds=10)
        assert (store.next_seq, store.decisions) == (3, 2)


def test_what_is_left_of_a_nearly_full_disk_is_used(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def little_room(file: int, start: int, size: int) -> None:
        if size > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", little_room)
    with JournaledStore(path) as store:
        store.append(author.outcomes(5))
        assert store.settle(seconds=10)
        with pytest.raises(FullStoreError):
            store.append(author.outcomes(5000))
        assert store.next_seq == 5


def test_a_frame_that_could_not_be_synced_is_not_in_the_log(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JournaledStore(path, "power") as store:
        store.append(author.outcomes(2))
        with monkeypatch.context() as patch:

            def broken(file: int) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(WriteError):
                store.append(author.outcomes(3))
        (file,) = tail_files(path)
        assert [part.seq for part in read_frames(file.read_bytes())] == [0]
        assert store.append(author.outcomes(1)) == 2


def test_files_whose_rows_sqlite_has_are_removed(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch, stuck: Any
) -> None:
    monkeypatch.setattr(tail_module, "FILE_BYTES", 5000)
    with JournaledStore(path) as store:
        for _ in range(60):
            store.append(author.outcomes(20))
        assert len(tail_files(path)) > 10
        stuck.set()
        assert store.settle(seconds=10)
        store.append(author.outcomes(1))
        assert store.settle(seconds=10)
        assert len(tail_files(path)) <= 2
    assert tail_files(path) == []


def test_power_durability_syncs_before_it_returns(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def counted(file: int) -> None:
        if ".tail." in os.readlink(f"/proc/self/fd/{file}"):
            synced.append(file)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    with JournaledStore(path, "power") as store:
        for count in range(1, 4):
            store.append(author.outcomes(1))
            assert len(synced) == count
    with JournaledStore(path) as store:
        store.append(author.outcomes(1))
    assert len(synced) == 3


def test_a_checkpoint_waits_for_the_rows_it_covers(path: Path, author: Any) -> None:
    with JournaledStore(path) as store:
        store.append(author.outcomes(7))
        store.checkpoint(7, b"state", 1.0)
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (7,)
        connection.close()


def test_looking_whether_there_is_room_changes_nothing(
    path: Path, author: Any, log_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stuck: Any
) -> None:
    store = JournaledStore(path, waiting_rows=3)
    store.probe()
    store.append(author.outcomes(2))
    store.probe()
    store.append(author.outcomes(1))
    with pytest.raises(SlowStoreError):
        store.probe()
    (file,) = tail_files(path)
    assert [part.seq for part in read_frames(file.read_bytes())] == [0, 2]
    # Killed in the middle of it, the zeros are no frame.
    assert [part.seq for part in read_frames(file.read_bytes() + bytes(4096))] == [0, 2]
    store.close()


def test_a_fault_of_the_writing_thread_is_said_and_outlived(
    path: Path, author: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled_module, "_RETRY_SECONDS", 0.01)
    with JournaledStore(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "append_together", lambda self, segments: 1 / 0)
            store.append(author.outcomes(1))
            assert store.settle(seconds=0.2) is False
            assert "ZeroDivisionError" in str(store.trouble)
        assert store.settle(seconds=10)
        assert store.trouble is None
