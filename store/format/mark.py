"""How far a log had come, in a small file beside it; and whether the files of a store are in place.

The log's own end cannot say that something is missing behind it. This file can: with every append
it is told how many rows and decisions there are, by a copy into a mapped page, which the death of
the process cannot undo. For the death of the machine decision numbers are reserved in blocks, each
on the disk before any number of it is given out; after one the next number lies beyond the block.

It also says to which store it belongs, and which journal SQLite was writing.

A process that has files open goes on writing to them when they are removed, moved or replaced, and
notices nothing; what it writes then is lost to everybody else. So names are compared with what was
opened, many times a second.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct

from equipoise.store.errors import DisplacedStoreError, ReadOnlyStoreError, StoreError
from equipoise.store.files import DatabaseFile, Identity, WriterLock, identity

BLOCK = 16_384
"""Decision numbers that are reserved together: what a machine that stops may cost."""

_MAGIC = b"EQPSMARK"
_RECORD = Struct("<8s16s16sQQQQIIB")
_HEAD, _COUNTS, _REST = Struct("<8s16s16s"), Struct("<QQQ"), Struct("<QIIB")
"""The same in three parts, of which most writes change the second alone."""
_CRC = Struct("<I")
_SLOT, _BYTES = 512, 4096
_NO_SALTS = (0, 0)
_WAL_HEADER = 32
_RESTARTS = 1024
"""Journals that SQLite may have begun anew since the mark last heard of one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """rows, decisions: of the log; reserved: decision numbers that may have been given out.

    store_id: of the store, boot: of the run of the machine (b"" where it is not known). salts: of
    SQLite's journal, (0, 0) for none. clean: the writer ended in order, with all rows in SQLite.
    """

    store_id: bytes
    boot: bytes
    rows: int = 0
    decisions: int = 0
    reserved: int = 0
    salts: tuple[int, int] = _NO_SALTS
    clean: bool = False


def mark_path(store: Path) -> Path:
    return store.with_name(store.name + ".mark")


