"""The files of a store as the operating system has them: descriptors, identity, the writer's locks.

SQLite's locks are POSIX locks, and those of a process on a file end when the process closes any
descriptor of it. A header that was read and closed again would so take the locks from under every
open connection, and the next program that closes the database last would delete its journal. A
process therefore shares one descriptor of each database (`DatabaseFile`).

There is one writer a file. A `flock` on `<store>.lock` (`WriterLock`) comes first, and is there
before the database is; one on the database itself belongs to the file, whatever names it has, and
knows nothing of POSIX locks. The operating system drops both when the process dies, however it
dies, so a killed writer never blocks the next one. They belong to open files, which a forked child
would share and keep alive after its parent; children therefore close theirs at birth.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.store.errors import ReadOnlyStoreError, StoreInUseError

Identity: TypeAlias = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True)
class _OpenFile:
    descriptor: int
    users: int = 0
    writer: bool = False


_open_files: dict[Identity, _OpenFile] = {}


def identity(facts: os.stat_result) -> Identity:
    return facts.st_dev, facts.st_ino


def sync_to_disk(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DatabaseFile:
    """A share in the descriptor of a database file that exists, until `release`."""

    def __init__(self, path: Path) -> None:
        self.identity = identity(os.stat(path))
        if self.identity not in _open_files:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.identity = identity(os.fstat(descriptor))
            if self.identity in _open_files:  # replaced in between by one that is open already
                self.identity = (-1, descriptor)
            _open_files[self.identity] = _OpenFile(descriptor)
        self._share: _OpenFile | None = _open_files[self.identity]
        self._share.users += 1
        self._writes = False

    @property
    def descriptor(self) -> int:
        assert self._share is not None
        return self._share.descriptor

    def lock(self, store: Path) -> None:
        """Become the file's one writer, by whatever name it is opened. Raises StoreInUseError."""
        assert self._share is not None
        if self._share.writer:
            raise _open_here(store)
        try:
            fcntl.flock(self._share.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUseError(
                f"store {store} is open for writing by another writer, under this or another name"
            ) from None
        self._share.writer = self._writes = True

    def release(self) -> None:
        """Let go; after every connection of whoever held this share. Again is no error."""
        share, self._share = self._share, None
        if share is None:
            return
        share.users -= 1
        if self._writes:
            fcntl.flock(share.descriptor, fcntl.LOCK_UN)
            share.writer = False
        if not share.users:
            _open_files.pop(self.identity, None)
            os.close(share.descriptor)


class WriterLock:
    """The right to write a store, from construction to `release`.

    Raises StoreInUseError where another writer, in this process or another, holds it.
    """

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(store.name + ".lock")
        self._file = _lock(self._path, store)
        self.identity = identity(os.fstat(self._file))
        _locks.add(self)

    def release(self) -> None:
        """Give the right up and remove the lock file. Releasing again is no error."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # the lock is what counts, not its file
                self._path.unlink()
            self._forget()

    def _forget(self) -> None:
        _locks.discard(self)
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class OpenHereError(StoreInUseError):
    """The writer that holds the store is in this process."""


def _open_here(store: Path) -> OpenHereError:
    return OpenHereError(
        f"store {store} is open for writing in this process already: use the Experiment, or store,"
        " that has it open, or close that first"
    )


def _lock(path: Path, store: Path) -> int:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ReadOnlyStoreError(
                f"store {store} cannot be written: lock file {path.name}: {error.strerror}"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            if holder == str(os.getpid()):
                raise _open_here(store) from None
            raise StoreInUseError(
                f"store {store} is open for writing by another writer (process {holder})"
            ) from None
        if _is_current(file, path):
            os.fchmod(file, 0o600)
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
            return file
        os.close(file)  # the holder before us removed this file after we had opened it


def _is_current(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for share in _open_files.values():
        os.close(share.descriptor)
        share.writer = False
    _open_files.clear()
    for lock in tuple(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_in_child)


_STRIDE = 1 << 36
"""Bytes of the file from one column to the next, nearly all of them a hole."""


class ColumnFile:
    """One file of columns. Raises OSError where there is no room for it."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder, prefix=".equipoise-") as file:
            self._file = os.dup(file.fileno())
        self._maps: dict[str, tuple[int, mmap.mmap, int]] = {}

    def __del__(self) -> None:
        os.close(self._file)

    def column(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A column as an array that lies in the file, with what it held when it was shorter."""
        row = prod(shape[1:]) * dtype.itemsize
        size = max(shape[0] * row, 1)
        place = self._maps[name][0] if name in self._maps else len(self._maps)
        if size > _STRIDE:
            raise OSError(f"a column of {size} bytes is longer than the {_STRIDE} it may have")
        # Room is taken now: a page that finds none later would be the end of the process.
        os.posix_fallocate(self._file, place * _STRIDE, size)
        mapped = mmap.mmap(self._file, size, offset=place * _STRIDE)
        self._maps[name] = place, mapped, row
        array: NDArray[Any] = np.frombuffer(mapped, dtype=dtype, count=prod(shape)).reshape(shape)
        return array

    def release(self, rows: int) -> None:
        """Give back the memory of the first `rows` rows of every column; the file keeps them."""
        for _, mapped, row in self._maps.values():
            length = rows * row // mmap.PAGESIZE * mmap.PAGESIZE
            if length:
                mapped.madvise(mmap.MADV_DONTNEED, 0, length)
