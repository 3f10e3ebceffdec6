"""The tail of a log: batches on disk before SQLite has them, one checked frame each.

A frame is copied into a mapped file, which the death of the process cannot undo; SQLite follows in
large transactions, and files whose frames it holds are removed. What a killed writer left behind
is replayed by the next one.

Files are `<store>.tail.1`, `<store>.tail.2`, …. A file begins with the id of its store. A frame is
a header (payload bytes, CRC-32 of the store's id and of what follows it, seq of the first row) and
the batch as msgpack: its table, its rows, its columns, arrays as little-endian bytes. Files of
older versions begin with their first frame, and its CRC knows no store.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.store.batches import Batch, DecisionBatch, Ints, Segment
from equipoise.store.errors import FullStoreError, ReadOnlyStoreError, WriteError
from equipoise.store.files import identity, sync_to_disk
from equipoise.store.format.sql_rows import LOG_TABLES, Kind, merge

Sync: TypeAlias = Literal["never", "each", "asked"]

FILE_BYTES, LEAST_BYTES = 8 << 20, 64 << 10
"""The room a file is given, and that where a disk is nearly full."""

_PROBE_BYTES = 4096
_HEADER = struct.Struct("<IIQ")
_SEQ = struct.Struct("<Q")
_CRC_AT = 8
_MAGIC = b"EQPSTAIL"
FILE_HEADER = 64
"""Bytes before the first frame: a frame of its own, of no row."""
_NO_ROW = 2**64 - 1
_DTYPES: dict[Kind, str] = {
    Kind.INTEGER: "<i8",
    Kind.OPTIONAL_INTEGER: "<i8",
    Kind.REAL: "<f8",
    Kind.FLAG: "|b1",
    Kind.VECTOR: "<f8",
    Kind.OPTIONAL_VECTOR: "<f8",
    Kind.MASK: "|b1",
}
_TWO_AXES = (Kind.VECTOR, Kind.OPTIONAL_VECTOR, Kind.MASK)
_TABLES = {
    table.batch: (position, tuple((name, kind in _DTYPES) for name, kind in table.columns.items()))
    for position, table in enumerate(LOG_TABLES)
}
_TOGETHER: list[Callable[[Sequence[Any]], Any]] = [
    itemgetter(0, *(at for at, kind in enumerate(table.columns.values(), 2) if kind is Kind.SHARED))
    for table in LOG_TABLES
]
"""What decoded frames of a table must have in common to be joined: the table, shared values."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def seed_of(store_id: bytes) -> int:
    """What the checksums of a store's frames begin with; 0 for frames of older versions."""
    return zlib.crc32(store_id)


def to_frame(seq: int, batch: Batch, seed: int = 0) -> bytes:
    """The frame of a batch whose first row has this seq. seed: of its store."""
    return framed(seq, batch_to_body(batch), seed)


def batch_to_body(batch: Batch) -> bytes:
    """A batch as msgpack, without a header."""
    position, columns = _TABLES[type(batch)]
    if isinstance(batch, DecisionBatch) and batch.row is not None:
        return _encode(_values_of_row(position, batch.row))
    values: list[Any] = [position, len(batch)]
    for name, is_array in columns:
        value = getattr(batch, name)
        values.append(value.tobytes() if is_array and value is not None else value)
    return _encode(values)


_INTEGER = struct.Struct("<q").pack
_NUMBERS = struct.Struct("<qqqdqddq??").pack


def _values_of_row(position: int, row: tuple[Any, ...]) -> list[Any]:
    """What `batch_to_body` encodes, of a decision that is held as plain values: each has the bytes
    of an array of one."""
    number, unit, context, at, x, routed, rate, shares, uniform, model, *more = row
    randomized, capped, rule_id, era, eligible, request, who, replayed, *optional = more
    numbers = _NUMBERS(number, unit, context, at, routed, rate, uniform, model, randomized, capped)
    leader, closed_by, draw = [None if each is None else _INTEGER(each) for each in optional]
    return [
        position,
        1,
        numbers[:8],
        request,
        numbers[8:16],
        who,
        numbers[16:24],
        replayed,
        numbers[24:32],
        x.tobytes(),
        numbers[32:40],
        None if eligible is None else eligible.tobytes(),
        numbers[40:48],
        shares.tobytes(),
        numbers[48:56],
        numbers[56:64],
        numbers[64:65],
        numbers[65:],
        rule_id,
        era,
        leader,
        closed_by,
        draw,
    ]


