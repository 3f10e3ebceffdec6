"""The page of a study: its question, the answer, figures and tables in one HTML file.

Everything that comes from findings is escaped by `text`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Entry,
    Figure,
    Findings,
    Heatmaps,
    HeatPanel,
    Line,
    Measured,
    Table,
)
from equipoise.replay.findings.text import (
    UNKNOWN,
    as_tables,
    best_entries,
    exact,
    excludes_zero,
    finite,
    in_words,
)
from equipoise.replay.report.figures import (
    Across,
    Curve,
    MapCell,
    Upwards,
    curves_figure,
    linear,
    map_html,
)
from equipoise.replay.report.scenario import Panel, Sheet, line_keys
from equipoise.replay.report.style import (
    Style,
    axis,
    embedded,
    estimator_style,
    log_axis,
    part,
    safe,
)
from equipoise.replay.report.tables import UNKNOWN as UNKNOWN_HTML
from equipoise.replay.report.tables import facts, table, text
from equipoise.replay.results.averages import Floats, Mean

MOST_TICKS = 7
EDGE = 0.04
"""Room left and right of the points, as a share of the axis."""


def line_styles(findings: Findings) -> dict[str, Style]:
    """A style for every line of the findings, the same in all their figures."""
    names = list(
        dict.fromkeys(
            line.name
            for figure in findings.figures
            if isinstance(figure, Curves)
            for panel in figure.panels
            for line in panel.lines
        )
    )
    return {name: estimator_style(name, names) for name in names}


def curve_panels(figure: Curves, styles: Mapping[str, Style]) -> list[Panel]:
    """A plotly figure for each panel, all on the same axes."""
    upwards, across = _upwards(figure), _across(figure)
    return [
        Panel(
            panel.title,
            f"{figure.title}: {figure.y_label} against {figure.x_label}, {panel.title}.",
            curves_figure(
                [_curve(panel, line, styles[line.name]) for line in panel.lines],
                upwards,
                band_opacity=0.1,
                across=across,
                marked=True,
                height=320 if len(figure.panels) > 1 else 400,
            ),
        )
        for panel in figure.panels
    ]


def zero_on_the_edge(figure: Curves) -> bool:
    """Whether a mean of 0 has to stand on the lower edge of a logarithmic axis."""
    return figure.log_y and bool((_points(figure, "mean") <= 0).any())


def _curve(panel: CurvePanel, line: Line, style: Style) -> Curve:
    means = Mean(*(_numbers(line.points, end) for end in ("mean", "low", "high")))
    return Curve(style, np.array(panel.x, dtype=float), means)


def _numbers(points: Sequence[object], end: str) -> Floats:
    found = (finite(getattr(point, end)) for point in points)
    return np.array([np.nan if each is None else each for each in found], dtype=float)


def _points(figure: Curves, *ends: str) -> Floats:
    """Every known number of a figure."""
    every = [
        _numbers(line.points, end)
        for panel in figure.panels
        for line in panel.lines
        for end in ends
    ]
    found: Floats = np.concatenate([*every, np.zeros(0)])
    return found[np.isfinite(found)]


def _upwards(figure: Curves) -> Upwards:
    """The scale of all panels: from 0 unless what is shown lies far from it."""
    title, every = safe(figure.y_label), _points(figure, "mean", "low", "high")
    if not len(every):
        return linear(title, 1.0)
    if figure.log_y and (_points(figure, "mean") > 0).any():
        return _logarithmic(title, figure)
    least, most = float(every.min()), float(every.max())
    if least > most / 2 or most < least / 2:
        room = 0.05 * (most - least) or 0.05 * abs(most)
        return linear(title, most + room, least - room)
    least, most = min(least, 0.0), max(most, 0.0)
    room = 0.05 * (most - least) or 1.0
    scale = linear(title, most + room if most else 0.0, least - room if least else 0.0)
    return Upwards({**scale.axis, "zerolinecolor": "@muted"}, scale.position, scale.bottom)


def _logarithmic(title: str, figure: Curves) -> Upwards:
    """What is 0 or less stands on the lower edge, so that a perfect score does not vanish."""
    means, highs = _points(figure, "mean"), _points(figure, "mean", "high")
    least, most = float(means[means > 0].min()) / 1.5, float(highs.max()) * 1.2

    def position(values: Floats) -> Floats:
        return np.where(np.isnan(values), np.nan, np.maximum(values, least))

    return Upwards(log_axis(title, least, most), position, least)


def _across(figure: Curves) -> Across:
    """The horizontal axis of all panels, with ticks where something was run."""
    every = sorted({float(at) for panel in figure.panels for at in panel.x}) or [0.0]
    label = safe(figure.x_label)
    position = _log_position(every) if figure.log_x and every[-1] > 0 else lambda values: values
    stands = position(np.array(every)).tolist()
    room = EDGE * (stands[-1] - stands[0]) or 0.5
    shown = _apart(stands)
    found = {
        **axis(label),
        "range": [stands[0] - room, stands[-1] + room],
        "tickvals": [stands[each] for each in shown],
        "ticktext": [exact(every[each]) for each in shown],
        "zeroline": False,
    }
    return Across(found, position, lambda at: f"{figure.x_label} {exact(at)}")


def _log_position(every: Sequence[float]) -> Callable[[Floats], Floats]:
    """Logarithms; 0, which has none, stands one step before the smallest number."""
    positive = [math.log10(each) for each in every if each > 0]
    step = positive[1] - positive[0] if len(positive) > 1 else 1.0

    def position(values: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(values > 0, np.log10(values), positive[0] - step)

    return position


def _apart(stands: Sequence[float]) -> list[int]:
    """The ticks that are far enough from the one before."""
    gap = (stands[-1] - stands[0]) / MOST_TICKS * 0.8
    shown: list[int] = []
    for place, stand in enumerate(stands):
        if not shown or stand - stands[shown[-1]] >= gap:
            shown.append(place)
    return shown


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


def write_page(path: Path, findings: Findings, meta: Mapping[str, Any]) -> None:
    """Write the page of an experiment to `path`. The same input gives the same bytes.

    meta: what was run, as `describe_run` says it; what is missing is left out, and whatever
    `options` holds besides is shown by its name. The page asks the network for nothing.
    """
    path.write_text(findings_page(findings, meta), encoding="utf-8", newline="\n")


def findings_page(findings: Findings, meta: Mapping[str, Any]) -> str:
    """The page as HTML."""
    sheet, styles = Sheet(), line_styles(findings)
    figures = [_figure(sheet, figure, styles) for figure in findings.figures]
    headline, *others = findings.sentences or (findings.title,)
    return Template(part("findings.html")).substitute(
        embedded(sheet.as_json(), plotting=len(sheet) > 0),
        experiment=text(findings.experiment),
        title=text(findings.title),
        headline=text(headline),
        sentences="".join(f"<p>{text(each)}</p>" for each in others),
        facts=facts(meta),
        findings="\n".join([*figures, *map(_table, findings.tables)]),
        version=text(meta.get("version", "")),
    )


def _figure(sheet: Sheet, figure: Figure, styles: Mapping[str, Style]) -> str:
    caption = f"<p>{text(figure.caption)}</p>" if figure.caption else ""
    drawn = _curves(sheet, figure, styles) if isinstance(figure, Curves) else heat_html(figure)
    return f"<section>\n<h2>{text(figure.title)}</h2>\n{caption}\n{drawn}\n</section>"


def _curves(sheet: Sheet, figure: Curves, styles: Mapping[str, Style]) -> str:
    names = dict.fromkeys(line.name for panel in figure.panels for line in panel.lines)
    panels = curve_panels(figure, styles)
    kind = "wide" if len(panels) == 2 else ""
    edge = " A mean of 0 stands on the lower edge." if zero_on_the_edge(figure) else ""
    numbers = "".join(
        f"<h3>{text(each.title)}</h3>{table_html(each)}" for each in as_tables(figure)
    )
    return (
        f'<div class="keys">{line_keys([styles[name] for name in names], marked=True)}</div>\n'
        f"{sheet.grid(panels, kind)}\n"
        '<p class="note">Bands are 95% intervals over seeds. <span class="screen">Press a name to '
        f"hide its line, twice to see it alone.</span>{edge}</p>\n"
        f"<details><summary>The numbers of this figure</summary>{numbers}</details>"
    )


def _table(found: Table) -> str:
    caption = f'<p class="note">{text(found.caption)}</p>' if found.caption else ""
    return f"<section>\n<h2>{text(found.title)}</h2>\n{table_html(found)}\n{caption}\n</section>"
