"""A session with a PostgreSQL server that outlives its connection, and never writes twice.

Whoever writes holds an advisory lock, which the server lets go with the connection, and a token: a
number in the table `writer` that every new writer raises. Every transaction of a writer ends with
raising `serial` beside it, under its own token. Hence

- a second writer is refused while the first one is connected;
- a writer that lost its connection takes the lock again, and goes on only if nobody raised the
  token meanwhile and `serial` is what it left there, so that no server which was put back to an
  earlier state is written on;
- where the connection went in the COMMIT itself, `serial` says whether that took place.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from equipoise.store.address import Address
from equipoise.store.errors import (
    CorruptStoreError,
    DisplacedStoreError,
    FullStoreError,
    LostConnectionError,
    MissingStoreError,
    ReadOnlyStoreError,
    SchemaVersionError,
    SlowStoreError,
    StoreError,
    StoreInUseError,
    TornAppendError,
    WriteError,
)
from equipoise.store.postgres import schema
from equipoise.store.sql.connection import Row

try:
    import psycopg
except ImportError as missing:  # pragma: no cover - tests have it
    raise StoreError(
        "a store in PostgreSQL needs the driver psycopg: pip install 'equipoise[postgres]'"
    ) from missing

T = TypeVar("T")
ANSWER_SECONDS = 60.0
SETTLE_SECONDS = 5.0
"""How long a writer waits to learn whether a COMMIT took place whose answer it did not get."""
RETRY_SECONDS = 0.5
"""Between two attempts to connect again, at least, and twice as long as the last one took; calls in
between fail at once."""
_TORN = "an append whose answer was lost is in the log: start anew"
_LOCK = 0x45515053  # "EQPS"
_DEFAULTS = {
    "application_name": "equipoise",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
}
_MEANINGS: Sequence[tuple[tuple[str, ...], type[StoreError], str]] = (
    (("53100", "53200"), FullStoreError, "the server has no room left"),
    (("53", "55P03", "57014", "40P01"), SlowStoreError, "the server did not get to it"),
    (("40001",), DisplacedStoreError, "another writer wrote meanwhile"),
    (("25006",), WriteError, "the server does not take writes (a standby?)"),
    (("42501",), ReadOnlyStoreError, "this user may not do that"),
    (("22", "23"), WriteError, "a row breaks a rule of the log"),
    (("XX", "42P01", "42703"), CorruptStoreError, "the database is damaged"),
)


def as_store_error(name: str, error: psycopg.Error) -> StoreError:
    """The StoreError that says what `error` means; the server's own words follow in brackets."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    code = error.sqlstate or ""
    for codes, kind, meaning in _MEANINGS:
        if code and code.startswith(codes):
            return kind(f"{name}: {meaning} ({text})")
    if is_lost(error):
        return LostConnectionError(f"{name}: the connection to the database is gone ({text})")
    return StoreError(f"{name}: the database refused ({text})")


def is_lost(error: BaseException) -> bool:
    """Whether this says that there is no connection any more, or none yet."""
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """The statement with $1, $2, … for its question marks."""
    first, *others = sql.split("?")
    return first + "".join(f"${place}{part}" for place, part in enumerate(others, 1))


