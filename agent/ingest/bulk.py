"""Files into a store: records in batches to a sink, refusals one by one."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.config.ingest import IngestMapping, Kind
from equipoise.agent.errors import AgentError, ConfigError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import listed
from equipoise.agent.ingest.derived import DERIVED, find
from equipoise.agent.ingest.drawn import DrawnRows, declared_of
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.draws import Declared
from equipoise.agent.ingest.files import (
    STANDARD_INPUT,
    Format,
    Source,
    format_of,
)
from equipoise.agent.ingest.joins import Joined, Log, ScorePaths, Scores, Usage
from equipoise.agent.ingest.presets import FAMILIES, PRESETS, Preset, recognise
from equipoise.agent.ingest.records import (
    Namer,
    Record,
    Sightings,
    as_table,
    check_paths,
    columns_of,
    fitted,
    reader,
    without_path,
)
from equipoise.agent.ingest.sinks import DaemonSink, Sink, StoreSink
from equipoise.agent.lifecycle.opening import with_after_decision
from equipoise.agent.maintenance.key_file import open_key
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import text_key
from equipoise.store.errors import StoreInUseError
from equipoise.store.files import OpenHereError
from equipoise.store.opening import open_store
from equipoise.store.records import Observation, Outcome, Simulation
from equipoise.store.sql.store import SqlStore
from equipoise.store.words import plural

P = TypeVar("P")


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
    decisions, and do not count again; skipped are no observations, by reason. Together they are all
    rows. left_out: parts of contents that are no text, by type. empty: features that no row gives,
    so that all rows have the value declared for a missing one. notes: observations with something
    to know about, by what that is. scores: what became of those of score files. preset: how the
    rows were read, "" without one. drawn: what rows that were drawn elsewhere count for, "" for
    other rows.
    """

    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: int = 0
    unrated: int = 0
    decided: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    scores: Joined | None = None
    preset: str = ""
    drawn: str = ""


class Ingestion:
    """Takes files of one kind of record to a sink.

    mapping: how rows of somebody else's log are read; without it they have our names, in tables
    with x_ and y_ before features and outputs. progress: called with the rows read so far.
    missing: the declared value of a missing reward, None where there is none. log: the rows of all
    files, where they were surveyed.
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
        log: Log | None = None,
    ) -> None:
        self.result = Ingested()
        self._log = Log((), mapping, columns=columns_of(mapping)) if log is None else log
        self._sink, self._schema = sink, schema
        self._kind, self._mapping = kind, mapping
        self._of_preset = mapping is not None and mapping.preset is not None
        self._rejects = rejects
        self._progress = progress
        self._missing = missing
        self._namer = Namer()
        self._places: Places[tuple[str, int]] = Places()
        self._refused: list[tuple[int, str]] = []
        self._empty = {
            side: {feature.name for feature in features}
            for side, features in (("features", schema.context), ("outputs", schema.outputs))
        }

    def add(self, file: Source) -> None:
        """Take in a file, or standard input. What was taken stays taken if it breaks off."""
        batch: list[tuple[int, Record]] = []
        decisions: set[str | None] = set()
        to_record = self._reader(file.format)
        source = file.name
        self._namer.begin(file.copy)
        for usage in self._usages(file):
            self.result.rows += 1
            number = usage.number
            if usage.reason is not None:
                self.result.skipped[usage.reason] += 1
                continue
            try:
                if usage.error is not None:
                    raise usage.error
                record = to_record(usage.row)
            except AgentError as error:
                self._refused.append((number, str(error)))
                continue
            if self._of_preset:
                self.result.notes.update(usage.row.get(DERIVED, {}).get("notes", ()))
            if isinstance(record, Observation | DrawnRow):
                if usage.reward is not None:
                    record = msgspec.structs.replace(record, reward=usage.reward)
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

    def _usages(self, file: Source) -> Iterator[Usage]:
        """The rows of a file. Of standard input none before every path of the mapping was seen,
        or so many rows that a path may be of few."""
        usages = self._log.usages(file)
        if file.path != STANDARD_INPUT or self._mapping is None:
            yield from usages
            return
        sightings, waiting = Sightings(self._mapping.declared), list[Usage]()
        for usage in usages:
            if not sightings.complete and usage.row is not None:
                sightings.add(usage.row)
            waiting.append(usage)
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
        self._progress(self.result.rows)


def _also(places: Sequence[tuple[str, int]], source: str) -> str:
    """Where in the files of this intake the other row is; nothing where it came before them."""
    words = [f"row {row}" if file == source else f"{file} row {row}" for file, row in places]
    return f"; it came first in {' and '.join(words)}" if words else ""


TOKEN_VARIABLE = "EQUIPOISE_TOKEN"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and where to put it; as the options of the command."""

    files: list[str]
    config: Path
    store: str | None = None
    kind: str | None = None
    mapping: str | None = None
    preset: str | None = None
    format: str | None = None
    scores: list[str] = []
    scores_from: str | None = None
    score: str | None = None
    rejects: Path | None = None
    url: str | None = None


def run(order: Order) -> tuple[Ingested, Rejects]:
    """Take the files in, in their order.

    Everything that can be known beforehand is checked before the store is touched. Raises
    ConfigError, AgentError, StoreError or OSError; batches that were taken in before stay, and
    the same command goes on from there.
    """
    file = load_file(order.config)
    with _kept(order, file) as sources, Rejects(order.rejects) as rejects:
        mapping, unchecked = _mapping(order, file, sources)
        kind = _kind(order, mapping)
        columns = columns_of(mapping)
        check_paths(mapping, sources, Log((), mapping).answers, unchecked)
        scores = _scores(order, file, kind, rejects)
        log = Log(sources, mapping, scores, columns)
        schema = file.experiment.features
        declared = declared_of(file, mapping, sources, log) if kind == "decisions" else None
        with _sink(order, file, kind, declared) as (sink, drawn), _progress() as progress:
            missing = file.experiment.reward.missing_value
            ingestion = Ingestion(sink, schema, kind, mapping, rejects, progress, missing, log)
            for source in sources:
                ingestion.add(source)
            if drawn is not None:
                drawn.finish()
                ingestion.result.drawn = drawn.sentence
        ingestion.result.scores = None if scores is None else scores.result
        ingestion.result.preset = "" if mapping is None else mapping.preset or ""
    return ingestion.result, rejects


