"""Entries of findings as text: numbers with their intervals, which are best, figures as tables."""

from __future__ import annotations

import math
import re

from equipoise.replay.experiments.findings import Curves, Entry, Figure, Measured, Table
from equipoise.replay.headline import minus, printable
from equipoise.replay.summary import FAMILIES

UNKNOWN = "–"


def in_words(entry: Entry, signed: bool = False) -> tuple[str, str]:
    """An entry and its interval as text; the interval is empty where there is none.

    signed: measured numbers above zero get a plus.

    >>> in_words(Measured(0.0123, 0.0, 0.0211)), in_words(Measured(-0.0004, -0.001, 0.0002))
    (('0.012', '[0.000, 0.021]'), ('−0.0004', '[−0.0010, 0.0002]'))
    >>> in_words(3000), in_words(0.25), in_words(None), in_words("ipw")
    (('3,000', ''), ('0.25', ''), ('–', ''), ('ipw', ''))
    """
    if entry is None:
        return UNKNOWN, ""
    if isinstance(entry, str):
        return printable(entry), ""
    if not isinstance(entry, Measured):
        return exact(entry), ""
    mean, low, high = (finite(each) for each in (entry.mean, entry.low, entry.high))
    if mean is None:
        return UNKNOWN, ""
    digits = _digits(max(abs(each) for each in (mean, low, high) if each is not None))
    number = _fixed(mean, digits)
    if signed and mean > 0 and number != _fixed(0.0, digits):
        number = f"+{number}"
    if low is None or high is None:
        return number, ""
    return number, f"[{_fixed(low, digits)}, {_fixed(high, digits)}]"


def exact(number: float) -> str:
    """A number that was set, not measured.

    >>> exact(0.75), exact(12_000), exact(-1.0), exact(float("nan"))
    ('0.75', '12,000', '−1', '–')
    """
    if not math.isfinite(number):
        return UNKNOWN
    return minus(f"{number:,.0f}" if float(number).is_integer() else f"{number:,.4g}")


def finite(number: float | None) -> float | None:
    """None where unknown, however it is said."""
    return None if number is None or not math.isfinite(number) else float(number)


def excludes_zero(value: Measured) -> bool:
    """Whether the whole interval lies on one side of 0."""
    low, high = finite(value.low), finite(value.high)
    return low is not None and high is not None and (low > 0 or high < 0)


def best_entries(table: Table) -> frozenset[tuple[int, int]]:
    """(row, column) of the best measured entries, where the caption says what is better.

    Entries are compared down their column, or along their row where the columns are families.
    """
    lower = re.search(r"\b(lower|smaller|less) is better\b", table.caption, re.IGNORECASE)
    higher = re.search(r"\b(higher|larger|more) is better\b", table.caption, re.IGNORECASE)
    if bool(lower) == bool(higher):
        return frozenset()
    rows, columns = range(len(table.rows)), range(1, len(table.columns))
    if sum(name in FAMILIES for name in table.columns) > 1:
        lines = [[(row, column) for column in columns] for row in rows]
    elif len({row[0] for row in table.rows}) == len(table.rows):
        lines = [[(row, column) for row in rows] for column in columns]
    else:
        # A name that comes back belongs to another setting: nothing to compare with.
        lines = []
    best: set[tuple[int, int]] = set()
    for line in lines:
        means = {
            place: mean
            for place in line
            if isinstance(entry := table.rows[place[0]][place[1]], Measured)
            and (mean := finite(entry.mean)) is not None
        }
        if len(means) > 1:
            winner = min(means.values()) if lower else max(means.values())
            best.update(place for place, mean in means.items() if abs(mean - winner) < 1e-12)
    return frozenset(best)


def as_tables(figure: Figure) -> tuple[Table, ...]:
    """The numbers of a figure: a table per panel, heat maps with their largest y on top."""
    if isinstance(figure, Curves):
        return tuple(
            Table(
                name=figure.name,
                title=panel.title,
                caption="",
                columns=(figure.x_label, *(line.name for line in panel.lines)),
                rows=tuple(
                    (at, *(line.points[place] for line in panel.lines))
                    for place, at in enumerate(panel.x)
                ),
            )
            for panel in figure.panels
        )
    return tuple(
        Table(
            name=figure.name,
            title=panel.title,
            caption="",
            columns=(f"{figure.y_label} ↓  {figure.x_label} →", *map(exact, panel.x)),
            rows=tuple(
                (exact(at), *cells)
                for at, cells in reversed(list(zip(panel.y, panel.cells, strict=True)))
            ),
        )
        for panel in figure.panels
    )


def _digits(size: float) -> int:
    """Decimals that show a number of this size and its interval."""
    if 0 < size < 0.01:
        return 4
    return 3 if size < 10 else 1 if size < 1000 else 0


def _fixed(number: float, digits: int) -> str:
    text = f"{number:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else minus(text)
