"""Where a log may begin, and what it is known to lack.

A root is a state after the rows before `seq`, kept apart from the checkpoints. Once it is sealed
the log begins there: its digest vouches for what came before, and those rows may be removed.
Functions of an open connection; those that write run inside the caller's transaction.
"""

from __future__ import annotations

import mmap
import sqlite3
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TypeVar

from equipoise.store.batches import Buffer
from equipoise.store.contract import Root, check_checkpoint
from equipoise.store.errors import CorruptStoreError
from equipoise.store.format.sql_rows import LOG_TABLES, Row, Table
from equipoise.store.records import Gap
from equipoise.store.sqlite import chain
from equipoise.store.sqlite.chain import Anchor, Link

_COVERED, _OF_CHECKPOINT = Struct("<qqd"), Struct("<qd")
_COLUMNS = "id, seq, decisions, at, state, checksum, sealed_at, digest"
PIECE = 1 << 20
BEGINS = "coalesce((SELECT max(seq) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first row of the log."""
FIRST_NUMBER = "coalesce((SELECT max(decisions) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first decision of the log."""


@dataclass(frozen=True, slots=True)
class KeptState:
    """A checkpoint or a root that is kept: the state after the rows before `seq`. whole: whether
    its checksum holds; noted: whether that is the one which was kept beside it, None where nothing
    was."""

    kind: str
    seq: int
    whole: bool
    noted: bool | None


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


LOST_UNTIL = "coalesce((SELECT max(first + numbers) FROM gaps), 0)"
"""SQL: the number after the last one that was lost."""
TAKEN = "tail_taken"
"""The fact that names tail files whose rows are in the log while they still stand there."""


def lost_before(gaps: Sequence[Gap], end: int) -> int:
    """How many of the decision numbers before `end` were lost."""
    return sum(min(gap.end, end) - min(gap.first, end) for gap in gaps)


def insert_gap(connection: sqlite3.Connection, gap: Gap) -> None:
    connection.execute(
        'INSERT INTO gaps (at, first, numbers, "row", "rows", reason, kept)'
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (gap.at, gap.first, gap.numbers, gap.row, gap.rows, gap.reason, gap.kept),
    )
    chain.extend_records(connection, "gaps")


def read_gaps(connection: sqlite3.Connection) -> list[Gap]:
    rows = connection.execute(
        'SELECT at, first, numbers, "row", "rows", reason, kept FROM gaps ORDER BY id'
    )
    names = Gap.__struct_fields__
    return [Gap(**dict(zip(names, row, strict=True))) for row in rows]


def read_fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def write_fact(connection: sqlite3.Connection, name: str, value: str | None) -> None:
    """Set a fact; None removes it."""
    connection.execute("DELETE FROM facts WHERE name = ?", (name,))
    if value is not None:
        connection.execute("INSERT INTO facts (name, value) VALUES (?, ?)", (name, value))


T = TypeVar("T")

_DECISIONS_BEFORE = "SELECT number + 1 FROM decisions WHERE seq < ? ORDER BY seq DESC LIMIT 1"


class RootedLog:
    """The part of `SqliteStore` that knows where its log begins."""

    _name: str
    _turn: threading.RLock

    @property
    @abstractmethod
    def next_seq(self) -> int: ...

    @abstractmethod
    def _ask(self, question: Callable[..., T], *values: object) -> T: ...

    @abstractmethod
    def _query(self, sql: str, values: Sequence[int | str] = ()) -> list[Row]: ...

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...

    @property
    def begins(self) -> int:
        """The first row of the log."""
        return int(self._query(f"SELECT {BEGINS}")[0][0])

    def root(self) -> Root | None:
        return self._ask(sealed_root)

    def anchor(self, at: float) -> Anchor:
        """Where the chains of this store end now. at: seconds since the epoch."""
        return self._ask(chain.anchor, at)

    def chain_links(self) -> tuple[list[Link], Link | None]:
        """Every stored digest of the log, and the one where its chain ends."""
        return self._ask(chain.links)

    def chained_records(self, name: str) -> tuple[Link | None, dict[int, str]]:
        """Where the chain of one kind of records ends, and the digest after each that is there."""
        return self._ask(chain.record_digests, name)

    def rows_in_order(self, since: int, until: int) -> list[tuple[str, Row]]:
        """(table, row) of the rows with since <= seq < until in order, as SQL holds them."""
        return self._ask(chain.rows_between, since, until)

    def kept_states(self) -> list[KeptState]:
        """Every checkpoint and root, whole or not."""
        return self._ask(kept_states)

    def keep_root(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq` for the log to begin at some day."""
        check_checkpoint(self._name, seq, self.next_seq)
        with self._turn:
            rows = self._query(_DECISIONS_BEFORE, (seq,))
            decisions = rows[0][0] if rows else self._query(f"SELECT {FIRST_NUMBER}")[0][0]
            with self._transaction() as connection:
                insert_root(connection, Root(seq, decisions, at, state))

    def last_root_kept(self, now: float) -> float | None:
        """When the newest root up to `now` was kept, both in seconds since the epoch."""
        return self._ask(last_kept, now)

    def ripe_root(self, before: float, newer: int = 0) -> Root | None:
        """The newest root kept by `before`, and before `newer` others, that the log could begin
        at."""
        return self._ask(newest_root, before, self.begins, newer)

    def seal(self, seq: int, at: float, digest: str) -> None:
        """Let the log begin at the root of this seq from now on."""
        with self._transaction() as connection:
            seal(connection, seq, at, digest)
            chain.forget(connection, seq)  # its digest at this row was kept with the root

    def delete_some(self, rows: int) -> int:
        """Delete some rows before the beginning of the log; how many."""
        begins, count = self.begins, 0
        with self._transaction() as connection:
            for table in LOG_TABLES:
                last = connection.execute(
                    f"SELECT max(seq) FROM (SELECT seq FROM {table.name}"
                    " WHERE seq < ? ORDER BY seq LIMIT ?)",
                    (begins, rows),
                ).fetchone()[0]
                if last is not None:
                    statement = f"DELETE FROM {table.name} WHERE seq <= ?"
                    count += connection.execute(statement, (last,)).rowcount
        return count

    def sql_rows(self, table: Table, since: int, until: int) -> list[Row]:
        """The rows of one table with since <= seq < until, as SQL holds them."""
        return self._query(table.select("seq >= ? AND seq < ?"), (since, until))
