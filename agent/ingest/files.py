"""Files of logs as rows: JSON lines and arrays, CSV and Parquet, plain, gzip or zstd.

All are read block by block, whatever their size; of a JSON document that is neither lines nor an
array, the whole.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, cast

from equipoise.agent.errors import AgentError

if TYPE_CHECKING:
    import pyarrow as pa

Format: TypeAlias = Literal["jsonl", "json", "csv", "parquet", "dsjson"]
Numbered: TypeAlias = "tuple[int, Mapping[str, Any] | bytes | AgentError]"
"""Number of a row from 1 (of a line, in JSON lines), and the row: bytes where it is JSON still, an
error where there is no telling which cell belongs to which column."""

STANDARD_INPUT = "-"
JSON_FORMATS = ("jsonl", "json", "dsjson")
"""Whose rows may be of any JSON type."""
_SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".dsjson": "dsjson",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKED = (".gz", ".zst", ".zstd")
_BATCH_ROWS = 4096
csv.field_size_limit(1 << 24)


@dataclass(frozen=True, slots=True)
class Source:
    """A file. name: as messages call it. path: where it is. copy: whether the file before it was
    the same, byte for byte."""

    name: str
    path: str
    format: Format
    copy: bool = False


def format_of(source: str) -> Format:
    """By the suffix, `.gz` and `.zst` aside; standard input is JSON lines. Raises AgentError."""
    if source == STANDARD_INPUT:
        return "jsonl"
    suffix = Path(_unpacked(source)).suffix.lower()
    if suffix not in _SUFFIXES:
        accepted = ", ".join(_SUFFIXES)
        raise AgentError(f"{source}: the suffix is not one of {accepted}; name it with --format")
    return _SUFFIXES[suffix]


def _unpacked(source: str) -> str:
    for suffix in _PACKED:
        source = source.removesuffix(suffix)
    return source


def rows(
    source: str, kind: Format, columns: set[str] | None = None, name: str | None = None
) -> Iterator[Numbered]:
    """Every row of a file, or of standard input. columns: those of a Parquet file that are needed.
    name: as messages call the file.

    Raises AgentError where the file as a whole cannot be read, OSError where it cannot be opened.
    """
    called = source if name is None else name
    with _opened(source) as file:
        try:
            if kind == "csv":
                yield from _csv(file)
            elif kind == "parquet":
                if source != STANDARD_INPUT:
                    _refuse_part_of_table(source)
                yield from _parquet(file, columns)
            else:
                yield from _json(file)
        except AgentError as error:
            raise AgentError(f"{called}: {error}") from None
        except _NO_SUCH_FILE as error:
            raise AgentError(f"{called} is not a {kind} file: {error}") from None


class _ZstdError(Exception):
    """What pyarrow says of a file that is not zstd, or is cut off."""


_NO_SUCH_FILE = (
    UnicodeDecodeError,
    csv.Error,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    _ZstdError,
)


class _Zstd(io.RawIOBase):
    """A zstd file as a raw stream of bytes."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._file = pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except OSError as error:
            raise _ZstdError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == STANDARD_INPUT:
        yield sys.stdin.buffer
    elif source.endswith(".gz"):
        with gzip.open(source) as file:
            yield cast(IO[bytes], file)
    elif source.endswith((".zst", ".zstd")):
        with io.BufferedReader(_Zstd(source), 1 << 17) as file:
            yield cast(IO[bytes], file)
    else:
        with open(source, "rb") as file:
            yield file


_HALF = re.compile("[\ud800-\udfff]")
_LISTS = (("_delta_log", "Delta"), ("metadata/*.metadata.json", "Iceberg"), (".hoodie", "Hudi"))
_DEEPEST = 6
"""Folders between a table and its files: one for each column that it is partitioned by."""


def is_cut(text: bytes) -> bool:
    """Whether a JSON text may hold half a surrogate pair, for which a strict decoder refuses it, in
    one of several ways."""
    return b"\\ud" in text or b"\\uD" in text


def from_json(text: bytes) -> Any:
    """The value that a JSON text holds, as Python's decoder reads it, but valid as text.

    JavaScript cuts texts inside a character and writes what is left of it, half a surrogate pair,
    as an escape: valid JSON, and nothing that can be stored or printed; it becomes U+FFFD. NaN and
    infinities are nothing. Raises ValueError, RecursionError.
    """
    return whole_texts(json.loads(text, parse_constant=lambda _: None))


def whole_texts(value: Any) -> Any:
    """A value of JSON with U+FFFD for every half of a surrogate pair, in names too."""
    if isinstance(value, str):
        return value if value.isascii() else _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [whole_texts(each) for each in value]
    if isinstance(value, dict):
        return {whole_texts(name): whole_texts(each) for name, each in value.items()}
    return value


