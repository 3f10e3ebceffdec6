"""Copies of a store with its key, made while it is written, and put back only where nothing is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.atomic_files import whole_folder, write_new
from equipoise.agent.maintenance.audit_chain import MANIFEST
from equipoise.agent.maintenance.key_file import key_path, read_key, write_key
from equipoise.store.files import WriterLock
from equipoise.store.format.frames import end_at_damage, tail_files
from equipoise.store.format.mark import mark_path, read_mark
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.sql.chain import Anchor
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite.connection import (
    as_store_error,
    check_header,
    check_path,
    inspect_store,
)
from equipoise.store.sqlite.opening import store_id_of
from equipoise.store.sqlite.schema import check_identity, newest

STORE = "store.db"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup folder holds. schema_version: of the store; sha256: of its file. anchor: where
    its chains ended, None where an older version made it, or its schema is older."""

    log_rows: int
    schema_version: int
    sha256: str
    key: bool
    anchor: Anchor | None = None


def back_up(store: Path, out: Path, *, force: bool = False) -> dict[str, object]:
    """Copy a store and its key to a new folder; what its manifest says.

    The copy holds every row acknowledged before the call, those of the daemon's tail included.
    An older schema is copied as it is, so that a backup can be made before an upgrade.
    force: replace a folder that holds a backup, once the new one is whole.
    Raises StoreError where there is no store, AgentError where `out` exists otherwise.
    """
    check_path(store, read_only=True)
    check_header(store, read_only=True)
    key = read_key(store)
    with whole_folder(out, replace=MANIFEST if force else None, source=store) as folder:
        folder.chmod(0o700)
        copy = folder / STORE
        # The tail first: what leaves it meanwhile is in the database by then.
        tails: list[Path] = []
        for path in tail_files(store.resolve()):
            with contextlib.suppress(FileNotFoundError):
                copied = folder / path.name.replace(store.resolve().name, STORE, 1)
                _copy(path, copied)
                tails.append(copied)
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL, 0o600))
        version = _copy_database(store, copy)
        for path in tails:
            # A frame that was written while it was copied may have come in two halves.
            end_at_damage(path, store_id_of(copy))
        rows, anchor = _settle(copy) if version == newest() else (_rows(copy), None)
        mark_path(copy).unlink(missing_ok=True)
        if key is not None:
            write_key(copy, key)
        manifest = Manifest(
            log_rows=rows,
            schema_version=version,
            sha256=_digest(copy),
            key=key is not None,
            anchor=anchor,
        )
        write_new({folder / MANIFEST: (msgspec.json.encode(manifest).decode(), 0o600)})
    return _facts(manifest)


def put_back(folder: Path, store: Path) -> dict[str, object]:
    """Copy a backup to where a store is to be; what its manifest says, and what the store that was
    there had logged since.

    Raises AgentError where the folder is no whole backup, or anything of a store is at `store`.
    """
    manifest = _read_manifest(folder)
    source = folder / STORE
    if not source.is_file() or _digest(source) != manifest.sha256:
        raise AgentError(f"{source} is not the store of its manifest: the backup is damaged")
    key = read_key(source)
    if manifest.key and key is None:
        raise AgentError(f"{key_path(source)} is missing: the backup is damaged")
    damage = inspect_store(source).damage if manifest.schema_version == newest() else ()
    if damage:
        raise AgentError(f"{source} is damaged: {damage[0]}")
    for path in _parts(store):
        if path.exists():
            raise AgentError(f"{path} exists: move it away first, nothing is replaced")
    mark = read_mark(store.absolute())
    if mark is not None and mark.store_id != store_id_of(source):
        raise AgentError(f"{mark_path(store)} is of another store: move it away first")
    # What a killed writer left of its lock is in nobody's way; a writer is.
    WriterLock(store.absolute()).release()
    scratch = store.with_name(f".{store.name}.restore-{os.getpid()}")
    try:
        _copy(source, scratch)
        if key is not None:
            write_key(store, key)
        os.link(scratch, store)  # unlike a rename it never replaces
    except FileExistsError:
        raise AgentError(f"{store} exists: nothing is replaced") from None
    except BaseException:
        key_path(store).unlink(missing_ok=True)
        raise
    finally:
        scratch.unlink(missing_ok=True)
    losses = []
    if mark is not None:
        # The log had come further than the backup: numbers since are noted, and not given again.
        with SqliteStore(store, accept_loss=True) as opened:
            losses = [gap.sentence for gap in opened.leftovers.gaps]
    return {**_facts(manifest), "losses": losses}


def _facts(manifest: Manifest) -> dict[str, object]:
    facts: dict[str, object] = msgspec.to_builtins(manifest)
    return facts


def _parts(store: Path) -> Iterator[Path]:
    yield store
    yield key_path(store)
    for suffix in ("-wal", "-shm"):
        yield store.with_name(store.name + suffix)
    if store.absolute().parent.is_dir():
        yield from tail_files(store.absolute())


def _copy_database(store: Path, copy: Path) -> int:
    """Copy all pages in one read transaction; the schema version."""
    location = f"{store.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(location, uri=True)) as source:
            version = check_identity(source, store)
            with contextlib.closing(sqlite3.connect(copy)) as target:
                source.backup(target)
    except sqlite3.Error as error:
        raise as_store_error(f"store {store}", error) from error
    return version


def _settle(copy: Path) -> tuple[int, Anchor]:
    """Take the copied tail into the copied database; the rows of its log, and its anchor."""
    with SqliteStore(copy) as opened:
        return opened.next_seq, opened.anchor(time.time())


def _rows(copy: Path) -> int:
    """The rows of the log of an older schema, whose tables of rows were the same."""
    with contextlib.closing(
        sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)
    ) as opened:
        return sum(
            int(opened.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0])
            for table in LOG_TABLES
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file to a new one that only its owner may read."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as written, source.open("rb") as read:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise AgentError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise AgentError(f"{path} is no manifest of a backup: {error}") from None
