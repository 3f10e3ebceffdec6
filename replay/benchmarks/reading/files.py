"""JSON, Parquet and CSV files read strictly.

Every complaint names the file, the place, the field and the value.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from equipoise.agent.features.values import LARGEST, listed, shown
from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.store.batches import Floats

_LONGEST_REASON = 200


def read_json(path: Path) -> Any:
    """The contents of a UTF-8 file, where no object has the same key twice. NaN reads as null.

    Raises BenchmarkError with the file and the reason; OSError where it cannot be read.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except _RepeatedKeyError as error:
        raise BenchmarkError(f"{path}: {error}") from None
    except RecursionError:
        raise BenchmarkError(f"{path} is not usable JSON: nested too deeply") from None
    except ValueError as error:
        if not raw.strip():
            raise BenchmarkError(f"{path} is empty, must be JSON") from None
        raise BenchmarkError(f"{path} is not JSON, or was cut short: {one_line(error)}") from None


def find_file(path: Path, name: str, folders: tuple[str, ...] = ("",)) -> Path:
    """The path itself where it is a file, else the file of that name in it or in a subfolder.

    Raises BenchmarkError where there is none.
    """
    if path.is_file():
        return path
    for folder in folders:
        if (file := path / folder / name).is_file():
            return file
    raise BenchmarkError(f"{path} holds no {name}")


def one_line(text: object) -> str:
    """A text from elsewhere (an error, a name) on one line, of bounded length, valid as UTF-8."""
    text = " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def names_listed(names: Iterable[str]) -> str:
    """Names from a file as a message or a reason of exclusion lists them."""
    return listed(one_line(name) for name in names)


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object of a file, with checked access to its fields. where: the file and the place."""

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A text with something in it. Raises BenchmarkError."""
        value = self._required(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, "a text that is not empty")
        return value

    def optional_text(self, name: str) -> str | None:
        """A text, possibly empty, or None where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self.fault(name, "a text or null")
        return value

    def number(self, name: str, low: float = -LARGEST, high: float = LARGEST) -> float:
        """A number within [low, high]; NaN where it is absent or null.

        Raises BenchmarkError; true and false are no numbers.
        """
        value = self.fields.get(name)
        if value is None:
            return math.nan
        number = math.inf
        if not isinstance(value, bool) and isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
        if not low <= number <= high:
            raise self.fault(name, _limit(low, high))
        return number

    def flag(self, name: str) -> float:
        """1 for true, 0 for false, NaN where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is None:
            return math.nan
        if value not in (True, False) or isinstance(value, float):
            raise self.fault(name, "true or false")
        return float(value)

    def objects(self, name: str) -> list[JsonObject]:
        """A list of objects. Raises BenchmarkError."""
        return objects(self._required(name), f"{self.where}: {name}")

    def named_objects(self, name: str) -> dict[str, JsonObject] | None:
        """A table of objects by key, None where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fault(name, "an object or null")
        return {
            key: json_object(entry, f"{self.where}, {one_line(key)}")
            for key, entry in value.items()
        }

    def fault(self, name: str, limit: str) -> BenchmarkError:
        """The complaint about a field's value."""
        return BenchmarkError(
            f"{self.where}: {name} is {shown(self.fields.get(name))}, must be {limit}"
        )

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            has = names_listed(self.fields)
            raise BenchmarkError(f"{self.where}: field {name!r} is absent; it has: {has}")
        return self.fields[name]


def json_object(value: object, where: str) -> JsonObject:
    """Raises BenchmarkError unless the value is a JSON object."""
    if not isinstance(value, Mapping):
        raise BenchmarkError(f"{where} is {_kind(value)}, must be an object")
    return JsonObject(where, value)


def objects(value: object, where: str) -> list[JsonObject]:
    """The entries of a list of objects, each with its position. Raises BenchmarkError."""
    if not isinstance(value, list):
        raise BenchmarkError(f"{where} is {_kind(value)}, must be a list of objects")
    return [json_object(entry, f"{where}[{i}]") for i, entry in enumerate(value)]


