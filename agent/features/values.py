"""Values of features: what they may be, and how a refusal names them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.store.batches import Floats

LONGEST_SHOWN = 60
"""Characters of a value that a message repeats, so that no message carries a whole prompt."""
LONGEST_WORD = 16
"""Characters of a text that came with a row and is repeated; a longer one may be what a user wrote,
and so may one with a space."""
MOST_SHOWN = 5
"""Problems of one row that its error lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    key: where, such as `policy.rate` or the name of a feature. received: the value as text, cut
    to LONGEST_SHOWN characters. also: other keys the verdict rests on; where one of those is
    itself wrong, the verdict means nothing and is withheld.
    """

    key: str
    received: str
    expected: str
    fix: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"received {self.received}, expected {self.expected}"
        if self.key:
            text = f"{self.key}: {text}"
        return f"{text}; {self.fix}" if self.fix else text


class FeatureError(ValueError):
    """A row that the feature schema refuses.

    side: "context" or "outputs". row: position of the row in what was given, None where the rows
    as a whole are wrong. problems: the first five; total: how many there are.
    """

    def __init__(
        self, side: str, row: int | None, problems: Sequence[Problem], total: int | None = None
    ) -> None:
        super().__init__(side, row, problems, total)
        self.side = side
        self.row = row
        self.problems = tuple(problems[:MOST_SHOWN])
        self.total = len(problems) if total is None else total

    def __str__(self) -> str:
        where = self.side if self.row is None else f"{self.side} row {self.row}"
        more = self.total - len(self.problems)
        listed = "; ".join(str(problem) for problem in self.problems)
        return f"{where}: {listed}" + (f"; and {more} more" if more > 0 else "")


class SchemaError(ValueError):
    """A feature schema that cannot be used. problems: every one of them, as sentences."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        """A line for each."""
        return "\n".join(f"feature schema: {problem}" for problem in self.problems)


def shown(value: object) -> str:
    """A value as a message repeats it: short, and for any object whatever."""
    if value is None:
        return "nothing"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST_SHOWN else repr(value[:LONGEST_SHOWN]) + "…"
    if isinstance(value, int | np.integer):
        whole = int(value)
        return str(whole) if whole.bit_length() <= 128 else f"a number of {whole.bit_length()} bits"
    if isinstance(value, float | np.floating):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"a table of {len(value)}"
    return f"an object of type {type(value).__name__}"


def shown_sent(value: object, kind: str = "text") -> str:
    """As `shown`, for what came with a row: a text is repeated only where it is one short word."""
    if not isinstance(value, str):
        return shown(value)
    plain = len(value) <= LONGEST_WORD and not any(map(str.isspace, value.strip() or " "))
    return repr(value) if plain or not value else f"a {kind} of {len(value)} characters"


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names as a message lists them, cut after `most`."""
    words = list(names)
    text = ", ".join(words[:most]) or "none"
    return text if len(words) <= most else f"{text}, and {len(words) - most} more"


def suggestion(name: object, names: Iterable[str]) -> str:
    """The fix for an unknown name: the nearest known one, or the list of all."""
    from difflib import get_close_matches

    choices = list(names)
    # Matching is quadratic in length, and the name is whatever a caller sent.
    if isinstance(name, str) and len(name) <= LONGEST_SHOWN:
        near = get_close_matches(name, choices, n=1)
        if near:
            return f"did you mean {near[0]!r}?"
    return f"known are: {listed(choices)}"


LARGEST = 1e50
"""Largest number that a declaration may name. The moments keep sums of squares of products of two
features, which stay finite up to here; what a row may hold is bounded by LIMIT."""
LIMIT = 1e9
"""Largest magnitude of a feature, in units of its scale, that is taken where nothing else is
declared. Sums of squares hold 16 digits: next to one value of 1e9 those of ordinary values are
still there to eight digits or so, next to an epoch in nanoseconds (1.7e18) nothing is left."""
FINITE = "a finite number"


class Refused(Exception):  # noqa: N818 - stays inside the package, where it becomes a FeatureError
    """A value that a feature does not accept; `expected` says what it does accept.

    at: position of the entry that is refused, where the value is a list; None for the value itself.
    """

    def __init__(self, expected: str, at: int | None = None) -> None:
        super().__init__(expected, at)
        self.expected = expected
        self.at = at


def as_number(value: object, expected: str = FINITE) -> float:
    """The value as a float, infinities and NaN included. Raises Refused on anything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise Refused(expected)
    try:
        return float(value)
    except OverflowError:
        raise Refused(expected) from None


def append_list(
    values: list[Any] | tuple[Any, ...],
    columns: list[float],
    expected: str,
    limits: Sequence[float],
    winsorize: bool = False,
) -> None:
    """Append numbers as they are, one for each limit. Raises Refused unless all are finite and
    within ±limit; winsorize: move finite ones that are beyond it to it instead."""
    if len(values) != len(limits):
        raise Refused(expected)
    # The root of the sum of squares is no less than any of them, and NaN makes it false.
    if set(map(type, values)) == {float} and math.hypot(*values) < min(limits):
        columns.extend(values)
        return
    for at, (value, limit) in enumerate(zip(values, limits, strict=True)):
        try:
            number = as_number(value)
        except Refused:
            raise Refused(FINITE, at) from None
        if not abs(number) <= limit:
            if not (winsorize and math.isfinite(number)):
                raise Refused(within(limit) if math.isfinite(number) else FINITE, at)
            number = math.copysign(limit, number)
        columns.append(number)


def within(limit: float, expected: str = "a number", after: str = "") -> str:
    """What a message says is expected of a number beyond its limit."""
    fix = "declare `scale` or `limit` where such values are real"
    return f"{expected} within ±{limit:g}{after}; {fix}"


def plain(value: object) -> object:
    """An array as nested lists of Python objects; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def sound(array: Floats, limit: float) -> bool:
    """Whether every entry is within ±limit; False may also mean that a closer look is due.

    One sum of squares instead of three passes: where it is at most limit² no term is larger, and
    NaN and infinities make the comparison false.
    """
    return bool(np.vdot(array, array) <= limit * limit)
