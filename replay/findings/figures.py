"""Figures as plain plotly dicts: styles, axes, curves with bands, dots with intervals.

A colour in a figure is "@name" or "@name/opacity"; page.js looks it up in page.css when it draws,
for the light and the dark scheme and for print. Text is escaped here, since plotly reads a little
HTML in its labels.

A square-root scale opens up what is close to zero and, unlike a logarithmic one, shows zero.
Plotly has none, so positions are transformed here and ticks are labelled with the numbers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from equipoise.replay.findings.findings import (
    Curves,
    Dot,
    Estimates,
    Line,
    Measured,
    Progress,
    Scatter,
)
from equipoise.replay.findings.text import exact, finite, in_words
from equipoise.replay.results.averages import Floats
from equipoise.replay.results.summary import printable, reward

Plotly: TypeAlias = dict[str, Any]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "hexagon")
OTHERS = 4
"""Colours for lines that are not a family."""
FAMILY_MARKS = {
    "naive-log": ("dot", "x"),
    "ipw": ("solid", "square"),
    "obs-only": ("dash", "diamond"),
    "representation-exp": ("solid", "triangle-up"),
    "cvci": ("longdash", "triangle-down"),
    "grounded": ("dashdot", "hexagon"),
    "doubly-robust": ("solid", "star"),
    "hierarchical": ("solid", "circle"),
}
"""Dash and symbol of a family; its colour has its name."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a line is drawn, the same in all figures of a page."""

    name: str
    colour: str
    dash: str
    symbol: str


def line_style(name: str, others: Sequence[str]) -> Style:
    """Style of a line; `others` are all names on the page that are no family, in order."""
    if name in FAMILY_MARKS:
        return Style(name, name, *FAMILY_MARKS[name])
    index = others.index(name)
    # One dash further than the mark: no family looks like that without its colour.
    dash, symbol = DASHES[(index + 1) % len(DASHES)], SYMBOLS[index % len(SYMBOLS)]
    return Style(name, f"other-{index % OTHERS}", dash, symbol)


