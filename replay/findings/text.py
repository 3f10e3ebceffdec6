"""Findings as text: on a terminal, and as Markdown for the documentation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from equipoise.replay.findings.findings import (
    Curves,
    Entry,
    Estimates,
    Figure,
    Findings,
    Heatmaps,
    Measured,
    Percentage,
    Scatter,
    Table,
    Verdict,
)
from equipoise.replay.results.summary import FAMILIES, minus, percent, printable

UNKNOWN = "–"


def in_words(entry: Entry, signed: bool = False) -> tuple[str, str]:
    """An entry and its interval as text; the interval is empty where there is none.

    signed: measured numbers above zero get a plus.

    >>> in_words(Measured(0.0123, 0.0, 0.0211)), in_words(Measured(-0.0004, -0.001, 0.0002))
    (('0.012', '[0.000, 0.021]'), ('−0.0004', '[−0.0010, 0.0002]'))
    >>> in_words(3000), in_words(0.25), in_words(None), in_words("ipw")
    (('3,000', ''), ('0.25', ''), ('–', ''), ('ipw', ''))
    >>> in_words(Percentage(2 / 3, 0.21, 0.94)), in_words(Measured(0.067, 0.067, 0.067))
    (('67%', '[21%, 94%]'), ('0.067', ''))
    """
    if entry is None:
        return UNKNOWN, ""
    if isinstance(entry, str):
        return printable(entry), ""
    if isinstance(entry, Verdict):
        return "".join(verdict_words(entry)), ""
    if not isinstance(entry, Measured):
        return exact(entry), ""
    mean, low, high = (finite(each) for each in (entry.mean, entry.low, entry.high))
    if mean is None:
        return UNKNOWN, ""
    if low is not None and low == high:
        low = None  # runs that all agree do not say how far others may be
    if isinstance(entry, Percentage):
        ends = "" if low is None or high is None else f"[{percent(low)}, {percent(high)}]"
        return percent(mean), ends
    digits = _digits(max(abs(each) for each in (mean, low, high) if each is not None))
    number = _fixed(mean, digits)
    if signed and mean > 0 and number != _fixed(0.0, digits):
        number = f"+{number}"
    if low is None or high is None:
        return number, ""
    return number, f"[{_fixed(low, digits)}, {_fixed(high, digits)}]"


def verdict_words(verdict: Verdict) -> tuple[str, str, str]:
    """The grade, how it comes about, and what is recommended, to be read without colours.

    >>> "".join(verdict_words(Verdict("wrong", "small", Measured(0.14), "1/5")))
    'WRONG 1/5 0.140 small'
    """
    if verdict.grade == "silent":
        return "no answer", "", ""
    grade = "WRONG" if verdict.grade == "wrong" else verdict.grade
    often = f"{verdict.often} " if verdict.often else ""
    regret = in_words(verdict.regret)[0]
    return f"{grade:<5} ", f"{often}{regret} ", printable(verdict.recommended)


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
    if isinstance(figure, Estimates):
        columns = ("model", "true value", *(line.name for line in figure.lines))
        rows = zip(
            figure.models, figure.truth, *(line.points for line in figure.lines), strict=True
        )
        return (Table(figure.name, figure.title, "", columns, tuple(rows)),)
    if isinstance(figure, Scatter):
        columns = ("policy × estimator", figure.x_label, figure.y_label)
        places = tuple((f"{dot.policy} × {dot.name}", dot.x, dot.y) for dot in figure.dots)
        return (Table(figure.name, figure.title, "", columns, places),)
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


SPECIAL = re.compile(r"([\\`*_<>|~]|^#|^[-+](?= )|\](?=[(\[:]))")
"""What Markdown would read; brackets, as of intervals, only where they could be a link's."""


def as_markdown(findings: Findings, level: int = 2, figures: bool = True) -> str:
    """Findings as Markdown that begins with a heading of `level` and ends with a line break.

    figures: whether the numbers that figures draw follow the tables. The best entries of a table
    are bold where its caption says what is better; a star marks a cell of a heat map whose
    interval excludes 0.
    """
    return "\n\n".join(_blocks(findings, level, figures)) + "\n"


