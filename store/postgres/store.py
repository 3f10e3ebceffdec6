"""The store in a PostgreSQL database: the rows, digests and answers of the SQLite store.

A batch is one transaction. It returns when the server has it, as durable as the server's
`synchronous_commit` says: on its disk by default.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import psycopg

from equipoise.store.batches import Batch, DecisionBatch, Segment
from equipoise.store.contract import check_draws, repeated_request
from equipoise.store.errors import LostConnectionError, LostRowsError
from equipoise.store.format.sql_rows import (
    LOG_TABLES,
    TABLE_OF,
    Row,
    Table,
    bounded,
    merge,
    to_rows,
)
from equipoise.store.postgres import schema
from equipoise.store.postgres.address import parse_address
from equipoise.store.postgres.connection import PostgresConnection, PostgresSession
from equipoise.store.records import Gap
from equipoise.store.sql import chain, records
from equipoise.store.sql.connection import Session
from equipoise.store.sql.store import NEXT_NUMBER, ROWS_AT_ONCE, SqlStore
from equipoise.store.sql.truncation import BEGINS, Truncation

_NEXT_SEQ = "SELECT greatest({}, {} - 1) + 1".format(
    ", ".join(f"coalesce((SELECT max(seq) FROM {table.name}), -1)" for table in LOG_TABLES), BEGINS
)
_COPIED = 8
"""From so many rows on COPY is faster than INSERT."""


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

    def __init__(self, url: str, read_only: bool = False, *, accept_loss: bool = False) -> None:
        address = parse_address(url)
        self.url = url
        self.read_only = read_only
        self._address = address
        self._name = f"store {address.shown}"
        self._counters: tuple[int, int] | None = None
        self._chained: tuple[int, bytes] | None = None
        self._absent: set[str] = set()
        self._session = PostgresSession(address, read_only, self._forget_counters)
        self.truncation = Truncation(
            f"{address.schema}.db", self._session, self._reading, self._remove_whole
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
        with self._session.transaction(counts) as connection:
            room = self._room
            if counts[0] > room:
                room = schema.add_partitions(connection, segments[0].seq, counts[0])
            chained = self._chained
            for part in bounded(segments, ROWS_AT_ONCE):
                merged = merge(part) if len(part) > 1 else [(part[0].seqs, part[0].batch)]
                written = []
                for seqs, batch in merged:
                    rows, table = to_rows(batch, seqs), TABLE_OF[type(batch)]
                    _insert(connection, table, rows)
                    written.append((table.name, rows))
                chained = chain.extend(connection, chained, part[0].seq, written)
        self._counters, self._chained, self._room = counts, chained, room

    def _remove_whole(self, before: int) -> int:
        return 0

    def close(self) -> None:
        self._session.close()


def _insert(connection: PostgresConnection, table: Table, rows: Sequence[Row]) -> None:
    if len(rows) < _COPIED:
        connection.executemany(table.insert, rows)
        return
    statement = f"COPY {table.name} ({', '.join(table.names)}) FROM STDIN"
    with psycopg.Cursor(connection.raw).copy(statement.encode()) as copy:
        for row in rows:
            copy.write_row(row)
