"""A hub for many machines: tables `lane_*` in the schema of a PostgreSQL store.

Its clock is the server's. A server that restarts is waited for and asked again, within the hub's
patience; so is one that does not answer at all.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg.sql import SQL, Identifier

from equipoise.store.address import parse_address
from equipoise.store.errors import StoreError
from equipoise.store.lanes.contract import HubError, HubRefusedError
from equipoise.store.lanes.sql import FORMAT, Row, SqlHub

T = TypeVar("T")

_WORDS = {
    "number": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "whole": "BIGINT",
    "bytes": "BYTEA",
}
_TYPES = {
    "lane_parcels": ("int8", "int8", "text", "int8", "int8", "int8", "int8", "float8", "bytea"),
    "lane_requests": ("int8", "text"),
}
_NOW = "extract(epoch FROM clock_timestamp())::float8"
# A transaction that nobody goes on with, of a process that was stopped, ends and frees its locks.
_SETTINGS = """
SELECT set_config('search_path', quote_ident(%(schema)s), false),
       set_config('statement_timeout', %(wait)s, false),
       set_config('idle_in_transaction_session_timeout', %(wait)s, false),
       CASE WHEN current_setting('synchronous_commit') = 'off'
         THEN set_config('synchronous_commit', 'on', false) END"""
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied for database",
    "does not exist",
)
"""What a server says to a login that no waiting changes. The driver has no code for it; a server
that says it in another language is waited for."""
_SEEN = """
SELECT current_user, n.oid IS NOT NULL,
       CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
         ELSE has_schema_privilege(n.oid, 'CREATE') END,
       n.oid IS NULL OR has_schema_privilege(n.oid, 'USAGE')
