"""Findings on a terminal of up to 100 columns: the headline, then tables with intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from equipoise.replay.experiments.findings import Curves, Entry, Findings, Measured, Table
from equipoise.replay.experiments.wording import as_tables, best_entries, excludes_zero, in_words
from equipoise.replay.headline import printable

MOST_WIDTH = 100
NAME_WIDTH = 24
"""Names of rows are cut to this where their table would not fit otherwise."""
WORD_WIDTH = 18
"""Longer words and headings are broken over lines."""
GAP = 2


def print_findings(console: Console, findings: Findings) -> None:
    """Print the headline, the other sentences, every table and every heat map.

    Fits in 100 columns, or in fewer: intervals move below their numbers, then columns into
    further tables. Curves are left to the page.
    """
    width = min(console.width, MOST_WIDTH)
    first, *others = findings.sentences or (findings.title,)
    _say(console, width, Text(printable(first), style="bold"))
    for sentence in others:
        _say(console, width, Text(printable(sentence)))
    for table in findings.tables:
        _show(console, width, table, table.title, table.caption)
    for figure in findings.figures:
        if isinstance(figure, Curves):
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
    drawn = [figure.title for figure in findings.figures if isinstance(figure, Curves)]
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
            if sum(widths.values()) + GAP * len(widths) <= room:
                return [_grid(table, columns, cut, widths, stacked, starred)]
    most = max(1, room // (max(widths.values(), default=0) + GAP))
    number = -(-len(columns) // most)
    # As even as can be: seven columns become four and three, not six and one.
    parts = [
        columns[len(columns) * k // number : len(columns) * (k + 1) // number]
        for k in range(number)
    ]
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
    grid.add_column(Text(printable(table.columns[0])), width=name_width + 1)
    for column in columns:
        words = all(isinstance(row[column], str) for row in table.rows)
        grid.add_column(
            Text(printable(table.columns[column])),
            width=widths[column],
            justify="left" if words else "right",
            overflow="fold",
        )
    for at, row in enumerate(table.rows):
        label = in_words(row[0])[0]
        if len(label) > name_width:
            label = label[: name_width - 1] + "…"
        grid.add_row(
            Text(label),
            *(_cell(row[column], (at, column) in best, stacked, starred) for column in columns),
        )
    return grid


def _cell(entry: Entry, best: bool, stacked: bool, starred: bool) -> Text:
    number, interval = _compact(entry, starred)
    if starred:
        number += "*" if isinstance(entry, Measured) and excludes_zero(entry) else " "
    text = Text(number, style="bold green" if best else "")
    if interval:
        text.append(("\n" if stacked else " ") + interval, style="dim not bold")
    return text
