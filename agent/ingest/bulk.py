"""Files into a store: rows to records, records in batches to the agent, refusals one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.errors import AgentError
from equipoise.agent.features.problems import FeatureError
from equipoise.agent.gateway import Gateway
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.paths import parse_path
from equipoise.agent.ingest.readers import Format, rows
from equipoise.agent.ingest.records import RECORDS, Namer, Record, flat, mapped
from equipoise.agent.ingest.rejects import Rejects
from equipoise.store.records import Observation, Outcome

ROWS_AT_ONCE = 4096


@dataclass(slots=True)
class Ingested:
    """What became of rows: accepted are in the log now; duplicates were there before; late came
    after their decision had expired; rejected are refused, with a reason each."""

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0


class Ingestion:
    """Takes files of one kind of record into the store behind a gateway.

    mapping: how rows of somebody else's log are read; without it they have our names, in tables
    with x_ and y_ before features and outputs. progress: called with the rows read so far.
    """

    def __init__(
        self,
        gateway: Gateway,
        kind: Kind,
        mapping: IngestMapping | None,
        rejects: Rejects,
        progress: Callable[[int], None] = lambda read: None,
    ) -> None:
        self.result = Ingested()
        takes: dict[Kind, Callable[[Sequence[Any]], Accepted]] = {
            "observations": gateway.ingest,
            "outcomes": gateway.observe,
            "simulations": gateway.simulate,
        }
        self._take = takes[kind]
        self._kind, self._mapping = kind, mapping
        self._schema = gateway.agent.config.features
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
            if len(batch) >= ROWS_AT_ONCE:
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
            self._take_apart(batch)
            batch.clear()
        for row, reason in sorted(self._refused):
            self._rejects.add(source, row, reason)
        self.result.rejected += len(self._refused)
        self._refused.clear()
        self._progress(self._read)

    def _take_apart(self, batch: Sequence[tuple[int, Record]]) -> None:
        """All at once where all are fine; else halves, until those that are refused are alone."""
        try:
            accepted = self._take([record for _, record in batch])
        except (AgentError, FeatureError) as error:
            if len(batch) == 1:
                reason = str(error).replace(" row 0: ", ": ", 1)  # its place in a batch of one
                self._refused.append((batch[0][0], reason))
                return
            middle = len(batch) // 2
            self._take_apart(batch[:middle])
            self._take_apart(batch[middle:])
            return
        self.result.accepted += accepted.rows
        self.result.duplicates += accepted.duplicates
        self.result.late += accepted.late
