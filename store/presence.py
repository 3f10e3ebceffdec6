"""Whether the files of an open store are still in their places.

A process that has files open goes on writing to them when they are removed, moved or replaced, and
notices nothing; what it writes then is lost to everybody else. So names are compared with what was
opened, many times a second.
"""

from __future__ import annotations

import os
from pathlib import Path

from equipoise.store.descriptors import DatabaseFile, Identity, identity
from equipoise.store.errors import DisplacedStoreError, ReadOnlyStoreError, StoreError
from equipoise.store.lock import WriterLock
from equipoise.store.mark import Mark, mark_path


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