def _refuse_part_of_table(source: str) -> None:
    """Raise AgentError where a Parquet file belongs to a table that keeps a list of its files: rows
    that were deleted or replaced stay in the old ones."""
    for folder in list(Path(source).absolute().parents)[:_DEEPEST]:
        for pattern, kind in _LISTS:
            if any(folder.glob(pattern)):
                raise AgentError(
                    f"it lies in a table of {kind} ({folder.name}), whose files also hold rows that"
                    " were deleted or replaced: read the table with its own tool, write what it"
                    " gives to one Parquet file in another folder, and name that"
                )


def _json(file: IO[bytes]) -> Iterator[Numbered]:
    """JSON lines; where the file begins with a list, its entries; where it begins with an object
    over several lines, its objects. A brace and nothing else may also be a broken line: the one
    after it says."""
    peek = getattr(file, "peek", None)
    start = b"" if peek is None else peek(1 << 12).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        # It may be one line of many gigabytes.
        yield from _entries(file, b"")
        return
    waiting: list[tuple[int, bytes]] = []
    for number, line in enumerate(file, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text.strip():
            continue
        waiting.append((number, text))
        first = waiting[0][1].strip()
        if first.startswith(b"[") or (first == b"{" and text.lstrip()[:1] in (b'"', b"}")):
            yield from _entries(file, b"".join(text for _, text in waiting))
            return
        if first != b"{" or len(waiting) == 2:
            break
    yield from waiting
    at = waiting[-1][0] if waiting else 0
    for number, line in enumerate(file, at + 1):
        if line.strip():
            yield number, line


_BLOCK = 1 << 20
_NEAR_THE_END = 64
_SPACE = " \t\n\r"


class _Text:
    """Decoded text of a file, and the values in it one after the other."""

    def __init__(self, file: IO[bytes], begun: bytes) -> None:
        self._file = file
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = self._bytes.decode(begun)
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_BLOCK):
                return ""

    def skip(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. Raises AgentError where none does."""
        block = _BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A value that is cut off by the end of the block fails there, or in its last text.
                open_text = error.msg.startswith("Unterminated string")
                if error.pos < len(self._text) - _NEAR_THE_END and not open_text:
                    raise AgentError(error.msg) from None
                problem = error.msg
            except (RecursionError, ValueError) as error:
                raise AgentError(str(error)) from None
            else:
                whole = isinstance(value, dict | list | str)
                # A number at the end of the block may go on.
                if whole or self._ended or end < len(self._text) - _NEAR_THE_END:
                    begin, self._at = self._at, end
                    cut = "\\ud" in self._text[begin:end].casefold()
                    return whole_texts(value) if cut else value
                problem = ""
            if not self._more(block) and problem:
                raise AgentError(problem)
            block *= 2

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        data = self._file.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._bytes.decode(data, final=self._ended)
        self._at = 0
        return not self._ended


def _entries(file: IO[bytes], begun: bytes) -> Iterator[Numbered]:
    """The documents of a text, and the entries of those that are lists. Raises AgentError at the
    first that is none: nothing says where the next one begins."""
    text, number, listed, wanted = _Text(file, begun), 0, False, False
    while True:
        character = text.next()
        if character == "" and listed:
            raise AgentError(f"its list does not end: after entry {number}")
        if character == "":
            return
        if not listed and character == "[":
            listed, wanted = True, False
            text.skip()
        elif listed and character == "]":
            listed = False
            text.skip()
        elif listed and character == "," and wanted:
            wanted = False
            text.skip()
        elif listed and wanted:
            raise AgentError(f"entry {number} is followed by {character!r}, not by a comma or ]")
        else:
            number += 1
            try:
                value = text.value()
            except AgentError as error:
                raise AgentError(f"entry {number} is not JSON: {error}") from None
            wanted = listed
            if isinstance(value, Mapping):
                yield number, value
            else:
                yield number, AgentError(f"expected an object, this is {_called(value)}")


def _called(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"of type {type(value).__name__}"


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
            for row in _as_python(_readable(batch)):
                number += 1
                yield number, row
    except pa.ArrowNotImplementedError as error:
        # Such as integers of 128 bits, in whichever column: the file is sound, but not for pyarrow.
        raise AgentError(
            f"this Parquet file cannot be read here: {error}; write other types, such as text"
        ) from None
    except pa.ArrowException as error:
        raise AgentError(f"this is not a Parquet file: {error}") from None


def _as_python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows; a value that Python has no type for, such as the year 10000 or a time that is
    infinite, as text, which is refused where it is needed."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="lossy")
        return rows
    except (OverflowError, ValueError):
        pass
    columns = [[_value(scalar) for scalar in column] for column in batch.columns]
    names = batch.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="lossy")
    except (OverflowError, ValueError):
        unit = getattr(scalar.type, "unit", "")
        number = getattr(scalar, "value", None)
        return f"{number} {unit} since 1970" if isinstance(number, int) else str(scalar.type)


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
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_field.with_type(_microseconds(kind.value_type))
        return pa.list_(inner) if types.is_list(kind) else pa.large_list(inner)
    return kind
