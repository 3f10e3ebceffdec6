"""What counts as a number in a row: finite, of bounded size, and not a boolean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from equipoise.store.batches import Floats

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
    if set(map(type, values)) == {float} and sound(
        np.array(values, dtype=np.float64), min(limits, default=0.0)
    ):
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
