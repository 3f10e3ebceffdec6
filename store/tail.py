"""The tail of a log: batches on disk before SQLite has them, one checked frame each.

A frame is appended with one write, which the death of the process cannot undo; SQLite follows in
large transactions, and files whose frames it holds are removed. What a killed writer left behind
is replayed by the next one.

Files are `<store>.tail.1`, `<store>.tail.2`, …. A frame is a header (payload bytes, CRC-32 of
what follows it, seq of the first row) and the batch as msgpack: its table, its rows, its columns,
arrays as little-endian bytes.
"""

from __future__ import annotations

import contextlib
import errno
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

FILE_BYTES = 8 << 20
"""A file that has grown beyond this is followed by a new one."""

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

    sync: when frames reach the disk itself: "never" (when the system likes), "each" (before
    `append` returns), or "asked" (when `begin_sync` is called).
    Not for several threads, but `forget` may come from another one.
    """

    def __init__(self, store: Path, sync: Sync) -> None:
        self._store = store
        self._sync = sync
        self._number = 0
        self._file = -1
        self._size = 0
        self._last = -1
        self._closed: list[tuple[int, Path]] = []

    def append(self, seq: int, rows: int, frame: bytes) -> None:
        """Write the frame of rows seq … seq + rows - 1.

        Raises FullStoreError, ReadOnlyStoreError or WriteError; the tail then ends as before.
        """
        try:
            if self._file < 0 or self._size > FILE_BYTES:
                self._begin()
            written = os.write(self._file, frame)
            if written < len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._sync == "each":
                os.fdatasync(self._file)
        except OSError as error:
            self._undo()
            raise _as_store_error(self._store, error) from error
        self._size += len(frame)
        self._last = seq + rows

    def probe(self) -> None:
        """Raise what `append` would: write a page of zeros, which is no frame, and take it back."""
        try:
            if self._file < 0:
                self._begin()
            room = b"\0" * _PROBE_BYTES
            if os.write(self._file, room) < len(room):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _as_store_error(self._store, error) from error
        finally:
            self._undo()

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
        if self._file >= 0:
            if self._sync == "asked":
                os.fdatasync(self._file)
            os.close(self._file)
            self._closed.append((self._last, self._path()))
            self._file = -1

    def _begin(self) -> None:
        self.close()
        self._number += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path(), flags, 0o644)
        self._size = 0
        if self._sync != "never":
            folder = os.open(self._store.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _undo(self) -> None:
        """Cut off what a failed write left; where even that fails, go on in a new file."""
        if self._file < 0:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self.close()

    def _path(self) -> Path:
        return self._store.with_name(f"{self._store.name}.tail.{self._number}")


def _as_store_error(store: Path, error: OSError) -> WriteError | ReadOnlyStoreError:
    if error.errno in _FULL:
        return FullStoreError(f"store {store}: no room for its tail ({error.strerror})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyStoreError(f"store {store}: its tail may not be written ({error.strerror})")
    return WriteError(f"store {store}: its tail cannot be written ({error.strerror})")
