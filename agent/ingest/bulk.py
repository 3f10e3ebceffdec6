"""Files to a sink: rows to records, records in batches, refusals one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.paths import parse_path
from equipoise.agent.ingest.readers import Format, rows
from equipoise.agent.ingest.records import RECORDS, Namer, Record, flat, mapped
from equipoise.agent.ingest.rejects import Rejects
from equipoise.agent.ingest.sinks import Sink
from equipoise.store.records import Observation, Outcome


@dataclass(slots=True)
class Ingested:
    """What became of rows: accepted are in the log now; duplicates were there before; late came
    after their decision had expired; rejected are refused, with a reason each."""

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0


class Ingestion:
    """Takes files of one kind of record to a sink.

    mapping: how rows of somebody else's log are read; without it they have our names, in tables
    with x_ and y_ before features and outputs. progress: called with the rows read so far.
    """

    def __init__(
        self,
        sink: Sink,
        schema: FeatureSchema,
        kind: Kind,
        mapping: IngestMapping | None,
        rejects: Rejects,
        progress: Callable[[int], None] = lambda read: None,
    ) -> None:
        self.result = Ingested()
        self._sink, self._schema = sink, schema
        self._kind, self._mapping = kind, mapping
        self._rejects = rejects
        self._progress = progress
        self._read = 0
        self._namer = Namer()
        self._refused: list[tuple[int, str]] = []

    def add(self, source: str, kind: Format) -> None:
        """Take in a file, or standard input. What was taken stays taken if it breaks off."""
        batch: list[tuple[int, Record]] = []
        decisions: set[str | None] = set()
        to_record = self._reader(kind)
        for number, row in rows(source, kind, self._columns()):
            self._read += 1
            try:
                record = to_record(row)
            except AgentError as error:
                self._refused.append((number, str(error)))
                continue
            if isinstance(record, Observation):
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

    def _reader(self, kind: Format) -> Callable[[Any], Record]:
        if kind != "jsonl":
            return mapped(self._mapping) if self._mapping else flat(self._kind, self._schema)
        struct: Any = RECORDS[self._kind] if self._mapping is None else Any
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
        to_record = None if self._mapping is None else mapped(self._mapping)

        def read(line: bytes) -> Record:
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise AgentError(str(error)) from None
            made: Record = row if to_record is None else to_record(row)
            return made

        return read

    def _columns(self) -> set[str] | None:
        mapping = self._mapping
        if mapping is None:
            return None
        paths = (mapping.all_fields, mapping.features, mapping.outputs)
        return {parse_path(path).column for table in paths for path in table.values()}

    def _flush(self, source: str, batch: list[tuple[int, Record]]) -> None:
        if batch:
            taken = self._sink.take([record for _, record in batch])
            self._refused += [(batch[at][0], reason) for at, reason in taken.refused]
            self.result.accepted += taken.counts["accepted"]
            self.result.duplicates += taken.counts["duplicates"]
            self.result.late += taken.counts["late"]
            batch.clear()
        for row, reason in sorted(self._refused):
            self._rejects.add(source, row, reason)
        self.result.rejected += len(self._refused)
        self._refused.clear()
        self._progress(self._read)
