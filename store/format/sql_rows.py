"""Column batches as SQL rows: which table holds which batch, how each column is kept, bit for bit.

Unknown numbers (NaN) are NULL, vectors are JSON arrays, so that any SQLite tool can read the log.

Floats travel as SQLite REAL or as the shortest JSON number that reads back as the same float64.
Two things neither can say are kept beside them: the sign of a REAL zero (column negative_zeros)
and infinity in a vector, written 1e999, which every JSON reader of SQLite takes for infinity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby, repeat
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    Segment,
    SimulationBatch,
    slice_rows,
)


class Kind(Enum):
    """How a column travels between an array and SQL."""

    INTEGER = auto()
    """(n,) int64 as INTEGER"""
    OPTIONAL_INTEGER = auto()
    """as INTEGER; a batch without one as NULL"""
    REAL = auto()
    """(n,) float64 as REAL, NaN as NULL"""
    FLAG = auto()
    """(n,) bool as INTEGER 0 or 1"""
    VECTOR = auto()
    """(n, k) float64 as TEXT: a JSON array a row, NaN as null"""
    OPTIONAL_VECTOR = auto()
    """as VECTOR; a batch without one as NULL"""
    MASK = auto()
    """(n, k) bool as TEXT: a JSON array a row; a batch without one as NULL"""
    TEXT = auto()
    """n texts as TEXT, "" as NULL"""
    SHARED = auto()
    """one value for the whole batch, repeated on every row"""


_WHOLE = (Kind.INTEGER, Kind.OPTIONAL_INTEGER, Kind.FLAG)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the log. Its SQL columns are seq, those of `columns`, and negative_zeros.

    SQLite does not keep the sign of zero in a REAL column; negative_zeros names the columns of a
    row that hold -0.0 (a JSON array of names), and is NULL nearly always.
    """

    name: str
    batch: type[Batch]
    columns: dict[str, Kind]

    @property
    def names(self) -> tuple[str, ...]:
        """Every SQL column in the order rows travel in."""
        return ("seq", *self.columns, "negative_zeros")

    @property
    def types(self) -> dict[str, type]:
        """What SQL holds in every column, in the order of `names`: int, float or str."""
        kinds = {
            name: int if kind in _WHOLE or name == "era" else float if kind is Kind.REAL else str
            for name, kind in self.columns.items()
        }
        return {"seq": int, **kinds, "negative_zeros": str}

    @property
    def insert(self) -> str:
        """The statement that writes one row."""
        marks = ", ".join("?" * len(self.names))
        return f"INSERT INTO {self.name} ({', '.join(self.names)}) VALUES ({marks})"

    def select(self, condition: str) -> str:
        """The statement that reads the rows of a condition in seq order."""
        return f"SELECT {', '.join(self.names)} FROM {self.name} WHERE {condition} ORDER BY seq"


DECISIONS = Table(
    "decisions",
    DecisionBatch,
    {
        "number": Kind.INTEGER,
        "request_id": Kind.TEXT,
        "unit": Kind.INTEGER,
        "unit_id": Kind.TEXT,
        "context": Kind.INTEGER,
        "context_id": Kind.TEXT,
        "at": Kind.REAL,
        "x": Kind.VECTOR,
        "routed": Kind.INTEGER,
        "eligible": Kind.MASK,
        "rate": Kind.REAL,
        "probabilities": Kind.VECTOR,
        "uniform": Kind.REAL,
        "model": Kind.INTEGER,
        "randomized": Kind.FLAG,
        "capped": Kind.FLAG,
        "rule_id": Kind.SHARED,
        "era": Kind.SHARED,
        "leader": Kind.OPTIONAL_INTEGER,
        "closed_by": Kind.OPTIONAL_INTEGER,
        "draw": Kind.OPTIONAL_INTEGER,
    },
)
OUTCOMES = Table(
    "outcomes",
    OutcomeBatch,
    {
        "number": Kind.INTEGER,
        "served": Kind.INTEGER,
        "attempt": Kind.INTEGER,
        "delivered": Kind.FLAG,
        "outputs": Kind.VECTOR,
        "reward": Kind.REAL,
        "at": Kind.REAL,
        "metrics": Kind.OPTIONAL_VECTOR,
        "attempts": Kind.TEXT,
    },
)
OBSERVATIONS = Table(
    "observations",
    ObservationBatch,
    {
        "request_id": Kind.TEXT,
        "unit": Kind.INTEGER,
        "unit_id": Kind.TEXT,
        "at": Kind.REAL,
        "x": Kind.VECTOR,
        "routed": Kind.INTEGER,
        "outputs": Kind.VECTOR,
        "reward": Kind.REAL,
    },
)
SIMULATIONS = Table(
    "simulations",
    SimulationBatch,
    {
        "context": Kind.INTEGER,
        "context_id": Kind.TEXT,
        "model": Kind.INTEGER,
        "x": Kind.VECTOR,
        "outputs": Kind.VECTOR,
        "cost": Kind.REAL,
        "at": Kind.REAL,
    },
)
EXPIRIES = Table("expiries", ExpiryBatch, {"number": Kind.INTEGER, "at": Kind.REAL})

