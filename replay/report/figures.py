"""Figures as plain plotly dicts: curves with bands, dots with intervals, heat maps as tables.

Text that comes from files is escaped here, since plotly reads a little HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.replay.report.style import (
    Figure,
    Style,
    axis,
    base_layout,
    error_bars,
    interval_text,
    log_axis,
    picked,
    plain,
    root_axis,
    root_position,
    rule,
    safe,
    short,
)
from equipoise.replay.report.tables import text
from equipoise.replay.results.averages import Counts, Floats, Mean
from equipoise.replay.results.headline import reward

REQUESTS = "randomized requests (√ scale)"


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity at (C,), with means and intervals of (C,); what is unknown leaves a gap."""

    style: Style
    at: Counts | Floats
    means: Mean


@dataclass(frozen=True, slots=True)
class Upwards:
    """The vertical axis of curves: its dict, where a number stands on it, its lower end."""

    axis: Mapping[str, Any]
    position: Callable[[Floats], Floats]
    bottom: float = 0.0


@dataclass(frozen=True, slots=True)
class Across:
    """The horizontal axis of curves: its dict, where a number stands on it, how it is said."""

    axis: Mapping[str, Any]
    position: Callable[[Floats], Floats]
    say: Callable[[float], str]


def linear(title: str, most: float, least: float = 0.0) -> Upwards:
    """From `least` to `most`."""
    return Upwards({**axis(title), "range": [least, most]}, lambda values: values, least)


def rooted(title: str, most: float) -> Upwards:
    """From 0 to `most` on a square-root scale."""
    return Upwards(root_axis(title, most), root_position)


def logarithmic(title: str, least: float, most: float) -> Upwards:
    """From `least` to `most`, both > 0; what is not positive is left out."""

    def position(values: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.where(values > 0, np.maximum(values, least / 100), np.nan)

    return Upwards(log_axis(title, least, most), position, least)


def requests(most: float) -> Across:
    """Randomized requests from 0 to `most` on a square-root scale."""
    return Across(
        root_axis(REQUESTS, max(most, 1.0)),
        root_position,
        lambda at: f"{at:,.0f} randomized requests",
    )


def curves_figure(
    curves: Sequence[Curve],
    upwards: Upwards,
    band_opacity: float = 0.14,
    level: float | None = None,
    across: Across | None = None,
    marked: bool = False,
    height: int = 300,
) -> Figure:
    """Lines over their bands. level: a horizontal line to compare with. marked: points show."""
    if across is None:
        across = requests(max([float(curve.at[-1]) for curve in curves if len(curve.at)] + [1.0]))
    bands, lines = [], []
    for curve in curves:
        band = _band(curve, upwards, across, band_opacity)
        bands += [band] if band else []
        lines.append(_line(curve, upwards, across, marked))
    layout = base_layout(height)
    layout["hovermode"] = "x unified"
    # The first line of the box that opens says the number; the axis only knows its position.
    layout["xaxis"] = {**across.axis, "unifiedhovertitle": {"text": " "}}
    layout["yaxis"] = dict(upwards.axis)
    if level is not None:
        layout["shapes"] = [rule("y", level)]
    return {"data": [*bands, *_counter(curves, upwards, across), *lines], "layout": layout}


def _line(curve: Curve, upwards: Upwards, across: Across, marked: bool) -> dict[str, Any]:
    at, means = across.position(curve.at.astype(float)), upwards.position(curve.means.mean)
    known = np.isfinite(means) & np.isfinite(at)
    # From the first to the last known number; an unknown one between them is a gap.
    ends = np.flatnonzero(known)
    shown = slice(ends[0], ends[-1] + 1) if len(ends) else slice(0, 0)
    lonely = bool((known & ~_beside(known)).any())
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if marked or lonely else "lines",
        "name": safe(curve.style.name),
        "x": plain(at[shown]),
        "y": plain(means[shown]),
        "customdata": [interval_text(value) for value in picked(curve.means, shown)],
        "hovertemplate": "%{customdata}",
        "line": {
            "color": f"@{curve.style.colour}",
            "dash": curve.style.dash,
            "width": 3 if curve.style.name == "hierarchical" else 2,
        },
    }
    if "markers" in trace["mode"]:
        trace["marker"] = {
            "color": f"@{curve.style.colour}",
            "symbol": curve.style.symbol,
            "size": 8,
        }
    if lonely:
        # A point without a neighbour has no band; its interval becomes a bar.
        trace["error_y"] = _bars(curve, upwards, known & ~_beside(known), shown)
    return trace