def framed(seq: int, payload: bytes, seed: int = 0) -> bytes:
    """A frame of any payload: `scan` finds it by its checksum."""
    crc = zlib.crc32(payload, zlib.crc32(_SEQ.pack(seq), seed))
    return _HEADER.pack(len(payload), crc, seq) + payload


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a tail file holds. frames: (start, end, seq) of every whole one, in order.

    owner: the id of the store whose file it is, None where it does not say. damaged: (start, end)
    of stretches that are no frames although whole frames follow. torn: bytes that are not zero
    stand behind the last frame.
    """

    frames: tuple[tuple[int, int, int], ...]
    owner: bytes | None
    damaged: tuple[tuple[int, int], ...]
    torn: bool


def scan(data: bytes, store_id: bytes) -> Scanned:
    """Find every whole frame of a file, beyond damaged ones too. store_id: of the store beside it.

    A frame that was being written when the process died is torn, and nothing whole follows it:
    that, and only that, is the end of a file.
    """
    owner, start = _owner_of(data)
    seeds = [seed_of(store_id), 0] if owner is None else [seed_of(owner)]
    frames: list[tuple[int, int, int]] = []
    damaged: list[tuple[int, int]] = []
    seq = 0
    while True:
        end = _frame_end(data, start, seeds)
        if not end:
            further = _find_frame(data, start + 1, seeds, seq)
            if further is None:
                break
            damaged.append((start, further))
            start, end = further, _frame_end(data, further, seeds)
        seq = _HEADER.unpack_from(data, start)[2]
        frames.append((start, end, seq))
        start = end
    return Scanned(tuple(frames), owner, tuple(damaged), bool(data[start:].strip(b"\0")))


def _owner_of(data: bytes) -> tuple[bytes | None, int]:
    """The store's id at the head of a file, None without one; where its first frame begins."""
    payload = data[_HEADER.size : FILE_HEADER]
    if payload.startswith(_MAGIC) and data[:FILE_HEADER] == _file_header(payload[8:24]):
        return data[_HEADER.size + len(_MAGIC) :][:16], FILE_HEADER
    return None, 0


def _file_header(store_id: bytes) -> bytes:
    payload = (_MAGIC + store_id).ljust(FILE_HEADER - _HEADER.size, b"\0")
    crc = zlib.crc32(payload, zlib.crc32(_SEQ.pack(_NO_ROW)))
    return _HEADER.pack(len(payload), crc, _NO_ROW) + payload


def _frame_end(data: bytes, start: int, seeds: Sequence[int]) -> int:
    """Where the frame at `start` ends, 0 where none is whole there."""
    if start + _HEADER.size > len(data):
        return 0
    size, crc, _ = _HEADER.unpack_from(data, start)
    end: int = start + _HEADER.size + size
    if not size or end > len(data):
        return 0
    covered = memoryview(data)[start + _CRC_AT : end]
    return end if any(zlib.crc32(covered, seed) == crc for seed in seeds) else 0


def _find_frame(data: bytes, start: int, seeds: Sequence[int], seq: int) -> int | None:
    """Where the first whole frame from `start` on begins; its seq is no less than `seq`."""
    for low in range(start, len(data) - _HEADER.size, 1 << 20):
        part = np.frombuffer(data[low : low + (1 << 20) + _HEADER.size - 1], dtype=np.uint8)
        count = len(part) - _HEADER.size + 1
        if count <= 0 or not part.any():
            continue
        wide = np.lib.stride_tricks.sliding_window_view(part, _HEADER.size)
        # Sizes below 2 GB and seqs below 2^40 leave few places to compute a checksum for.
        likely = (wide[:, 3] < 128) & ~wide[:, 13:].any(axis=1) & wide[:, :4].any(axis=1)
        for at in (np.flatnonzero(likely) + low).tolist():
            if _HEADER.unpack_from(data, at)[2] >= seq and _frame_end(data, at, seeds):
                return int(at)
    return None


def read_segment(data: bytes, start: int, end: int) -> Segment:
    """The segment of a whole frame."""
    return Segment(
        _HEADER.unpack_from(data, start)[2],
        body_to_batch(memoryview(data)[start + _HEADER.size : end]),
    )


def read_payload(data: bytes, start: int, end: int) -> tuple[int, bytes]:
    """The seq and the payload of a whole frame."""
    return _HEADER.unpack_from(data, start)[2], data[start + _HEADER.size : end]


def end_at_damage(path: Path, store_id: bytes) -> None:
    """Cut a copy of a tail file, made while it was written, behind its first stretch of frames."""
    data = path.read_bytes()
    scanned = scan(data, store_id)
    if scanned.damaged:
        os.truncate(path, scanned.damaged[0][0])


