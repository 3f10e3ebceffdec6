"""Retention: old rows of a log go to Parquet files, and the log begins at a sealed root.

The rows are read by a connection of its own and written to files that are whole, under hidden
names, before anything is removed. Then the root is sealed in one transaction, from which moment
readers begin there; the files get their names, and the rows are deleted a few at a time. What a
process that is killed in between leaves behind, rows that nobody reads and hidden files, the next
call finishes: files of sealed rows get their names, others are made again.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from equipoise.store.errors import StoreError
from equipoise.store.format.sql_rows import LOG_TABLES, Table
from equipoise.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 2000
BREATH_SECONDS = 0.005
"""Between two bites, so that the log is written meanwhile."""
_HIDDEN = re.compile(r"\.(?P<name>(?P<store>.+)\.\d+-(?P<last>\d+)\.[a-z]+\.parquet)\.part")
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The log begins at row `seq` now, `rows` fewer than before; files: what holds them."""

    seq: int
    rows: int
    digest: str
    files: tuple[Path, ...]


def trim(
    store: SqliteStore,
    before: float,
    now: float,
    archive: Path | None,
    stopping: Callable[[], bool] = lambda: False,
    newer: int = 0,
) -> Trimmed | None:
    """Remove what is older than the newest root that was kept by `before`; None without one.

    archive: a folder for Parquet files, None to keep nothing. stopping: asked between bites whether
    to give up, which leaves the log as it was. newer: roots that must have been kept since, so that
    one look at a clock that is wrong removes nothing. Times in seconds since the epoch. Raises
    StoreError.
    """
    try:
        return _trimmed(store, before, now, archive, stopping, newer)
    except OSError as error:
        raise StoreError(f"archive {archive}: {error.strerror or error}") from error


def _trimmed(
    store: SqliteStore,
    before: float,
    now: float,
    archive: Path | None,
    stopping: Callable[[], bool],
    newer: int,
) -> Trimmed | None:
    if archive is not None:
        finish_hidden(archive, store.path.name, store.begins)
    sweep(store, stopping)
    root = store.ripe_root(before, newer)
    if root is None:
        return None
    begins = store.root()
    first = 0 if begins is None else begins.seq
    written = _Archive(archive, f"{store.path.name}.{first:012d}-{root.seq - 1:012d}")
    digest, rows = sha256((begins.digest if begins else "").encode()), 0
    try:
        with SqliteStore(store.path, read_only=True) as reader:
            for table, row in _rows(reader, root.seq):
                digest.update(_encode([table.name, *row]))
                written.add(table, row)
                rows += 1
                if rows % ROWS_AT_ONCE == 0:
                    time.sleep(BREATH_SECONDS)
                    if stopping():
                        written.discard()
                        return None
        written.finish()
    except BaseException:
        written.discard()
        raise
    store.seal(root.seq, now, digest.hexdigest())
    files = () if archive is None else finish_hidden(archive, store.path.name, root.seq)
    sweep(store, stopping)
    return Trimmed(root.seq, rows, digest.hexdigest(), files)


def finish_hidden(folder: Path, store: str, begins: int) -> tuple[Path, ...]:
    """Give the hidden files of a store the names they are to have, if their rows are sealed; remove
    the others. begins: the first row of the log. Returns the files that got their names."""
    done = []
    for hidden in sorted(folder.glob(f".{glob.escape(store)}.*.part")):
        matched = _HIDDEN.fullmatch(hidden.name)
        if matched is None or matched["store"] != store:
            continue
        if int(matched["last"]) < begins:
            done.append(hidden.replace(folder / matched["name"]))
        else:
            hidden.unlink()
    if done:
        _sync(folder)
    return tuple(done)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(store: SqliteStore, stopping: Callable[[], bool] = lambda: False) -> None:
    """Delete the rows before the log's beginning, a few at a time, until there are none."""
    while not stopping() and store.delete_some(ROWS_AT_ONCE):
        time.sleep(BREATH_SECONDS)


def _rows(reader: SqliteStore, until: int) -> Iterator[tuple[Table, tuple[object, ...]]]:
    """Every row before `until` in seq order, as SQL holds it."""
    start = reader.begins
    for low in range(start, until, ROWS_AT_ONCE):
        high = min(low + ROWS_AT_ONCE, until)
        found = [(table, row) for table in LOG_TABLES for row in reader.sql_rows(table, low, high)]
        yield from sorted(found, key=lambda each: int(str(each[1][0])))


class _Archive:
    """A Parquet file for each table that has rows, under hidden names."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._folder = folder
        self._name = name
        self._held: dict[str, list[tuple[object, ...]]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(self, table: Table, row: tuple[object, ...]) -> None:
        if self._folder is None:
            return
        held = self._held.setdefault(table.name, [])
        held.append(row)
        if len(held) >= ROWS_AT_ONCE:
            self._write(table)

    def finish(self) -> None:
        """Make the files whole, on the disk."""
        if self._folder is None:
            return
        for table in LOG_TABLES:
            if self._held.get(table.name):
                self._write(table)
        for name, writer in self._writers.items():
            writer.close()
            _sync(self._hidden(name))
        if self._writers:
            _sync(self._folder)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._folder is None:
            return
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                writer.close()
        for table in LOG_TABLES:
            with contextlib.suppress(OSError):
                self._hidden(table.name).unlink(missing_ok=True)

    def _hidden(self, table: str) -> Path:
        assert self._folder is not None
        return self._folder / f".{self._name}.{table}.parquet.part"

    def _write(self, table: Table) -> None:
        import pyarrow as pa  # late: half a second and a hundred megabytes that few need
        import pyarrow.parquet as pq

        schema = _schema(table)
        writer = self._writers.get(table.name)
        if writer is None:
            assert self._folder is not None
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._hidden(table.name)
            writer = self._writers[table.name] = pq.ParquetWriter(path, schema, compression="zstd")
        columns = zip(*self._held.pop(table.name), strict=True)
        arrays = [pa.array(list(c), field.type) for c, field in zip(columns, schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _schema(table: Table) -> pa.Schema:
    """The columns of SQL: whole numbers, real ones, and text (vectors as JSON)."""
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.schema([(name, kinds[kind]) for name, kind in table.types.items()])