def _beside(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(C,) where the number before or after is known."""
    padded = np.concatenate([[False], known, [False]])
    beside: NDArray[np.bool_] = padded[:-2] | padded[2:]
    return beside


def _bars(
    curve: Curve, upwards: Upwards, lonely: NDArray[np.bool_], shown: slice
) -> dict[str, Any]:
    ends = (upwards.position(each) for each in (curve.means.low, curve.means.high))
    low, high = (np.where(lonely, each, np.nan) for each in ends)
    means = Mean(upwards.position(curve.means.mean), low, high)
    return error_bars(picked(means, shown), curve.style.colour, 0.6)


def _band(curve: Curve, upwards: Upwards, across: Across, opacity: float) -> dict[str, Any] | None:
    at = across.position(curve.at.astype(float))
    low, high = upwards.position(curve.means.low), upwards.position(curve.means.high)
    # On a logarithmic axis an interval that reaches zero leaves the figure at the bottom.
    low = np.where(np.isfinite(curve.means.low) & ~np.isfinite(low), upwards.bottom / 100, low)
    shown = np.isfinite(low) & np.isfinite(high) & np.isfinite(at)
    x: list[float | None] = []
    y: list[float | None] = []
    for stretch in _stretches(shown):
        # A gap in the outline keeps the stretches apart.
        x += ([None] if x else []) + plain(at[stretch]) + plain(at[stretch])[::-1]
        y += ([None] if y else []) + plain(high[stretch]) + plain(low[stretch])[::-1]
    if not x:
        return None
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(curve.style.name),
        "x": x,
        "y": y,
        "fill": "toself",
        "fillcolor": f"@{curve.style.colour}/{opacity:g}",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _stretches(shown: NDArray[np.bool_]) -> list[slice]:
    """Runs of two or more neighbours that are shown."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shown.astype(int), [0]])))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [slice(first, end) for first, end in pairs if end - first > 1]


def _counter(curves: Sequence[Curve], upwards: Upwards, across: Across) -> list[dict[str, Any]]:
    """An invisible line whose text is where on the horizontal axis one points."""
    if not curves:
        return []
    longest = max(curves, key=lambda curve: len(curve.at))
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "",
            "x": plain(across.position(longest.at.astype(float))),
            "y": [upwards.bottom] * len(longest.at),
            "customdata": [f"<b>{safe(across.say(at))}</b>" for at in longest.at.tolist()],
            "hovertemplate": "%{customdata}<extra></extra>",
            "line": {"width": 0, "color": "@paper/0"},
        }
    ]


@dataclass(frozen=True, slots=True)
class Dot:
    """One point with its intervals on both axes; each is {"mean", "interval"}."""

    style: Style
    label: str
    x: Mapping[str, Any]
    y: Mapping[str, Any]


def dots_figure(dots: Sequence[Dot], x_title: str, y_title: str) -> Figure:
    """Points with intervals on both axes; upwards on a square-root scale."""
    shown = [dot for dot in dots if dot.x["mean"] is not None and dot.y["mean"] is not None]
    highs = [dot.y["interval"][1] if dot.y["interval"] else dot.y["mean"] for dot in shown]
    data = []
    for dot in shown:
        y = _rooted(dot.y)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": safe(dot.label),
                "x": [dot.x["mean"]],
                "y": [y["mean"]],
                "error_x": error_bars([dot.x], dot.style.colour, 0.35),
                "error_y": error_bars([y], dot.style.colour, 0.35),
                "customdata": [
                    f"<b>{safe(dot.label)}</b><br>{safe(x_title)} {interval_text(dot.x)}"
                    f"<br>{safe(y_title)} {interval_text(dot.y)}"
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {
                    "color": f"@{dot.style.colour}",
                    "symbol": dot.style.symbol,
                    "size": 10,
                    "line": {"color": "@paper", "width": 1},
                },
            }
        )
    layout = base_layout(360)
    layout["xaxis"] = axis(x_title)
    layout["yaxis"] = root_axis(y_title, max([*highs, 0.0]) * 1.05 or 1.0)
    return {"data": data, "layout": layout}


