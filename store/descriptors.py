"""One descriptor a process for every database file, kept while a store of the process is open.

SQLite's locks are POSIX locks, and those of a process on a file end when the process closes any
descriptor of it. A header that was read and closed again would so take the locks from under every
open connection, and the next program that closes the database last would delete its journal.

The writer's lock on the file itself is held here too. It is a `flock`, which knows nothing of
POSIX locks, and belongs to the file and not to a name.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from equipoise.store.errors import StoreInUseError

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
