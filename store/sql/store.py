"""The Store contract over any SQL database: all that is asked, and what is written beside the log.

A store adds how it is opened, how rows are appended, and how it is closed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

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
)
from equipoise.store.errors import CorruptStoreError, SequenceError, TrimmedError
from equipoise.store.format.sql_rows import (
    DECISIONS,
    LOG_TABLES,
    OBSERVATIONS,
    OUTCOMES,
    SIMULATIONS,
    Row,
    Table,
    to_blocks,
    to_segments,
)
from equipoise.store.records import LANE_BITS, Alert, Control, Era, Gap, RuleRecord
from equipoise.store.sql import chain, copying, records
from equipoise.store.sql.chain import Anchor, Link
from equipoise.store.sql.connection import Session
from equipoise.store.sql.copying import Piece
from equipoise.store.sql.records import KeptState
from equipoise.store.sql.truncation import FIRST_NUMBER, Truncation

T = TypeVar("T")
_LOST_UNTIL = "coalesce((SELECT max(first + numbers) FROM gaps), 0)"
"""SQL: the number after the last one that was lost."""
NEXT_NUMBER = (
    "SELECT max(number) FROM (SELECT coalesce(max(number), -1) + 1 AS number FROM decisions"
    f" UNION ALL SELECT {FIRST_NUMBER} UNION ALL SELECT {_LOST_UNTIL}) AS numbers"
)
"""SQL: the number of the next decision."""
ROWS_AT_ONCE = 4096
_NAMES_AT_ONCE = 500

_FIND_ONE = "SELECT request_id, number FROM decisions WHERE request_id = ?"
_NAMES = (
    "SELECT request_id FROM decisions WHERE number >= ? AND number < ? AND request_id IS NOT NULL"
)


class Recovery(Protocol):
    """What a writer found when it opened a store. files: those of a writer that was killed, whose
    rows it took in, `recovered` of them; stopped: where each of them ends that is damaged there;
    gaps: what is missing; put_aside: the names of files that were kept."""

    recovered: int

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def stopped(self) -> Sequence[str]: ...

    @property
    def gaps(self) -> Sequence[Gap]: ...

    @property
    def put_aside(self) -> Sequence[str]: ...


class SqlStore(Store):
    """What every store in SQL answers, through its session."""

    where: str
    """Names the store to another process."""
    path: Path
    """What the names of files beside it begin with."""
    truncation: Truncation
    _name: str
    _session: Session

    @property
    @abstractmethod
    def leftovers(self) -> Recovery:
        """Of a writer: what it found when it was opened."""

    @property
    def next_seq(self) -> int:
        return self._count()[0]

    @property
    def decisions(self) -> int:
        return self._count()[1]

    @abstractmethod
    def _count(self) -> tuple[int, int]:
        """(next seq, next decision number)."""

    def _check_order(self, segments: Sequence[Segment]) -> tuple[int, int]:
        """What `_count` will be after these batches; raises SequenceError where they do not
        continue the log."""
        next_seq, decisions = self._count()
        for segment in segments:
            if segment.seq != next_seq:
                raise SequenceError(
                    f"{self._name}: row {segment.seq} was to follow row {next_seq - 1}"
                )
            next_seq += len(segment.batch)
            batch = segment.batch
            if isinstance(batch, DecisionBatch):
                if batch.row is None or batch.row[0] != decisions:
                    check_numbers(self._name, batch, decisions)
                decisions += len(batch)
        return next_seq, decisions

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        end = self.next_seq if until is None else min(until, self.next_seq)
        return self._segments(max(since, self.truncation.begins), end)

    def _segments(self, since: int, until: int) -> Iterator[Segment]:
        # Window by window, so that no statement stays open between two segments: the writer may
        # append meanwhile, and an abandoned iteration holds nothing.
        for start in range(since, until, ROWS_AT_ONCE):
            window = (start, min(start + ROWS_AT_ONCE, until))
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
                f"{table.select('seq >= ? AND seq < ?')} LIMIT ?", (start, until, ROWS_AT_ONCE)
            )
            yield from self._decoded(table, rows, to_blocks)
            start = until if len(rows) < ROWS_AT_ONCE else rows[-1][0] + 1

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
        # By context alone: databases search no index for a list of pairs.
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

    def pieces(self, until: int) -> Iterator[Piece]:
        """Every row of every table, those of the log up to row `until`; nobody may write."""
        source = self._session.ask(copying.pieces, until)
        while (piece := self._session.ask(lambda _: next(source, None))) is not None:
            yield piece

    def kept_states(self) -> list[KeptState]:
        """Every checkpoint and base snapshot, whole or not."""
        return self._session.ask(records.kept_states)

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