def _blocks(findings: Findings, level: int, figures: bool) -> Iterator[str]:
    yield f"{'#' * level} {escaped(findings.title)}"
    first, *others = findings.sentences or ("",)
    if first:
        yield f"**{escaped(first)}**"
    yield from map(escaped, others)
    for table in findings.tables:
        yield f"{'#' * (level + 1)} {escaped(table.title)}"
        yield from _captioned(table.caption)
        yield _table(table)
    for figure in findings.figures if figures else ():
        yield f"{'#' * (level + 1)} {escaped(figure.title)}"
        yield from _captioned(figure.caption)
        if isinstance(figure, Heatmaps):
            yield (
                f"Below 0: {escaped(figure.below)}. Above 0: {escaped(figure.above)}. "
                "\\*: the interval excludes 0."
            )
        elif isinstance(figure, Curves):
            yield f"Each cell: {escaped(figure.y_label)}."
        for panel in as_tables(figure):
            if panel.title:
                yield f"{escaped(panel.title)}:"
            yield _table(panel, starred=isinstance(figure, Heatmaps))


def escaped(text: str) -> str:
    """Text whose characters mean nothing to Markdown, on one line."""
    return SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def _captioned(caption: str) -> Iterator[str]:
    if caption:
        yield escaped(caption)


