"""A whole store into another database: all of it, or nothing that could be taken for a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equipoise.store.address import Where, is_url, shown
from equipoise.store.errors import StoreError
from equipoise.store.files import sync_to_disk
from equipoise.store.format.frames import tail_files
from equipoise.store.format.mark import mark_path
from equipoise.store.opening import open_store
from equipoise.store.sql.chain import Anchor
from equipoise.store.sql.connection import Connection
from equipoise.store.sql.copying import Insert, Write, check_copy, fill
from equipoise.store.sql.store import SqlStore
from equipoise.store.sqlite import SqliteStore

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """What was copied: rows of the log, decisions, rows of all tables; anchor: where the chains
    end, here as there."""

    log_rows: int
    decisions: int
    table_rows: int
    anchor: Anchor


def check_target(target: Where) -> None:
    """Raise StoreError where anything is in the place of a store."""
    if is_url(target):
        from equipoise.store.postgres.loading import check_empty

        check_empty(str(target))
        return
    path = Path(target).absolute()
    if not path.parent.is_dir():
        raise StoreError(f"{path}: folder {path.parent} does not exist")
    beside = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", ".lanes"))]
    for each in (*beside, mark_path(path), *tail_files(path)):
        if each.exists():
            raise StoreError(f"{each} exists: nothing is replaced")


def holds_hub(url: Where) -> bool:
    """Whether many deciders ever met in a schema."""
    from equipoise.store.postgres import loading

    return loading.holds_hub(str(url))


def move(
    source: SqlStore,
    target: Where,
    at: float,
    before: Callable[[Connection | None], None] = lambda connection: None,
    progress: Progress = lambda doing, rows: None,
) -> Moved:
    """Copy a store that is open for writing, so that nobody writes to it, to where nothing is.

    at: now, in seconds since the epoch. before: done when the copy is whole and compared, just
    before it appears; where that fails it does not. It is given the connection of a PostgreSQL
    target, whose transaction ends after it.
    Raises StoreError; then nothing is at the target.
    """
    anchor, rows, decisions = source.anchor(at), source.next_seq, source.decisions
    count = 0

    def write(connection: Connection, insert: Insert) -> None:
        nonlocal count
        count = fill(connection, source.pieces(rows), insert, lambda n: progress("copying", n))
        check_copy(connection, anchor, rows, lambda n: progress("comparing", n))

    if is_url(target):
        from equipoise.store.postgres.loading import load

        load(str(target), source.truncation.begins, rows, decisions, write, before)
    else:
        _load(Path(target).absolute(), write, before)
    return Moved(rows, decisions, count, anchor)


def _load(path: Path, write: Write, before: Callable[[Connection | None], None]) -> None:
    """Make a SQLite store under a hidden name, then give it its own."""
    scratch = path.with_name(f".{path.name}.migrate-{os.getpid()}")
    try:
        with SqliteStore(scratch) as store:
            store.load(write)
        with open_store(scratch, read_only=True) as store:
            store.anchor(0.0)  # it opens
        sync_to_disk(scratch)
        before(None)
        try:
            os.link(scratch, path)  # unlike a rename it never replaces
        except FileExistsError:
            raise StoreError(f"{path} exists: nothing is replaced") from None
        sync_to_disk(path.parent)
    except OSError as error:
        raise StoreError(f"{shown(path)}: {error.strerror or error}") from error
    finally:
        for end in ("", "-wal", "-shm", ".mark", ".lock"):
            with contextlib.suppress(OSError):
                scratch.with_name(scratch.name + end).unlink()
