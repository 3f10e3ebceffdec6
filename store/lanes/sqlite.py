"""A hub on one machine: a SQLite file beside the store, for any number of processes.

Its clock is the machine's, but never goes back: what it said last is kept in the file. Where the
machine's clock was set back, the hub's goes on at half speed until the two meet, so leases last
longer meanwhile, which holds up and does no harm.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from equipoise.store.lanes.contract import HubError
from equipoise.store.lanes.sql import FORMAT, Row, SqlHub, atomic
from equipoise.store.sqlite.connection import SYNCHRONOUS, Durability, connect

T = TypeVar("T")

APPLICATION_ID = 0x45514C4E
"""Of the file, by which it is known from a store and from others' databases: `EQLN`."""
_WORDS = {
    "number": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "whole": "INTEGER",
    "bytes": "BLOB",
}
_PAUSE = 0.02


class SqliteHub(SqlHub):
    """The file `path`, made where there is none. Killed at any moment, it keeps what was done.

    durability: `power` waits for the disk with every transaction. With `process` only lanes, terms
    and publications, which must not be given twice, outlive a machine that loses its power.
    seconds: patience with other processes that write. clock: of the machine, since the epoch.
    """

    AMONG = "IN (SELECT value FROM json_each(?))"
    IDS = "(SELECT value AS id FROM json_each(?))"

    def __init__(
        self,
        path: str | Path,
        durability: Durability = "process",
        seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path).absolute()
        self._synchronous, self._clock, self._now = SYNCHRONOUS[durability], clock, 0.0
        if not self.path.parent.is_dir():
            raise HubError(f"hub {self.path}: folder {self.path.parent} does not exist")
        with self._errors():
            # Its rows are as private as those of the store.
            with contextlib.suppress(FileExistsError, OSError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._connection = connect(self.path, "rw", seconds)
            try:
                self._set_up(time.monotonic() + seconds)
            except BaseException:
                self._connection.close()
                raise

    def transaction(self, work: Callable[[], T], lasting: bool) -> T:
        connection = self._connection
        with self._errors():
            synchronous = "FULL" if lasting else self._synchronous
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._tick()
                result = work()
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

    def read(self, work: Callable[[], T]) -> T:
        with self._errors():
            return work()

    def rows(self, sql: str, *values: object) -> list[Row]:
        return self._connection.execute(_translated(sql), values).fetchall()

    def each(self, sql: str, rows: Sequence[Row]) -> None:
        self._connection.executemany(_translated(sql), rows)

    def insert(self, table: str, columns: str, rows: Sequence[Row]) -> None:
        marks = ", ".join("?" * (columns.count(",") + 1))
        self._connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

    def listed(self, values: Sequence[str] | Sequence[int]) -> object:
        return json.dumps(list(values))

    @atomic
    def now(self) -> float:
        # A transaction, so that no other process says an earlier time after this.
        return self._now

    def close(self) -> None:
        self._connection.close()

    def _set_up(self, deadline: float) -> None:
        connection = self._connection
        connection.create_function("hub_now", 0, lambda: self._now)
        # In this order: another process may make the tables in between, and the id with them.
        [(others,)] = connection.execute("SELECT count(*) FROM sqlite_master")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID and (application or others):
            raise HubError(
                f"hub {self.path}: it is another database, application_id {application:#x},"
                f" expected {APPLICATION_ID:#x}"
            )
        self._write_ahead(deadline)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Of all processes that open a new file the first one is here first.
            if not connection.execute("PRAGMA application_id").fetchone()[0]:
                self._make(_WORDS)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            [(format_,)] = connection.execute("SELECT format FROM lane_state")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if format_ != FORMAT:
            raise HubError(f"hub {self.path}: format {format_}, this equipoise knows {FORMAT}")

    def _write_ahead(self, deadline: float) -> None:
        """SQLite's patience does not cover the change to a write-ahead log."""
        while True:
            try:
                [(mode,)] = self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE)
        if mode != "wal":
            raise HubError(f"hub {self.path}: its file system allows no write-ahead log ({mode})")

    def _tick(self) -> None:
        [(clock, machine)] = self.rows("SELECT clock, machine FROM lane_state")
        time_here = self._clock()
        self._now = max(time_here, clock + max(time_here - machine, 0.0) / 2)
        self.rows("UPDATE lane_state SET clock = ?, machine = ?", self._now, time_here)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise HubError(f"hub {self.path}: the database refused ({error})") from error
        except msgspec.MsgspecError as error:
            raise HubError(f"hub {self.path}: a record cannot be read: {error}") from error


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    # One process writes at a time, so every row stays as it is.
    return sql.replace(" FOR UPDATE", "")
