"""Tables and heat maps of findings as HTML; heat maps are tables too, which need no script.

Everything that comes from findings is escaped by `text`.
"""

from __future__ import annotations

from equipoise.replay.experiments.findings import Entry, Heatmaps, HeatPanel, Measured, Table
from equipoise.replay.experiments.wording import (
    UNKNOWN,
    best_entries,
    exact,
    excludes_zero,
    finite,
    in_words,
)
from equipoise.replay.report.maps import MapCell, map_html
from equipoise.replay.report.tables import UNKNOWN as UNKNOWN_HTML
from equipoise.replay.report.tables import table, text


def table_html(found: Table) -> str:
    """A table with the interval below each number; the best ones are marked."""
    best = best_entries(found)
    words = {
        column
        for column in range(1, len(found.columns))
        if all(isinstance(row[column], str) for row in found.rows)
    }
    lines = []
    for at, (first, *others) in enumerate(found.rows):
        cells = "".join(
            f"<td{_kind(column in words, (at, column) in best)}>{_entry(entry)}</td>"
            for column, entry in enumerate(others, start=1)
        )
        lines.append(f'<tr><th scope="row">{text(in_words(first)[0])}</th>{cells}</tr>')
    return table(found.columns, lines, "found", words)


def _kind(is_word: bool, is_best: bool) -> str:
    kinds = ["word"] * is_word + ["best"] * is_best
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _entry(entry: Entry) -> str:
    number, interval = in_words(entry)
    if number == UNKNOWN and not isinstance(entry, str):
        return UNKNOWN_HTML
    if isinstance(entry, str):
        return text(number)
    shown = f'<span class="number">{number}</span>'
    return f'{shown} <span class="interval">{interval}</span>' if interval else shown


def heat_html(figure: Heatmaps) -> str:
    """All panels on one diverging scale around 0, and the key that says what colours mean."""
    means = [
        abs(mean)
        for panel in figure.panels
        for row in panel.cells
        for cell in row
        if (mean := finite(cell.mean)) is not None
    ]
    most = max(means, default=0.0) or 1.0
    end = in_words(Measured(most))[0]
    key = (
        f'<div class="scale"><span><b>−{end}</b> {text(figure.below)}</span>'
        '<i class="ramp"></i>'
        f"<span><b>+{end}</b> {text(figure.above)}</span></div>"
    )
    kind = "wide" if len(figure.panels) > 1 else ""
    panels = "".join(_map(figure, panel, most) for panel in figure.panels)
    return (
        f'{key}<div class="grid {kind}">{panels}</div>'
        '<p class="note">Each cell: the mean and its 95% interval. Bold with a star: the interval '
        "excludes 0.</p>"
    )


def _map(figure: Heatmaps, panel: HeatPanel, most: float) -> str:
    cells = [
        [_cell(figure, x, y, cell, most) for x, cell in zip(panel.x, row, strict=True)]
        for y, row in zip(panel.y, panel.cells, strict=True)
    ]
    x, y = (list(map(exact, each)) for each in (panel.x, panel.y))
    return map_html(panel.title, figure.x_label, figure.y_label, x, y, cells)


def _cell(figure: Heatmaps, x: float, y: float, cell: Measured, most: float) -> MapCell:
    where = f"{figure.x_label} {exact(x)}, {figure.y_label} {exact(y)}"
    mean = finite(cell.mean)
    if mean is None:
        return MapCell(UNKNOWN, "", f"{where}: unknown", "none")
    number, interval = in_words(cell, signed=True)
    sure = excludes_zero(cell)
    meaning = figure.below if mean < 0 else figure.above
    doubt = "" if sure else "; the interval includes 0"
    return MapCell(
        number + ("*" if sure else ""),
        interval,
        f"{where}: {number} {interval}: {meaning}{doubt}",
        ("below" if mean < 0 else "above") + (" sure" if sure else ""),
        abs(mean) / most,
    )
