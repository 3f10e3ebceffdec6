"""Findings as Markdown, for the documentation: headings, sentences, tables with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator

from equipoise.replay.experiments.findings import Findings, Heatmaps, Measured, Table
from equipoise.replay.experiments.wording import as_tables, best_entries, excludes_zero, in_words
from equipoise.replay.headline import printable

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
        else:
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