def boot_id() -> bytes:
    """16 bytes that change with every start of the machine, b"" where it does not tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return b""


def read_mark(store: Path) -> Standing | None:
    """What the mark of a store says; None where there is none, or none that can be read."""
    try:
        data = mark_path(store).read_bytes()
    except OSError:
        return None
    newest: tuple[int, Standing] | None = None
    for start in (0, _SLOT):
        record = data[start : start + _RECORD.size]
        checksum = data[start + _RECORD.size : start + _RECORD.size + _CRC.size]
        if len(checksum) < _CRC.size or zlib.crc32(record) != _CRC.unpack(checksum)[0]:
            continue
        magic, store_id, boot, turn, rows, decisions, reserved, *salts, clean = _RECORD.unpack(
            record
        )
        if magic == _MAGIC and (newest is None or turn > newest[0]):
            boot = boot if any(boot) else b""
            standing = Standing(
                store_id, boot, rows, decisions, reserved, (salts[0], salts[1]), bool(clean)
            )
            newest = turn, standing
    return None if newest is None else newest[1]


def wal_salts(store: Path) -> tuple[int, int]:
    """The two numbers by which SQLite knows the journal beside a database, (0, 0) without one."""
    # No POSIX lock lies on the journal, so opening and closing it takes none away.
    try:
        with store.with_name(store.name + "-wal").open("rb") as file:
            header = file.read(_WAL_HEADER)
    except OSError:
        return _NO_SALTS
    if len(header) < _WAL_HEADER:
        return _NO_SALTS
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def is_own_journal(standing: Standing, salts: tuple[int, int]) -> bool:
    """Whether a journal of these salts can be what the writer of a mark left.

    SQLite adds 1 to the first salt when it begins a journal anew and draws the second.
    """
    if salts == _NO_SALTS or salts == standing.salts:
        return True
    if standing.salts == _NO_SALTS:
        return not standing.clean
    return 0 < (salts[0] - standing.salts[0]) % 2**32 < _RESTARTS


class Mark:
    """The mark of a store that this process writes. For any thread.

    Raises OSError where the file cannot be made or written.
    """

    def __init__(self, store: Path, standing: Standing) -> None:
        path = mark_path(store)
        self.standing = replace(standing, clean=False)
        self._turn = 0
        self._packed: Standing | None = None
        self._head = self._rest = b""
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(self._file, 0o600)
            os.posix_fallocate(self._file, 0, _BYTES)
            self._map = mmap.mmap(self._file, _BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self.identity = identity(os.fstat(self._file))
        self._rows, self._decisions = standing.rows, standing.decisions
        # Above what either slot holds, so that the newest is the one that counts.
        self._turn = max(_RECORD.unpack_from(self._map, start)[3] % 2**62 for start in (0, _SLOT))
        for _ in range(2):
            self._write()
        self.sync()

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def reserved(self) -> int:
        return self.standing.reserved

    def advance(self, rows: int, decisions: int) -> None:
        """The log has so many rows and decisions now; fewer than before are no news."""
        with self._lock:
            if self._file >= 0 and (rows > self._rows or decisions > self._decisions):
                self._rows, self._decisions = max(rows, self._rows), max(decisions, self._decisions)
                self._write()

    def reserve(self, decisions: int) -> None:
        """Have so many decision numbers, and a block more, reserved on the disk; never fewer than
        before: another thread may have counted more meanwhile."""
        with self._lock:
            if self._file < 0:
                return  # of a closed store, which says so itself
            most = max(decisions + BLOCK, self.standing.reserved)
            self.standing = replace(self.standing, reserved=most)
            self._write()
        self.sync()

    def note_journal(self, salts: tuple[int, int]) -> None:
        """Remember which journal SQLite is writing."""
        if salts != self.standing.salts and self._file >= 0:
            with self._lock:
                self.standing = replace(self.standing, salts=salts)
                self._write()

    def prod(self) -> None:
        """Write a page of the file by a system call, which fails where the disk is not writable."""
        os.pwrite(self._file, b"\0", _BYTES - 1)

    def sync(self) -> None:
        os.fdatasync(self._file)

    def close(self, clean: bool, salts: tuple[int, int]) -> None:
        """Let go. clean: all rows are in SQLite. Again is no error."""
        if self._file < 0:
            return
        with self._lock:
            if clean:
                self.standing = replace(
                    self.standing, clean=True, salts=salts, reserved=self._decisions
                )
                self._write()
                # Where it fails, a stop of the machine costs a block of numbers.
                with contextlib.suppress(OSError):
                    self.sync()
            self._map.close()
            os.close(self._file)
            self._file = -1

    def _write(self) -> None:
        """Into the slot whose turn it is: the other one is whole, whenever the process dies."""
        self._turn += 1
        standing = self.standing
        if standing is not self._packed:
            self._head = _HEAD.pack(_MAGIC, standing.store_id, standing.boot)
            self._rest = _REST.pack(standing.reserved, *standing.salts, standing.clean)
            self._packed = standing
        counts = _COUNTS.pack(self._turn, self._rows, self._decisions)
        record = self._head + counts + self._rest
        start = _SLOT * (self._turn & 1)
        self._map[start : start + _RECORD.size + _CRC.size] = record + _CRC.pack(zlib.crc32(record))


class Presence:
    """The files of a writer by device and inode. Messages name files and no folders."""

    def __init__(self, path: Path, file: DatabaseFile, mark: Mark, lock: WriterLock) -> None:
        self._path, self._mark = path, mark
        self._size = 0
        self._opened: dict[Path, Identity] = {
            path: file.identity,
            mark_path(path): mark.identity,
            path.with_name(path.name + ".lock"): lock.identity,
        }
        for suffix in ("-wal", "-shm"):
            beside = path.with_name(path.name + suffix)
            self._opened[beside] = identity(os.stat(beside))
        self._rows = mark.rows

    def check(self) -> StoreError | None:
        """What is wrong with the files, None where nothing is."""
        words = self._displaced()
        if words is not None:
            return DisplacedStoreError(f"{words}: nothing that is logged now would be found")
        try:
            if os.statvfs(self._path).f_flag & os.ST_RDONLY:
                return ReadOnlyStoreError(f"the file system of {self._path.name} is read-only")
            if self._mark.rows != self._rows:
                # Memory takes writes that a file system in trouble refuses; a call says so.
                self._mark.prod()
                self._rows = self._mark.rows
        except OSError as error:
            return ReadOnlyStoreError(
                f"the file system of {self._path.name} refuses writes: {error.strerror}"
            )
        return None

    def _displaced(self) -> str | None:
        for path, opened in self._opened.items():
            try:
                facts = os.stat(path)
            except OSError:
                return f"{path.name} is gone"
            if identity(facts) != opened:
                return f"{path.name} is another file than the one that was opened"
            if path == self._path:
                if facts.st_size < self._size:
                    return f"{path.name} was cut short"
                if facts.st_nlink > 1:
                    return f"{path.name} has {facts.st_nlink} names"
                self._size = facts.st_size
        return None
