"""The transform: rows of named values to arrays of fixed length, and ranges of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from equipoise.agent.features.kinds import Feature
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import (
    FINITE,
    LARGEST,
    MOST_SHOWN,
    FeatureError,
    Problem,
    Refused,
    append_list,
    listed,
    plain,
    shown,
    shown_sent,
    sound,
    suggestion,
)
from equipoise.store.batches import Flags, Floats

_FLOAT = np.dtype(np.float64)
_NUMBERS = frozenset(
    map(np.dtype, ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"))
)


class RowEncoder:
    """The compiled features of one side. names: of its columns; width: how many."""

    def __init__(self, side: str, features: Sequence[Feature]) -> None:
        self.side = side
        self.names = tuple(name for feature in features for name in feature.columns())
        self.width = len(self.names)
        self._features = tuple(feature.name for feature in features)
        self._limits = np.array([limit for feature in features for limit in feature.limits()])
        self._lowest = float(self._limits.min(initial=LARGEST))
        # A missing value is encoded as this list; None where the feature has no missing rule.
        self._plan = tuple(
            (
                feature.name,
                feature.encoder(),
                None if feature.missing is None else [feature.missing] * len(feature.columns()),
                *feature.as_it_is(),
            )
            for feature in features
        )
        self._vector = f"{self.width} finite numbers ({listed(self.names)})"

    def rows(self, rows: object) -> Floats:
        """(n, width) of n rows, each a mapping of feature names to values or a vector.

        A vector of exactly `width` numbers is taken as transformed already; so is an array (n,
        width). Raises FeatureError with the problems of the first row that is wrong.
        """
        if isinstance(rows, np.ndarray):
            return self.check(rows)
        if type(rows) is not tuple and (
            isinstance(rows, str | bytes) or not isinstance(rows, Sequence)
        ):
            raise self._error(None, Problem("", shown(rows), "a list of rows"))
        columns: list[float] = []
        for at, row in enumerate(rows):
            if type(row) is dict or isinstance(row, Mapping):
                self._append_named(at, row, columns)
            else:
                self._append_vector(at, row, columns)
        return np.array(columns, dtype=np.float64).reshape(len(rows), self.width)

    def sound(self, array: object) -> bool:
        """Whether it is one row (1, width) of float64, every number within every limit; False may
        also mean that `check` has to look closer."""
        return (
            type(array) is np.ndarray
            and array.dtype is _FLOAT
            and array.shape == (1, self.width)
            and sound(array, self._lowest)
        )

    def check(self, array: object, absent: bool = False) -> Floats:
        """The array (n, width) as float64, itself where it is that already.

        absent: let rows through that are NaN throughout (outcomes without outputs).
        Raises FeatureError naming the first row, its columns and their values.
        """
        if not isinstance(array, np.ndarray) or array.dtype not in _NUMBERS:
            raise self._error(None, Problem("", shown(array), f"an array (n, {self.width})"))
        if array.ndim != 2 or array.shape[1] != self.width:
            limit = f"an array (n, {self.width}): {listed(self.names)}"
            raise self._error(None, Problem("", f"an array {array.shape}", limit))
        numbers: Floats = array.astype(np.float64, copy=False, subok=False)
        if not sound(numbers, self._lowest):
            self._check_rows(numbers, absent)
        return numbers

    def _check_rows(self, numbers: Floats, absent: bool) -> None:
        beyond = (~(np.abs(numbers) <= self._limits)).any(axis=1)
        if absent:
            beyond &= ~np.isnan(numbers).all(axis=1)
        if beyond.any():
            row = int(np.argmax(beyond))
            raise self._error(row, *self._number_problems(numbers[row].tolist()))

    def _append_named(self, at: int, row: Mapping[Any, Any], columns: list[float]) -> None:
        values = 0
        try:
            for name, encode, missing, low, high in self._plan:
                value = row.get(name)
                if type(value) is float and low <= value <= high:
                    columns.append(value)
                    values += 1
                elif value is not None:
                    encode(value, columns)
                    values += 1
                elif missing is not None:
                    columns += missing
                    values += name in row
                else:
                    raise Refused("a value")
        except Refused:
            raise self._named_error(at, row) from None
        if values != len(row):
            raise self._named_error(at, row)

    def _append_vector(self, at: int, row: object, columns: list[float]) -> None:
        numbers = plain(row)
        if not isinstance(numbers, list | tuple):
            limit = f"named values, or {self._vector}"
            raise self._error(at, Problem("", shown_sent(row), limit))
        try:
            append_list(numbers, columns, self._vector, self._limits.tolist())
        except Refused as refused:
            if refused.at is None:
                problem = Problem("", f"{len(numbers)} numbers", refused.expected)
                raise self._error(at, problem) from None
            raise self._error(at, *self._number_problems(numbers)) from None

    def _number_problems(self, numbers: Sequence[Any]) -> list[Problem]:
        problems = map(_number_problem, self.names, numbers, self._limits.tolist())
        return [problem for problem in problems if problem is not None]

    def _named_error(self, at: int, row: Mapping[Any, Any]) -> FeatureError:
        """Every problem of a row that was refused; slow, and on no other path."""
        problems = []
        for name, encode, missing, _, _ in self._plan:
            value = row.get(name)
            if value is None:
                if missing is None:
                    fix = "declare `missing` if that is allowed"
                    problems.append(Problem(name, "nothing", "a value", fix))
                continue
            try:
                encode(value, [])
            except Refused as refused:
                problems.append(_refusal(name, value, refused))
        unknown = [name for name in row if name not in self._features]
        for name in unknown[:MOST_SHOWN]:
            fix = suggestion(name, self._features)
            key = shown_sent(name, "name")
            key = name if isinstance(name, str) and key == repr(name) else key
            problems.append(Problem(key, shown_sent(row[name]), "no such feature", fix))
        total = len(problems) + max(0, len(unknown) - MOST_SHOWN)
        return FeatureError(self.side, at, problems, total)

    def _error(self, row: int | None, *problems: Problem) -> FeatureError:
        return FeatureError(self.side, row, problems)


def _refusal(name: str, value: Any, refused: Refused) -> Problem:
    numbers = plain(value)
    if refused.at is None or not isinstance(numbers, list | tuple):
        return Problem(name, shown_sent(value), refused.expected)
    return Problem(f"{name}[{refused.at}]", shown_sent(numbers[refused.at]), refused.expected)


def _number_problem(name: str, value: object, limit: float) -> Problem | None:
    """What is wrong with a number that is taken as it is, None if nothing."""
    try:
        append_list([value], [], FINITE, [limit])
    except Refused as refused:
        return Problem(name, shown_sent(value), refused.expected)
    return None


Row: TypeAlias = Mapping[str, Any] | Sequence[float] | Floats


class Transform:
    """A feature schema made ready for use; build it once.

    d, q: columns of the context features x and of the output features y; p = 1 + d + q + the
    number of interactions, the length of phi with its intercept.
    context_names (d), output_names (q), phi_names (p - 1): the columns in order; an interaction is
    called `left*right`.
    schema: an own copy of the schema; schema_hash: its hash.

    Raises SchemaError where the schema is wrong.

    >>> from equipoise.agent.features import FeatureSchema
    >>> transform = Transform(FeatureSchema.vectors(["length"], ["words", "price"]))
    >>> x = transform.context_rows([{"length": 3}, [4.0]])
    >>> y = transform.output_rows([{"words": 1, "price": 0.5}, {"words": 2, "price": 0}])
    >>> transform.phi(x, y)
    array([[3. , 1. , 0.5],
           [4. , 2. , 0. ]])
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema.checked()
        self.schema_hash = self.schema.schema_hash
        self._context = RowEncoder("context", self.schema.context)
        self._outputs = RowEncoder("outputs", self.schema.outputs)
        self.context_names = self._context.names
        self.output_names = self._outputs.names
        self.d = self._context.width
        self.q = self._outputs.width
        pairs = self.schema.interactions
        self.p = 1 + self.d + self.q + len(pairs)
        columns = (*self.context_names, *self.output_names)
        self.phi_names = (*columns, *(f"{left}*{right}" for left, right in pairs))
        position = {name: at for at, name in enumerate(columns)}
        self._left = np.array([position[left] for left, _ in pairs], dtype=np.intp)
        self._right = np.array([position[right] for _, right in pairs], dtype=np.intp)

    def context_rows(self, rows: Sequence[Row] | Floats) -> Floats:
        """(n, d) of n rows: mappings of names to values, or vectors that are transformed already.

        Raises FeatureError with the problems (at most five are listed) of the first wrong row.
        """
        return self._context.rows(rows)

    def output_rows(self, rows: Sequence[Row] | Floats) -> Floats:
        """(n, q) of n rows, as `context_rows`."""
        return self._outputs.rows(rows)

    def check_context(self, x: object) -> Floats:
        """An array (n, d) of transformed features as float64; FeatureError if it is none.

        Every number must be finite and within the limit of its column. The array itself is
        returned, not a copy, where it is float64 already.
        """
        return self._context.check(x)

    def sound_context(self, x: object) -> bool:
        """Whether x is certainly one row (1, d) that `check_context` would let through as it is."""
        return self._context.sound(x)

    def check_outputs(self, y: object, absent: bool = False) -> Floats:
        """(n, q), as `check_context`. absent: rows that are NaN throughout are let through."""
        return self._outputs.check(y, absent)

    def phi(self, x: Floats, y: Floats, more: int = 0) -> Floats:
        """(n, d), (n, q) -> (n, p - 1): [x, y, products], phi without its intercept; a new array.

        A row of the result depends on its own row alone, to the bit. NaN stays NaN.
        more: columns that are added, for the caller to fill.
        """
        width = self.d + self.q
        phi = np.empty((len(x), self.p - 1 + more))
        phi[:, : self.d], phi[:, self.d : width] = x, y
        if len(self._left):
            left, right = phi.take(self._left, axis=1), phi.take(self._right, axis=1)
            np.multiply(left, right, out=phi[:, width : self.p - 1])
        return phi


@dataclass(frozen=True, slots=True)
class ColumnRange:
    """A part of the traffic: requests with low <= x[column] < high."""

    column: int
    low: float
    high: float

    @classmethod
    def of(cls, name: str, low: float | None, high: float | None, columns: Sequence[str]) -> Self:
        """As declared; a missing end is open. columns: names of the context columns in order."""
        return cls(
            columns.index(name), -np.inf if low is None else low, np.inf if high is None else high
        )

    def holds(self, x: Floats) -> Flags:
        """(n,) whether rows of x (n, d) lie in it."""
        value = x[:, self.column]
        return (value >= self.low) & (value < self.high)