class _RepeatedKeyError(Exception):
    """An object with the same key twice: which of the two values holds nobody can say."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RepeatedKeyError(f"an object holds the key {shown(twice)} twice, must be unique")
    return fields


def _constant(name: str) -> float | None:
    """What Python writes for an unknown number is unknown; infinities are refused as values."""
    return None if name == "NaN" else float(name)


def _kind(value: object) -> str:
    return f"an object with {names_listed(value)}" if isinstance(value, Mapping) else shown(value)


def _limit(low: float, high: float) -> str:
    if high < LARGEST:
        return f"a number from {shown(low)} to {shown(high)}"
    if low > -LARGEST:
        return f"a finite number of at least {shown(low)}"
    return "a finite number"


_LONGEST_ID = 160
_LONGEST_FEATURE = 80
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._:/@+\-]+")
_NOT_IN_FEATURE = re.compile(r"[^A-Za-z0-9_.\-]+")


def identifiers(names: Iterable[str], empty: str = "model") -> tuple[str, ...]:
    """Ids of models or contexts (`store.records.Id`), unique and in the same order.

    A name that is an id already stays as it is. Otherwise accents go, each run of characters that
    an id cannot hold becomes one hyphen, and hyphens at the ends go. Names that become equal are
    told apart by their order: "a", "a-2", "a-3". `empty` stands in where nothing is left.

    >>> identifiers(["GPT-5 mini (2025-08-07) (medium reasoning)", "o4-mini"])
    ('GPT-5-mini-2025-08-07-medium-reasoning', 'o4-mini')
    """
    return _unique(names, lambda name: _identifier(name) or empty)


def feature_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of features (a letter, then letters, digits, `_`, `.`, `-`), unique, in order.

    A name that is valid already stays as it is, whichever comes first.

    >>> feature_names(["Rouge 1", "Rouge-1", "x_length"])
    ('Rouge-1-2', 'Rouge-1', 'x_length')
    """
    return _unique(names, lambda name: _feature(name) or "feature")


def _unique(names: Iterable[str], short: Callable[[str], str]) -> tuple[str, ...]:
    names = list(names)
    # Names that are valid as they stand keep themselves, whichever comes first.
    valid = {name for name in names if short(name) == name}
    used: set[str] = set()
    result: list[str] = []
    for name in names:
        base = candidate = short(name)
        count = 1
        while candidate in used or (candidate in valid and candidate != name):
            count += 1
            candidate = f"{base}-{count}"
        used.add(candidate)
        result.append(candidate)
    return tuple(result)


def _identifier(name: str) -> str:
    text = _NOT_IN_ID.sub("-", _plain(name))
    text = re.sub(r"^[^A-Za-z0-9]+", "", text)
    return name if text == name and len(name) <= _LONGEST_ID else text.strip("-")[:_LONGEST_ID]


def _feature(name: str) -> str:
    text = _NOT_IN_FEATURE.sub("-", _plain(name))
    text = re.sub(r"^[^A-Za-z]+", "", text)
    return name if text == name and len(name) <= _LONGEST_FEATURE else text.strip("-")[:80]


