"""Counts in sentences."""

from __future__ import annotations


def plural(number: float, noun: str) -> str:
    """So many of a thing whose plural ends in s.

    >>> plural(1, "row"), plural(0, "row"), plural(1200.0, "log row")
    ('1 row', '0 rows', '1,200 log rows')
    """
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def verb(number: float, one: str, many: str) -> str:
    """The form of a verb for so many.

    >>> verb(1, "is", "are"), verb(2, "is", "are")
    ('is', 'are')
    """
    return one if number == 1 else many
