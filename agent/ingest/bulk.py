"""Files into a store: records in batches to a sink, refusals one by one.

A sink is the store that is open here, or the daemon that has it open. Where it refuses a batch,
halves are tried until the rows that it refuses are alone.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import msgspec

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.client import Address
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.config.ingest import IngestMapping, Kind
from equipoise.agent.errors import AgentError, ConfigError, ConflictError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest.drawn import DRAWN_AT_ONCE, Declared, DrawnRows, declared_of
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.records import (
    STANDARD_INPUT,
    Format,
    Namer,
    Numbered,
    Record,
    Sightings,
    check_paths,
    columns_of,
    format_of,
    reader,
    rows,
)
from equipoise.agent.lifecycle.opening import with_after_decision
from equipoise.agent.maintenance.key_file import open_key
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import text_key
from equipoise.store.errors import StoreInUseError
from equipoise.store.files import OpenHereError
from equipoise.store.records import Observation, Outcome, Simulation
from equipoise.store.sqlite import SqliteStore
from equipoise.store.words import plural

P = TypeVar("P")
T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
_IN_BODY = re.compile(r" \(index \d+ of this body\)$")
"""Bodies are ours, and what counts is the row of the file."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch. counts: of accepted, duplicates and late. refused: positions in the
    batch, each with the reason and whether it contradicts a row that was there."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str, bool]] = field(default_factory=list)


def take_by_bisection(
    items: Sequence[T],
    rows: Sequence[int],
    take: Callable[[Sequence[T]], Mapping[str, int]],
    refusals: tuple[type[Exception], ...] = (AgentError, FeatureError),
) -> Iterator[tuple[Counter[str], tuple[int, Exception] | None]]:
    """Take the items at these positions; yields after every try what became of them, by name, or
    the row that was refused and why, so that others can have a turn.

    `take` takes all it is given or raises and takes none. Where it raises one of `refusals`, halves
    are tried until the rows it refuses are alone. Good rows cost one call, a bad one among n costs
    2 log2(n) more. Any other exception (a store that fails) is raised.
    """
    try:
        counts = Counter(take([items[row] for row in rows]))
    except refusals as error:
        yield Counter(), (rows[0], error) if len(rows) == 1 else None
    else:
        yield counts, None
        return
    if len(rows) > 1:
        middle = len(rows) // 2
        yield from take_by_bisection(items, rows[:middle], take, refusals)
        yield from take_by_bisection(items, rows[middle:], take, refusals)


class Sink(Protocol):
    """Takes batches of records of one kind."""

    rows_at_once: int

    def take(self, records: Sequence[Record]) -> BatchResult:
        """Take in what can be taken. Raises where it is not the rows' fault."""


class StoreSink:
    """Records into the store behind a gateway."""

    rows_at_once = 4096

    def __init__(self, gateway: RecordAdapter, kind: Kind, drawn: DrawnRows | None = None) -> None:
        takes: dict[Kind, Callable[[Sequence[Any]], Accepted]] = {
            "observations": gateway.ingest,
            "outcomes": gateway.observe,
            "simulations": gateway.simulate,
        }
        if drawn is not None:
            takes["decisions"] = drawn.take
            # Rules are frozen between batches, from the rows before.
            self.rows_at_once = DRAWN_AT_ONCE
        self._take, self._drawn = takes[kind], drawn

    def take(self, records: Sequence[Record]) -> BatchResult:
        result = BatchResult()
        if self._drawn is not None:
            self._drawn.begin(cast(Sequence[DrawnRow], records))
        for counts, refusal in take_by_bisection(records, range(len(records)), self._counts):
            result.counts.update(counts)
            if refusal is not None:
                row, error = refusal
                reason = str(error).replace(" row 0: ", ": ", 1)  # its place in a batch of one
                result.refused.append((row, reason, isinstance(error, ConflictError)))
        return result

    def _counts(self, records: Sequence[Record]) -> dict[str, int]:
        accepted = self._take(records)
        return {
            "accepted": accepted.rows,
            "duplicates": accepted.duplicates,
            "late": accepted.late,
            "decided": accepted.decided,
        }


