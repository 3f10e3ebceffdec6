"""The kinds of features: what each declares, and the columns it becomes.

A change of any definition must raise `schema.TRANSFORM`, which is part of the hash of every schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.features.declarations import bound, finite, twice, unknown
from equipoise.agent.features.text import LONGEST_RUN, MOST_PROJECTED, STATISTICS, projected
from equipoise.agent.features.values import (
    LARGEST,
    LIMIT,
    Problem,
    Refused,
    append_list,
    as_number,
    listed,
    plain,
    shown,
    within,
)

Encoder: TypeAlias = Callable[[object, list[float]], None]
"""Appends the columns of one value to a list. Raises Refused, and nothing else."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
LONGEST_NAME, LONGEST_VALUE = 100, 100
MOST_CHARACTERS, LONGEST = 1_000_000, 1024

FeatureName: TypeAlias = Annotated[
    str,
    bound(
        f"a letter, then letters, digits, '_', '.' or '-', at most {LONGEST_NAME} in all",
        pattern=rf"^{NAME.pattern}$(?!\n)",
        max_length=LONGEST_NAME,
    ),
]
Within: TypeAlias = Annotated[float, bound(ge=-LARGEST, le=LARGEST)]
End: TypeAlias = Annotated[float, finite("leave it out for no limit")]
Limit: TypeAlias = Annotated[float, bound(fix=f"leave it out for {LIMIT:g}", gt=0.0, le=LARGEST)]
Value: TypeAlias = Annotated[
    str,
    bound(
        f"texts of 1 to {LONGEST_VALUE} printable characters",
        printable=True,
        min_length=1,
        max_length=LONGEST_VALUE,
    ),
]


