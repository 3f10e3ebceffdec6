"""What a writer finds beside a database when it opens it, and whether that is all there was.

Everything here only reads. `inspect_files` compares the database, the tail, the mark and SQLite's
journal; `Leftovers` says what of the tail belongs into the log, what is missing, and why the files
do not belong together, if they do not.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    OutcomeBatch,
    Segment,
    select,
    slice_rows,
)
from equipoise.store.errors import CorruptStoreError, LostRowsError
from equipoise.store.format.frames import Scanned, read_segment, scan, tail_files
from equipoise.store.format.mark import (
    Standing,
    boot_id,
    is_own_journal,
    mark_path,
    read_mark,
    wal_salts,
)
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.records import Gap
from equipoise.store.sql.records import TAKEN, read_fact
from equipoise.store.sql.truncation import BEGINS, FIRST_NUMBER
from equipoise.store.sqlite.connection import Durability, connect
from equipoise.store.sqlite.schema import (
    MIGRATIONS,
    STORE_ID,
    check_identity,
    create_gaps,
    schema_version,
)

_SINCE_GAPS = next(number for number, step in MIGRATIONS if step is create_gaps)


@dataclass(slots=True)
class Leftovers:
    """What stands beside a database.

    segments: rows of the tail that the log does not hold, numbered on from its end; recovered: how
    many rows; gaps: what is missing. files: the tail files; damaged: those of them with anything
    that is no frame, or not of this store, in front of whole frames; put_aside: the names that such
    files have now; finished: those whose rows an interrupted start took in. strange: why the files
    do not belong together. stopped: where each tail file ends that ends in bytes that are no frame.
    standing: what the mark says; allowed: what is missing is no more than the durability allows.
    """

    store_id: bytes = b""
    next_seq: int = 0
    decisions: int = 0
    standing: Standing | None = None
    segments: list[Segment] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    finished: list[Path] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    journal_is_strange: bool = False
    allowed: bool = True
    recovered: int = 0
    put_aside: list[str] = field(default_factory=list)

    def refuse(self, store: Path) -> None:
        """Raise LostRowsError, in one line, where anything is missing or strange."""
        problems = [*self.strange]
        if not self.allowed:
            problems += [gap.sentence for gap in self.gaps]
        if problems:
            raise LostRowsError(
                f"store {store}: {'; '.join(problems)}. Put the missing files back, or restore a"
                f" backup, or accept the loss: equipoise repair {store}"
            )


def inspect_files(store: Path, durability: Durability, busy_seconds: float) -> Leftovers:
    """Read everything that a writer of `store`, a file that exists, has to know.

    Raises StoreError or sqlite3.Error where the database itself cannot be read.
    """
    standing = read_mark(store)
    # Without a journal nobody else is writing, and SQLite need not make files to look.
    journal = store.with_name(store.name + "-wal").exists()
    mode = "ro" if journal else "ro&immutable=1"
    with contextlib.closing(connect(store, mode, busy_seconds)) as connection:
        version = check_identity(connection, store)
        if version == 0:
            if standing is not None or tail_files(store):
                raise CorruptStoreError(
                    f"store {store} is empty, but a log was kept beside it: put the database and"
                    " its journal back, or restore a backup"
                )
            leftovers, rules, finished = Leftovers(), set[str](), ""
        else:
            try:
                leftovers, rules, finished = _database(store, connection, version)
            except UnicodeDecodeError as error:
                # SQLite quotes what it cannot read, and sqlite3 cannot decode the quotation.
                raise CorruptStoreError(
                    f"store {store}: its schema is damaged: restore a backup"
                ) from error
    leftovers.standing = standing
    salts = wal_salts(store)
    if standing is not None:
        if standing.store_id != leftovers.store_id:
            # No loss of this store to be accepted: the rows of the other one are elsewhere.
            raise LostRowsError(
                f"store {store}: it is not the store of {mark_path(store).name}, another database"
                " lies in its place. Put its own back with its journal, or restore a backup"
            )
        if not is_own_journal(standing, salts):
            leftovers.journal_is_strange = True
            leftovers.strange.append(f"{store.name}-wal is not the journal that it was left with")
    leftovers.files = tail_files(store)
    leftovers.finished = [file for file in leftovers.files if _name(file) in finished.split()]
    tail = _TailReader(leftovers, rules, store, bool(finished))
    for path in leftovers.files:
        if path not in leftovers.finished:
            tail.read_file(path)
    tail.finish(durability)
    return leftovers


def store_id_of(store: Path) -> bytes:
    """The id of a store that nobody writes, b"" for one of an older schema."""
    with contextlib.closing(connect(store, "ro&immutable=1", 0.0)) as connection:
        if schema_version(connection) < _SINCE_GAPS:
            return b""
        return bytes.fromhex(read_fact(connection, STORE_ID) or "")


def _name(path: Path) -> str:
    """A file by name and inode: another one of its name is another file."""
    return f"{path.name}:{path.stat().st_ino}"


def names_of(files: list[Path]) -> str:
    """How the files are noted down as taken in."""
    return " ".join(map(_name, files))


def _database(
    store: Path, connection: sqlite3.Connection, version: int
) -> tuple[Leftovers, set[str], str]:
    """What the log holds, by SQL that every schema version understands."""

    def one(sql: str) -> int:
        return int(connection.execute(sql).fetchone()[0])

    seq = max(one(f"SELECT coalesce(max(seq) + 1, 0) FROM {table.name}") for table in LOG_TABLES)
    number = one("SELECT coalesce(max(number) + 1, 0) FROM decisions")
    finished, store_id = "", b""
    seq, number = max(seq, one(f"SELECT {BEGINS}")), max(number, one(f"SELECT {FIRST_NUMBER}"))
    if version >= _SINCE_GAPS:
        number = max(number, one("SELECT coalesce(max(first + numbers), 0) FROM gaps"))
        finished = read_fact(connection, TAKEN) or ""
        try:
            store_id = bytes.fromhex(read_fact(connection, STORE_ID) or "")
        except ValueError:
            store_id = b""
        if len(store_id) != 16:
            raise CorruptStoreError(f"store {store}: its id is damaged: restore a backup")
    rules = {rule for (rule,) in connection.execute("SELECT rule_id FROM rules")}
    return Leftovers(store_id=store_id, next_seq=seq, decisions=number), rules, finished


# Rules of an agent, which keeps each before a decision follows it; a store alone knows of none.
_HASHED = re.compile("r[0-9a-f]{20}")


class _TailReader:
    """Goes through the frames of the tail, in order, from the log's end."""

    def __init__(
        self, leftovers: Leftovers, rules: set[str], store: Path, interrupted: bool
    ) -> None:
        self._interrupted = interrupted
        self._leftovers, self._rules, self._store = leftovers, rules, store
        self._expected = leftovers.next_seq  # as the tail numbers rows
        self._next_seq, self._number = leftovers.next_seq, leftovers.decisions
        self._lost_rows = 0
        self._reasons: dict[str, None] = {}
        self._end = 0  # the number after the last decision of the tail, taken in or not

    def read_file(self, path: Path) -> None:
        leftovers = self._leftovers
        data = path.read_bytes()
        scanned = scan(data, leftovers.store_id)
        if scanned.owner is not None and scanned.owner != leftovers.store_id:
            leftovers.strange.append(f"{path.name} belongs to another store")
            leftovers.damaged.append(path)
            return
        if scanned.torn:
            end = scanned.frames[-1][1] if scanned.frames else 0
            leftovers.stopped.append(f"{path.name} at byte {end}")
        if scanned.damaged or (scanned.torn and not scanned.frames):
            # StoredRecord, whatever becomes of the rows: it is the evidence.
            leftovers.damaged.append(path)
        for segment in _segments(data, scanned):
            self._add(path, segment)

    def _add(self, path: Path, segment: Segment) -> None:
        rows = len(segment.batch)
        if segment.seq + rows <= self._expected:
            return  # in the log already
        batch: Batch = segment.batch
        if segment.seq < self._expected:
            batch = slice_rows(batch, self._expected - segment.seq, rows)
        elif segment.seq > self._expected:
            damaged = max(self._leftovers.damaged, key=str, default=None)
            where = f"{damaged.name} is damaged" if damaged else f"{path.name} begins later"
            self._lose(segment.seq - self._expected, where)
        self._expected = segment.seq + rows
        if isinstance(batch, DecisionBatch):
            self._end = max(self._end, int(batch.number[-1]) + 1)
            if batch.rule_id not in self._rules and _HASHED.fullmatch(batch.rule_id):
                self._lose(len(batch), f"rule {batch.rule_id} of {path.name} is not in the store")
                self._set_aside(path)
                return
            first = int(batch.number[0])
            if first < self._number:
                self._lose(len(batch), f"{path.name} repeats decision numbers")
                self._set_aside(path)
                return
            self._close_gap(first)
            self._number = first + len(batch)
        elif isinstance(batch, (OutcomeBatch, ExpiryBatch)):
            decided = self._decided(batch)
            if not decided.all():
                self._lose(
                    int(np.count_nonzero(~decided)), "rows about lost decisions are lost with them"
                )
                self._set_aside(path)
                batch = select(batch, decided)
        if len(batch):
            if self._lost_rows:
                self._close_gap(self._number)
            self._leftovers.segments.append(Segment(self._next_seq, batch))
            self._next_seq += len(batch)

    def _decided(self, batch: OutcomeBatch | ExpiryBatch) -> Flags:
        """(n,) whether the decision of a row is in the log."""
        if not (self._lost_rows or self._leftovers.gaps):
            return np.ones(len(batch), dtype=np.bool_)
        decided: Flags = batch.number < self._number
        for gap in self._leftovers.gaps:
            decided &= (batch.number < gap.first) | (batch.number >= gap.end)
        return decided

    def _set_aside(self, path: Path) -> None:
        if path not in self._leftovers.damaged:
            self._leftovers.damaged.append(path)

    def _lose(self, rows: int, reason: str) -> None:
        self._lost_rows += rows
        self._reasons[reason] = None

    def _close_gap(self, first: int) -> None:
        """Note what was lost before this place; the next decision is number `first`."""
        numbers = first - self._number
        if not numbers and not self._lost_rows:
            return
        gap = Gap(
            at=time.time(),
            first=self._number,
            numbers=numbers,
            row=self._next_seq,
            rows=self._lost_rows,
            reason=", ".join(self._reasons) or "numbers are missing",
        )
        self._leftovers.gaps.append(gap)
        self._number, self._lost_rows, self._reasons = first, 0, {}

    def finish(self, durability: Durability) -> None:
        leftovers, standing = self._leftovers, self._leftovers.standing
        first = max(self._number, self._end if self._lost_rows else 0)
        if standing is not None and standing.store_id == leftovers.store_id:
            # What an interrupted start took in it has numbered anew, and noted what was missing.
            missing = 0 if self._interrupted else standing.rows - self._expected
            if missing > 0:
                end = leftovers.stopped or [file.name for file in leftovers.files] or ["the log"]
                self._lose(missing, f"{mark_path(self._store).name} counts beyond {end[-1]}")
            first = max(first, standing.decisions)
            stopped = not standing.clean and (not standing.boot or standing.boot != boot_id())
            lost = bool(leftovers.gaps or self._lost_rows)
            if stopped and standing.reserved > first:
                self._reasons["the machine stopped, and they may have been given out"] = None
                first = standing.reserved
            leftovers.allowed = not lost or (stopped and durability == "process")
        else:
            leftovers.allowed = not (leftovers.gaps or self._lost_rows)
        self._close_gap(first)
        leftovers.recovered = self._next_seq - leftovers.next_seq


def _segments(data: bytes, scanned: Scanned) -> Iterator[Segment]:
    for start, end, _ in scanned.frames:
        yield read_segment(data, start, end)