class DaemonSink:
    """Records to a daemon, over one connection.

    url: http, https, or unix:///PATH of a socket. token: of scope `route`, None where none is
    needed. Raises AgentError for a url that is none, and from `take` where the daemon refuses a
    request as a whole.
    """

    rows_at_once = 100
    """A bulk answer lists so many refused rows, and no more."""

    def __init__(self, url: str, token: str | None, kind: Kind) -> None:
        try:
            address = Address.of(url)
        except ValueError as error:
            raise AgentError(str(error)) from None
        self._connection = address.connection(TIMEOUT_SECONDS)
        self._path = f"{address.path}/v1/{kind}"
        self._bulk = kind != "outcomes"
        content = "application/x-ndjson" if self._bulk else "application/json"
        self._headers = {"Content-Type": content}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self._connection.close()

    def take(self, records: Sequence[Record]) -> BatchResult:
        lines = [msgspec.json.encode(record) for record in records]
        body = b"\n".join(lines) if self._bulk else b"[" + b",".join(lines) + b"]"
        try:
            self._connection.request("POST", self._path, body, self._headers)
            response = self._connection.getresponse()
            answer = msgspec.json.decode(response.read())
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            raise AgentError(
                f"the daemon does not answer: {error or type(error).__name__}"
            ) from None
        if response.status != 200:
            detail = answer.get("detail", "") if isinstance(answer, dict) else ""
            raise AgentError(f"the daemon answers with status {response.status}: {detail}")
        counts = Counter({name: answer.get(name, 0) for name in ("duplicates", "late", "decided")})
        counts["accepted"] = answer["rows" if self._bulk else "accepted"]
        refused = answer["rejects" if self._bulk else "rejected"]
        return BatchResult(
            counts,
            [
                (each["index"], _IN_BODY.sub("", each["detail"]), each["status"] == 409)
                for each in refused
            ],
        )


class Places(Generic[P]):
    """The place of the first row that said something of an id and was not refused.

    A place is what the caller counts by: a line, a file and a row. Some 150 bytes a row.
    """

    def __init__(self) -> None:
        self._first: dict[int, P] = {}

    def keep(self, record: Record, place: P) -> None:
        """The row at this place was taken, or was a repeat."""
        for key in _keys(record):
            self._first.setdefault(key, place)

    def of(self, record: Record) -> list[P]:
        """Where what this record says of its id was said before, each place once."""
        places = [self._first[key] for key in _keys(record) if key in self._first]
        return list(dict.fromkeys(places))


def _keys(record: Record) -> Iterator[int]:
    if isinstance(record, Observation | DrawnRow):
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
    reward, and none is declared for those; decided are usage rows of requests that the log has as
    decisions, and do not count again. left_out: parts of contents that are no text, by type.
    empty: features that no row gives, so that all rows have the value declared for a missing one.
    drawn: what rows that were drawn elsewhere count for, "" for other rows.
    """

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0
    unrated: int = 0
    decided: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    drawn: str = ""


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
            if isinstance(record, Observation | DrawnRow):
                unrated = isinstance(record, Observation) and record.reward is None
                if unrated and self._missing is None:
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

    def _note(self, record: Observation | Simulation | DrawnRow) -> None:
        """Remember which features have a value in some row; a vector has all."""
        for side, missing in self._empty.items():
            if missing:
                values = getattr(record, side)
                missing.difference_update(values if isinstance(values, dict) else set(missing))

    def _rows(self, source: str, kind: Format) -> Iterator[Numbered]:
        """The rows of a file. Of standard input none before every path of the mapping was seen,
        or so many rows that a path may be of few."""
        numbered = rows(source, kind, columns_of(self._mapping))
        if source != STANDARD_INPUT or self._mapping is None:
            yield from numbered
            return
        sightings, waiting = Sightings(self._mapping.declared), list[Numbered]()
        for number, row in numbered:
            if not sightings.complete:
                sightings.add(row)
            waiting.append((number, row))
            if sightings.complete or len(waiting) >= HELD_BACK:
                yield from waiting
                waiting = []
        sightings.check("standard input")
        yield from waiting

    def _reader(self, kind: Format) -> Callable[[Any], Record]:
        return reader(kind, self._kind, self._schema, self._mapping, self.result.left_out)

    def _flush(self, source: str, batch: list[tuple[int, Record]]) -> None:
        if batch:
            result = self._sink.take([record for _, record in batch])
            refused = {at: (reason, conflict) for at, reason, conflict in result.refused}
            for at, (number, record) in enumerate(batch):
                if at not in refused:
                    self._places.keep(record, (source, number))
                    continue
                reason, conflict = refused[at]
                if conflict:
                    reason += _also(self._places.of(record), source)
                self._refused.append((number, reason))
            self.result.accepted += result.counts["accepted"]
            self.result.duplicates += result.counts["duplicates"]
            self.result.decided += result.counts["decided"]
            self.result.late += result.counts["late"]
            batch.clear()
        for row, reason in sorted(self._refused):
            self._rejects.add(source, row, reason)
        self.result.rejected += len(self._refused)
        self._refused.clear()
        self._progress(self._read)


def _also(places: Sequence[tuple[str, int]], source: str) -> str:
    """Where in the files of this intake the other row is; nothing where it came before them."""
    words = [f"row {row}" if file == source else f"{file} row {row}" for file, row in places]
    return f"; it came first in {' and '.join(words)}" if words else ""


TOKEN_VARIABLE = "EQUIPOISE_TOKEN"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and where to put it; as the options of the command."""

    files: list[str]
    config: Path
    store: Path | None = None
    kind: str | None = None
    mapping: str | None = None
    format: str | None = None
    rejects: Path | None = None
    url: str | None = None


