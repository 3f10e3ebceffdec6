"""The store in a SQLite file: one writer, any number of readers, readable with any SQLite tool.

Over a write-ahead log a batch is one transaction: on disk as a whole or not at all. The hot path
speaks to the sqlite3 module directly, in explicit transactions on a connection that never opens
one by itself; sqlite-utils makes the schema, runs the migrations and serves inspection.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec

from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    Segment,
)
from equipoise.store.contract import (
    check_numbers,
    repeated_request,
)
from equipoise.store.errors import (
    StoreError,
    WriteError,
)
from equipoise.store.files import DatabaseFile, WriterLock, sync_to_disk
from equipoise.store.format.frames import as_store_error as as_file_error
from equipoise.store.format.frames import as_store_errors as as_file_errors
from equipoise.store.format.frames import merge_frames
from equipoise.store.format.mark import (
    BLOCK,
    Mark,
    Presence,
    Standing,
    boot_id,
    mark_path,
    wal_salts,
)
from equipoise.store.format.sql_rows import (
    LOG_TABLES,
    Columns,
    bounded,
    to_columns,
)
from equipoise.store.sql import chain, records
from equipoise.store.sql.connection import Connection
from equipoise.store.sql.copying import Write
from equipoise.store.sql.store import NEXT_NUMBER, SqlStore
from equipoise.store.sql.truncation import BEGINS, Truncation
from equipoise.store.sqlite.connection import (
    SYNCHRONOUS,
    Durability,
    Session,
    check_beside,
    check_header,
    check_path,
    open_for_reading,
    open_for_writing,
    remove,
    set_aside,
    store_errors,
)
from equipoise.store.sqlite.opening import Leftovers, inspect_files, names_of
from equipoise.store.sqlite.schema import STORE_ID

_READING_SECONDS = 1.0
ROWS_AT_ONCE = 256
"""Few enough that one call for all of them never holds up the thread that answers."""
_ROWS_A_STATEMENT = (32, 8, 1)
_REST_SECONDS = 2e-5
_NEXT_SEQ = "SELECT max({}, {} - 1) + 1".format(
    ", ".join(f"coalesce((SELECT max(seq) FROM {table.name}), -1)" for table in LOG_TABLES), BEGINS
)


class SqliteStore(SqlStore):
    """The Store contract over a file.

    path: the database; its folder must exist. A writer makes the file where there is none,
    upgrades an older schema, takes in what a killed writer left in its tail, and holds the file
    and `<path>.lock` until it is closed; a second writer is refused, by whatever name it comes.
    Where acknowledged rows are missing, or files of another store stand beside it, LostRowsError
    says what, before anything is written; with accept_loss the store opens all the same, notes the
    gap and puts damaged files aside. read_only: read beside a writer, seeing what it has committed;
    every write is refused. durability: what acknowledged rows survive, the death of the "process"
    or of the machine ("power", one fsync an append). busy_seconds: how long to wait for other
    programs' locks.

    Calls from several threads take turns. Not to be used across a fork.
    """

    _session: Session

    def __init__(
        self,
        path: str | os.PathLike[str],
        read_only: bool = False,
        durability: Durability = "process",
        *,
        busy_seconds: float = 1.0,
        accept_loss: bool = False,
    ) -> None:
        self.path = Path(path).resolve()
        self.where = str(self.path)
        self.read_only = read_only
        self._leftovers = Leftovers()
        self._name = f"store {self.path}"
        self._counters: tuple[int, int] | None = None
        self._chained: tuple[int, bytes] | None = None
        self._ends = contextlib.ExitStack()
        self._mark: Mark | None = None
        self.presence: Presence | None = None
        """Of a writer: whether its files are still in their places."""
        if durability not in SYNCHRONOUS:
            raise StoreError(f"durability is {durability!r}, expected 'process' or 'power'")
        try:
            if read_only:
                check_path(self.path, read_only)
                self._file = self._hold(DatabaseFile(self.path))
                self._use(open_for_reading(self.path, busy_seconds))
            else:
                self._open(durability, busy_seconds, accept_loss)
        except BaseException as error:
            self._ends.close()
            if isinstance(error, OSError):
                raise as_file_error(self.path, error) from error
            raise

    def _hold(self, file: DatabaseFile) -> DatabaseFile:
        self._ends.callback(file.release)
        return file

    def _use(self, connection: sqlite3.Connection) -> None:
        self._ends.callback(connection.close)
        self._session = Session(
            self.path, connection, self.read_only, self._note_journal, self._forget_counters
        )
        self.truncation = Truncation(self.path.name, self._session, self._reading)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Session]:
        with contextlib.closing(open_for_reading(self.path, _READING_SECONDS)) as connection:
            yield Session(self.path, connection)

    def _note_journal(self) -> None:
        if self._mark is not None:
            self._mark.note_journal(wal_salts(self.path))

    def _forget_counters(self) -> None:
        self._counters = self._chained = None

    def _open(self, durability: Durability, busy_seconds: float, accept_loss: bool) -> None:
        """Become the writer. Nothing is written before everything that is there fits together."""
        path = self.path
        check_path(path, read_only=False)
        check_beside(path)
        lock = WriterLock(path)
        self._ends.callback(lock.release)
        is_new = not path.exists()
        if is_new:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        undo = self._ends.enter_context(contextlib.ExitStack())
        if is_new:
            undo.callback(remove, path)
        self._file = self._hold(DatabaseFile(path))
        self._file.lock(path)
        if not is_new:
            check_header(path, read_only=False)
            self._leftovers = self._inspect(durability, busy_seconds, accept_loss)
        self._use(open_for_writing(path, durability, busy_seconds))
        if is_new:
            # Who the store is must not hang on its journal.
            self._session.query("PRAGMA wal_checkpoint(PASSIVE)")
        else:
            self._take_in(self._leftovers)
        undo.pop_all()
        next_seq, decisions = self._count()
        store_id = bytes.fromhex(self._session.ask(records.read_fact, STORE_ID) or "")
        standing = Standing(
            store_id, boot_id(), next_seq, decisions, decisions + BLOCK, wal_salts(path)
        )
        marked = self._leftovers.standing
        if mark_path(path).exists() and (marked is None or marked.store_id != store_id):
            self._leftovers.put_aside.append(set_aside(mark_path(path)))
        self._mark = Mark(path, standing)
        if self._session.ask(records.read_fact, records.TAKEN) is not None:
            # Only now, with a mark that counts as the log does; and before there are new tail
            # files, one of which may get the inode of one that is gone.
            with self._session.transaction() as connection:
                records.write_fact(connection, records.TAKEN, None)
        self.presence = Presence(path, self._file, self._mark, lock)

    def _inspect(self, durability: Durability, busy_seconds: float, accept_loss: bool) -> Leftovers:
        with store_errors(self._name):
            leftovers = inspect_files(self.path, durability, busy_seconds)
            if not accept_loss:
                leftovers.refuse(self.path)
            elif leftovers.journal_is_strange:
                beside = (self.path.with_name(f"{self.path.name}{end}") for end in ("-wal", "-shm"))
                put_aside = [set_aside(file) for file in beside if file.exists()]
                leftovers = inspect_files(self.path, durability, busy_seconds)
                leftovers.put_aside += put_aside
        return leftovers

    def _take_in(self, leftovers: Leftovers) -> None:
        """Append what a writer with a tail was killed before it could; note what is missing."""
        self._counters = None
        if leftovers.segments or leftovers.gaps or leftovers.files:
            damaged = ", ".join(f"{path.name}.damaged" for path in leftovers.damaged)
            with self._session.transaction() as connection:
                for gap in leftovers.gaps:
                    records.insert_record(connection, msgspec.structs.replace(gap, kept=damaged))
                _write(connection, leftovers.segments, self._chained)
                records.write_fact(connection, records.TAKEN, names_of(leftovers.files))
            # Only when the disk has the rows may the files go; what is damaged stays for ever.
            self.sync_journal()
            for path in leftovers.files:
                if path in leftovers.damaged:
                    leftovers.put_aside.append(set_aside(path))
                else:
                    path.unlink()
            sync_to_disk(self.path.parent)
            leftovers.segments = []

    def sync_journal(self) -> None:
        """Put everything that is committed on the disk. Raises OSError."""
        journal = self.path.with_name(self.path.name + "-wal")
        with contextlib.suppress(FileNotFoundError):
            sync_to_disk(journal)

    def rescue_journal(self) -> None:
        """Move what is committed into the database, where its journal has lost its name: the open
        file still holds it, and nobody else could read it later."""
        if not self.path.with_name(self.path.name + "-wal").exists():
            with contextlib.suppress(StoreError):
                self._session.query("PRAGMA wal_checkpoint(PASSIVE)")

    @property
    def leftovers(self) -> Leftovers:
        """What a writer found beside the database when it was opened."""
        return self._leftovers

    @property
    def mark(self) -> Mark:
        """How far the log has come, as it stands beside it. Of a writer."""
        assert self._mark is not None
        return self._mark

    def _count(self) -> tuple[int, int]:
        """(next seq, next decision number). Only the writer may remember them."""
        with self._session.turn:
            counters = self._counters
            if counters is None:
                counters = self._session.query(f"SELECT ({_NEXT_SEQ}), ({NEXT_NUMBER})")[0]
                self._counters = None if self.read_only else counters
            return counters

    def append(self, batch: Batch) -> int:
        with self._session.turn:
            first, decisions = self._count()
            rows = len(batch)
            if not rows:
                return first
            if isinstance(batch, DecisionBatch):
                check_numbers(self._name, batch, decisions)
                decisions += rows
                if self._mark is not None and decisions > self._mark.reserved:
                    with as_file_errors(self.path):
                        self._mark.reserve(decisions)
            try:
                with self._session.transaction() as connection:
                    chained = _write(connection, [Segment(first, batch)], self._chained)
            except WriteError as error:
                raise self._explained(error, batch) from error
            self._counters, self._chained = (first + rows, decisions), chained
            self.mark.advance(first + rows, decisions)
            return first

    def append_together(self, segments: Sequence[Segment]) -> None:
        """Append batches that already know their seqs, in one transaction.

        They must continue the log, in order. Far faster than one by one where they are small.
        Raises as `append`.
        """
        with self._session.turn:
            next_seq, decisions = self._check_order(segments)
            if not segments:
                return
            with self._session.transaction() as connection:
                chained = _write(connection, segments, self._chained, _rest)
            self._counters, self._chained = (next_seq, decisions), chained
            self.mark.advance(next_seq, decisions)

    def _explained(self, error: WriteError, batch: Batch) -> StoreError:
        """A clearer error where the refusal was a request id that has a decision already."""
        if not isinstance(batch, DecisionBatch) or batch.request_id is None:
            return error
        if "decisions.request_id" not in str(error):
            return error
        return repeated_request(self._name, batch.request_id, self.find_requests(batch.request_id))

    def load(self, write: Write) -> None:
        """Let a function fill a new store, in one transaction."""
        with self._session.transaction() as connection:
            write(connection, lambda to, piece: to.executemany(piece.insert, piece.rows))
        self._forget_counters()

    def close(self) -> None:
        with self._session.turn:
            mark = self._mark
            rows = -1
            with contextlib.suppress(StoreError):
                rows = self.next_seq
            self._session.connection.close()
            if mark is not None:
                mark.close(rows >= mark.rows, wal_salts(self.path))
            # The database's own descriptor last: closing it ends the locks of all connections.
            self._ends.close()


def _go_on() -> None:
    """No rest: nobody waits for this thread's core."""


