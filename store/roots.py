"""Where a log may begin: states kept in time, one of them sealed when the rows before it go.

A root is a state after the rows before `seq`, kept apart from the checkpoints. Once it is sealed
the log begins there: its digest vouches for what came before, and those rows may be removed.
Functions of an open connection; those that write run inside the caller's transaction.
"""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING

from equipoise.store import chain
from equipoise.store.batches import Buffer
from equipoise.store.errors import CorruptStoreError

if TYPE_CHECKING:
    from sqlite_utils import Database

_COVERED, _OF_CHECKPOINT = Struct("<qqd"), Struct("<qd")
_COLUMNS = "id, seq, decisions, at, state, checksum, sealed_at, digest"
PIECE = 1 << 20
BEGINS = "coalesce((SELECT max(seq) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first row of the log."""
FIRST_NUMBER = "coalesce((SELECT max(decisions) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first decision of the log."""


@dataclass(frozen=True, slots=True)
class Root:
    """seq, decisions: rows and decisions before it. at: when its state was kept; sealed_at: when
    the rows before it went, None while they are there; both seconds since the epoch. digest:
    SHA-256 over those rows and the digest of the root before."""

    seq: int
    decisions: int
    at: float
    state: Buffer
    sealed_at: float | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class KeptState:
    """A checkpoint or a root that is kept: the state after the rows before `seq`. whole: whether
    its checksum holds; noted: whether that is the one which was kept beside it, None where nothing
    was."""

    kind: str
    seq: int
    whole: bool
    noted: bool | None


def create_roots(database: Database) -> None:
    """Migration 6: the table of roots. History, like the first schema: never edit it."""
    database.create_table(
        "roots",
        {
            "id": int,
            "seq": int,
            "decisions": int,
            "at": float,
            "checksum": str,
            "state": bytes,
            "sealed_at": float,
            "digest": str,
        },
        pk="id",
        not_null={"seq", "decisions", "at", "checksum", "state"},
        strict=True,
    )


def insert_root(connection: sqlite3.Connection, root: Root) -> None:
    """Keep a root; not where the log begins there already."""
    sealed = "SELECT 1 FROM roots WHERE seq = ? AND sealed_at IS NOT NULL"
    if connection.execute(sealed, (root.seq,)).fetchone():
        return
    checksum = _checksum(root)
    key = connection.execute(
        "INSERT INTO roots (seq, decisions, at, checksum, state) VALUES (?, ?, ?, ?, ?)",
        (root.seq, root.decisions, root.at, checksum, root.state),
    ).lastrowid
    chain.note_state(connection, "root", key or 0, root.seq, checksum)
    chain.mark(connection, root.seq)


def sealed_root(connection: sqlite3.Connection) -> Root | None:
    """The root that the log begins at, None where it begins at row 0.

    Raises CorruptStoreError where its checksum does not hold: nothing else can be read then.
    """
    return _first(connection, "sealed_at IS NOT NULL ORDER BY seq DESC")


def newest_root(
    connection: sqlite3.Connection, before: float, beyond: int, newer: int
) -> Root | None:
    """The newest root that is not sealed, kept no later than `before`, beyond row `beyond`, with
    at least `newer` kept after it."""
    condition = (
        "sealed_at IS NULL AND at <= ? AND seq > ?"
        " AND (SELECT count(*) FROM roots AS other WHERE other.id > roots.id) >= ?"
        " ORDER BY seq DESC"
    )
    return _first(connection, condition, before, beyond, newer)


def last_kept(connection: sqlite3.Connection, now: float) -> float | None:
    """When the newest root was kept, of those that are not dated later than `now`."""
    found: float | None = connection.execute(
        "SELECT max(at) FROM roots WHERE at <= ?", (now,)
    ).fetchone()[0]
    return found


def seal(connection: sqlite3.Connection, seq: int, sealed_at: float, digest: str) -> None:
    """Let the log begin at the oldest root of this seq; what was kept before is not needed."""
    first = "(SELECT min(id) FROM roots WHERE seq = ?)"
    connection.execute(f"DELETE FROM roots WHERE seq <= ? AND id != {first}", (seq, seq))
    connection.execute(
        "UPDATE roots SET sealed_at = ?, digest = ? WHERE seq = ?", (sealed_at, digest, seq)
    )


def kept_states(connection: sqlite3.Connection) -> list[KeptState]:
    """Every checkpoint, then every root."""
    found = []
    notes = chain.state_notes(connection, "checkpoint")
    for key, seq, at, state, checksum in connection.execute(
        "SELECT id, seq, at, state, checksum FROM checkpoints ORDER BY id"
    ):
        whole = checkpoint_checksum(seq, at, state) == checksum
        noted = chain.is_noted(notes, "checkpoint", key, seq, checksum) if key in notes else None
        found.append(KeptState("checkpoint", seq, whole, noted))
    notes = chain.state_notes(connection, "root")
    for key, seq, decisions, at, state, checksum in connection.execute(
        "SELECT id, seq, decisions, at, state, checksum FROM roots ORDER BY id"
    ):
        whole = _checksum(Root(seq, decisions, at, state)) == checksum
        noted = chain.is_noted(notes, "root", key, seq, checksum) if key in notes else None
        found.append(KeptState("root", seq, whole, noted))
    return found


def _first(connection: sqlite3.Connection, condition: str, *values: float) -> Root | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM roots WHERE {condition} LIMIT 1", values
    ).fetchone()
    if row is None:
        return None
    _, seq, decisions, at, state, checksum, sealed_at, digest = row
    root = Root(seq, decisions, at, state, sealed_at, digest or "")
    if _checksum(root) != checksum:
        raise CorruptStoreError(f"the state that the log goes on from at row {seq} is damaged")
    return root


def checkpoint_checksum(seq: int, at: float, state: Buffer) -> str:
    """What is kept beside a checkpoint, so that a damaged one is noticed."""
    covered = sha256(_OF_CHECKPOINT.pack(seq, at))
    for piece in pieces(state):
        covered.update(piece)
    return covered.hexdigest()


def pieces(state: Buffer) -> Iterator[bytes]:
    """The bytes of a state a megabyte at a time; pages of a file are let go again."""
    for start in range(0, len(state), PIECE):
        piece = state[start : start + PIECE]
        yield piece
        if isinstance(state, mmap.mmap):
            state.madvise(mmap.MADV_DONTNEED, start, len(piece))


def _checksum(root: Root) -> str:
    covered = sha256(_COVERED.pack(root.seq, root.decisions, root.at))
    for piece in pieces(root.state):
        covered.update(piece)
    return covered.hexdigest()