Styles: TypeAlias = Mapping[str, Style]
Positions: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: its dict, where a number stands on it, and the number at its lower end."""

    axis: Plotly
    position: Positions
    bottom: float = 0.0


def curve_figures(figure: Curves, styles: Styles) -> list[Plotly]:
    """Lines over their bands, a plotly figure for each panel, all on the same axes."""
    across, upwards = _across(figure), _upwards(figure)
    height = 320 if len(figure.panels) > 1 else 400
    figures = []
    for panel in figure.panels:
        at = across.position(np.array(panel.x, dtype=float))
        # Markers say where points are; along a run there are too many.
        marked = not isinstance(figure, Progress)
        bands, lines = [], []
        for line in panel.lines:
            bands += _band(line, styles[line.name], at, upwards)
            lines.append(_line(line, styles[line.name], at, upwards, marked))
        layout = base_layout(height)
        layout["hovermode"] = "x unified"
        # The first line of the box that opens says the number; the axis only knows its position.
        layout["xaxis"] = {**across.axis, "unifiedhovertitle": {"text": " "}}
        layout["yaxis"] = dict(upwards.axis)
        if isinstance(figure, Progress) and figure.level is not None:
            layout["shapes"] = [rule("y", figure.level)]
        # An invisible line whose text is where on the horizontal axis one points.
        counter = {
            "type": "scatter",
            "mode": "lines",
            "name": "",
            "x": plain(at),
            "y": [upwards.bottom] * len(panel.x),
            "customdata": [f"<b>{safe(f'{figure.x_label} {exact(x)}')}</b>" for x in panel.x],
            "hovertemplate": "%{customdata}<extra></extra>",
            "line": {"width": 0, "color": "@paper/0"},
        }
        figures.append({"data": [*bands, counter, *lines], "layout": layout})
    return figures


def zero_on_the_edge(figure: Curves) -> bool:
    """Whether a mean of 0 has to stand on the lower edge of a logarithmic axis."""
    return figure.log_y and bool((_points(figure, "mean") <= 0).any())


def numbers(points: Sequence[Measured], end: str) -> Floats:
    """(n,) means, lows or highs; NaN where unknown."""
    values = (finite(getattr(point, end)) for point in points)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _points(figure: Curves, *ends: str) -> Floats:
    """Every known number of a figure."""
    lines = [line for panel in figure.panels for line in panel.lines]
    values = [numbers(line.points, end) for line in lines for end in ends]
    every: Floats = np.concatenate([*values, np.zeros(0)])
    return every[np.isfinite(every)]


def _line(line: Line, style: Style, at: Floats, upwards: Scale, marked: bool) -> Plotly:
    means = upwards.position(numbers(line.points, "mean"))
    drawn = np.isfinite(means) & np.isfinite(at)
    # From the first to the last known number; an unknown one between them is a gap.
    ends = np.flatnonzero(drawn)
    span = slice(ends[0], ends[-1] + 1) if len(ends) else slice(0, 0)
    padded = np.concatenate([[False], drawn, [False]])
    lonely = drawn & ~(padded[:-2] | padded[2:])
    trace: Plotly = {
        "type": "scatter",
        "mode": "lines+markers" if marked or lonely.any() else "lines",
        "name": safe(style.name),
        "x": plain(at[span]),
        "y": plain(means[span]),
        "customdata": [_spoken(point) for point in line.points[span]],
        "hovertemplate": "%{customdata}",
        "line": {
            "color": f"@{style.colour}",
            "dash": style.dash,
            "width": 3 if style.name == "hierarchical" else 2,
        },
    }
    if "markers" in trace["mode"]:
        trace["marker"] = {"color": f"@{style.colour}", "symbol": style.symbol, "size": 8}
    if lonely.any():
        # A point without a neighbour has no band; its interval becomes a bar.
        bars = [
            np.where(lonely, upwards.position(numbers(line.points, end)), np.nan)[span]
            for end in ("low", "high")
        ]
        trace["error_y"] = error_bars([means[span], *bars], style.colour, 0.6)
    return trace


def _band(line: Line, style: Style, at: Floats, upwards: Scale) -> list[Plotly]:
    low, high = (upwards.position(numbers(line.points, end)) for end in ("low", "high"))
    complete = np.isfinite(low) & np.isfinite(high) & np.isfinite(at)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], complete.astype(int), [0]])))
    x: list[float | None] = []
    y: list[float | None] = []
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - first > 1:
            # A gap in the outline keeps the stretches apart.
            x += [None] * bool(x) + plain(at[first:end]) + plain(at[first:end])[::-1]
            y += [None] * bool(y) + plain(high[first:end]) + plain(low[first:end])[::-1]
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": safe(style.name),
        "x": x,
        "y": y,
        "fill": "toself",
        "fillcolor": f"@{style.colour}/0.12",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [band] if x else []


def scatter_figure(figure: Scatter, styles: Styles) -> Plotly:
    """Points with intervals on both axes: the colour is the estimator, the mark the policy."""
    marks = policy_symbols(figure)
    dots = [dot for dot in figure.dots if None not in (dot.x.mean, dot.y.mean)]
    data = [_dot(figure, dot, styles[dot.name].colour, marks[dot.policy]) for dot in dots]
    highs = [dot.y.mean if dot.y.high is None else dot.y.high for dot in dots]
    layout = base_layout(360)
    layout["xaxis"] = axis(safe(figure.x_label))
    most = max([each for each in highs if each is not None], default=0.0)
    layout["yaxis"] = root_axis(safe(figure.y_label), most * 1.05 or 1.0)
    return {"data": data, "layout": layout}


def policy_symbols(figure: Scatter) -> dict[str, str]:
    """The mark of every policy."""
    policies = dict.fromkeys(dot.policy for dot in figure.dots)
    return {name: SYMBOLS[index % len(SYMBOLS)] for index, name in enumerate(policies)}


def _dot(figure: Scatter, dot: Dot, colour: str, symbol: str) -> Plotly:
    label = safe(f"{dot.policy} × {dot.name}")
    x, y = ([numbers([point], end) for end in ("mean", "low", "high")] for point in (dot.x, dot.y))
    y = [root_position(each) for each in y]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": plain(x[0]),
        "y": plain(y[0]),
        "error_x": error_bars(x, colour, 0.35),
        "error_y": error_bars(y, colour, 0.35),
        "customdata": [
            f"<b>{label}</b><br>{safe(figure.x_label)} {_spoken(dot.x)}"
            f"<br>{safe(figure.y_label)} {_spoken(dot.y)}"
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": f"@{colour}",
            "symbol": symbol,
            "size": 10,
            "line": {"color": "@paper", "width": 1},
        },
    }


def estimates_figure(figure: Estimates, styles: Styles) -> Plotly:
    """True values as bars, and beside them what each estimator says."""
    models, rows = figure.models, np.arange(len(figure.models), dtype=float)
    data: list[Plotly] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "true value",
            "x": [x for value in figure.truth for x in (value, value, None)],
            "y": [y for row in rows.tolist() for y in (row - 0.42, row + 0.42, None)],
            "customdata": [
                f"<b>{safe(model)}</b><br>true value {reward(value)}"
                for model, value in zip(models, figure.truth, strict=True)
                for _ in range(3)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "line": {"color": "@ink", "width": 3},
        }
    ]
    count = len(figure.lines)
    offsets = np.linspace(-0.34, 0.34, count) if count > 1 else np.zeros(1)
    for offset, line in zip(offsets, figure.lines, strict=False):
        style = styles[line.name]
        ends = [numbers(line.points, end) for end in ("mean", "low", "high")]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": safe(style.name),
                "x": plain(ends[0]),
                "y": plain(rows + offset),
                "error_x": error_bars(ends, style.colour, 0.7),
                "customdata": [
                    f"<b>{safe(model)}</b><br>{safe(style.name)} {_spoken(point)}"
                    for model, point in zip(models, line.points, strict=True)
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {"color": f"@{style.colour}", "size": 9, "symbol": style.symbol},
            }
        )
    layout = base_layout(70 + max(34, 11 * (count + 1)) * len(models))
    layout["xaxis"] = axis("mean reward if given to everyone")
    layout["yaxis"] = {
        **axis(""),
        "tickvals": rows.tolist(),
        "ticktext": [safe(name if len(name) <= 24 else name[:23] + "…") for name in models],
        "range": [len(models) - 0.5, -0.5],
        "showgrid": False,
        "ticks": "",
    }
    layout["shapes"] = [
        {
            "type": "rect",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "layer": "below",
            "y0": row - 0.5,
            "y1": row + 0.5,
            "fillcolor": "@stripe",
            "line": {"width": 0},
        }
        for row in range(0, len(models), 2)
    ]
    if figure.routing is not None:
        layout["shapes"].append(rule("x", figure.routing))
        layout["annotations"] = [
            {
                "x": figure.routing,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "text": f"today's routing {reward(figure.routing)}",
                "showarrow": False,
                "font": {"color": "@muted", "size": 11},
            }
        ]
        layout["margin"]["t"] = 26
    return {"data": data, "layout": layout}


EDGE = 0.04
"""Room left and right of the points, as a share of the axis."""
MOST_TICKS = 7


def _across(figure: Curves) -> Scale:
    """The horizontal axis of all panels, with ticks where something was run."""
    label = safe(figure.x_label)
    every = sorted({float(at) for panel in figure.panels for at in panel.x}) or [0.0]
    if isinstance(figure, Progress):
        return Scale(root_axis(f"{label} (√ scale)", max(every[-1], 1.0)), root_position)
    position = _log_position(every) if figure.log_x and every[-1] > 0 else lambda values: values
    stands = position(np.array(every)).tolist()
    room = EDGE * (stands[-1] - stands[0]) or 0.5
    gap = (stands[-1] - stands[0]) / MOST_TICKS * 0.8
    ticks: list[int] = []
    for place, stand in enumerate(stands):
        if not ticks or stand - stands[ticks[-1]] >= gap:
            ticks.append(place)
    layout = {
        **axis(label),
        "range": [stands[0] - room, stands[-1] + room],
        "tickvals": [stands[each] for each in ticks],
        "ticktext": [exact(every[each]) for each in ticks],
        "zeroline": False,
    }
    return Scale(layout, position)


def _log_position(every: Sequence[float]) -> Positions:
    """Logarithms; 0, which has none, stands one step before the smallest number."""
    positive = [math.log10(each) for each in every if each > 0]
    step = positive[1] - positive[0] if len(positive) > 1 else 1.0

    def position(values: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(values > 0, np.log10(values), positive[0] - step)

    return position


def _upwards(figure: Curves) -> Scale:
    """The vertical axis of all panels: from 0 unless what is drawn lies far from it."""
    title, every = safe(figure.y_label), _points(figure, "mean", "low", "high")
    if isinstance(figure, Progress):
        if figure.root_y:
            return Scale(root_axis(title, 1.05 * every.max(initial=0.0) or 1.0), root_position)
        if figure.level is not None:
            every = np.append(every, figure.level)
    if not len(every):
        return _linear(title, 0.0, 1.0)
    means = _points(figure, "mean")
    if figure.log_y and (means > 0).any():
        # What is 0 or less stands on the lower edge, so that a perfect score does not vanish.
        edge = float(means[means > 0].min()) / 1.5

        def position(values: Floats) -> Floats:
            return np.where(np.isnan(values), np.nan, np.maximum(values, edge))

        return Scale(log_axis(title, edge, float(every.max()) * 1.2), position, edge)
    least, most = float(every.min()), float(every.max())
    if least > most / 2 or most < least / 2:
        room = 0.05 * (most - least) or 0.05 * abs(most)
        return _linear(title, least - room, most + room)
    least, most = min(least, 0.0), max(most, 0.0)
    room = 0.05 * (most - least) or 1.0
    scale = _linear(title, least - room if least else 0.0, most + room if most else 0.0)
    return Scale({**scale.axis, "zerolinecolor": "@muted"}, scale.position, scale.bottom)


def _linear(title: str, least: float, most: float) -> Scale:
    return Scale({**axis(title), "range": [least, most]}, lambda values: values, least)


APART = 0.17
"""Least distance between two ticks, as a share of the axis."""


def root_position(values: Floats) -> Floats:
    """Where values >= 0 stand on a square-root axis; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        position: Floats = np.sqrt(np.maximum(values, 0.0))
    return position


