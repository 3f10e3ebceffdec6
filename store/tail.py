"""The tail of a log: batches on disk before SQLite has them, one checked frame each.

A frame is copied into a mapped file, which the death of the process cannot undo; SQLite follows in
large transactions, and files whose frames it holds are removed. What a killed writer left behind
is replayed by the next one.

Files are `<store>.tail.1`, `<store>.tail.2`, …. A frame is a header (payload bytes, CRC-32 of
what follows it, seq of the first row) and the batch as msgpack: its table, its rows, its columns,
arrays as little-endian bytes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.store.batches import Batch, Segment
from equipoise.store.errors import (
    CorruptStoreError,
    FullStoreError,
    ReadOnlyStoreError,
    WriteError,
)
from equipoise.store.tables import LOG_TABLES, Kind

Sync: TypeAlias = Literal["never", "each", "asked"]

FILE_BYTES, LEAST_BYTES = 8 << 20, 64 << 10
"""The room a file is given, and that where a disk is nearly full."""

_PROBE_BYTES = 4096
_HEADER = struct.Struct("<IIQ")
_SEQ = struct.Struct("<Q")
_CRC_AT = 8
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
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_encode = msgspec.msgpack.Encoder().encode


def to_frame(seq: int, batch: Batch) -> bytes:
    """The frame of a batch whose first row has this seq."""
    position, columns = _TABLES[type(batch)]
    values: list[Any] = [position, len(batch)]
    for name, is_array in columns:
        value = getattr(batch, name)
        values.append(value.tobytes() if is_array and value is not None else value)
    payload = _encode(values)
    crc = zlib.crc32(payload, zlib.crc32(_SEQ.pack(seq)))
    return _HEADER.pack(len(payload), crc, seq) + payload


def read_frames(data: bytes) -> Iterator[Segment]:
    """The segments of a file's bytes, up to the first frame that is not whole."""
    start, view = 0, memoryview(data)
    while start + _HEADER.size <= len(data):
        size, crc, seq = _HEADER.unpack_from(data, start)
        payload = view[start + _HEADER.size : start + _HEADER.size + size]
        covered = zlib.crc32(payload, zlib.crc32(data[start + _CRC_AT : start + _HEADER.size]))
        if len(payload) < size or covered != crc or not size:
            return
        yield Segment(seq, _to_batch(payload))
        start += _HEADER.size + size


def _to_batch(payload: memoryview) -> Batch:
    position, rows, *values = msgspec.msgpack.decode(payload)
    table = LOG_TABLES[position]
    columns: dict[str, Any] = {}
    for (name, kind), value in zip(table.columns.items(), values, strict=True):
        if kind in _DTYPES and value is not None:
            array: NDArray[Any] = np.frombuffer(value, dtype=_DTYPES[kind])
            columns[name] = array.reshape(rows, -1) if kind in _TWO_AXES else array
        else:
            columns[name] = value
    return table.batch(**columns)


def tail_files(store: Path) -> list[Path]:
    """The tail files of a store, oldest first."""
    pattern = re.compile(re.escape(store.name) + r"\.tail\.(\d+)")
    found = [
        (int(matched[1]), path)
        for path in store.parent.iterdir()
        if (matched := pattern.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def read_tail(store: Path, next_seq: int) -> Iterator[Segment]:
    """What the tail files hold beyond the first `next_seq` rows of the log, in order.

    Raises CorruptStoreError where rows are missing in between.
    """
    for path in tail_files(store):
        for segment in read_frames(path.read_bytes()):
            if segment.seq + len(segment.batch) <= next_seq:
                continue
            if segment.seq != next_seq:
                raise CorruptStoreError(
                    f"store {store}: {path.name} goes on at row {segment.seq}, "
                    f"but the log ends at {next_seq}"
                )
            next_seq += len(segment.batch)
            yield segment


class TailWriter:
    """Appends frames to the newest tail file of a store that this process may write.

    Files are given their room when they are made and written through a mapping: an append is a
    copy of bytes, which needs no system call, fails for no lack of room, and lets no other thread
    in between. The death of the process loses none of it.

    sync: when frames reach the disk itself: "never" (when the system likes), "each" (before
    `append` returns), or "asked" (when `begin_sync` is called).
    Not for several threads, but `forget` may come from another one.
    """

    def __init__(self, store: Path, sync: Sync) -> None:
        self._store = store
        self._sync = sync
        self._number = 0
        self._file = -1
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
            try:
                os.fdatasync(self._file)
            except OSError as error:
                # A header of zeros ends the file.
                self._map[start : start + _HEADER.size] = bytes(_HEADER.size)
                raise _as_store_error(self._store, error) from error
        self._size = end
        self._last = seq + rows

    def probe(self) -> None:
        """Raise what `append` of a page would raise."""
        self._make_room(_PROBE_BYTES)

    def begin_sync(self) -> Callable[[], None]:
        """A function, for any thread, that puts on the disk what was appended before this call.

        It raises as `append` does; what was appended then stays in the log all the same.
        """
        if self._file < 0:
            return lambda: None
        # A file of its own: ours may be closed and followed by another one meanwhile.
        file = os.dup(self._file)

        def sync() -> None:
            try:
                os.fdatasync(file)
            except OSError as error:
                raise _as_store_error(self._store, error) from error
            finally:
                os.close(file)

        return sync

    def forget(self, next_seq: int) -> None:
        """Remove files whose rows all lie before `next_seq`."""
        while self._closed and self._closed[0][0] <= next_seq:
            _, path = self._closed.pop(0)
            with contextlib.suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Stop writing. Files stay unless they were forgotten before."""
        if self._map is not None:
            if self._sync == "asked":
                os.fdatasync(self._file)
            self._map.close()
            os.close(self._file)
            self._closed.append((self._last, self._path()))
            self._file, self._map, self._room, self._size = -1, None, 0, 0

    def _make_room(self, size: int) -> None:
        """See to it that `size` bytes fit into the file, with a new one where they do not."""
        if self._size + size <= self._room:
            return
        try:
            try:
                made = self._make_file(max(FILE_BYTES, size))
            except OSError as error:
                if error.errno not in _FULL or size > LEAST_BYTES:
                    raise
                made = self._make_file(LEAST_BYTES)  # what is left of a disk serves for a while
            self.close()
        except OSError as error:
            raise _as_store_error(self._store, error) from error
        self._number += 1
        self._file, self._map = made
        self._room = len(self._map)

    def _make_file(self, room: int) -> tuple[int, mmap.mmap]:
        path = self._path(self._number + 1)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(path, flags, 0o644)
        try:
            os.posix_fallocate(file, 0, room)
            mapped = mmap.mmap(file, room)
            if self._sync != "never":
                folder = os.open(self._store.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except BaseException:
            os.close(file)
            path.unlink()
            raise
        return file, mapped

    def _path(self, number: int | None = None) -> Path:
        which = self._number if number is None else number
        return self._store.with_name(f"{self._store.name}.tail.{which}")


def _as_store_error(store: Path, error: OSError) -> WriteError | ReadOnlyStoreError:
    if error.errno in _FULL:
        return FullStoreError(f"store {store}: no room for its tail ({error.strerror})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyStoreError(f"store {store}: its tail may not be written ({error.strerror})")
    return WriteError(f"store {store}: its tail cannot be written ({error.strerror})")
