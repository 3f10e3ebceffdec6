"""What counts as a number in a row: finite, of bounded size, and not a boolean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from equipoise.store.batches import Floats

LARGEST = 1e50
"""Largest magnitude of a transformed feature. The moments keep sums of squares of products of two
features; one finite but absurd value must not turn such a sum into infinity for good."""
FINITE = "a finite number"
_SAFE_SQUARES = LARGEST**2


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
    values: list[Any] | tuple[Any, ...], columns: list[float], length: int, expected: str
) -> None:
    """Append `length` numbers as they are. Raises Refused unless all are within ±LARGEST."""
    if len(values) != length:
        raise Refused(expected)
    if set(map(type, values)) == {float} and sound(np.array(values, dtype=np.float64)):
        columns.extend(values)
        return
    for at, value in enumerate(values):
        try:
            number = as_number(value)
        except Refused:
            raise Refused(FINITE, at) from None
        if not abs(number) <= LARGEST:
            raise Refused(FINITE if not math.isfinite(number) else f"at most {LARGEST:g}", at)
        columns.append(number)


def plain(value: object) -> object:
    """An array as nested lists of Python objects; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def sound(array: Floats) -> bool:
    """Whether every entry is within ±LARGEST; False may also mean that a closer look is due.

    One sum of squares instead of three passes: where it is at most LARGEST² no term is larger,
    and NaN and infinities make the comparison false.
    """
    return bool(np.vdot(array, array) <= _SAFE_SQUARES)