def _rooted(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mean and its interval on a square-root scale."""
    mean, interval = value["mean"], value["interval"]
    ends = None if interval is None else root_position(np.array(interval)).tolist()
    return {"mean": float(root_position(np.array(mean))), "interval": ends}


def values_figure(
    models: Sequence[str],
    truth: Sequence[float],
    routing: float | None,
    estimates: Sequence[tuple[Style, Mean]],
) -> Figure:
    """True values as bars, and beside them what each estimator says. estimates: means of (K,)."""
    rows = np.arange(len(models))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "true value",
            "x": [x for value in truth for x in (value, value, None)],
            "y": [y for row in rows for y in (row - 0.42, row + 0.42, None)],
            "customdata": [
                f"<b>{safe(model)}</b><br>true value {reward(value)}"
                for model, value in zip(models, truth, strict=True)
                for _ in range(3)
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "line": {"color": "@ink", "width": 3},
        }
    ]
    offsets = np.linspace(-0.34, 0.34, len(estimates)) if len(estimates) > 1 else [0.0]
    for offset, (style, means) in zip(offsets, estimates, strict=False):
        data.append(_estimates(models, rows + offset, style, means))
    layout = base_layout(70 + max(34, 11 * (len(estimates) + 1)) * len(models))
    layout["xaxis"] = axis("value (mean reward if given to everyone)")
    layout["yaxis"] = {
        **axis(""),
        "tickvals": rows.tolist(),
        "ticktext": [safe(short(model)) for model in models],
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
    if routing is not None:
        layout["shapes"].append(rule("x", routing))
        layout["annotations"] = [
            {
                "x": routing,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "text": f"today's routing {reward(routing)}",
                "showarrow": False,
                "font": {"color": "@muted", "size": 11},
            }
        ]
        layout["margin"]["t"] = 26
    return {"data": data, "layout": layout}


def _estimates(models: Sequence[str], at: Floats, style: Style, means: Mean) -> dict[str, Any]:
    values = picked(means, slice(None))
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(style.name),
        "x": [value["mean"] for value in values],
        "y": [float(row) for row in at],
        "error_x": error_bars(values, style.colour, 0.7),
        "customdata": [
            f"<b>{safe(model)}</b><br>{safe(style.name)} {interval_text(value)}"
            for model, value in zip(models, values, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": f"@{style.colour}",
            "size": 9,
            "symbol": style.symbol,
        },
    }


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell: its number and interval, what it says when pointed at, and its colour.

    kinds: classes; "above" and "below" choose the colour, "none" is for what is unknown.
    share: how strong the colour is, between 0 and 1.
    """

    number: str
    interval: str
    said: str
    kinds: str
    share: float = 0.0


def map_html(
    heading: str,
    x_label: str,
    y_label: str,
    x: Sequence[str],
    y: Sequence[str],
    cells: Sequence[Sequence[MapCell]],
) -> str:
    """A heat map of cells (Y, X), y upwards. Everything is escaped here."""
    lines = []
    for at in reversed(range(len(y))):
        side = f'<th class="side" rowspan="{len(y)}"><span>{text(y_label)}</span></th>'
        lines.append(
            f'<tr>{side if at == len(y) - 1 else ""}<th scope="row">{text(y[at])}</th>'
            f"{''.join(map(_cell, cells[at]))}</tr>"
        )
    ticks = "".join(f'<th scope="col">{text(each)}</th>' for each in x)
    lines.append(f'<tr><td colspan="2"></td>{ticks}</tr>')
    lines.append(
        f'<tr><td colspan="2"></td><th class="along" colspan="{len(x)}">{text(x_label)}</th></tr>'
    )
    return (
        f'<figure><figcaption>{text(heading)}</figcaption><div class="scroll" tabindex="0">'
        f'<table class="map"><tbody>{"".join(lines)}</tbody></table></div></figure>'
    )


def _cell(cell: MapCell) -> str:
    below = f'<span class="interval">{text(cell.interval)}</span>' if cell.interval else ""
    return (
        f'<td class="{cell.kinds}" style="--share:{100 * cell.share:.0f}%" '
        f'title="{text(cell.said)}"><span class="number">{text(cell.number)}</span>{below}</td>'
    )
