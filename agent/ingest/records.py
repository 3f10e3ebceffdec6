"""Files of logs as rows, and rows as records, each refusal with its reason.

JSON lines, CSV and Parquet are read block by block, whatever their size.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from equipoise.agent.config.ingest import (
    Chosen,
    FieldPath,
    IngestMapping,
    Kind,
    Rewards,
    Step,
    as_feature,
    as_flag,
    as_number,
    as_seconds,
    as_text,
    as_whole,
    parse_path,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import LONGEST_SHOWN, shown, suggestion
from equipoise.agent.ingest.drawn_rows import SPELLINGS, DrawnRow, as_candidates, with_candidates
from equipoise.store.records import Observation, Outcome, Simulation, readable

if TYPE_CHECKING:
    import pyarrow as pa

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]
Numbered: TypeAlias = "tuple[int, Mapping[str, Any] | bytes | AgentError]"
"""Number of a row from 1 (of a line, in JSON lines), and the row: bytes where it is JSON still, an
error where there is no telling which cell belongs to which column."""

STANDARD_INPUT = "-"
_SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH_ROWS = 4096
csv.field_size_limit(1 << 24)


def format_of(source: str) -> Format:
    """By the suffix, `.gz` aside; standard input is JSON lines. Raises AgentError."""
    if source == STANDARD_INPUT:
        return "jsonl"
    suffixes = Path(source.removesuffix(".gz")).suffix.lower()
    if suffixes not in _SUFFIXES:
        accepted = ", ".join(_SUFFIXES)
        raise AgentError(f"{source}: the suffix is not one of {accepted}; name it with --format")
    return _SUFFIXES[suffixes]


def rows(source: str, kind: Format, columns: set[str] | None = None) -> Iterator[Numbered]:
    """Every row of a file, or of standard input. columns: those of a Parquet file that are needed.

    Raises AgentError where the file as a whole cannot be read, OSError where it cannot be opened.
    """
    readers: Mapping[Format, Callable[[IO[bytes]], Iterator[Numbered]]] = {
        "jsonl": _lines,
        "csv": _csv,
        "parquet": lambda file: _parquet(file, columns),
    }
    with _opened(source) as file:
        try:
            yield from readers[kind](file)
        except AgentError as error:
            raise AgentError(f"{source}: {error}") from None
        except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise AgentError(f"{source} is not a {kind} file: {error}") from None


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == STANDARD_INPUT:
        yield sys.stdin.buffer
    elif source.endswith(".gz"):
        with gzip.open(source) as file:
            yield file  # type: ignore[misc]
    else:
        with open(source, "rb") as file:
            yield file


def _lines(file: IO[bytes]) -> Iterator[Numbered]:
    for number, line in enumerate(file, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            yield number, text


def _csv(file: IO[bytes]) -> Iterator[Numbered]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        reader = csv.reader(text, strict=True)
        header = [name.strip() for name in next(reader, [])]
        for name in header:
            if header.count(name) > 1:
                raise AgentError(f"its header has two columns {name!r}: rename one")
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                # Whichever cell is missing or too many, those after it have moved.
                yield number, AgentError(f"{len(cells)} cells, the header has {len(header)}")
    finally:
        text.detach()


def _parquet(file: IO[bytes], columns: set[str] | None) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = file if file.seekable() else io.BytesIO(file.read())
    try:
        table = pq.ParquetFile(source)
        names = table.schema_arrow.names
        kept = names if columns is None else [name for name in names if name in columns]
        number = 0
        for batch in table.iter_batches(_BATCH_ROWS, columns=kept):
            for row in _readable(batch).to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield number, row
    except pa.ArrowNotImplementedError as error:
        # Such as integers of 128 bits, in whichever column: the file is sound, but not for pyarrow.
        raise AgentError(
            f"this Parquet file cannot be read here: {error}; write other types, such as text"
        ) from None
    except pa.ArrowException as error:
        raise AgentError(f"this is not a Parquet file: {error}") from None


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times of nanoseconds as microseconds, which is what Python's have."""
    import pyarrow as pa

    fields = [field.with_type(_microseconds(field.type)) for field in batch.schema]
    schema = pa.schema(fields)
    if schema.equals(batch.schema):
        return batch
    columns = [
        column if column.type == field.type else column.cast(field.type, safe=False)
        for column, field in zip(batch.columns, fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _microseconds(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_field.with_type(_microseconds(kind.value_type))
        return pa.list_(inner) if types.is_list(kind) else pa.large_list(inner)
    return kind


_MOST_NAMES = 200


class Sightings:
    """Which paths lead somewhere in at least one row; what stood there where they do not.

    A path that matches no row is a typing error, or a column that is not in this file: its feature
    would be the same in every row, and nothing would say so. paths: by what they fill.
    """

    def __init__(self, paths: Mapping[str, FieldPath]) -> None:
        self._missing = dict(paths)
        self._farthest = dict.fromkeys(paths, -1)
        self._seen: dict[str, dict[str, None]] = {}
        self.rows = 0

    @property
    def complete(self) -> bool:
        """Whether every path was seen."""
        return not self._missing

    def add(self, row: Any) -> None:
        """Take a row into account; one that cannot be read says nothing."""
        if isinstance(row, bytes):
            try:
                row = msgspec.json.decode(row)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                return
        if isinstance(row, AgentError):
            return
        self.rows += 1
        for label, path in list(self._missing.items()):
            depth, value = path.walk(row)
            if depth == len(path.steps):
                del self._missing[label]
                continue
            if depth > self._farthest[label]:
                self._farthest[label], self._seen[label] = depth, {}
            if depth == self._farthest[label]:
                names = self._seen[label]
                for name in _names(value, path.steps[depth]):
                    if len(names) < _MOST_NAMES:
                        names[name] = None

    def check(self, source: str) -> None:
        """Raise AgentError where rows were seen and a path led nowhere in any of them."""
        if self._missing and self.rows:
            sentences = [self._sentence(label) for label in self._missing]
            raise AgentError(f"{source}: {'; '.join(sentences)}")

    def _sentence(self, label: str) -> str:
        path, depth = self._missing[label], max(self._farthest[label], 0)
        step, names = path.steps[depth], self._seen.get(label, {})
        text = f"{label}: no row has {path.text}"
        if not names:
            before = "".join(
                f".{each}"
                if isinstance(each, str)
                else f"[{each}]"
                if isinstance(each, int)
                else str(each)
                for each in path.steps[:depth]
            ).lstrip(".")
            return f"{text}: nothing stands at {before}" if before else text
        wanted = step.value if isinstance(step, Chosen) else step
        return f"{text}: {shown(wanted)} is not there; {suggestion(wanted, names)}"


def _names(there: Any, step: Step) -> list[str]:
    if isinstance(there, Mapping):
        return [str(name)[:LONGEST_SHOWN] for name in there]
    if isinstance(step, Chosen) and isinstance(there, Sequence):
        values = [each.get(step.key) for each in there if isinstance(each, Mapping)]
        return [str(name)[:LONGEST_SHOWN] for name in values if name is not None]
    return []


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
            sightings.add(row)
            if sightings.complete:
                break
        if mapping.kind != "outcomes":
            sightings.check(source)
    if mapping.kind == "outcomes":
        sightings.check(", ".join(source for source, _ in sources))


def columns_of(mapping: IngestMapping | None) -> set[str] | None:
    """The columns of a table that a mapping reads, None where it reads all."""
    if mapping is None:
        return None
    paths = (mapping.all_fields, mapping.features, mapping.outputs)
    return {name for table in paths for path in table.values() for name in parse_path(path).columns}


Record: TypeAlias = Observation | Outcome | Simulation | DrawnRow
Row: TypeAlias = Mapping[str, Any]

RECORDS: Mapping[Kind, type[Record]] = {
    "observations": Observation,
    "outcomes": Outcome,
    "simulations": Simulation,
    "decisions": DrawnRow,
}
_TEXTS = ("request_id", "decision_id", "unit_id", "context_id", "routed", "model", "served")
_MODELS = ("routed", "model", "served")
_encode = msgspec.json.Encoder(order="sorted").encode


def mapped(
    mapping: IngestMapping, schema: FeatureSchema, left_out: Counter[str] | None = None
) -> Callable[[Row], Record]:
    """The function that turns a row of the log into a record; it raises AgentError.

    A field whose path leads nowhere is left out; the record then says what it lacks. Values are
    read as what the field or the feature declares (`agent/config/ingest.py`).
    left_out: counts the parts of contents that are no text.
    """
    kind = RECORDS[mapping.kind]
    rewards = Rewards(mapping.rewards) if mapping.rewards else None
    counted = Counter() if left_out is None else left_out
    fields = [(name, parse_path(path)) for name, path in mapping.all_fields.items()]
    declared = {"features": schema.context, "outputs": schema.outputs}
    sides = [
        (
            side,
            {feature.name: type(feature).__name__ for feature in declared[side]},
            [(name, parse_path(path)) for name, path in getattr(mapping, side).items()],
        )
        for side in (("outputs",) if mapping.kind == "outcomes" else ("features", "outputs"))
    ]

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, path in fields:
            value = path.find(row)
            if name == "reward" and rewards is not None:
                value = rewards.find(value)
            else:
                value = _field(name, value)
            if value is not None:
                record[name] = mapping.models.get(value, value) if name in _MODELS else value
            elif name in ("routed", "model") and mapping.kind != "outcomes":
                raise AgentError(f"{name}: nothing at {path.text}")
        for side, kinds, paths in sides:
            values = {
                name: as_feature(kinds[name], name, path.find(row), counted) for name, path in paths
            }
            values = {name: value for name, value in values.items() if value is not None}
            if values or mapping.kind != "outcomes":
                record[side] = values
        return _convert(record, kind, mapping.models)

    return read


def nested(
    kind: Kind, schema: FeatureSchema, left_out: Counter[str] | None = None
) -> Callable[[Any], Record]:
    """As `mapped`, for JSON lines with our names: values may be spelled as in any other log."""
    sides = {
        "features": {feature.name: type(feature).__name__ for feature in schema.context},
        "outputs": {feature.name: type(feature).__name__ for feature in schema.outputs},
    }
    struct, counted = RECORDS[kind], Counter[str]() if left_out is None else left_out
    plain = {*struct.__struct_fields__} - {*sides, "metrics"}
    plain |= SPELLINGS if kind == "decisions" else set()

    def read(row: Any) -> Record:
        if not isinstance(row, Mapping):
            return _convert(row, struct)
        record: dict[str, Any] = {}
        for name, value in row.items():
            entry = value
            if name in plain:
                entry = _field(name, value)
            elif name in sides and isinstance(value, Mapping):
                kinds = sides[name]
                # What we do not know is left as it is, to be refused by its name.
                values = {
                    key: as_feature(kinds[key], key, each, counted) if key in kinds else each
                    for key, each in value.items()
                }
                entry = {key: each for key, each in values.items() if each is not None}
            if entry is not None:
                record[name] = entry
        return _convert(record, struct)

    return read


def flat(kind: Kind, schema: FeatureSchema) -> Callable[[Row], Record]:
    """As `mapped`, for tables with our names: x_NAME for features, y_NAME for outputs."""
    kinds = {
        prefix + feature.name: type(feature).__name__
        for prefix, features in (("x_", schema.context), ("y_", schema.outputs))
        for feature in features
    }
    struct, counted = RECORDS[kind], Counter[str]()
    names = {*struct.__struct_fields__, *kinds} - {"features", "outputs", "metrics"}
    names |= SPELLINGS if kind == "decisions" else set()

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, value in row.items():
            if value is None or value == "":
                continue
            if name in kinds:
                side = "features" if name.startswith("x_") else "outputs"
                entry = as_feature(kinds[name], name, value, counted)
                if entry is not None:
                    record.setdefault(side, {})[name[2:]] = entry
                continue
            if name not in names:
                fix = suggestion(name, sorted(names))
                raise AgentError(f"column {shown(name)} is unknown: {fix}")
            entry = _field(name, value)
            if entry is not None:
                record[name] = entry
        if kind != "outcomes":
            record.setdefault("features", {})
            record.setdefault("outputs", {})
        return _convert(record, struct)

    return read


def reader(
    format_: Format,
    kind: Kind,
    schema: FeatureSchema,
    mapping: IngestMapping | None,
    left_out: Counter[str] | None = None,
) -> Callable[[Any], Record]:
    """The function that makes a record of a row as `rows` gives it; it raises AgentError."""
    if mapping is not None:
        to_record = mapped(mapping, schema, left_out)
    elif format_ == "jsonl":
        to_record = nested(kind, schema, left_out)
    else:
        to_record = flat(kind, schema)
    if format_ != "jsonl":
        return to_record
    decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

    def read(line: bytes) -> Record:
        try:
            row = decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise AgentError(str(error)) from None
        return to_record(row)

    return read


Named = TypeVar("Named", bound=Observation | DrawnRow)


class Namer:
    """Names for observations that have none, so that a file that is read again counts once.

    A name is a digest of the row's content and a count of equal rows before it, over all files of
    one intake: the parts of a log that was cut in pieces stay apart, a file that has grown or was
    corrected is still the same, and nothing depends on where a row stands. What this cannot tell
    apart are rows of two intakes that are equal in everything that is read of them: give a time or
    an id where that is more than one request. It takes about a hundred bytes of memory a row.
    """

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}
        self._here: dict[bytes, int] = {}

    def begin(self, copy: bool = False) -> None:
        """A further file begins; copy: of the one before, whose rows it names again."""
        if not copy:
            for digest, count in self._here.items():
                self._before[digest] = self._before.get(digest, 0) + count
        self._here = {}

    def named(self, record: Named) -> Named:
        if record.request_id is not None:
            return record
        digest = blake2b(_encode(record), digest_size=12).digest()
        here = self._here.get(digest, 0)
        self._here[digest] = here + 1
        count = self._before.get(digest, 0) + here
        name = f"row-{digest.hex()}" + (f"-{count}" if count else "")
        return msgspec.structs.replace(record, request_id=name)


def _convert(record: Any, kind: type[Record], models: Mapping[str, str] | None = None) -> Record:
    if kind is DrawnRow and isinstance(record, dict):
        record = with_candidates(record, models or {})
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise AgentError(readable(error)) from None


def _field(name: str, value: Any) -> Any:
    if name in _TEXTS:
        return as_text(name, value)
    if name == "at":
        return as_seconds(name, value)
    if name in ("delivered", "sticky"):
        return as_flag(name, value)
    if name in ("candidates", "probabilities"):
        return as_candidates(name, value)
    return as_whole(name, value) if name == "attempt" else as_number(name, value)