def body_to_batch(payload: bytes | memoryview) -> Batch:
    """The batch of `batch_to_body`."""
    position, rows, *values = msgspec.msgpack.decode(payload)
    table = LOG_TABLES[position]
    columns: dict[str, Any] = {}
    # Columns are only ever added at the end: what an older version wrote lacks the last ones.
    for (name, kind), value in zip_longest(table.columns.items(), values):
        if kind in _DTYPES and value is not None:
            array: NDArray[Any] = np.frombuffer(value, dtype=_DTYPES[kind])
            columns[name] = array.reshape(rows, -1) if kind in _TWO_AXES else array
        else:
            columns[name] = value
    return table.batch(**columns)


def merge_frames(segments: Sequence[Segment]) -> list[tuple[Ints, Batch]]:
    """As `merge`: column by column from the bytes of frames, which is several times quicker where
    most hold one row. Segments that have no frame are merged by their batches."""
    groups: dict[Any, tuple[list[Segment], list[Any]]] = {}
    for segment in segments:
        if segment.frame is None:
            return merge(segments)
        values = _decode(segment.frame[_HEADER.size :])
        key = _TOGETHER[values[0]](values)
        group = groups.get(key)
        if group is None:
            group = groups[key] = [], []
        group[0].append(segment)
        # One list of all values: one for each frame would have the garbage collector come by.
        group[1].extend(values)
    merged: list[tuple[Ints, Batch]] = []
    for parts, values in groups.values():
        batch = _joined_values(values, len(parts))
        if batch is None:
            merged += merge(parts)
        elif len(batch) == len(parts):
            merged.append((np.array([part.seq for part in parts], dtype=np.int64), batch))
        else:
            merged.append((np.concatenate([part.seqs for part in parts]), batch))
    return merged


def _joined_values(values: list[Any], frames: int) -> Batch | None:
    """The rows of so many decoded frames of one table, one after the other, with equal shared
    values, as one batch; None where widths differ, or some have a column that others lack."""
    step = len(values) // frames
    table, counts = LOG_TABLES[values[0]], values[1::step]
    rows = sum(counts)
    whole: dict[str, Any] = {}
    for at, (name, kind) in enumerate(table.columns.items(), 2):
        column = values[at::step]
        absent = column.count(None)
        if absent or kind is Kind.SHARED:
            if absent not in (0, frames):
                return None
            whole[name] = column[0]
        elif kind not in _DTYPES:
            whole[name] = list(chain.from_iterable(column))
        else:
            array: NDArray[Any] = np.frombuffer(b"".join(column), dtype=_DTYPES[kind])
            if kind in _TWO_AXES:
                width = len(array) // rows
                size = width * array.itemsize
                if any(len(part) != n * size for part, n in zip(column, counts, strict=True)):
                    return None
                array = array.reshape(rows, width)
            whole[name] = array
    return table.batch(**whole)


def tail_files(store: Path) -> list[Path]:
    """The tail files of a store, oldest first."""
    pattern = re.compile(re.escape(store.name) + r"\.tail\.(\d+)")
    numbered = [
        (int(matched[1]), path)
        for path in store.parent.iterdir()
        if (matched := pattern.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered)]