def _table(table: Table, starred: bool = False) -> str:
    best = best_entries(table)
    rules = (
        "---" if all(isinstance(row[column], str) for row in table.rows) else "---:"
        for column in range(1, len(table.columns))
    )
    lines = [tuple(map(escaped, table.columns)), ("---", *rules)]
    for row, entries in enumerate(table.rows):
        cells = []
        for column, entry in enumerate(entries):
            number, interval = in_words(entry, signed=starred)
            number = escaped(number)
            if (row, column) in best:
                number = f"**{number}**"
            if starred and isinstance(entry, Measured) and excludes_zero(entry):
                number += "\\*"
            cells.append(f"{number} {interval}".rstrip())
        lines.append(tuple(cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MOST_WIDTH = 100
NAME_WIDTH = 24
"""Names of rows break after this where their table would not fit otherwise."""
MODEL_WIDTH = 6
"""Models that are recommended break after this before a table is printed in parts."""
WORD_WIDTH = 18
"""Longer words and headings are broken over lines."""
GAP = 2


def print_findings(console: Console, findings: Findings) -> None:
    """Print the headline, the other sentences, every table and every heat map.

    Fits in 100 columns, or in fewer: intervals move below their numbers, models that are
    recommended break, then columns move into further tables. Other figures are left to the page.
    """
    width = min(console.width, MOST_WIDTH)
    first, *others = findings.sentences or (findings.title,)
    _say(console, width, Text(printable(first), style="bold"))
    for sentence in others:
        _say(console, width, Text(printable(sentence)))
    for table in findings.tables:
        _show(console, width, table, table.title, table.caption)
    for figure in findings.figures:
        if not isinstance(figure, Heatmaps):
            continue
        meaning = (
            f"{figure.caption} Below 0: {figure.below}; above 0: {figure.above}; "
            "*: the interval excludes 0."
        )
        _say(console, width, Text(printable(figure.title), style="bold"), after=0)
        _say(console, width, Text(printable(meaning), style="dim"))
        across = f"{figure.x_label} →, {figure.y_label} ↓"
        for panel in as_tables(figure):
            plain = replace(panel, columns=("", *panel.columns[1:]))
            _show(console, width, plain, panel.title, across, starred=True)
    drawn = [figure.title for figure in findings.figures if not isinstance(figure, Heatmaps)]
    if drawn:
        _say(console, width, Text(printable(f"Drawn in report.html: {'; '.join(drawn)}.")))


def _say(console: Console, width: int, text: Text, after: int = 1) -> None:
    console.print(Padding(text, (0, 1, after, 1)), width=width)


def _show(
    console: Console, width: int, table: Table, title: str, caption: str, starred: bool = False
) -> None:
    _say(console, width, Text(printable(title), style="bold"), after=0)
    if caption:
        _say(console, width, Text(printable(caption), style="dim"), after=0)
    for grid in _grids(table, width, starred):
        console.print(grid)
        console.print()


def _grids(table: Table, width: int, starred: bool) -> list[Grid]:
    """The table with intervals beside numbers, else below them, else in parts as well."""
    columns = list(range(1, len(table.columns)))
    name = max(len(in_words(row[0])[0]) for row in table.rows) if table.rows else 0
    name = max(name, min(len(table.columns[0]), WORD_WIDTH))
    for stacked in (False, True):
        widths = {column: _width(table, column, stacked, starred) for column in columns}
        for cut in (name, min(name, NAME_WIDTH)):
            room = width - cut - 1
            if sum(widths.values()) + GAP * len(widths) < room:
                return [_grid(table, columns, cut, widths, stacked, starred)]
    verdicts = [
        verdict_words(entry) for row in table.rows for entry in row if isinstance(entry, Verdict)
    ]
    least = max(widths.values(), default=0)
    if verdicts:
        least = max(len(grade + how) for grade, how, _ in verdicts) + MODEL_WIDTH
    most = max(1, room // (least + GAP))
    number = -(-len(columns) // most)
    # As even as can be: seven columns become four and three, not six and one.
    parts = [
        columns[len(columns) * k // number : len(columns) * (k + 1) // number]
        for k in range(number)
    ]
    if verdicts:
        widths = dict.fromkeys(columns, (room - 1) // max(map(len, parts)) - GAP)
    return [_grid(table, part, cut, widths, stacked, starred) for part in parts]


def _compact(entry: Entry, signed: bool) -> tuple[str, str]:
    """An entry and its interval, without the zeros before points inside the interval."""
    number, interval = in_words(entry, signed)
    return number, re.sub(r"(?<!\d)0\.", ".", interval)


def _width(table: Table, column: int, stacked: bool, starred: bool) -> int:
    """Columns that its longest entry needs; words and headings break."""
    need = min(max(map(len, table.columns[column].split()), default=0), WORD_WIDTH)
    for row in table.rows:
        number, interval = _compact(row[column], starred)
        if isinstance(row[column], str):
            number = number[:WORD_WIDTH]
        lengths = [len(number) + starred, len(interval)]
        need = max(need, max(lengths) if stacked or not interval else sum(lengths) + 1)
    return need


def _grid(
    table: Table,
    columns: Sequence[int],
    name_width: int,
    widths: dict[int, int],
    stacked: bool,
    starred: bool,
) -> Grid:
    best = best_entries(table)
    grid = Grid(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=True, collapse_padding=True, header_style="bold"
    )
    grid.add_column(Text(printable(table.columns[0])), width=name_width + 1, overflow="fold")
    for column in columns:
        words = all(isinstance(row[column], str | Verdict) for row in table.rows)
        grid.add_column(
            Text(printable(table.columns[column])),
            width=widths[column],
            justify="left" if words else "right",
            overflow="fold",
        )
    for at, row in enumerate(table.rows):
        grid.add_row(
            Text(in_words(row[0])[0]),
            *(_cell(row[column], (at, column) in best, stacked, starred) for column in columns),
        )
    return grid


GRADES = {"right": "green", "near": "yellow", "wrong": "bold red", "silent": "yellow"}


def _cell(entry: Entry, best: bool, stacked: bool, starred: bool) -> Text:
    if isinstance(entry, Verdict):
        grade, *others = verdict_words(entry)
        words = Text(grade, style=GRADES[entry.grade])
        return words.append("".join(others), style="none")
    number, interval = _compact(entry, starred)
    if starred:
        number += "*" if isinstance(entry, Measured) and excludes_zero(entry) else " "
    text = Text(number, style="bold green" if best else "")
    if interval:
        text.append(("\n" if stacked else " ") + interval, style="dim not bold")
    return text