FROM (SELECT 1) AS one LEFT JOIN pg_namespace AS n ON n.nspname = %s"""
_TABLES_SEEN = """
SELECT c.relname,
       ARRAY(SELECT r FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r
             WHERE NOT has_table_privilege(c.oid, r))
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p') ORDER BY c.relname"""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class PostgresHub(SqlHub):
    """url: of the database, `postgresql://user@host/database?schema=name`; all other parameters
    are libpq's. The schema and its tables are made where they are not there.

    seconds: patience with a server that does not answer. Raises HubError at once where it cannot be
    reached from the start.
    """

    AMONG = "= ANY(?)"
    IDS = "unnest(?::text[]) AS id"

    def __init__(self, url: str, seconds: float = 10.0) -> None:
        try:
            address = parse_address(url)
        except StoreError as error:
            raise HubError(str(error)) from error
        self._url, self.schema, self.name = address.url, address.schema, f"hub {address.shown}"
        self._seconds = seconds
        self._open: _Connection | None = None
        self._closed = False
        try:
            self._connect(time.monotonic() + seconds)
        except psycopg.Error as error:
            raise _at_connecting(self.name, error) from error
        try:
            self.transaction(self._set_up, lasting=True)
        except BaseException:
            self.close()
            raise

    def transaction(self, work: Callable[[], T], lasting: bool) -> T:
        def whole() -> T:
            connection = self._connection
            # By its own words, whatever the database's default is.
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            try:
                result = work()
            except (psycopg.Error, TimeoutError):
                raise  # `_recover` sees to it
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

        return self.read(whole)

    def read(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise HubError(f"{self.name}: it is closed")
        deadline = time.monotonic() + self._seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                self._connect(deadline)
                return work()
            except (psycopg.Error, TimeoutError) as error:
                again = self._recover(error)
                if not again or time.monotonic() + pause >= deadline:
                    raise HubError(f"{self.name}: {_words(error)}") from error
            except msgspec.MsgspecError as error:
                raise HubError(f"{self.name}: a record cannot be read: {error}") from error
            except BaseException:
                # An interrupt may have come in the middle of an answer.
                if self._open is not None and not self._idle(self._open):
                    self._drop()
                raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def rows(self, sql: str, *values: object) -> list[Row]:
        cursor = self._connection.execute(_translated(sql), values)
        return cursor.fetchall() if cursor.description else []

    def each(self, sql: str, rows: Sequence[Row]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_translated(sql), rows)

    def insert(self, table: str, columns: str, rows: Sequence[Row]) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.set_types(_TYPES[table])
            for row in rows:
                copy.write_row(row)

    def listed(self, values: Sequence[str] | Sequence[int]) -> object:
        return list(values)

    def close(self) -> None:
        self._closed = True
        self._drop()

    @property
    def _connection(self) -> _Connection:
        assert self._open is not None
        return self._open

    def _connect(self, deadline: float) -> None:
        if self._open is None:
            patience = max(math.ceil(self._seconds), 2)
            self._open = _Connection.connect(
                self._url,
                autocommit=True,
                connect_timeout=patience,
                # For a machine that is gone without a word.
                tcp_user_timeout=1000 * patience,
                keepalives_idle=patience,
            )
            self._open.deadline = deadline
            # The server gives up before this side does, and so a connection is kept.
            wait = str(math.ceil(800 * self._seconds))
            self._open.execute(_SETTINGS, {"schema": self.schema, "wait": wait})
        self._open.deadline = deadline

    def _recover(self, error: psycopg.Error | TimeoutError) -> bool:
        """Make ready for the next call after this error; whether to ask again right away."""
        connection = self._open
        if connection is None:
            return True
        if connection.closed or isinstance(
            error, TimeoutError | psycopg.errors.ReadOnlySqlTransaction
        ):
            # The last: this server is now another's standby.
            self._drop()
            return True
        try:
            connection.execute("ROLLBACK")
        except (psycopg.Error, TimeoutError):
            self._drop()
        return isinstance(
            error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure
        )

    def _drop(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    @staticmethod
    def _idle(connection: _Connection) -> bool:
        return connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def _set_up(self) -> None:
        # One process makes the tables; the lock is for their name.
        self.rows("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", f"lanes {self.schema}")
        [(there,)] = self.rows("SELECT to_regclass('lane_state') IS NOT NULL")
        if not there:
            [(schema,)] = self.rows(
                "SELECT to_regnamespace(quote_ident(?)) IS NOT NULL", self.schema
            )
            if not schema:
                self._connection.execute(
                    SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(self.schema))
                )
            self._make(_WORDS)
            # Frames gain little from being compressed; leases and terms are renewed in their place.
            self.rows("ALTER TABLE lane_parcels ALTER body SET STORAGE EXTERNAL")
            self.rows("ALTER TABLE lane_leases SET (fillfactor = 50)")
            self.rows("ALTER TABLE lane_state SET (fillfactor = 10)")
        [(format_,)] = self.rows("SELECT format FROM lane_state")
        if format_ != FORMAT:
            raise HubError(f"{self.name}: format {format_}, this equipoise knows {FORMAT}")


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What a role finds in a database, where nothing is made by looking.

    name: of the database, without a password. creates: whether the role may make what is missing;
    uses: whether it may look into the schema. log, hub: whether they are there. lacks: rights by
    table.
    """

    name: str
    role: str
    schema: str
    creates: bool
    uses: bool
    log: bool
    hub: bool
    lacks: dict[str, list[str]]

    def refusal(self, *, decider: bool) -> str | None:
        """Why it cannot be a decider here, or an authority; None where it can."""
        if not self.uses:
            return f"role {self.role} may not use schema {self.schema}: GRANT USAGE ON SCHEMA"
        there = self.hub if decider else self.log and self.hub
        if not decider and not there and not self.creates:
            return f"role {self.role} may not create tables in schema {self.schema}: GRANT CREATE"
        for table, rights in self.lacks.items():
            if table.startswith("lane_") or (table == "writer" and not decider):
                what = ", ".join(rights)
                return f"role {self.role} lacks {what} on {self.schema}.{table}: GRANT {what}"
        return None


def look(url: str, seconds: float = 3.0) -> Sight:
    """What is there, within about so many seconds. Raises HubRefusedError where the login is
    refused, HubError where nobody answers."""
    try:
        address = parse_address(url)
    except StoreError as error:
        raise HubError(str(error)) from error
    name = f"database {address.shown}"
    patience = max(math.ceil(seconds), 2)
    try:
        with _Connection.connect(
            address.url, autocommit=True, connect_timeout=patience, tcp_user_timeout=1000 * patience
        ) as connection:
            connection.deadline = time.monotonic() + patience
            row = connection.execute(_SEEN, (address.schema,)).fetchone()
            tables = dict(connection.execute(_TABLES_SEEN, (address.schema,)).fetchall())
    except (psycopg.Error, TimeoutError) as error:
        raise _at_connecting(name, error) from error
    assert row is not None
    return Sight(
        name=name,
        role=row[0],
        schema=address.schema,
        creates=row[2],
        uses=row[3],
        log="writer" in tables,
        hub="lane_state" in tables,
        lacks={table: rights for table, rights in tables.items() if rights},
    )


def _at_connecting(name: str, error: BaseException) -> HubError:
    """The error of a first connection."""
    text = _words(error)
    refused = isinstance(error, psycopg.errors.InsufficientPrivilege) or any(
        each in text for each in _REFUSALS
    )
    # A socket's file that does not exist is a server that is away.
    away = "No such file" in text or "Is the server running" in text
    kind = HubRefusedError if refused and not away else HubError
    return kind(f"{name}: {text}")


class HubWithin(PostgresHub):
    """A hub whose tables are made, and filled, inside a transaction of the caller's."""

    def __init__(self, connection: psycopg.Connection[Any], url: str) -> None:
        address = parse_address(url)
        self.schema, self.name = address.schema, f"hub {address.shown}"
        self._given = connection
        self._set_up()

    def transaction(self, work: Callable[[], T], lasting: bool) -> T:
        return work()

    def read(self, work: Callable[[], T]) -> T:
        return work()

    def rows(self, sql: str, *values: object) -> list[Row]:
        # Whatever kind of cursor the caller's connection makes.
        cursor = psycopg.Cursor(self._given).execute(_translated(sql), values)
        return cursor.fetchall() if cursor.description else []

    def each(self, sql: str, rows: Sequence[Row]) -> None:
        psycopg.Cursor(self._given).executemany(_translated(sql), rows)

    def close(self) -> None:
        """The connection is the caller's."""


class _Connection(psycopg.Connection[Any]):
    """One that waits for no answer beyond its deadline, by `time.monotonic()`."""

    deadline = math.inf

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._until_deadline(gen), *args, **kwargs)

    def _until_deadline(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > self.deadline:
                    raise TimeoutError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    return sql.replace("hub_now()", _NOW).replace("?", "%s")


def _words(error: BaseException) -> str:
    """An error of the database in one line."""
    return " ".join(str(error).split()) or type(error).__name__