class TailWriter:
    """Appends frames to the newest tail file of a store that this process may write.

    Files are given their room when they are made and written through a mapping: an append is a
    copy of bytes, which needs no system call, fails for no lack of room, and lets no other thread
    in between. The death of the process loses none of it.

    sync: when frames reach the disk itself: "never" (when the system likes), "each" (before
    `append` returns), or "asked" (when `begin_sync` is called). store_id: 16 bytes, at the head of
    every file.
    Not for several threads, but `forget` may come from another one.
    """

    def __init__(self, store: Path, sync: Sync, store_id: bytes = bytes(16)) -> None:
        self._store = store
        self._sync = sync
        self._head = _file_header(store_id)
        files = tail_files(store)
        self._number = int(files[-1].suffix[1:]) if files else 0
        self._file: _File | None = None
        self._map: mmap.mmap | None = None
        self._room = self._size = 0
        self._last = -1
        self._closed: list[tuple[int, Path]] = []

    def append(self, seq: int, rows: int, frame: bytes) -> None:
        """Write the frame of rows seq … seq + rows - 1.

        Raises FullStoreError, ReadOnlyStoreError or WriteError; the tail then ends as before.
        """
        self._make_room(len(frame))
        assert self._map is not None
        start, end = self._size, self._size + len(frame)
        self._map[start:end] = frame
        if self._sync == "each":
            assert self._file is not None
            try:
                os.fdatasync(self._file.descriptor)
            except OSError as error:
                # A header of zeros ends the file.
                self._map[start : start + _HEADER.size] = bytes(_HEADER.size)
                raise as_store_error(self._store, error) from error
        self._size = end
        self._last = seq + rows

    def probe(self) -> None:
        """Raise what `append` of a page would raise."""
        self._make_room(_PROBE_BYTES)

    def begin_sync(self) -> Callable[[], None]:
        """A function, for any thread, that puts on the disk what was appended before this call.

        It raises as `append` does; what was appended then stays in the log all the same.
        """
        file = self._file
        # Ours may be closed and followed by another one meanwhile; in use it stays open.
        while file is not None and not file.use():
            file = self._file
        if file is None:
            return lambda: None

        def sync() -> None:
            try:
                os.fdatasync(file.descriptor)
            except OSError as error:
                raise as_store_error(self._store, error) from error
            finally:
                file.leave()

        return sync

    def fault(self) -> str | None:
        """What became of the file that is written to, in words; None where it is in its place."""
        file = self._file
        if file is None:
            return None
        path = self._path()
        try:
            facts = os.stat(path)
        except OSError:
            return f"{path.name} is gone"
        if identity(facts) != file.identity:
            return f"{path.name} is another file than the one that was opened"
        if facts.st_size < self._room:
            return f"{path.name} was cut short"
        return None

    def forget(self, next_seq: int) -> None:
        """Remove files whose rows all lie before `next_seq`."""
        while self._closed and self._closed[0][0] <= next_seq:
            _, path = self._closed.pop(0)
            with contextlib.suppress(OSError):
                path.unlink()

    def has_files_before(self, next_seq: int) -> bool:
        """Whether `forget` would remove a file."""
        return bool(self._closed) and self._closed[0][0] <= next_seq

    def close(self) -> None:
        """Stop writing. Files stay unless they were forgotten before."""
        file, self._file = self._file, None
        if file is not None and self._map is not None:
            try:
                if self._sync == "asked":
                    os.fdatasync(file.descriptor)
            finally:
                self._map.close()
                file.leave()
                self._closed.append((self._last, self._path()))
                self._map, self._room, self._size = None, 0, 0

    def _make_room(self, size: int) -> None:
        """See to it that `size` bytes fit into the file, with a new one where they do not."""
        if self._size + size <= self._room:
            return
        try:
            try:
                opened = self._make_file(max(FILE_BYTES, size + FILE_HEADER))
            except OSError as error:
                if error.errno not in _FULL or size > LEAST_BYTES - FILE_HEADER:
                    raise
                opened = self._make_file(LEAST_BYTES)  # what is left of a disk serves for a while
            self.close()
        except OSError as error:
            raise as_store_error(self._store, error) from error
        self._number += 1
        self._file, self._map = opened
        self._room, self._size = len(self._map), FILE_HEADER

    def _make_file(self, room: int) -> tuple[_File, mmap.mmap]:
        path = self._path(self._number + 1)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, room)
            mapped = mmap.mmap(descriptor, room)
            mapped[:FILE_HEADER] = self._head
            if self._sync != "never":
                sync_to_disk(self._store.parent)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return _File(descriptor), mapped

    def _path(self, number: int | None = None) -> Path:
        which = self._number if number is None else number
        return self._store.with_name(f"{self._store.name}.tail.{which}")


class _File:
    """An open descriptor that is closed when its last user leaves; the writer is the first."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.identity = identity(os.fstat(descriptor))
        self._users = 1
        self._lock = threading.Lock()

    def use(self) -> bool:
        """Whether it is open, and stays so until `leave`."""
        with self._lock:
            if self._users:
                self._users += 1
            return self._users > 0

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            os.close(self.descriptor)


@contextlib.contextmanager
def as_store_errors(store: Path) -> Iterator[None]:
    """What the operating system refuses inside becomes a StoreError."""
    try:
        yield
    except OSError as error:
        raise as_store_error(store, error) from error


def as_store_error(store: Path, error: OSError) -> WriteError | ReadOnlyStoreError:
    """The StoreError that says what `error` means for the files beside a store."""
    if error.errno in _FULL:
        return FullStoreError(f"store {store}: no room for its tail ({error.strerror})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyStoreError(f"store {store}: its tail may not be written ({error.strerror})")
    return WriteError(f"store {store}: its tail cannot be written ({error.strerror})")