def _rest() -> None:
    """Leave the core to the thread that answers, if it wants it: where they share one, Linux may
    let a thread that works run for milliseconds before one that has just become ready."""
    time.sleep(_REST_SECONDS)


def _write(
    connection: Connection,
    segments: Sequence[Segment],
    chained: tuple[int, bytes] | None,
    rest: Callable[[], None] = _go_on,
) -> tuple[int, bytes] | None:
    """Insert and chain the rows of segments; where their chain ends. chained: where it did.
    rest: called every fraction of a millisecond."""
    for part in bounded(segments, ROWS_AT_ONCE):
        written = [to_columns(batch, seqs) for seqs, batch in merge_frames(part)]
        rest()
        for columns in written:
            _insert(connection, columns, rest)
        chained = chain.extend(connection, chained, part[0].seq, written)
        rest()
    return chained


def _insert(connection: Connection, columns: Columns, rest: Callable[[], None]) -> None:
    """Insert rows, many by a statement, without their columns of NULLs: Python's sqlite3 takes as
    long to bind a NULL as for five numbers."""
    present = tuple(at for at, column in enumerate(columns.values) if column is not None)
    rows = zip(*[columns.values[at] or () for at in present], strict=True)
    left = len(columns)
    for many in _ROWS_A_STATEMENT:
        statement = _statement(columns.table.name, present, many)
        for _ in range(left // many):
            connection.execute(statement, [value for row in islice(rows, many) for value in row])
            if many == _ROWS_A_STATEMENT[0]:
                rest()
        left %= many


@lru_cache(128)
def _statement(table: str, present: tuple[int, ...], rows: int) -> str:
    names = next(each.names for each in LOG_TABLES if each.name == table)
    marks = f"({', '.join('?' * len(present))})"
    listed = ", ".join(names[at] for at in present)
    return f"INSERT INTO {table} ({listed}) VALUES {', '.join([marks] * rows)}"
