"""What a SQLite store does with roots: keep them, begin its log at one, delete what is before."""

from __future__ import annotations

import sqlite3
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from equipoise.store import chain, roots
from equipoise.store.admission import check_checkpoint
from equipoise.store.batches import Buffer
from equipoise.store.chain import Anchor, Link
from equipoise.store.codec import Row
from equipoise.store.roots import BEGINS, FIRST_NUMBER, KeptState, Root
from equipoise.store.tables import LOG_TABLES, Table

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
        return self._ask(roots.sealed_root)

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
        return self._ask(roots.kept_states)

    def keep_root(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq` for the log to begin at some day."""
        check_checkpoint(self._name, seq, self.next_seq)
        with self._turn:
            rows = self._query(_DECISIONS_BEFORE, (seq,))
            decisions = rows[0][0] if rows else self._query(f"SELECT {FIRST_NUMBER}")[0][0]
            with self._transaction() as connection:
                roots.insert_root(connection, Root(seq, decisions, at, state))

    def last_root_kept(self, now: float) -> float | None:
        """When the newest root up to `now` was kept, both in seconds since the epoch."""
        return self._ask(roots.last_kept, now)

    def ripe_root(self, before: float, newer: int = 0) -> Root | None:
        """The newest root kept by `before`, and before `newer` others, that the log could begin
        at."""
        return self._ask(roots.newest_root, before, self.begins, newer)

    def seal(self, seq: int, at: float, digest: str) -> None:
        """Let the log begin at the root of this seq from now on."""
        with self._transaction() as connection:
            roots.seal(connection, seq, at, digest)
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