def table(order: Order) -> str:
    """The `[[ingest]]` table for these files, as `--show` prints it. Raises as `run`."""
    file = load_file(order.config)
    experiment = file.experiment
    with _kept(order, file) as sources:
        preset = _preset(order.preset or "", sources)
        log, path = Log((), IngestMapping(name="", preset=preset.name)), preset.fields["routed"]
        seen = Counter[str]()
        for source in sources:
            for row in islice(log.answers(source), LOOKED_AT):
                name = find(row, path)
                if isinstance(name, str):
                    seen[name] += 1
    return as_table(preset, experiment.features, experiment.model_names, dict(seen.most_common(20)))


LOOKED_AT = 10_000
"""Rows of a file that `table` reads."""
RECOGNISED_BY = 200


def _preset(name: str, sources: Sequence[Source]) -> Preset:
    """The preset by its name; of a family, the one whose shape the rows have."""
    family = [preset for preset in PRESETS.values() if preset.family == name]
    if not family:
        if name in PRESETS:
            return PRESETS[name]
        known = ", ".join(dict.fromkeys([*FAMILIES, *PRESETS]))
        raise AgentError(f"--from {name}: expected one of {known}")
    if not sources:
        return family[0]
    plain, sample = Log((), None), list[Any]()
    for source in sources:
        usages = islice(plain.usages(source), RECOGNISED_BY)
        sample += [usage.row for usage in usages if usage.row is not None]
        if len(sample) >= RECOGNISED_BY:
            break
    found = recognise(sample, name)
    if found is None and sample:
        shapes = "; ".join(f"{each.holds}: {', '.join(each.signs)}" for each in family)
        row = next((each for each in sample if isinstance(each, Mapping)), {})
        other = recognise(sample)
        looks = f"; it looks like --from {other.family}" if other is not None else ""
        raise AgentError(
            f"{sources[0].name} is no log of {name}{looks}: expected columns ({shapes}), "
            f"the first row has {listed(map(str, row))}"
        )
    return found or family[0]


def _mapping(
    order: Order, file: ConfigFile, sources: Sequence[Source]
) -> tuple[IngestMapping | None, list[str]]:
    """How rows are read, and its paths that may lead nowhere: those of features that have a value
    for it, where it was not the user who named them."""
    name = order.preset
    if order.mapping is not None:
        return file.mapping(order.mapping), []
    if name is None and any(source.format == "dsjson" for source in sources):
        name = "dsjson"
    if name is None:
        return None, []
    schema = file.experiment.features
    preset = _preset(name, sources)
    mapping = fitted(preset, schema)
    lacking = [label for label, needed in without_path(mapping, schema) if needed]
    if lacking:
        raise AgentError(
            f"nothing of {preset.name} is called {', '.join(lacking)}: give it a path in the table "
            f"that `equipoise ingest --from {preset.name} --show` prints, or declare `missing`"
        )
    optional = [
        f"{side}.{feature.name}"
        for side, features in (("features", schema.context), ("outputs", schema.outputs))
        for feature in features
        if feature.missing is not None
    ]
    return mapping, optional


def _scores(order: Order, file: ConfigFile, kind: Kind, rejects: Rejects) -> Scores | None:
    if not order.scores:
        if order.scores_from is not None or order.score is not None:
            raise AgentError("--scores-from and --score say how --scores FILE is read: name it")
        return None
    if kind != "observations":
        raise AgentError(f"--scores: joined to observations, these are {kind}")
    paths = ScorePaths()
    if order.scores_from is not None:
        paths = ScorePaths.of(file.mapping(order.scores_from))
    sources = [Source(name, name, format_of(name)) for name in order.scores]
    return Scores(sources, paths, order.score, rejects.add)


@contextmanager
def _kept(order: Order, file: ConfigFile) -> Iterator[list[Source]]:
    """The files in the order to read them. Standard input is kept in a file where the log must be
    read more than once."""
    if order.preset is not None and order.mapping is not None:
        raise AgentError("--from and --mapping: leave one of them out")
    for name in (*order.files, *order.scores):
        if name != STANDARD_INPUT:
            open(name, "rb").close()
    sources = [Source(name, name, _format(order, name), copy) for name, copy in _apart(order.files)]
    named = None if order.mapping is None else file.mapping(order.mapping)
    of_preset = order.preset is not None or order.format == "dsjson"
    twice = of_preset or order.scores or (named is not None and named.preset is not None)
    if STANDARD_INPUT not in order.files or not twice:
        yield sources
        return
    with tempfile.NamedTemporaryFile(prefix="equipoise-") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        yield [
            replace(source, name="standard input", path=kept.name)
            if source.path == STANDARD_INPUT
            else source
            for source in sources
        ]


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
    with _opened(file.service.store if order.store is None else order.store) as store:
        config = with_after_decision(file.experiment, store)
        agent = Agent(config, store, open_key(store, file.service.key), at=time.time())
        drawn = None if declared is None else DrawnRows(agent, declared, time.time())
        yield StoreSink(RecordAdapter(agent), kind, drawn), drawn
        agent.checkpoint(time.time())


def _opened(where: str) -> SqlStore:
    try:
        return open_store(where)
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