def run(order: Order) -> tuple[Ingested, Rejects]:
    """Take the files in, in their order.

    Everything that can be known beforehand is checked before the store is touched. Raises
    ConfigError, AgentError, StoreError or OSError; batches that were taken in before stay, and
    the same command goes on from there.
    """
    file = load_file(order.config)
    mapping = None if order.mapping is None else file.mapping(order.mapping)
    kind = _kind(order, mapping)
    for name in order.files:
        if name != STANDARD_INPUT:
            open(name, "rb").close()
    apart = _apart(order.files)
    sources = [(name, _format(order, name)) for name, _ in apart]
    check_paths(mapping, sources)
    schema = file.experiment.features
    declared = declared_of(file, mapping, sources) if kind == "decisions" else None
    with (
        Rejects(order.rejects) as rejects,
        _sink(order, file, kind, declared) as (sink, drawn),
        _progress() as progress,
    ):
        missing = file.experiment.reward.missing_value
        ingestion = Ingestion(sink, schema, kind, mapping, rejects, progress, missing)
        for (name, shape), (_, copy) in zip(sources, apart, strict=True):
            ingestion.add(name, shape, copy)
        if drawn is not None:
            drawn.finish()
            ingestion.result.drawn = drawn.sentence
    return ingestion.result, rejects


def _kind(order: Order, mapping: IngestMapping | None) -> Kind:
    if mapping is None:
        return cast(Kind, order.kind or "observations")
    if order.kind is not None and order.kind != mapping.kind:
        raise ConfigError(
            [f"ingest: mapping {mapping.name} is of {mapping.kind}, not {order.kind}"]
        )
    return mapping.kind


def _format(order: Order, name: str) -> Format:
    return format_of(name) if order.format is None else cast(Format, order.format)


@contextmanager
def _sink(
    order: Order, file: ConfigFile, kind: Kind, declared: Declared | None
) -> Iterator[tuple[Sink, DrawnRows | None]]:
    if order.url is not None:
        if declared is not None:
            raise AgentError(
                "--url: a daemon takes no rows that were drawn elsewhere; read them into its store"
                " while it is stopped, or into a store of their own"
            )
        if order.store is not None:
            raise AgentError("--url and --store: the daemon has the store, leave one of them out")
        with closing(DaemonSink(order.url, os.environ.get(TOKEN_VARIABLE), kind)) as daemon:
            yield daemon, None
        return
    path = Path(file.service.store) if order.store is None else order.store
    with _opened(path) as store:
        config = with_after_decision(file.experiment, store)
        agent = Agent(config, store, open_key(store), at=time.time())
        drawn = None if declared is None else DrawnRows(agent, declared, time.time())
        yield StoreSink(RecordAdapter(agent), kind, drawn), drawn
        agent.checkpoint(time.time())


def _opened(path: Path) -> SqliteStore:
    try:
        return SqliteStore(path)
    except OpenHereError:
        raise
    except StoreInUseError as error:
        raise AgentError(
            f"{error}: send them with --url http://HOST:PORT if that is a daemon"
        ) from None


def _apart(files: Sequence[str]) -> list[tuple[str, bool]]:
    """The files, each with whether it is a copy of the one before; copies follow their first."""
    groups: dict[object, list[str]] = {}
    sizes = Counter(os.path.getsize(name) for name in files if os.path.isfile(name))
    for at, name in enumerate(files):
        alone = not os.path.isfile(name) or sizes[os.path.getsize(name)] == 1
        groups.setdefault(at if alone else _digest(name), []).append(name)
    return [(name, at > 0) for group in groups.values() for at, name in enumerate(group)]


def _digest(name: str) -> bytes:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


@contextmanager
def _progress() -> Iterator[Any]:
    """A line on a terminal with the rows read so far; nothing where standard error is a file."""
    if not sys.stderr.isatty():
        yield lambda read: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as spinner:
        yield lambda read: spinner.update(f"reading: {plural(read, 'row')}")