LOG_TABLES = (DECISIONS, OUTCOMES, OBSERVATIONS, SIMULATIONS, EXPIRIES)
TABLE_OF = {table.batch: table for table in LOG_TABLES}


B = TypeVar("B", bound=Batch)

_WIDE = (Kind.VECTOR, Kind.OPTIONAL_VECTOR, Kind.MASK)
_MAYBE = (Kind.TEXT, Kind.OPTIONAL_INTEGER)
_FLAT = (0, 0)
# What rows must have in common to stand in one batch: shared values, widths, which are absent.
_SHARED = {
    batch: [name for name, kind in table.columns.items() if kind is Kind.SHARED]
    for batch, table in TABLE_OF.items()
}
_SHAPED = {
    batch: [name for name, kind in table.columns.items() if kind in (*_WIDE, *_MAYBE)]
    for batch, table in TABLE_OF.items()
}


def merge(segments: Sequence[Segment]) -> list[tuple[Ints, Batch]]:
    """Batches that together hold every row once, each with the (n,) seqs of its rows.

    Rows of one kind, one rule and era, and equal widths end up together, in seq order.
    """
    groups: dict[tuple[Any, ...], list[Segment]] = {}
    for segment in segments:
        groups.setdefault(_shape(segment.batch), []).append(segment)
    merged = []
    for group in groups.values():
        seqs = np.concatenate([part.seqs for part in group])
        merged.append((seqs, joined([part.batch for part in group])))
    return merged


def bounded(segments: Sequence[Segment], rows: int) -> Iterator[list[Segment]]:
    """The same rows in lists of at most so many, which bounds the memory they take."""
    part: list[Segment] = []
    count = 0
    for segment in segments:
        n = len(segment.batch)
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            if count + stop - start > rows:
                yield part
                part, count = [], 0
            if stop - start < n:
                batch = slice_rows(segment.batch, start, stop)
                part.append(Segment(segment.seq + start, batch))
            else:
                part.append(segment)
            count += stop - start
    if part:
        yield part


def _shape(batch: Batch) -> tuple[Any, ...]:
    kind = type(batch)
    shape: list[Any] = [kind, *(getattr(batch, name) for name in _SHARED[kind])]
    for name in _SHAPED[kind]:
        value = getattr(batch, name)
        # Texts and numbers have no width, only their presence matters.
        width = (*getattr(value, "shape", _FLAT), 0)[1]
        shape.append(None if value is None else width)
    return tuple(shape)


def same_shape(one: Batch, other: Batch) -> bool:
    """Whether `joined` takes two batches together."""
    return _shape(one) == _shape(other)


def joined(batches: Sequence[B]) -> B:
    """One batch of the rows of several with equal shapes, rules and eras, in their order."""
    if len(batches) == 1:
        return batches[0]
    columns: dict[str, Any] = {}
    kind_of: Any = type(batches[0])
    for name, kind in TABLE_OF[kind_of].columns.items():
        first = getattr(batches[0], name)
        if kind is Kind.SHARED or first is None:
            columns[name] = first
        elif isinstance(first, np.ndarray):
            columns[name] = np.concatenate([getattr(batch, name) for batch in batches])
        else:
            columns[name] = [value for batch in batches for value in getattr(batch, name)]
    whole: B = kind_of(**columns)
    return whole


