"""What counts as a number in a row: finite, of bounded size, and not a boolean."""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Floats

LARGEST = 1e50
"""Largest magnitude of a transformed feature. The moments keep sums of squares of products of two
features; one finite but absurd value must not turn such a sum into infinity for good."""
FINITE = "a finite number"
_SAFE_SQUARES = LARGEST**2


class Refused(Exception):  # noqa: N818 - stays inside the package, where it becomes a FeatureError
    """A value that a feature does not accept; `expected` says what it does accept."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


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


def append_number(value: object, columns: list[float]) -> None:
    """Append an already transformed number. Raises Refused unless it is within ±LARGEST."""
    number = as_number(value)
    if not -LARGEST <= number <= LARGEST:
        raise Refused(FINITE)
    columns.append(number)


def append_list(values: list[object] | tuple[object, ...], columns: list[float]) -> bool:
    """Append numbers that are already transformed; False, with `columns` spoilt, if one is not."""
    if not set(map(type, values)) - {float} and sound(np.array(values, dtype=np.float64)):
        columns.extend(values)  # type: ignore[arg-type]
        return True
    try:
        for value in values:
            append_number(value, columns)
    except Refused:
        return False
    return True


def plain(value: object) -> object:
    """An array as nested lists of Python objects; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def sound(array: Floats) -> bool:
    """Whether every entry is within ±LARGEST; False may also mean that a closer look is due.

    One sum of squares instead of three passes: where it is at most LARGEST² no term is larger,
    and NaN and infinities make the comparison false.
    """
    return bool(np.vdot(array, array) <= _SAFE_SQUARES)
