"""Files to a sink: rows to records, records in batches, refusals one by one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

from equipoise.agent.config.ingest import IngestMapping, Kind, Sightings, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.ingest.readers import STANDARD_INPUT, Format, Numbered, rows
from equipoise.agent.ingest.records import Namer, Record, flat, mapped, nested
from equipoise.agent.ingest.sinks import Sink
from equipoise.store.batches import text_key
from equipoise.store.records import Observation, Outcome, Simulation

P = TypeVar("P")


class Places(Generic[P]):
    """The place of the first row that said something of an id and was not refused.

    A place is what the caller counts by: a line, a file and a row. Some 150 bytes a row.
    """

    def __init__(self) -> None:
        self._first: dict[int, P] = {}

    def keep(self, record: Observation | Outcome | Simulation, place: P) -> None:
        """The row at this place was taken, or was a repeat."""
        for key in _keys(record):
            self._first.setdefault(key, place)

    def of(self, record: Observation | Outcome | Simulation) -> list[P]:
        """Where what this record says of its id was said before, each place once."""
        found = [self._first[key] for key in _keys(record) if key in self._first]
        return list(dict.fromkeys(found))


def _keys(record: Observation | Outcome | Simulation) -> Iterator[int]:
    if isinstance(record, Observation):
        if record.request_id is not None:
            yield text_key("observation", record.request_id)
    elif isinstance(record, Simulation):
        yield text_key("simulation", f"{record.context_id}\n{record.model}")
    else:
        by = "decision" if record.decision_id is not None else "request"
        name = record.decision_id or record.request_id or ""
        # Each part of an outcome counts once, whichever row brings it.
        parts = [part for part in ("reward", "outputs") if getattr(record, part) is not None]
        for part in (*parts, *(f"metric {metric}" for metric in record.metrics)):
            yield text_key(by, f"{name}\n{part}")


MOST_KEPT = 5


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """source: the file. row: its number, from 1. reason: the field, the value and the limit.

    The row itself is not repeated: it may hold what nobody wants in another file.
    """

    source: str
    row: int
    reason: str


class Rejects:
    """path: JSON lines, written whole when the block ends well; None keeps a count only."""

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self.first: list[Reject] = []
        self._path = path
        self._scratch = None if path is None else path.with_name(f".{path.name}.{os.getpid()}")
        self._file = None if self._scratch is None else self._scratch.open("wb")

    def add(self, source: str, row: int, reason: str) -> None:
        reject = Reject(source=source, row=row, reason=reason)
        self.count += 1
        if len(self.first) < MOST_KEPT:
            self.first.append(reject)
        if self._file is not None:
            self._file.write(msgspec.json.encode(reject) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None or self._scratch is None or self._path is None:
            return
        self._file.close()
        if kind is None:
            self._scratch.replace(self._path)
        else:
            self._scratch.unlink()


HELD_BACK = 4096
"""Rows of standard input, which cannot be read twice, that wait until every path was seen."""


@dataclass(slots=True)
class Ingested:
    """What became of rows: accepted are in the log now; duplicates were there before; late came
    after their decision had expired; rejected are refused, with a reason each; unrated have no
    reward, and none is declared for those. left_out: parts of contents that are no text, by type.
    empty: features that no row gives, so that all rows have the value declared for a missing one.
    """

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0
    unrated: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)


class Ingestion:
    """Takes files of one kind of record to a sink.

    mapping: how rows of somebody else's log are read; without it they have our names, in tables
    with x_ and y_ before features and outputs. progress: called with the rows read so far.
    missing: the declared value of a missing reward, None where there is none.
    """

    def __init__(
        self,
        sink: Sink,
        schema: FeatureSchema,
        kind: Kind,
        mapping: IngestMapping | None,
        rejects: Rejects,
        progress: Callable[[int], None] = lambda read: None,
        missing: float | None = None,
    ) -> None:
        self.result = Ingested()
        self._sink, self._schema = sink, schema
        self._kind, self._mapping = kind, mapping
        self._rejects = rejects
        self._progress = progress
        self._missing = missing
        self._read = 0
        self._namer = Namer()
        self._places: Places[tuple[str, int]] = Places()
        self._refused: list[tuple[int, str]] = []
        self._empty = {
            side: {feature.name for feature in features}
            for side, features in (("features", schema.context), ("outputs", schema.outputs))
        }

    def add(self, source: str, kind: Format, copy: bool = False) -> None:
        """Take in a file, or standard input. What was taken stays taken if it breaks off.

        copy: whether the file before was the same, byte for byte.
        """
        batch: list[tuple[int, Record]] = []
        decisions: set[str | None] = set()
        to_record = self._reader(kind)
        self._namer.begin(copy)
        for number, row in self._rows(source, kind):
            self._read += 1
            try:
                if isinstance(row, AgentError):
                    raise row
                record = to_record(row)
            except AgentError as error:
                self._refused.append((number, str(error)))
                continue
            if isinstance(record, Observation):
                if record.reward is None and self._missing is None:
                    self.result.unrated += 1
                    continue
                record = self._namer.named(record)
                self._note(record)
            elif isinstance(record, Outcome):
                # Two parts of one outcome may not stand in one batch.
                name = record.decision_id or record.request_id
                if name in decisions:
                    self._flush(source, batch)
                    decisions.clear()
                decisions.add(name)
            else:
                self._note(record)
            batch.append((number, record))
            if len(batch) >= self._sink.rows_at_once:
                self._flush(source, batch)
                decisions.clear()
        self._flush(source, batch)
        if self._kind != "outcomes" and self.result.accepted + self.result.duplicates:
            self.result.empty = sorted(
                f"{side}.{name}" for side, missing in self._empty.items() for name in missing
            )

    def _note(self, record: Observation | Simulation) -> None:
        """Remember which features have a value in some row; a vector has all."""
        for side, missing in self._empty.items():
            if missing:
                values = getattr(record, side)
                missing.difference_update(values if isinstance(values, dict) else set(missing))

    def _rows(self, source: str, kind: Format) -> Iterator[Numbered]:
        """The rows of a file. Of standard input none before every path of the mapping was seen,
        or so many rows that a path may be of few."""
        found = rows(source, kind, _columns(self._mapping))
        if source != STANDARD_INPUT or self._mapping is None:
            yield from found
            return
        sightings, held = Sightings(self._mapping.declared), list[Numbered]()
        for number, row in found:
            if not sightings.complete:
                _look(sightings, row)
            held.append((number, row))
            if sightings.complete or len(held) >= HELD_BACK:
                yield from held
                held = []
        sightings.check("standard input")
        yield from held

    def _reader(self, kind: Format) -> Callable[[Any], Record]:
        mapping, left_out = self._mapping, self.result.left_out
        if mapping is not None:
            to_record = mapped(mapping, self._schema, left_out)
        elif kind == "jsonl":
            to_record = nested(self._kind, self._schema, left_out)
        else:
            to_record = flat(self._kind, self._schema)
        if kind != "jsonl":
            return to_record
        decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

        def read(line: bytes) -> Record:
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise AgentError(str(error)) from None
            return to_record(row)

        return read

    def _flush(self, source: str, batch: list[tuple[int, Record]]) -> None:
        if batch:
            taken = self._sink.take([record for _, record in batch])
            refused = {at: (reason, conflict) for at, reason, conflict in taken.refused}
            for at, (number, record) in enumerate(batch):
                if at not in refused:
                    self._places.keep(record, (source, number))
                    continue
                reason, conflict = refused[at]
                if conflict:
                    reason += _also(self._places.of(record), source)
                self._refused.append((number, reason))
            self.result.accepted += taken.counts["accepted"]
            self.result.duplicates += taken.counts["duplicates"]
            self.result.late += taken.counts["late"]
            batch.clear()
        for row, reason in sorted(self._refused):
            self._rejects.add(source, row, reason)
        self.result.rejected += len(self._refused)
        self._refused.clear()
        self._progress(self._read)


def check_paths(mapping: IngestMapping | None, sources: Sequence[tuple[str, Format]]) -> None:
    """Raise AgentError where a path of the mapping leads nowhere in a whole file, naming what
    stands there instead. Reads no further than to the first row of each path; not standard input,
    which is looked at as it is read.

    Outcomes come in parts, so their paths may be spread over the files.
    """
    if mapping is None:
        return
    sightings = Sightings(mapping.declared)
    for source, kind in sources:
        if source == STANDARD_INPUT:
            continue
        if mapping.kind != "outcomes":
            sightings = Sightings(mapping.declared)
        for _, row in rows(source, kind):
            _look(sightings, row)
            if sightings.complete:
                break
        if mapping.kind != "outcomes":
            sightings.check(source)
    if mapping.kind == "outcomes":
        sightings.check(", ".join(source for source, _ in sources))


def _look(sightings: Sightings, row: object) -> None:
    if isinstance(row, bytes):
        try:
            row = msgspec.json.decode(row)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
    if not isinstance(row, AgentError):
        sightings.look(row)


def _columns(mapping: IngestMapping | None) -> set[str] | None:
    if mapping is None:
        return None
    paths = (mapping.all_fields, mapping.features, mapping.outputs)
    return {name for table in paths for path in table.values() for name in parse_path(path).columns}


def _also(places: Sequence[tuple[str, int]], source: str) -> str:
    """Where in the files of this intake the other row is; nothing where it came before them."""
    words = [f"row {row}" if file == source else f"{file} row {row}" for file, row in places]
    return f"; it came first in {' and '.join(words)}" if words else ""
