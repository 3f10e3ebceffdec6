"""The store in a SQLite file: one writer, any number of readers, readable with any SQLite tool.

Over a write-ahead log a batch is one transaction: on disk as a whole or not at all. The hot path
speaks to the sqlite3 module directly, in explicit transactions on a connection that never opens
one by itself; sqlite-utils makes the schema, runs the migrations and serves inspection.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from equipoise.store.batches import (
    Batch,
    Buffer,
    DecisionBatch,
    Ints,
    OutcomeBatch,
    Segment,
    named_observations,
    pairs_of,
    replays_of,
    slice_rows,
)
from equipoise.store.contract import (
    BaseSnapshot,
    Checkpoint,
    Store,
    StoredRecord,
    check_checkpoint,
    check_numbers,
    repeated_request,
)
from equipoise.store.errors import (
    CorruptStoreError,
    SequenceError,
    StoreError,
    TrimmedError,
    WriteError,
)
from equipoise.store.files import DatabaseFile, WriterLock, sync_to_disk
from equipoise.store.format.frames import as_store_error as as_file_error
from equipoise.store.format.frames import as_store_errors as as_file_errors
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
    DECISIONS,
    LOG_TABLES,
    OBSERVATIONS,
    OUTCOMES,
    SIMULATIONS,
    TABLE_OF,
    Row,
    Table,
    bounded,
    merge,
    to_blocks,
    to_rows,
    to_segments,
)
from equipoise.store.records import LANE_BITS, Alert, Control, Era, Gap, RuleRecord
from equipoise.store.sqlite import chain, records
from equipoise.store.sqlite.chain import Anchor, Link
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
from equipoise.store.sqlite.records import KeptState
from equipoise.store.sqlite.schema import STORE_ID
from equipoise.store.sqlite.truncation import BEGINS, FIRST_NUMBER, Truncation

T = TypeVar("T")
LOST_UNTIL = "coalesce((SELECT max(first + numbers) FROM gaps), 0)"
"""SQL: the number after the last one that was lost."""

_ROWS_AT_ONCE = 4096
_NAMES_AT_ONCE = 500

_NEXT_SEQ = "SELECT max({}, {} - 1) + 1".format(
    ", ".join(f"coalesce((SELECT max(seq) FROM {table.name}), -1)" for table in LOG_TABLES), BEGINS
)
_NEXT_NUMBER = (
    f"SELECT max(coalesce(max(number), -1) + 1, {FIRST_NUMBER}, {LOST_UNTIL}) FROM decisions"
)
_FIND_ONE = "SELECT request_id, number FROM decisions WHERE request_id = ?"
_NAMES = (
    "SELECT request_id FROM decisions WHERE number >= ? AND number < ? AND request_id IS NOT NULL"
)


class SqliteStore(Store):
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
        self.read_only = read_only
        self.leftovers = Leftovers()
        """What a writer found beside the database when it was opened."""
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
        self.truncation = Truncation(self.path, self._session)

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
            self.leftovers = self._inspect(durability, busy_seconds, accept_loss)
        self._use(open_for_writing(path, durability, busy_seconds))
        if is_new:
            # Who the store is must not hang on its journal.
            self._session.query("PRAGMA wal_checkpoint(PASSIVE)")
        else:
            self._take_in(self.leftovers)
        undo.pop_all()
        next_seq, decisions = self._count()
        store_id = bytes.fromhex(self._session.ask(records.read_fact, STORE_ID) or "")
        standing = Standing(
            store_id, boot_id(), next_seq, decisions, decisions + BLOCK, wal_salts(path)
        )
        marked = self.leftovers.standing
        if mark_path(path).exists() and (marked is None or marked.store_id != store_id):
            self.leftovers.put_aside.append(set_aside(mark_path(path)))
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
    def mark(self) -> Mark:
        """How far the log has come, as it stands beside it. Of a writer."""
        assert self._mark is not None
        return self._mark

    @property
    def next_seq(self) -> int:
        return self._count()[0]

    @property
    def decisions(self) -> int:
        return self._count()[1]

    def _count(self) -> tuple[int, int]:
        """(next seq, next decision number). Only the writer may remember them."""
        with self._session.turn:
            counters = self._counters
            if counters is None:
                counters = self._session.query(f"SELECT ({_NEXT_SEQ}), ({_NEXT_NUMBER})")[0]
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
            next_seq, decisions = self._count()
            for segment in segments:
                if segment.seq != next_seq:
                    raise SequenceError(
                        f"{self._name}: row {segment.seq} was to follow row {next_seq - 1}"
                    )
                next_seq += len(segment.batch)
                if isinstance(segment.batch, DecisionBatch):
                    check_numbers(self._name, segment.batch, decisions)
                    decisions += len(segment.batch)
            if not segments:
                return
            with self._session.transaction() as connection:
                chained = _write(connection, segments, self._chained)
            self._counters, self._chained = (next_seq, decisions), chained
            self.mark.advance(next_seq, decisions)

    def _explained(self, error: WriteError, batch: Batch) -> StoreError:
        """A clearer error where the refusal was a request id that has a decision already."""
        if not isinstance(batch, DecisionBatch) or batch.request_id is None:
            return error
        if "decisions.request_id" not in str(error):
            return error
        return repeated_request(self._name, batch.request_id, self.find_requests(batch.request_id))

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        end = self.next_seq if until is None else min(until, self.next_seq)
        return self._segments(max(since, self.truncation.begins), end)

    def _segments(self, since: int, until: int) -> Iterator[Segment]:
        # Window by window, so that no statement stays open between two segments: the writer may
        # append meanwhile, and an abandoned iteration holds nothing.
        for start in range(since, until, _ROWS_AT_ONCE):
            window = (start, min(start + _ROWS_AT_ONCE, until))
            segments = [
                segment
                for table in LOG_TABLES
                for segment in self._select(table, "seq >= ? AND seq < ?", *window)
            ]
            if self.truncation.begins > start:
                raise TrimmedError(f"{self._name}: old rows were removed meanwhile: run it again")
            yield from sorted(segments, key=lambda segment: segment.seq)

    def blocks(self, table: Table, until: int) -> Iterator[tuple[Ints, Batch]]:
        """The rows of one table before row `until`, as (n,) seqs and batches: the quick way to
        read a whole log whose kinds of rows need not come in their common order."""
        start = self.truncation.begins
        while start < until:
            rows = self._session.query(
                f"{table.select('seq >= ? AND seq < ?')} LIMIT ?", (start, until, _ROWS_AT_ONCE)
            )
            yield from self._decoded(table, rows, to_blocks)
            start = until if len(rows) < _ROWS_AT_ONCE else rows[-1][0] + 1

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        if len(request_ids) == 1:  # what every live request asks
            return dict(self._session.query(_FIND_ONE, request_ids))
        numbers: dict[str, int] = {}
        for names, marks in _parts(request_ids):
            query = f"SELECT request_id, number FROM decisions WHERE request_id IN ({marks})"
            numbers.update(self._session.query(query, names))
        return numbers

    def request_names(self, until: int) -> Iterator[list[str]]:
        """The request ids of the decisions before number `until`, some hundreds at a time."""
        # Rows before the log's beginning count while they are there: their names are taken.
        first = self._session.query("SELECT coalesce(min(number), 0) FROM decisions")[0][0]
        for start in range(first, until, _NAMES_AT_ONCE):
            window = (start, min(start + _NAMES_AT_ONCE, until))
            yield [name for (name,) in self._session.query(_NAMES, window)]

    def find_observations(self, request_ids: Sequence[str]) -> set[str]:
        present: set[str] = set()
        for names, marks in _parts(request_ids):
            query = f"SELECT request_id FROM observations WHERE request_id IN ({marks})"
            present.update(name for (name,) in self._session.query(query, names))
        return present

    def observations(self, request_ids: Sequence[str]) -> dict[str, Segment]:
        first: dict[str, Segment] = {}
        for names, marks in _parts(request_ids):
            segments = self._select(OBSERVATIONS, f"request_id IN ({marks})", *names)
            for name, segment in named_observations(segments, names):
                first.setdefault(name, segment)
        return first

    def simulations(self, context: Ints, model: Ints) -> dict[tuple[int, int], Segment]:
        wanted, first = set(pairs_of(context, model)), dict[tuple[int, int], Segment]()
        # By context alone: SQLite searches no index for a list of pairs.
        for contexts, marks in _parts(np.unique(context).tolist()):
            segments = self._select(SIMULATIONS, f"context IN ({marks})", *contexts)
            for pair, segment in replays_of(segments, wanted):
                first.setdefault(pair, segment)
        return first

    def decision(self, number: int) -> DecisionBatch | None:
        for segment in self._select(DECISIONS, "number = ?", number):
            assert isinstance(segment.batch, DecisionBatch)
            return segment.batch
        return None

    def find_draws(self, positions: Sequence[int]) -> dict[int, int]:
        numbers: dict[int, int] = {}
        for some, marks in _parts(positions):
            query = f"SELECT draw, number FROM decisions WHERE draw IN ({marks})"
            numbers.update(self._session.query(query, some))
        return numbers

    def lane_ends(self) -> dict[int, int]:
        # Lane by lane through the index: a look-up each, whatever the length of the log.
        ends: dict[int, int] = {}
        below = 1 << 63
        while True:
            query = "SELECT max(draw) FROM decisions WHERE draw IS NOT NULL AND draw < ?"
            last = self._session.query(query, (min(below, (1 << 63) - 1),))[0][0]
            if last is None or last >> LANE_BITS == 0:
                return ends
            ends[last >> LANE_BITS] = (last & ((1 << LANE_BITS) - 1)) + 1
            below = last >> LANE_BITS << LANE_BITS

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        return list(self.outcome_rows(number).values())

    def outcome_rows(self, number: int) -> dict[int, OutcomeBatch]:
        """The outcome rows of a decision by seq, in seq order, each as a batch of one row."""
        return {
            segment.seq + row: slice_rows(segment.batch, row, row + 1)
            for segment in self._select(OUTCOMES, "number = ?", number)
            if isinstance(segment.batch, OutcomeBatch)
            for row in range(len(segment.batch))
        }

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        check_checkpoint(self._name, seq, self.next_seq)
        with self._session.transaction() as connection:
            records.write_checkpoint(connection, Checkpoint(seq, state, at))

    def restore(self) -> Checkpoint | None:
        newest = self._session.ask(records.newest_checkpoint, self.next_seq)
        base = self.base_snapshot()
        if base is None or (newest is not None and newest.seq >= base.seq):
            return newest
        return Checkpoint(base.seq, base.state, base.at)

    def base_snapshot(self) -> BaseSnapshot | None:
        return self.truncation.base()

    def keep_base(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq` for the log to begin at some day."""
        check_checkpoint(self._name, seq, self.next_seq)
        self.truncation.keep(seq, state, at)

    def freeze(self, name: str, value: str) -> None:
        with self._session.turn:
            if not self._session.ask(records.is_frozen, self._name, name, value):
                with self._session.transaction() as connection:
                    records.insert_setting(connection, name, value)
                    chain.extend_records(connection, "settings")

    def settings(self) -> dict[str, str]:
        return self._session.ask(records.read_settings)

    def put(self, record: StoredRecord) -> None:
        with self._session.turn:
            if not self._session.ask(records.is_kept, self._name, record):
                with self._session.transaction() as connection:
                    records.insert_record(connection, record)

    def eras(self) -> list[Era]:
        return self._session.ask(records.read_records, Era)

    def rules(self) -> list[RuleRecord]:
        return self._session.ask(records.read_records, RuleRecord)

    def rule_ids(self) -> list[tuple[int, str]]:
        return self._session.ask(records.read_rule_ids)

    def bodies(self) -> Iterator[str]:
        last = 0
        while True:
            bodies = self._session.ask(records.read_bodies, last)
            if not bodies:
                return
            last = bodies[-1][0]
            yield from (body for _, body in bodies)

    def remove_rules(self, ordinals: Sequence[int]) -> None:
        """Delete rules that nothing refers to any more; their ordinals are not given again."""
        with self._session.transaction() as connection:
            records.delete_rules(connection, ordinals)

    def rule(self, rule_id: str) -> RuleRecord | None:
        rules = self._session.ask(records.read_records, RuleRecord, "WHERE rule_id = ?", rule_id)
        return rules[0] if rules else None

    def alerts(self) -> list[Alert]:
        return self._session.ask(records.read_records, Alert)

    def controls(self) -> list[Control]:
        return self._session.ask(records.read_records, Control)

    def gaps(self) -> list[Gap]:
        return self._session.ask(records.read_records, Gap)

    def anchor(self, at: float) -> Anchor:
        """Where the chains of this store end now. at: seconds since the epoch."""
        return self._session.ask(chain.anchor, at)

    def chain_links(self) -> tuple[list[Link], Link | None]:
        """Every stored digest of the log, and the one where its chain ends."""
        return self._session.ask(chain.links)

    def chained_records(self, name: str) -> tuple[Link | None, dict[int, str]]:
        """Where the chain of one kind of records ends, and the digest after each that is there."""
        return self._session.ask(chain.record_digests, name)

    def rows_in_order(self, since: int, until: int) -> list[tuple[str, Row]]:
        """(table, row) of the rows with since <= seq < until in order, as SQL holds them."""
        return self._session.ask(chain.rows_between, since, until)

    def kept_states(self) -> list[KeptState]:
        """Every checkpoint and base snapshot, whole or not."""
        return self._session.ask(records.kept_states)

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

    def _select(self, table: Table, condition: str, *values: int | str) -> list[Segment]:
        return self._decoded(
            table, self._session.query(table.select(condition), values), to_segments
        )

    def _decoded(
        self,
        table: Table,
        rows: Sequence[Row],
        decode: Callable[[Table, Sequence[Row]], Iterator[T]],
    ) -> list[T]:
        try:
            return list(decode(table, rows))
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError) as error:
            raise CorruptStoreError(
                f"{self._name}: table {table.name}, seq {rows[0][0]} to {rows[-1][0]}, "
                f"cannot be read: {error}"
            ) from error


def _parts(values: Sequence[T]) -> Iterator[tuple[tuple[T, ...], str]]:
    """Values some hundreds at a time, each time with as many question marks for SQL."""
    for start in range(0, len(values), _NAMES_AT_ONCE):
        part = tuple(values[start : start + _NAMES_AT_ONCE])
        yield part, ", ".join("?" * len(part))


def _write(
    connection: sqlite3.Connection, segments: Sequence[Segment], chained: tuple[int, bytes] | None
) -> tuple[int, bytes] | None:
    """Insert and chain the rows of segments; where their chain ends. chained: where it did."""
    for part in bounded(segments, _ROWS_AT_ONCE):
        merged = merge(part) if len(part) > 1 else [(part[0].seqs, part[0].batch)]
        written = []
        for seqs, batch in merged:
            rows, table = to_rows(batch, seqs), TABLE_OF[type(batch)]
            connection.executemany(table.insert, rows)
            written.append((table.name, rows))
        chained = chain.extend(connection, chained, part[0].seq, written)
    return chained
