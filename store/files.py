"""What can be said about a store's file before SQLite touches it.

SQLite notices a file that misses whole pages, but not one whose last page is cut, and it takes
an empty file for a new database; so the header is compared with the file here first.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from equipoise.store.descriptors import DatabaseFile
from equipoise.store.errors import (
    CorruptStoreError,
    LostRowsError,
    MissingStoreError,
    NotAStoreError,
    ReadOnlyStoreError,
    StoreError,
)
from equipoise.store.tail import tail_files

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_SETTLE_SECONDS = 0.05


def check_path(path: Path, read_only: bool) -> None:
    """Refuse a path that cannot be a store: one clear StoreError each.

    A path without a file is fine for a writer (a new store), not for a reader.
    """
    if path.is_dir():
        raise NotAStoreError(f"store {path} is a directory, expected a file")
    if not path.exists():
        if read_only:
            raise MissingStoreError(f"store {path} does not exist")
        if not path.parent.is_dir():
            raise MissingStoreError(f"store {path}: folder {path.parent} does not exist")
        return
    if not os.access(path, os.R_OK):
        raise ReadOnlyStoreError(f"store {path} may not be read by this user")
    if not read_only and not os.access(path, os.W_OK):
        raise ReadOnlyStoreError(f"store {path} is a read-only file: open it with read_only=True")


def check_header(path: Path, read_only: bool) -> None:
    """Refuse a file that is no SQLite database, or is shorter than it says.

    A writer calls this while it holds the lock, so that nobody else changes the file meanwhile.
    """
    header, size = _header(path)
    if not header:
        if _has_journal(path):
            raise CorruptStoreError(f"store {path} is truncated: empty beside its journal")
        if read_only:
            raise NotAStoreError(f"{path} is empty, expected an equipoise store")
        return
    if not header.startswith(_MAGIC[: len(header)]):
        raise NotAStoreError(f"{path} is not a SQLite database")
    expected = _expected_size(header)
    if size >= expected:
        return
    if read_only:
        # A writer at work may have been between two writes; look again.
        time.sleep(_SETTLE_SECONDS)
        header, size = _header(path)
        expected = _expected_size(header)
    # While there is a journal it may hold the missing pages; then SQLite is the judge.
    if size < expected and not _has_journal(path):
        raise CorruptStoreError(
            f"store {path} is truncated: {size} bytes, its header says {expected}"
        )


def check_beside(path: Path) -> None:
    """Refuse to write a store that is gone from beside its own files, or has several names.

    Raises LostRowsError or StoreError, and has written nothing.
    """
    if path.exists():
        links = path.stat().st_nlink
        if links > 1:
            raise StoreError(
                f"store {path} has {links} names (hard links), and a journal and a tail for each:"
                " remove the others"
            )
        return
    left = [path.with_name(path.name + suffix) for suffix in ("-wal", ".mark")]
    left += tail_files(path)
    names = ", ".join(each.name for each in left if each.exists())
    if names:
        raise LostRowsError(
            f"store {path} does not exist, but {names} of it does: put it back, or restore a"
            " backup; to begin anew move them away, and the key too"
        )


def set_aside(path: Path) -> str:
    """Keep a damaged file under a name that nothing reads; the name."""
    target = path.with_name(f"{path.name}.damaged")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.damaged.{count}")
    path.rename(target)
    return target.name


def _header(path: Path) -> tuple[bytes, int]:
    file = DatabaseFile(path)  # never opened and closed beside open connections
    try:
        descriptor = file.descriptor
        return os.pread(descriptor, _HEADER_BYTES, 0), os.fstat(descriptor).st_size
    finally:
        file.release()


def _expected_size(header: bytes) -> int:
    """Bytes by the database header: page size at 16, pages at 28, valid where 24 equals 92."""
    if len(header) < _HEADER_BYTES:
        return _HEADER_BYTES
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big") if header[24:28] == header[92:96] else 1
    return page_size * max(pages, 1)


def _has_journal(path: Path) -> bool:
    journal = path.with_name(path.name + "-wal")
    return journal.exists() and journal.stat().st_size > 0
