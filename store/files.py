"""The files of a store as the operating system has them: descriptors, identity, the writer's lock.

SQLite's locks are POSIX locks, and those of a process on a file end when the process closes any
descriptor of it. A header that was read and closed again would so take the locks from under every
open connection, and the next program that closes the database last would delete its journal.

The writer's lock on the file itself is held here too. It is a `flock`, which knows nothing of
POSIX locks, and belongs to the file and not to a name.

That there is one writer per file, whatever names it has, is seen to by `descriptors`; this lock
comes first, and is there before the file is.

The operating system drops the lock when the process dies, however it dies, so a killed writer
never blocks the next one. The lock belongs to an open file, which a forked child would share and
keep alive after its parent; children therefore close theirs at birth.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from equipoise.store.errors import ReadOnlyStoreError, StoreInUseError

Identity: TypeAlias = tuple[int, int]
"""Device and inode."""


@dataclass(slots=True)
class _Held:
    descriptor: int
    users: int = 0
    writer: bool = False


_held: dict[Identity, _Held] = {}


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
        if self.identity not in _held:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.identity = identity(os.fstat(descriptor))
            if self.identity in _held:  # replaced in between by one that is open already
                self.identity = (-1, descriptor)
            _held[self.identity] = _Held(descriptor)
        self._held: _Held | None = _held[self.identity]
        self._held.users += 1
        self._writes = False

    @property
    def descriptor(self) -> int:
        assert self._held is not None
        return self._held.descriptor

    def lock(self, store: Path) -> None:
        """Become the file's one writer, by whatever name it is opened. Raises StoreInUseError."""
        assert self._held is not None
        refusal = StoreInUseError(
            f"store {store} is open for writing by another writer, under this or another name"
        )
        if self._held.writer:
            raise refusal
        try:
            fcntl.flock(self._held.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        self._held.writer = self._writes = True

    def release(self) -> None:
        """Let go; after every connection of whoever held this share. Again is no error."""
        held, self._held = self._held, None
        if held is None:
            return
        held.users -= 1
        if self._writes:
            fcntl.flock(held.descriptor, fcntl.LOCK_UN)
            held.writer = False
        if not held.users:
            _held.pop(self.identity, None)
            os.close(held.descriptor)


def _forget_in_child() -> None:
    # A forked child would keep the lock alive after its parent.
    for held in _held.values():
        os.close(held.descriptor)
        held.writer = False
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


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


def _forget_locks_in_child() -> None:
    for lock in tuple(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_locks_in_child)
