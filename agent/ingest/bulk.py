"""Files to a sink: rows to records, records in batches, refusals one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.paths import Sightings, parse_path
from equipoise.agent.ingest.places import Places
from equipoise.agent.ingest.readers import STANDARD_INPUT, Format, Numbered, rows
from equipoise.agent.ingest.records import Namer, Record, flat, mapped, nested
from equipoise.agent.ingest.rejects import Rejects
from equipoise.agent.ingest.sinks import Sink
from equipoise.store.records import Observation, Outcome

HELD_BACK = 4096
"""Rows of standard input, which cannot be read twice, that wait until every path was seen."""


@dataclass(slots=True)
class Ingested:
    """What became of rows: accepted are in the log now; duplicates were there before; late came
    after their decision had expired; rejected are refused, with a reason each; unrated have no
    reward, and none is declared for those. left_out: parts of contents that are no text, by type.
    """

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0
    unrated: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


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
            elif isinstance(record, Outcome):
                # Two parts of one outcome may not stand in one batch.
                name = record.decision_id or record.request_id
                if name in decisions:
                    self._flush(source, batch)
                    decisions.clear()
                decisions.add(name)
            batch.append((number, record))
            if len(batch) >= self._sink.rows_at_once:
                self._flush(source, batch)
                decisions.clear()
        self._flush(source, batch)

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