Row: TypeAlias = tuple[Any, ...]

_NEGATIVE_ZERO = np.float64(-0.0).tobytes()
_OPTIONAL = frozenset({Kind.MASK, Kind.OPTIONAL_VECTOR, Kind.OPTIONAL_INTEGER})
_vectors = msgspec.json.Decoder(list[list[float | None] | None])
_masks = msgspec.json.Decoder(list[list[bool] | None])


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a table by column, in the order of its `names`; None for a column of NULLs alone."""

    table: Table
    values: Sequence[Sequence[Any] | None]

    def __len__(self) -> int:
        seqs = self.values[0]
        assert seqs is not None
        return len(seqs)

    def rows(self, without: int | None = None) -> Iterator[Row]:
        """The rows, lacking one column by position. Raises ValueError where columns differ in
        length."""
        n = len(self)
        values = [repeat(None, n) if column is None else column for column in self.values]
        if without is not None:
            del values[without]
        return zip(*values, strict=True)


def to_rows(batch: Batch, seq: int | Ints) -> list[Row]:
    """The SQL rows of a batch, as those of `to_columns`."""
    return list(to_columns(batch, seq).rows())


def to_columns(batch: Batch, seq: int | Ints) -> Columns:
    """What SQL holds of a batch whose first row gets `seq`, in the column order of its table.

    seq: or (n,) the seq of every row. The values are those that SQLite will hand back, so that a
    digest of rows that are written is one of rows that are read.
    """
    table, n = TABLE_OF[type(batch)], len(batch)
    seqs = range(seq, seq + n) if isinstance(seq, int) else seq.tolist()
    columns: list[Sequence[Any] | None] = [seqs]
    signed: list[str] = []
    for name, kind in table.columns.items():
        values = getattr(batch, name)
        if values is None:
            columns.append(None)
        elif kind is Kind.SHARED:
            columns.append([values] * n)
        elif kind is Kind.TEXT:
            columns.append([text or None for text in values] if any(values) else None)
        elif kind is Kind.VECTOR or kind is Kind.OPTIONAL_VECTOR:
            columns.append(_vectors_to_json(values))
        elif kind is Kind.MASK:
            columns.append(_to_json(values))
        elif kind is Kind.REAL:
            if _has_negative_zero(values):
                signed.append(name)
                values = values + 0.0
            columns.append(_nan_to_null(values))
        elif kind is Kind.FLAG:
            columns.append(values.view(np.int8).tolist())
        else:
            columns.append(values.tolist())
    columns.append(_negative_zeros(batch, signed) if signed else None)
    return Columns(table, columns)


def to_segments(table: Table, rows: Sequence[Row]) -> Iterator[Segment]:
    """The segments of a table's rows, which come in seq order and may have gaps.

    Rows of one segment have consecutive seqs, one rule and era, and vectors of one length.
    """
    for first, batch in _blocks(table, rows):
        seqs = np.array([row[0] for row in rows[first : first + len(batch)]], dtype=np.int64)
        cuts = np.flatnonzero(np.diff(seqs) != 1) + 1
        start = 0
        for stop in (*cuts.tolist(), len(batch)):
            yield Segment(int(seqs[start]), slice_rows(batch, start, stop))
            start = stop


def to_blocks(table: Table, rows: Sequence[Row]) -> Iterator[tuple[Ints, Batch]]:
    """The rows of one table as (n,) seqs and batches, which may have gaps between their seqs."""
    for first, batch in _blocks(table, rows):
        seqs = [row[0] for row in rows[first : first + len(batch)]]
        yield np.array(seqs, dtype=np.int64), batch


def _blocks(table: Table, rows: Sequence[Row]) -> Iterator[tuple[int, Batch]]:
    """Runs of rows that fit one batch, as (position of the first row, batch)."""
    if not rows:
        return
    _, *columns, negative_zeros = zip(*rows, strict=True)
    values: dict[str, Sequence[Any]] = {}
    shapes: list[Iterable[Any]] = []
    for (name, kind), column in zip(table.columns.items(), columns, strict=True):
        if kind is Kind.VECTOR:
            values[name] = _json_to_vectors(column)
            shapes.append(map(len, values[name]))
        elif kind is Kind.OPTIONAL_VECTOR:
            values[name] = _json_to_vectors(text or "null" for text in column)
            shapes.append(-1 if vector is None else len(vector) for vector in values[name])
        elif kind is Kind.MASK:
            values[name] = _masks.decode(_json_array(text or "null" for text in column))
            shapes.append(-1 if mask is None else len(mask) for mask in values[name])
        else:
            values[name] = column
            if kind is Kind.SHARED:
                shapes.append(column)
            elif kind is Kind.OPTIONAL_INTEGER:
                shapes.append(number is None for number in column)
    start = 0
    for stop in _ends(list(zip(*shapes, strict=True)), len(rows)):
        block = {
            name: _from_sql(kind, values[name][start:stop]) for name, kind in table.columns.items()
        }
        _restore_negative_zeros(block, negative_zeros[start:stop])
        yield start, table.batch(**block)
        start = stop


def _ends(shapes: Sequence[tuple[Any, ...]], n: int) -> Iterator[int]:
    """Where each run of equal shapes ends."""
    if not shapes or shapes.count(shapes[0]) == n:
        yield n
        return
    end = 0
    for _, run in groupby(shapes):
        end += sum(1 for _ in run)
        yield end


def _from_sql(kind: Kind, column: Sequence[Any]) -> Any:
    if kind is Kind.SHARED:
        return column[0]
    if kind is Kind.TEXT:
        return [text or "" for text in column] if any(column) else None
    if kind in _OPTIONAL and column[0] is None:
        return None
    if kind is Kind.INTEGER or kind is Kind.OPTIONAL_INTEGER:
        return np.array(column, dtype=np.int64)
    if kind is Kind.FLAG or kind is Kind.MASK:
        return np.array(column, dtype=np.bool_)
    return np.array(column, dtype=np.float64)  # None becomes NaN


def _nan_to_null(values: Floats) -> list[float | None] | None:
    unknown = np.isnan(values)
    if unknown.all():
        return None
    numbers: list[float | None] = values.tolist()
    return [None if v != v else v for v in numbers] if unknown.any() else numbers


def _to_json(array: NDArray[Any]) -> list[str]:
    """One JSON array a row; the whole array is encoded in one go and cut between its rows."""
    text = msgspec.json.encode(array.tolist()).decode()
    return [f"[{row}]" for row in text[2:-2].split("],[")]


def _vectors_to_json(array: Floats) -> list[str]:
    rows = _to_json(array)
    # msgspec writes null for infinities as well as for NaN: look closer where there is a null.
    if any("null" in row for row in rows):
        for position in np.flatnonzero(np.isinf(array).any(axis=1)):
            text = json.dumps(array[position].tolist(), separators=(",", ":"))
            rows[position] = text.replace("NaN", "null").replace("Infinity", "1e999")
    return rows


def _json_to_vectors(column: Iterable[str]) -> list[list[float | None] | None]:
    text = _json_array(column)
    if "1e999" in text:
        decoded: list[list[float | None] | None] = json.loads(text)
        return decoded
    return _vectors.decode(text)


def _json_array(texts: Iterable[str]) -> str:
    return f"[{','.join(texts)}]"


def _has_negative_zero(values: Floats) -> bool:
    # Searching the bytes is ten times faster than arithmetic on small arrays; a match may
    # straddle two numbers, so it is confirmed.
    if _NEGATIVE_ZERO not in values.tobytes():
        return False
    return bool(np.any((values == 0.0) & np.signbit(values)))


def _negative_zeros(batch: Batch, names: Sequence[str]) -> list[str | None]:
    listed: list[list[str]] = [[] for _ in range(len(batch))]
    for name in names:
        values: Floats = getattr(batch, name)
        marked: Flags = (values == 0.0) & np.signbit(values)
        for row in np.flatnonzero(marked):
            listed[row].append(name)
    return [json.dumps(row) if row else None for row in listed]


def _restore_negative_zeros(block: dict[str, Any], texts: Sequence[str | None]) -> None:
    if not any(texts):
        return
    for row, text in enumerate(texts):
        for name in json.loads(text) if text else ():
            block[name][row] = -0.0