def _plain(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


_SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
_PARQUET = b"PAR1"
_UNKNOWN = ("", "na", "n/a", "nan", "null", "none")
_FLAGS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table and where it is from; every complaint names the file, column, row and value.

    Rows count from 1, the header not among them.
    """

    path: Path
    table: Any

    @property
    def columns(self) -> list[str]:
        """Names of the columns, unique."""
        return [str(name) for name in self.table.column_names]

    def texts(self, name: str) -> list[str]:
        """A column of texts or whole numbers, as texts. Raises BenchmarkError for a gap."""
        column = self._plain(name)
        kind = column.type
        if not (pa.types.is_integer(kind) or _is_text(kind)):
            raise BenchmarkError(
                f"{self.path}: {name} has type {kind}, must be text or whole numbers"
            )
        values = [None if value is None else str(value) for value in column.to_pylist()]
        for row, value in enumerate(values, start=1):
            if value is None or not value.strip():
                raise BenchmarkError(f"{self.path}, row {row}: {name} is empty, must be a name")
        return [value for value in values if value is not None]

    def numbers(self, name: str) -> Floats:
        """A column of finite numbers, NaN where there is none. Raises BenchmarkError."""
        column = self._plain(name)
        kind = column.type
        if _is_text(kind):
            values = self._parsed(name, column.to_pandas())
        elif pa.types.is_null(kind):
            values = np.full(len(column), np.nan)
        elif pa.types.is_boolean(kind) or _is_number(kind):
            values = np.asarray(column.cast(pa.float64(), safe=False).to_pandas(), dtype=np.float64)
        else:
            raise BenchmarkError(f"{self.path}: {name} has type {kind}, must be numbers")
        self.require(name, values, np.isnan(values) | (np.abs(values) <= LARGEST), "finite")
        return values

    def values(self, name: str) -> list[Any]:
        """A column as it stands, None or an empty text where there is nothing."""
        values: list[Any] = self._plain(name).to_pylist()
        return values

    def is_numeric(self, name: str) -> bool:
        """Whether a column holds numbers: by its type, or most of its texts; all of nothing do."""
        column = self._plain(name)
        if not _is_text(column.type):
            return not pa.types.is_boolean(column.type)
        lower = column.to_pandas().fillna("").astype(str).str.strip().str.lower()
        filled = lower[~lower.isin(_UNKNOWN)]
        numbers = pd.to_numeric(filled, errors="coerce").notna()
        return not len(filled) or bool(numbers.mean() > 0.5)

    def require(self, name: str, values: Floats, holds: np.ndarray, limit: str) -> None:
        """Raise BenchmarkError for the first row where the condition does not hold."""
        if not holds.all():
            row = int(np.argmin(holds))
            raise BenchmarkError(
                f"{self.path}, row {row + 1}: {name} is {shown(values[row])}, must be {limit}"
            )

    def _plain(self, name: str) -> Any:
        column = self.table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # of no chunk at all
            column = pa.array([], type=column.type)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

    def _parsed(self, name: str, column: pd.Series[Any]) -> Floats:
        lower = column.fillna("").astype(str).str.strip().str.lower()
        values = np.array(pd.to_numeric(lower, errors="coerce"), dtype=np.float64)
        for word, value in _FLAGS.items():
            values[np.asarray(lower == word)] = value
        unread = np.isnan(values) & ~np.asarray(lower.isin(_UNKNOWN))
        if unread.any():
            row = int(np.argmax(unread))
            raise BenchmarkError(
                f"{self.path}, row {row + 1}: {name} is {shown(column.iloc[row])},"
                " must be a number or empty"
            )
        return values


def read_table(path: Path) -> TableFile:
    """The table of a file, or of the only table file in a folder.

    Parquet is known by its first bytes; anything else is read as CSV in UTF-8 with a header,
    separated by tabs where the name says .tsv, decompressed where it ends in .gz. Raises
    BenchmarkError; OSError where the file cannot be read.
    """
    file = _only_file(path) if path.is_dir() else path
    with file.open("rb") as opened:
        is_parquet = opened.read(len(_PARQUET)) == _PARQUET
    try:
        table = _parquet(file) if is_parquet else _csv(file)
    except pa.ArrowNotImplementedError as error:
        reason = one_line(error)
        raise BenchmarkError(f"{file} has types that cannot be read here: {reason}") from None
    except pa.ArrowException as error:
        kind = "Parquet" if is_parquet else "CSV"
        reason = one_line(error)
        raise BenchmarkError(f"{file} is not {kind}, or was cut short: {reason}") from None
    names = [str(name) for name in table.column_names]
    for name in names:
        if names.count(name) > 1:
            raise BenchmarkError(f"{file}: column {shown(name)} occurs twice, must be unique")
    return TableFile(file, table)


def _only_file(folder: Path) -> Path:
    files = sorted(entry for entry in folder.iterdir() if entry.name.endswith(_SUFFIXES))
    if len(files) != 1:
        names = listed(file.name for file in files)
        raise BenchmarkError(
            f"{folder} holds {len(files)} table files ({names}), must be 1, or name the file"
        )
    return files[0]


def _parquet(file: Path) -> Any:
    # Not `read_table`, which makes columns of folders that are called name=value.
    with pq.ParquetFile(file) as opened:
        return opened.read()


def _csv(file: Path) -> Any:
    with pa.input_stream(str(file), compression="detect") as stream:
        raw = stream.read()
    delimiter = "\t" if file.name.endswith((".tsv", ".tsv.gz")) else ","
    first = raw[: 1 << 20].decode("utf-8-sig", errors="replace")
    header = next(csv.reader(io.StringIO(first), delimiter=delimiter), [])
    return pacsv.read_csv(
        io.BytesIO(raw),
        # One thread, so that a malformed row is named by its number.
        read_options=pacsv.ReadOptions(use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
