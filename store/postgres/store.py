"""The store in a PostgreSQL database: the rows, digests and answers of the SQLite store.

A batch is one transaction. It returns when the server has it, as durable as the server's
`synchronous_commit` says: on its disk by default.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.store.address import files_of, parse_address
from equipoise.store.batches import Batch, DecisionBatch, OutcomeBatch, Segment
from equipoise.store.contract import check_draws, repeated_request
from equipoise.store.errors import (
    LostConnectionError,
    LostRowsError,
    MissingStoreError,
    SchemaVersionError,
    StoreError,
)
from equipoise.store.format.sql_rows import (
    LOG_TABLES,
    Row,
    Table,
    bounded,
    merge,
    to_columns,
)
from equipoise.store.postgres import schema
from equipoise.store.postgres.connection import PostgresConnection, PostgresSession, copy_rows
from equipoise.store.records import Gap
from equipoise.store.sql import chain, records
from equipoise.store.sql.connection import Session
from equipoise.store.sql.store import NEXT_NUMBER, ROWS_AT_ONCE, SqlStore
from equipoise.store.sql.truncation import BEGINS, Trimmed, Truncation

_NEXT_SEQ = "SELECT greatest({}, {} - 1) + 1".format(
    ", ".join(f"coalesce((SELECT max(seq) FROM {table.name}), -1)" for table in LOG_TABLES), BEGINS
)
_COPIED = 8
"""From so many rows on COPY is faster than INSERT."""


@dataclass(slots=True)
class Found:
    """What a writer found when it opened the store: there are no files beside it."""

    gaps: list[Gap] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    put_aside: list[str] = field(default_factory=list)
    recovered: int = 0


class PostgresStore(SqlStore):
    """The Store contract over a schema of a PostgreSQL database.

    url: postgresql://…?schema=name, by default the schema `equipoise`. A writer makes the schema
    where there is none, upgrades an older one, and holds a lock of the server until it is closed or
    its connection ends; a second writer is refused. Where acknowledged rows are missing,
    LostRowsError says what; with accept_loss the store opens all the same and notes the gap.
    read_only: read beside a writer, seeing what it has committed; every write is refused.

    Where the connection is lost, the next call makes a new one. An append whose connection is lost
    is made again if nothing of it is in the log. Calls from several threads take turns. Not to be
    used across a fork.
    """

    _session: PostgresSession

    def __init__(
        self,
        url: str,
        read_only: bool = False,
        *,
        accept_loss: bool = False,
        busy_seconds: float = 1.0,
    ) -> None:
        address = parse_address(url)
        self.where = url
        self.path = files_of(url).absolute()
        self.read_only = read_only
        self.must_sync = False
        self.commits, self.commit_seconds = 0, 0.0
        self._leftovers = Found()
        self._busy_seconds = busy_seconds
        self._closing = False
        self._address = address
        self._name = f"store {address.shown}"
        self._counters: tuple[int, int] | None = None
        self._chained: tuple[int, bytes] | None = None
        self._absent: set[str] = set()
        self._session = PostgresSession(
            address, read_only, self._forget_counters, connect_seconds=busy_seconds
        )
        self.truncation = Truncation(
            address.schema, self._session, self._reading, self._remove_whole
        )
        self._room = 0
        try:
            if not read_only:
                self._compare(accept_loss)
        except BaseException:
            self._session.close()
            raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Session]:
        with contextlib.closing(PostgresSession(self._address)) as session:
            yield session

    def _forget_counters(self) -> None:
        self._counters = self._chained = None

    def _compare(self, accept_loss: bool) -> None:
        """Whether the log ends where the last writer left it."""
        (next_seq, decisions), (rows, numbers) = self._count(), self._session.found
        if rows <= next_seq and numbers <= decisions:
            return
        if not accept_loss:
            raise LostRowsError(
                f"{self._name}: {max(rows - next_seq, 0)} rows that were acknowledged are missing:"
                f" it ends at row {next_seq}, the last writer left {rows}; restore a backup, or"
                " let equipoise repair note what is lost"
            )
        gap = Gap(
            at=time.time(),
            first=decisions,
            numbers=max(numbers - decisions, 0),
            row=next_seq,
            rows=max(rows - next_seq, 0),
            reason="rows at the end of the log were missing from the database",
        )
        with self._session.transaction((next_seq, max(numbers, decisions))) as connection:
            records.insert_record(connection, gap)
        self._counters = None
        self._leftovers.gaps.append(gap)

    def _count(self) -> tuple[int, int]:
        with self._session.turn:
            counters = self._counters
            if counters is None:
                counters = self._session.query(f"SELECT ({_NEXT_SEQ}), ({NEXT_NUMBER})")[0]
                self._counters = None if self.read_only else (counters[0], counters[1])
            return counters[0], counters[1]

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        numbers = super().find_requests(request_ids)
        if not self.read_only:
            self._absent = {name for name in request_ids if name not in numbers}
        return numbers

    def append(self, batch: Batch) -> int:
        with self._session.turn:
            first = self._count()[0]
            self._append([Segment(first, batch)] if len(batch) else [])
            return first

    def append_together(self, segments: Sequence[Segment]) -> None:
        """Append batches that already know their seqs, in one transaction; see `SqliteStore`."""
        with self._session.turn:
            self._append(segments)

    def _append(self, segments: Sequence[Segment]) -> None:
        counts = self._check_order(segments)
        if not segments:
            return
        for segment in segments:
            if isinstance(segment.batch, DecisionBatch):
                self._admit(segment.batch)
        self._absent = set()
        try:
            self._write(segments, counts)
        except LostConnectionError:
            if self._session.trouble is not None:
                raise
            self._write(segments, counts)  # nothing of it is in the log

    def _admit(self, batch: DecisionBatch) -> None:
        """No request and no draw twice: the index of a partition knows nothing of the others."""
        names = [name for name in batch.request_id or () if name]
        if not self._absent.issuperset(names):
            decided = super().find_requests(names)
            if decided:
                raise repeated_request(self._name, names, decided)
        if len(set(names)) < len(names):
            raise repeated_request(self._name, names, ())
        if batch.draw is not None:
            check_draws(self._name, batch.draw, self.find_draws(batch.draw.tolist()))

    def _write(self, segments: Sequence[Segment], counts: tuple[int, int]) -> None:
        start = time.perf_counter()
        with self._session.transaction(counts) as connection:
            room = self._room
            if counts[0] > room:
                room = schema.add_partitions(connection, segments[0].seq, counts[0])
            chained = self._chained
            for part in bounded(segments, ROWS_AT_ONCE):
                merged = merge(part) if len(part) > 1 else [(part[0].seqs, part[0].batch)]
                written = [to_columns(batch, seqs) for seqs, batch in merged]
                for columns in written:
                    _insert(connection, columns.table, list(columns.rows()))
                chained = chain.extend(connection, chained, part[0].seq, written)
        self._counters, self._chained, self._room = counts, chained, room
        self.commit_seconds += time.perf_counter() - start
        self.commits += 1

    def _remove_whole(self, before: int) -> int:
        return self._session.drop_partitions(before)

    @property
    def leftovers(self) -> Found:
        return self._leftovers

    @property
    def trouble(self) -> StoreError | None:
        """Why there is no connection, None while there is one."""
        return self._session.trouble

    @property
    def displaced(self) -> StoreError | None:
        """Why this writer may not write on: another one came, or the database went back in time."""
        return self._session.displaced

    @property
    def waiting(self) -> int:
        """None: a row that is logged is in the database."""
        return 0

    def check_files(self) -> StoreError | None:
        """As `displaced`: nothing but a connection made anew can say more."""
        return self.displaced

    def probe(self) -> None:
        """Raise what `append` would raise now; connects again where the connection is gone."""
        self._session.check()

    def begin_sync(self) -> Callable[[], None]:
        """Nothing to wait for: `append` returns when the server has the rows on its disk."""
        return lambda: None

    def settle(self, until: int | None = None, seconds: float | None = None) -> bool:
        """Nothing to wait for: what is appended can be read."""
        return True

    def number_reader(self, request_id: str) -> Callable[[], int | None]:
        return lambda: SqlStore.find_requests(self, [request_id]).get(request_id)

    def decision_reader(self, number: int) -> Callable[[], DecisionBatch | None]:
        return lambda: self.decision(number)

    def parts_reader(self, number: int) -> Callable[[], list[OutcomeBatch]]:
        return lambda: self.outcome_parts(number)

    def last_base_kept(self, now: float) -> float | None:
        """When the newest base up to `now` was kept, both in seconds since the epoch."""
        return self.truncation.last_kept(now)

    def trim(
        self, before: float, now: float, archive: Path | None, newer: int = 0
    ) -> Trimmed | None:
        """As of `Truncation`; for any thread, and given up when the store is closed."""
        return self.truncation.trim(before, now, archive, lambda: self._closing, newer)

    def close(self) -> None:
        self._closing = True
        self._session.close()


def holds_store(url: str) -> bool:
    """Whether a schema holds a store. Raises StoreError where the server does not answer, or
    something else is there."""
    try:
        PostgresSession(parse_address(url)).close()
    except MissingStoreError:
        return False
    except SchemaVersionError:
        return True
    return True


def _insert(connection: PostgresConnection, table: Table, rows: Sequence[Row]) -> None:
    if len(rows) < _COPIED:
        connection.executemany(table.insert, rows)
        return
    copy_rows(connection, table.name, table.names, rows)
