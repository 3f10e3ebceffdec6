"""Files of logs as rows: JSON lines, CSV and Parquet, block by block, whatever their size."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from equipoise.agent.errors import AgentError

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]
Numbered: TypeAlias = "tuple[int, Mapping[str, Any] | bytes]"
"""Number of a row from 1 (of a line, in JSON lines), and the row: bytes where it is JSON still."""

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
        if line.strip():
            yield number, line


def _csv(file: IO[bytes]) -> Iterator[Numbered]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        reader = csv.DictReader(text, restkey="(beyond the header)", strict=True)
        yield from enumerate(reader, 1)
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
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise AgentError(f"this is no Parquet file: {error}") from None
