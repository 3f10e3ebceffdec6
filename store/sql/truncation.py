"""Truncation: where a log begins, and how its old rows leave the store.

A base snapshot is the state after the rows before `seq`, kept apart from the checkpoints. Once it
is sealed the log begins there: its digest vouches for what came before, and those rows may be
removed. They go to Parquet files, where they are to be kept.

The rows are read by a connection of its own and written to files that are whole, under hidden
names, before anything is removed. Then the base is sealed in one transaction, from which moment
readers begin there; the files get their names, and the rows are deleted a few at a time. What a
process that is killed in between leaves behind, rows that nobody reads and hidden files, the next
call finishes: files of sealed rows get their names, others are made again.
"""

from __future__ import annotations

import contextlib
import glob
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from equipoise.store.batches import Buffer
from equipoise.store.contract import BaseSnapshot
from equipoise.store.errors import CorruptStoreError, StoreError
from equipoise.store.files import sync_to_disk
from equipoise.store.format.sql_rows import LOG_TABLES, Row
from equipoise.store.sql import chain
from equipoise.store.sql.connection import Session
from equipoise.store.sql.records import base_checksum, insert_root

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BEGINS = "coalesce((SELECT max(seq) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first row of the log."""
FIRST_NUMBER = "coalesce((SELECT max(decisions) FROM roots WHERE sealed_at IS NOT NULL), 0)"
"""SQL: the first decision of the log."""
ROWS_AT_ONCE = 2000
BREATH_SECONDS = 0.005
"""Between two bites, so that the log is written meanwhile."""
_HIDDEN = re.compile(r"\.(?P<name>(?P<store>.+)\.\d+-(?P<last>\d+)\.[a-z]+\.parquet)\.part")
_TYPES = {table.name: table.types for table in LOG_TABLES}
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The log begins at row `seq` now, `rows` fewer than before; files: what holds them."""

    seq: int
    rows: int
    digest: str
    files: tuple[Path, ...]


class Truncation:
    """The beginning of the log of a store, read and moved through its session.

    name: what its archives are called after. reading: a session of its own for long reads.
    remove_whole: drops what holds nothing but rows before this one, where that is quicker than
    deleting them; how many rows.
    For any thread. Times are seconds since the epoch. Every method raises StoreError.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        reading: Callable[[], AbstractContextManager[Session]],
        remove_whole: Callable[[int], int] = lambda before: 0,
    ) -> None:
        self._name = name
        self._session = session
        self._reading = reading
        self._remove_whole = remove_whole

    @property
    def begins(self) -> int:
        """The first row of the log."""
        return int(self._session.query(f"SELECT {BEGINS}")[0][0])

    def base(self) -> BaseSnapshot | None:
        """What the log begins at, None where it begins at row 0.

        Raises CorruptStoreError where its checksum does not hold: nothing else can be read then.
        """
        return self._first("sealed_at IS NOT NULL ORDER BY seq DESC")

    def keep(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq` for the log to begin at some day; not where it
        begins there already."""
        with self._session.transaction() as connection:
            sealed = "SELECT 1 FROM roots WHERE seq = ? AND sealed_at IS NOT NULL"
            if connection.execute(sealed, (seq,)).fetchone():
                return
            before = "SELECT number + 1 FROM decisions WHERE seq < ? ORDER BY seq DESC LIMIT 1"
            decisions = connection.execute(
                f"SELECT coalesce(({before}), {FIRST_NUMBER})", (seq,)
            ).fetchone()[0]
            insert_root(connection, BaseSnapshot(seq, decisions, at, state))

    def last_kept(self, now: float) -> float | None:
        """When the newest base was kept, of those that are not dated later than `now`."""
        latest: float | None = self._session.query(
            "SELECT max(at) FROM roots WHERE at <= ?", (now,)
        )[0][0]
        return latest

    def ripe(self, before: float, newer: int = 0) -> BaseSnapshot | None:
        """The newest base beyond the log's beginning that was kept by `before`, and before at least
        `newer` others."""
        condition = (
            "sealed_at IS NULL AND at <= ? AND seq > ?"
            " AND (SELECT count(*) FROM roots AS other WHERE other.id > roots.id) >= ?"
            " ORDER BY seq DESC"
        )
        return self._first(condition, before, self.begins, newer)

    def _first(self, condition: str, *values: float) -> BaseSnapshot | None:
        rows = self._session.query(
            "SELECT checksum, seq, decisions, at, state, sealed_at, coalesce(digest, '') FROM roots"
            f" WHERE {condition} LIMIT 1",
            values,
        )
        if not rows:
            return None
        checksum, base = rows[0][0], BaseSnapshot(*rows[0][1:])
        if base_checksum(base) != checksum:
            raise CorruptStoreError(
                f"the state that the log goes on from at row {base.seq} is damaged"
            )
        return base

    def seal(self, seq: int, at: float, digest: str) -> None:
        """Let the log begin at the oldest base of this seq; what was kept before is not needed."""
        first = "(SELECT min(id) FROM roots WHERE seq = ?)"
        with self._session.transaction() as connection:
            connection.execute(f"DELETE FROM roots WHERE seq <= ? AND id != {first}", (seq, seq))
            connection.execute(
                "UPDATE roots SET sealed_at = ?, digest = ? WHERE seq = ?", (at, digest, seq)
            )
            chain.forget(connection, seq)  # its digest at this row was kept with the base

    def trim(
        self,
        before: float,
        now: float,
        archive: Path | None,
        stopping: Callable[[], bool] = lambda: False,
        newer: int = 0,
    ) -> Trimmed | None:
        """Remove what is older than the newest base that was kept by `before`; None without one.

        archive: a folder for Parquet files, None to keep nothing. stopping: asked between bites
        whether to give up, which leaves the log as it was. newer: bases that must have been kept
        since, so that one look at a clock that is wrong removes nothing.
        """
        try:
            if archive is not None:
                finish_hidden(archive, self._name, self.begins)
            self.sweep(stopping)
            ripe = self.ripe(before, newer)
            if ripe is None:
                return None
            base = self.base()
            start = 0 if base is None else base.seq
            digest = sha256((base.digest if base else "").encode())
            written = _Archive(archive, f"{self._name}.{start:012d}-{ripe.seq - 1:012d}")
            try:
                count = self._copy_rows(ripe.seq, digest.update, written, stopping)
                if count is None:
                    written.discard()
                    return None
                written.finish()
            except BaseException:
                written.discard()
                raise
            self.seal(ripe.seq, now, digest.hexdigest())
            files: tuple[Path, ...] = ()
            if archive is not None:
                files = finish_hidden(archive, self._name, ripe.seq)
            self.sweep(stopping)
            return Trimmed(ripe.seq, count, digest.hexdigest(), files)
        except OSError as error:
            raise StoreError(f"archive {archive}: {error.strerror or error}") from error

    def _copy_rows(
        self,
        until: int,
        digest: Callable[[bytes], None],
        archive: _Archive,
        stopping: Callable[[], bool],
    ) -> int | None:
        """Archive every row before `until` in seq order; how many, None where it gave up."""
        count = 0
        with self._reading() as reader:
            for low in range(self.begins, until, ROWS_AT_ONCE):
                high = min(low + ROWS_AT_ONCE, until)
                for table, row in reader.ask(chain.rows_between, low, high):
                    digest(_encode([table, *row]))
                    archive.add(table, row)
                    count += 1
                if high < until:
                    time.sleep(BREATH_SECONDS)
                    if stopping():
                        return None
        return count

    def sweep(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Delete the rows before the log's beginning, a few at a time, until there are none."""
        self._remove_whole(self.begins)
        while not stopping() and self.delete_some(ROWS_AT_ONCE):
            time.sleep(BREATH_SECONDS)

    def delete_some(self, rows: int) -> int:
        """Delete some rows before the beginning of the log; how many."""
        begins, count = self.begins, 0
        with self._session.transaction() as connection:
            for table in LOG_TABLES:
                last = connection.execute(
                    f"SELECT max(seq) FROM (SELECT seq FROM {table.name}"
                    " WHERE seq < ? ORDER BY seq LIMIT ?) AS first",
                    (begins, rows),
                ).fetchone()[0]
                if last is not None:
                    statement = f"DELETE FROM {table.name} WHERE seq <= ?"
                    count += connection.execute(statement, (last,)).rowcount
        return count


def finish_hidden(folder: Path, store: str, begins: int) -> tuple[Path, ...]:
    """Give the hidden files of a store the names they are to have, if their rows are sealed; remove
    the others. begins: the first row of the log. Returns the files that got their names."""
    named = []
    for hidden in sorted(folder.glob(f".{glob.escape(store)}.*.part")):
        parts = _HIDDEN.fullmatch(hidden.name)
        if parts is None or parts["store"] != store:
            continue
        if int(parts["last"]) < begins:
            named.append(hidden.replace(folder / parts["name"]))
        else:
            hidden.unlink()
    if named:
        sync_to_disk(folder)
    return tuple(named)


class _Archive:
    """A Parquet file for each table that has rows, under hidden names; none without a folder."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._folder = folder
        self._name = name
        self._rows: dict[str, list[Row]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(self, table: str, row: Row) -> None:
        if self._folder is None:
            return
        rows = self._rows.setdefault(table, [])
        rows.append(row)
        if len(rows) >= ROWS_AT_ONCE:
            self._write(self._folder, table)

    def finish(self) -> None:
        """Make the files whole, on the disk."""
        if self._folder is None:
            return
        for table in list(self._rows):
            self._write(self._folder, table)
        for table, writer in self._writers.items():
            writer.close()
            sync_to_disk(self._hidden(self._folder, table))
        if self._writers:
            sync_to_disk(self._folder)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._folder is None:
            return
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                writer.close()
        for table in LOG_TABLES:
            with contextlib.suppress(OSError):
                self._hidden(self._folder, table.name).unlink(missing_ok=True)

    def _hidden(self, folder: Path, table: str) -> Path:
        return folder / f".{self._name}.{table}.parquet.part"

    def _write(self, folder: Path, table: str) -> None:
        import pyarrow as pa  # late: half a second and a hundred megabytes that few need
        import pyarrow.parquet as pq

        kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in _TYPES[table].items()])
        writer = self._writers.get(table)
        if writer is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = self._hidden(folder, table)
            writer = self._writers[table] = pq.ParquetWriter(path, schema, compression="zstd")
        columns = zip(*self._rows.pop(table), strict=True)
        arrays = [pa.array(list(c), field.type) for c, field in zip(columns, schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