def root_axis(title: str, most: float) -> Plotly:
    """A square-root axis from 0 to `most`."""
    ticks = root_ticks(most)
    return {
        **axis(title),
        "range": [0, math.sqrt(most) * 1.02],
        "tickvals": [math.sqrt(tick) for tick in ticks],
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


def root_ticks(most: float) -> list[float]:
    """Round numbers from 0 up to `most`, far enough apart after taking roots.

    >>> root_ticks(1000), root_ticks(0.15)
    ([0.0, 50.0, 200.0, 500.0, 1000.0], [0.0, 0.005, 0.02, 0.05, 0.1])
    """
    ticks: list[float] = []
    for tick in [*reversed(round_numbers(most * 1e-4, most)), 0.0]:
        gaps = [math.sqrt(ticks[-1]) - math.sqrt(tick)] if ticks else []
        if tick > 0 and (math.sqrt(tick) < APART * math.sqrt(most)):
            continue
        if all(gap >= APART * math.sqrt(most) for gap in gaps):
            ticks.append(tick)
    return ticks[::-1]


def log_axis(title: str, least: float, most: float) -> Plotly:
    """A logarithmic axis from `least` to `most`, both > 0."""
    ticks = round_numbers(least, most)
    if len(ticks) > 7:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1.0")]
    return {
        **axis(title),
        "type": "log",
        "range": [math.log10(least), math.log10(most)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


def round_numbers(least: float, most: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within [least, most].

    >>> round_numbers(0.03, 1)
    [0.05, 0.1, 0.2, 0.5, 1.0]
    """
    if not 0 < least <= most:
        return []
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    candidates = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [each for each in candidates if least * (1 - 1e-9) <= each <= most * (1 + 1e-9)]


FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def axis(title: str) -> Plotly:
    """What every axis has."""
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 8},
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zerolinecolor": "@grid",
        "automargin": True,
        "fixedrange": True,
    }


def base_layout(height: int) -> Plotly:
    """What every figure has. height: in pixels."""
    return {
        "height": height,
        "autosize": True,
        "showlegend": False,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "paper_bgcolor": "@paper",
        "plot_bgcolor": "@paper",
        "font": {"family": FONT, "size": 12, "color": "@ink"},
        "hoverlabel": {
            "bgcolor": "@card",
            "bordercolor": "@grid",
            "font": {"color": "@ink", "family": FONT},
        },
        "hovermode": "closest",
    }


def rule(along: str, value: float) -> Plotly:
    """A dashed line across the figure at a value of one axis."""
    other = "x" if along == "y" else "y"
    return {
        "type": "line",
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        f"{along}0": value,
        f"{along}1": value,
        "layer": "below",
        "line": {"color": "@muted", "width": 1.5, "dash": "dash"},
    }


def error_bars(points: Sequence[Floats], colour: str, opacity: float) -> Plotly:
    """Intervals around means, as plotly wants them: lengths up and down, none where unknown.

    points: (n,) means, lows and highs.
    """
    means, low, high = points
    return {
        "type": "data",
        "symmetric": False,
        "array": plain(_length(high - means, means)),
        "arrayminus": plain(_length(means - low, means)),
        "color": f"@{colour}/{opacity:g}",
        "thickness": 1.5,
        "width": 0,
    }


def _length(lengths: Floats, means: Floats) -> Floats:
    bars = np.where(np.isnan(lengths), 0.0, np.maximum(lengths, 0.0))
    return np.where(np.isnan(means), np.nan, bars)


def plain(values: Floats) -> list[float | None]:
    """Numbers of 6 digits, as many as a figure can show; None where unknown."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _spoken(point: Measured) -> str:
    return " ".join(in_words(point)).rstrip()


def safe(text: str) -> str:
    """Text for a plotly label: tags and entities show as they are written."""
    return html.escape(printable(text), quote=False)
