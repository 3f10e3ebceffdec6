"""Files of logs as rows: JSON lines, CSV and Parquet, block by block, whatever their size."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from equipoise.agent.errors import AgentError

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
        known = ", ".join(_SUFFIXES)
        raise AgentError(f"{source}: the suffix is none of {known}; name it with --format")
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
            raise AgentError(f"{source} is no {kind} file: {error}") from None


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
    except pa.ArrowException as error:
        raise AgentError(f"this is no Parquet file: {error}") from None


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
