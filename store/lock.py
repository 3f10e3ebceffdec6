"""One writer per name: an advisory lock on `<path>.lock`, held for the life of the writer.

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
from pathlib import Path

from equipoise.store.descriptors import identity
from equipoise.store.errors import ReadOnlyStoreError, StoreInUseError


class WriterLock:
    """The right to write a store, from construction to `release`.

    Raises StoreInUseError where another writer, in this process or another, holds it.
    """

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(store.name + ".lock")
        self._file = _lock(self._path, store)
        self.identity = identity(os.fstat(self._file))
        _held.add(self)

    def release(self) -> None:
        """Give the right up and remove the lock file. Releasing again is no error."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # the lock is what counts, not its file
                self._path.unlink()
            self._forget()

    def _forget(self) -> None:
        _held.discard(self)
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


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in tuple(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_in_child)