class PatientConnection(psycopg.Connection[Row]):
    """One that waits for a server that says nothing no longer than ANSWER_SECONDS, whoever may
    still believe in the connection."""

    def wait(self, gen: Any, *args: Any, **more: Any) -> Any:
        return super().wait(self._heard(gen), *args, **more)

    def _heard(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        silent_since = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > ANSWER_SECONDS:
                    self.close()
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value


class PostgresConnection:
    """A connection that the shared statements understand."""

    def __init__(self, raw: psycopg.Connection[Row]) -> None:
        self.raw = raw

    @property
    def in_transaction(self) -> bool:
        return self.raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def execute(self, sql: str, values: Any = (), /) -> Any:
        return self.raw.execute(numbered(sql).encode(), tuple(values) or None)

    def executemany(self, sql: str, rows: Any, /) -> Any:
        rows = list(rows)
        if len(rows) == 1:
            return self.execute(sql, rows[0])
        cursor = self.raw.cursor()
        cursor.executemany(numbered(sql).encode(), rows)
        return cursor


def connect(address: Address, read_only: bool, seconds: float = 2.0) -> PostgresConnection:
    """A connection whose every transaction sees one moment. Raises StoreError."""
    name = f"store {address.shown}"
    try:
        given = psycopg.conninfo.conninfo_to_dict(address.url)
        raw = PatientConnection.connect(
            **{**_DEFAULTS, "connect_timeout": max(2, math.ceil(seconds)), **given},  # type: ignore[arg-type]
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
        )
    except psycopg.ProgrammingError as error:
        text = next(iter(str(error).strip().splitlines()), "")
        raise StoreError(f"{name}: the URL is refused ({text})") from error
    except psycopg.Error as error:
        raise as_store_error(name, error) from error
    connection = PostgresConnection(raw)
    try:
        with _errors(name):
            connection.execute(
                "SELECT set_config('search_path', ?, false),"
                " set_config('default_transaction_isolation', 'repeatable read', false),"
                " set_config('default_transaction_read_only', ?, false),"
                " set_config('lock_timeout', '5s', false),"
                " CASE WHEN current_setting('synchronous_commit') = 'off'"
                " THEN set_config('synchronous_commit', 'on', false) END",
                (address.schema, "on" if read_only else "off"),
            )
    except BaseException:
        raw.close()
        raise
    return connection


def try_lock(connection: PostgresConnection, name: str) -> bool:
    """Take the lock of a schema's writer, which ends with the connection; whether it is ours."""
    row = connection.execute(
        "SELECT pg_try_advisory_lock(?, hashtext(?))", (_LOCK, name)
    ).fetchone()
    return bool(row[0])


def copy_rows(
    connection: PostgresConnection, table: str, columns: Sequence[str], rows: Sequence[Row]
) -> None:
    """Insert many rows at once."""
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    with psycopg.Cursor(connection.raw).copy(statement.encode()) as copy:
        for row in rows:
            copy.write_row(row)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise as_store_error(name, error) from error
    except msgspec.MsgspecError as error:
        raise CorruptStoreError(f"{name}: a record cannot be read: {error}") from error


class PostgresSession:
    """A connection that the threads of a process take turns on, made anew where it was lost.

    A writer's: opening makes or upgrades the store. interrupted: called where an interrupt may have
    hidden whether a transaction took place.
    """

    def __init__(
        self,
        address: Address,
        read_only: bool = True,
        interrupted: Callable[[], None] = lambda: None,
        connect_seconds: float = 2.0,
    ) -> None:
        self.name = f"store {address.shown}"
        self.turn = threading.RLock()
        self.displaced: StoreError | None = None
        """Why this writer may not go on, None while it may."""
        self.trouble: StoreError | None = None
        """Why there is no connection, None while there is one."""
        self.found: tuple[int, int] = (0, 0)
        """Of a writer: (next seq, decisions) that the one before left."""
        self._address, self._read_only = address, read_only
        self._interrupted, self._connect_seconds = interrupted, connect_seconds
        self._token, self._serial = 0, 0
        self._pending: tuple[int, bool] | None = None
        self._torn = self._closed = False
        self._next_try = 0.0
        self._connection = connect(address, read_only, connect_seconds)
        try:
            with _errors(self.name):
                if read_only:
                    self._check_version()
                else:
                    self._become_writer()
        except BaseException:
            self._connection.raw.close()
            raise

    def _check_version(self) -> int:
        shown, name = self._address.shown, self._address.schema
        version = schema.schema_version(self._connection, name, shown)
        if self._read_only and version == 0:
            raise MissingStoreError(f"store {shown} does not exist: schema {name} holds nothing")
        if self._read_only and version < schema.newest():
            raise SchemaVersionError(
                f"store {shown} has schema version {version}, this equipoise reads "
                f"{schema.newest()}: open it once for writing to upgrade it"
            )
        return version

    def _become_writer(self) -> None:
        connection = self._connection
        if not self._take_lock(0.0):
            raise StoreInUseError(f"{self.name} is open for writing already{self._holder()}")
        connection.execute("BEGIN")
        version = self._check_version()
        if version < schema.newest():
            schema.upgrade(connection, self._address.schema, version)
        who = f"{socket.gethostname()}, process {os.getpid()}"
        self._token, self._serial, *found = schema.take_token(connection, who)
        connection.execute("COMMIT")
        self.found = found[0], found[1]

    def _take_lock(self, seconds: float) -> bool:
        """Take the writer's lock; another connection's, which may be our own old one, is waited for
        that long."""
        deadline = time.monotonic() + seconds
        while True:
            if try_lock(self._connection, self._address.schema):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def _holder(self) -> str:
        with contextlib.suppress(psycopg.Error):
            row = self._connection.execute("SELECT who FROM writer").fetchone()
            return f" ({row[0]})" if row and row[0] else ""
        return ""

    @contextlib.contextmanager
    def transaction(self, counts: tuple[int, int] | None = None) -> Iterator[PostgresConnection]:
        """All that is written inside, or nothing; errors of the server become StoreErrors.

        counts: of an append, (next seq, decisions) after it. LostConnectionError: nothing was
        written, or nobody can say yet; in the latter case TornAppendError follows for good if it
        was an append, and in the log.
        """
        if self._read_only:
            raise ReadOnlyStoreError(f"{self.name} was opened read-only")
        with self.turn:
            connection = self._begin()
            self._check_torn()
            try:
                yield connection
                self._raise_serial(connection, counts)
                try:
                    connection.execute("COMMIT")
                except psycopg.Error as error:
                    if not is_lost(error):
                        raise
                    self._learn_outcome(error, counts is not None)
                else:
                    self._serial += 1
            except BaseException as error:
                if not isinstance(error, (psycopg.Error, StoreError)):
                    self._interrupted()
                with contextlib.suppress(psycopg.Error):
                    if not connection.raw.closed:
                        connection.execute("ROLLBACK")
                if isinstance(error, psycopg.Error):
                    raise as_store_error(self.name, error) from error
                raise

    def _begin(self) -> PostgresConnection:
        for again in (True, False):
            connection = self._ready()
            try:
                connection.execute("BEGIN")
            except psycopg.Error as error:
                if not (again and is_lost(error)):
                    raise as_store_error(self.name, error) from error
            else:
                break
        return connection

    def _raise_serial(self, connection: PostgresConnection, counts: tuple[int, int] | None) -> None:
        rows, decisions = counts or (None, None)
        changed = connection.execute(
            "UPDATE writer SET serial = serial + 1, next_seq = coalesce(?, next_seq),"
            " decisions = coalesce(?, decisions) WHERE token = ? AND serial = ?",
            (rows, decisions, self._token, self._serial),
        ).rowcount
        if changed != 1:
            self.displaced = self._displacement()
            raise self.displaced

    def _displacement(self) -> DisplacedStoreError:
        return DisplacedStoreError(
            f"{self.name}: another writer took over, or the database was put back to an earlier "
            "state: start anew"
        )

    def _learn_outcome(self, error: psycopg.Error, appended: bool) -> None:
        """Find out whether a COMMIT took place whose answer never came; raises where it did not,
        or where nobody answers."""
        before = self._serial
        self._pending = before + 1, appended
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            self._next_try = 0.0
            try:
                self._reconnect()
                break
            except LostConnectionError:
                if time.monotonic() > deadline:
                    raise LostConnectionError(
                        f"{self.name}: the connection went in a COMMIT and does not come back: "
                        "whether it took place shows when the database answers again"
                    ) from error
                time.sleep(0.05)
        self._torn = False
        if self._serial == before:
            raise LostConnectionError(f"{self.name}: the connection went before the COMMIT")

    def _ready(self) -> PostgresConnection:
        """A connection that is open; of a writer, one that may go on writing."""
        if self._closed:
            raise StoreError(f"{self.name} is closed")
        if self._connection.raw.closed:
            self._reconnect()
        if self.displaced is not None:
            raise self.displaced
        return self._connection

    def check(self) -> None:
        """Raise what a transaction would raise now; connects again where the connection is gone."""
        with self.turn:
            self._check_torn()
            self.query("SELECT 1")
            self._check_torn()

    def _check_torn(self) -> None:
        if self._torn:
            raise TornAppendError(f"{self.name}: {_TORN}")

    def _reconnect(self) -> None:
        if self.displaced is not None:
            raise self.displaced
        now = time.monotonic()
        if now < self._next_try and self.trouble is not None:
            raise self.trouble
        try:
            self._connection.raw.close()
            self._connection = connect(self._address, self._read_only, self._connect_seconds)
            if not self._read_only:
                with _errors(self.name):
                    self._go_on()
        except StoreError as error:
            self._connection.raw.close()
            self.trouble = error
            end = time.monotonic()
            self._next_try = end + max(RETRY_SECONDS, 2.0 * (end - now))
            if isinstance(error, DisplacedStoreError):
                raise
            # Whatever the reason, a server that starts, a full table of connections: later again.
            raise LostConnectionError(str(error)) from error
        self.trouble = None

    def _go_on(self) -> None:
        """Be the writer again over a new connection."""
        if not self._take_lock(1.0):
            raise StoreInUseError(
                f"{self.name}: another connection holds the writer's lock{self._holder()}"
            )
        token, serial = self._connection.execute("SELECT token, serial FROM writer").fetchone()
        pending, self._pending = self._pending, None
        if token == self._token and pending is not None and serial == pending[0]:
            self._serial, self._torn = serial, pending[1]
        elif token != self._token or serial != self._serial:
            self.displaced = self._displacement()
            raise self.displaced

    def query(self, sql: str, values: Sequence[float | str] = ()) -> list[Row]:
        """The rows of a statement; errors as of `ask`."""
        return self.ask(lambda connection: connection.execute(sql, values).fetchall())

    def ask(self, question: Callable[..., T], *values: object) -> T:
        """question(connection, *values); asked again where the connection was gone. Errors of the
        server become StoreErrors."""
        with self.turn:
            for again in (True, False):
                connection = self._ready()
                if self._torn:  # who asks would take rows for known that its memory lacks
                    raise WriteError(f"{self.name}: {_TORN}")
                inside = connection.in_transaction
                try:
                    with _errors(self.name):
                        return question(connection, *values)
                except LostConnectionError:
                    if inside or not again:
                        raise
        raise AssertionError("unreachable")

    def drop_partitions(self, before: int) -> int:
        """Drop the partitions that hold no row from `before` on; how many rows they had room for.

        Each in a transaction of its own, and none while somebody reads the log for long.
        """
        dropped = 0
        for part in self.ask(schema.partitions_before, before):
            with contextlib.suppress(SlowStoreError):
                with self.transaction() as connection:
                    schema.drop_partition(connection, part)
                dropped += schema.PARTITION_ROWS
        return dropped

    def close(self) -> None:
        """Let go of the connection, and with it of the lock."""
        with self.turn:
            self._closed = True
            self._connection.raw.close()