class Feature(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of the kinds of features.

    name: what rows call it, and the beginning of the names of its columns.
    missing: the number that each column of the feature takes, after the transform, where its
    value is absent or null. Without it a row that lacks the feature is refused.
    """

    name: FeatureName
    missing: Within | None = None

    def columns(self) -> list[str]:
        """Names of the columns it becomes."""
        raise NotImplementedError

    def limits(self) -> list[float]:
        """Largest magnitude of each column."""
        return [max(LIMIT, abs(self.missing or 0.0))] * len(self.columns())

    def encoder(self) -> Encoder:
        """The compiled transform of one value."""
        raise NotImplementedError

    def as_it_is(self) -> tuple[float, float]:
        """From where to where a float is its only column as it is; an empty range where none is."""
        return math.inf, -math.inf


class Boolean(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="boolean"):
    """true becomes 1, false 0. The numbers 0 and 1 are refused: they are no booleans."""

    def columns(self) -> list[str]:
        return [self.name]

    def encoder(self) -> Encoder:
        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, bool | np.bool_):
                raise Refused("true or false")
            columns.append(1.0 if value else 0.0)

        return encode


OTHER = "other"
MOST_VALUES = 256


class Category(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="category"):
    """A value becomes indicators of all declared values but the first, the reference.

    values: texts, in the order of the columns. other: whether an undeclared text counts as the
    last value, "other"; where it does not, such a text is refused.

    >>> plan = Category(name="plan", values=["free", "pro", "team"])
    >>> plan.columns()
    ['plan=pro', 'plan=team']
    """

    values: list[Value]
    other: bool = False

    def faults(self) -> Iterator[Problem]:
        count = len(self.values) + self.other
        if not 2 <= count <= MOST_VALUES:
            limit = f"2 to {MOST_VALUES} values, {OTHER!r} included"
            yield Problem("values", shown(self.values), limit, also=("other",))
        yield from twice("values", self.values, "remove one", "each value once")
        if self.other and OTHER in self.values:
            limit = f"no declared value {OTHER!r}, since other is on"
            yield Problem("values", shown(OTHER), limit, "rename the value or leave out other")

    def columns(self) -> list[str]:
        values = [*self.values, OTHER] if self.other else self.values
        return [f"{self.name}={value}" for value in values[1:]]

    def encoder(self) -> Encoder:
        width = len(self.values) - 1 + self.other
        rows = {
            value: [1.0 if column == position else 0.0 for column in range(1, width + 1)]
            for position, value in enumerate(self.values)
        }
        if self.other:
            other = [0.0] * (width - 1) + [1.0]
            expected = "text"
        else:
            expected = f"one of {listed(map(repr, self.values))}"

        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, str):
                raise Refused(expected)
            row = rows.get(value)
            if row is None:
                if not self.other:
                    raise Refused(expected)
                row = other
            columns.extend(row)

        return encode


class Number(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="number"):
    """A number v becomes (v - offset) / scale, or (log(1 + v) - offset) / scale where `log`.

    low, high: bounds of v, both included; a value outside is refused. With `log`, low is 0 unless
    declared, and must be above -1. offset: what is subtracted. scale: what it is divided by. log:
    whether it enters as log(1 + v), as amounts should that differ by factors. limit: largest
    magnitude of what v becomes; 1e9 unless declared, or what low and high allow if that is more.
    winsorize: whether a finite value beyond bounds or limit counts as the nearest value that is
    allowed, instead of being refused.

    offset and scale are declared, never learned: a transform that followed the data would make old
    sums meaningless.

    >>> columns = []
    >>> Number(name="length", low=0, offset=100, scale=50).encoder()(150, columns)
    >>> columns
    [1.0]
    """

    low: End | None = None
    high: End | None = None
    offset: Within = 0.0
    scale: Annotated[float, bound(gt=0.0, le=LARGEST)] = 1.0
    log: bool = False
    limit: Limit | None = None
    winsorize: bool = False

    def faults(self) -> Iterator[Problem]:
        low, high = self._bounds()
        if self.log and low <= -1:
            fix = "raise it, or leave out log"
            yield Problem("low", shown(self.low), "a number above -1, since log is on", fix)
        if low >= high:
            limit = f"a number above low, which is {shown(low)}"
            yield Problem("high", shown(self.high), limit, also=("low", "log"))

    def columns(self) -> list[str]:
        return [self.name]

    def limits(self) -> list[float]:
        return [max(self._limit(), abs(self.missing or 0.0))]

    def encoder(self) -> Encoder:
        (low, high), offset, scale = self._bounds(), self.offset, self.scale
        log1p = math.log1p if self.log else None
        expected, limit, winsorize = _expected(low, high), self._limit(), self.winsorize
        beyond = within(limit, expected, "" if self._plain else " after offset and scale")

        def encode(value: object, columns: list[float]) -> None:
            number = value if type(value) is float else as_number(value, expected)
            # False for NaN too.
            if not low <= number <= high:
                if not (winsorize and math.isfinite(number)):
                    raise Refused(expected)
                number = min(max(number, low), high)
            column = ((log1p(number) if log1p else number) - offset) / scale
            if not -limit <= column <= limit:
                if not (winsorize and math.isfinite(number)):
                    raise Refused(beyond)
                column = math.copysign(limit, column)
            columns.append(column)

        return encode

    def as_it_is(self) -> tuple[float, float]:
        (low, high), limit = self._bounds(), self._limit()
        return (max(low, -limit), min(high, limit)) if self._plain else (math.inf, -math.inf)

    @property
    def _plain(self) -> bool:
        return not self.offset and self.scale == 1 and not self.log

    def _limit(self) -> float:
        """Largest magnitude of a transformed value: as declared, else LIMIT, or what the declared
        bounds allow."""
        if self.limit is not None:
            return self.limit
        ends = [end for end in self._bounds() if math.isfinite(end)]
        become = [
            ((math.log1p(end) if self.log else end) - self.offset) / self.scale for end in ends
        ]
        return min(max([LIMIT, *map(abs, become)]), LARGEST)

    def _bounds(self) -> tuple[float, float]:
        lowest = 0.0 if self.log else -math.inf
        return (
            lowest if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )


def _expected(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a finite number of at least {shown(low)}"
    if math.isinf(low):
        return f"a finite number of at most {shown(high)}"
    return f"a number from {shown(low)} to {shown(high)}"


class Text(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="text"):
    """A text becomes one column from 0 to 1 per declared statistic; the text itself is dropped.

    statistics: names of `STATISTICS`. max_chars: only so many characters are
    looked at; the length statistics reach 1 there.
    """

    statistics: list[str]
    max_chars: Annotated[int, bound(ge=1, le=MOST_CHARACTERS)] = 20_000

    def faults(self) -> Iterator[Problem]:
        if not self.statistics:
            fix = f"known are: {', '.join(STATISTICS)}"
            yield Problem("statistics", "none", "at least one", fix)
        for name in dict.fromkeys(self.statistics):
            yield from unknown("statistics", name, STATISTICS, limit="names of statistics")
        yield from twice("statistics", self.statistics, "remove one")

    def columns(self) -> list[str]:
        return [f"{self.name}.{statistic}" for statistic in self.statistics]

    def encoder(self) -> Encoder:
        chosen = [STATISTICS[name] for name in self.statistics]
        max_chars = self.max_chars

        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, str):
                raise Refused("text")
            head = value[:max_chars]
            for statistic in chosen:
                columns.append(statistic(head, max_chars))  # noqa: PERF401 - a closure in a hot path

        return encode


class Ngrams(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ngrams"):
    """A text becomes counts of its words or shapes under a fixed random projection.

    of: `words`, what a text is about, or `shapes`, how it is written: marks and line breaks as
    they are, of a word its kind and rough length. size: how many columns. longest: of a run of
    words or shapes. max_chars: only so many characters are looked at.

    The text itself is dropped, and nothing reads it back from a few dozen sums of thousands of
    counts; but who has a text can check whether it is that one.
    """

    of: Literal["words", "shapes"] = "shapes"
    size: Annotated[int, bound(ge=1, le=MOST_PROJECTED)] = 16
    longest: Annotated[int, bound(ge=1, le=LONGEST_RUN)] = 1
    max_chars: Annotated[int, bound(ge=1, le=MOST_CHARACTERS)] = 20_000

    def columns(self) -> list[str]:
        return [f"{self.name}.{self.of}[{position}]" for position in range(self.size)]

    def encoder(self) -> Encoder:
        of, size, longest, max_chars = self.of, self.size, self.longest, self.max_chars

        def encode(value: object, columns: list[float]) -> None:
            if not isinstance(value, str):
                raise Refused("text")
            columns.extend(projected(value[:max_chars], of, longest, size).tolist())

        return encode


class Vector(Feature, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vector"):
    """A list of numbers, such as an embedding, becomes a column for each.

    length: how many finite numbers the value has; each becomes a column as it is.

    limit: largest magnitude of one, 1e9 unless declared. winsorize: whether a number beyond it
    counts as the limit instead of being refused.
    """

    length: Annotated[int, bound(ge=1, le=LONGEST)]
    limit: Limit | None = None
    winsorize: bool = False

    def columns(self) -> list[str]:
        return [f"{self.name}[{position}]" for position in range(self.length)]

    def limits(self) -> list[float]:
        return [max(self._limit(), abs(self.missing or 0.0))] * self.length

    def encoder(self) -> Encoder:
        length, limits, winsorize = self.length, [self._limit()] * self.length, self.winsorize
        expected = f"a list of {length} finite numbers"

        def encode(value: object, columns: list[float]) -> None:
            numbers = plain(value)
            if not isinstance(numbers, list | tuple):
                raise Refused(expected)
            append_list(numbers, columns, expected, limits, winsorize)

        return encode

    def _limit(self) -> float:
        return LIMIT if self.limit is None else self.limit
