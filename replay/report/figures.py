"""Figures as plain plotly dicts: curves with bands, dots with intervals, heat maps.

Text that comes from files is escaped here, since plotly reads a little HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from equipoise.replay.averages import Counts, Floats, Mean
from equipoise.replay.headline import reward
from equipoise.replay.report.frame import (
    axis,
    base_layout,
    error_bar,
    error_bars,
    interval_text,
    picked,
    plain,
    rule,
    safe,
    short,
)
from equipoise.replay.report.palette import Style

Figure: TypeAlias = dict[str, Any]

REQUESTS = "randomized requests"


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity against randomized requests: at (C,), with means and intervals of (C,)."""

    style: Style
    at: Counts
    means: Mean


@dataclass(frozen=True, slots=True)
class Dot:
    """One point with its intervals on both axes; each is {"mean", "interval"}."""

    style: Style
    label: str
    x: Mapping[str, Any]
    y: Mapping[str, Any]


def curves_figure(
    curves: Sequence[Curve],
    y_title: str,
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    level: float | None = None,
) -> Figure:
    """Lines with their bands. level: a horizontal line to compare with."""
    ends = [curve.at[-1] for curve in curves if len(curve.at)]
    firsts = [at for curve in curves for at in curve.at[curve.at > 0][:1]]
    wide = bool(ends and firsts) and max(ends) >= 100 * min(firsts)
    bands, lines = [], []
    for curve in curves:
        shown = np.isfinite(curve.means.mean)
        if wide:
            shown &= curve.at > 0
        if logarithmic:
            shown &= curve.means.mean > 0
        band = _band(curve, shown & np.isfinite(curve.means.low), logarithmic)
        bands += [band] if band else []
        lines.append(_line(curve, shown))
    layout = base_layout(260)
    layout["hovermode"] = "x unified"
    layout["xaxis"] = axis(REQUESTS, type="log" if wide else "linear")
    layout["yaxis"] = axis(y_title, type="log" if logarithmic else "linear")
    if wide or logarithmic:
        # One tick per decade and one between; plotly's default crowds small figures.
        for name, on in (("xaxis", wide), ("yaxis", logarithmic)):
            if on:
                layout[name]["dtick"] = "D2"
    else:
        layout["xaxis"]["rangemode"] = "tozero"
    if y_range is not None:
        layout["yaxis"]["range"] = [
            float(np.log10(end)) if logarithmic else float(end) for end in y_range
        ]
    if level is not None:
        layout["shapes"] = [rule("y", level)]
    return {"data": bands + lines, "layout": layout}


def _line(curve: Curve, shown: Any) -> dict[str, Any]:
    at, means = curve.at[shown].tolist(), picked(curve.means, shown)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(at) < 2 else "lines",
        "name": safe(curve.style.name),
        "x": at,
        "y": [value["mean"] for value in means],
        "customdata": [interval_text(value) for value in means],
        "hovertemplate": "%{customdata}",
        "line": {
            "color": f"@{curve.style.colour}",
            "dash": curve.style.dash,
            "width": 3 if curve.style.name == "hierarchical" else 2,
        },
    }


def _band(curve: Curve, shown: Any, logarithmic: bool) -> dict[str, Any] | None:
    if np.count_nonzero(shown) < 2:
        return None
    at = curve.at[shown].tolist()
    low, high = curve.means.low[shown], curve.means.high[shown]
    if logarithmic:
        low = np.maximum(low, 1e-12)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(curve.style.name),
        "x": at + at[::-1],
        "y": plain(high) + plain(low)[::-1],
        "fill": "toself",
        "fillcolor": f"@{curve.style.colour}/0.14",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def dots_figure(dots: Sequence[Dot], x_title: str, y_title: str) -> Figure:
    """Points with intervals on both axes."""
    data = []
    for dot in dots:
        if dot.x["mean"] is None or dot.y["mean"] is None:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": safe(dot.label),
                "x": [dot.x["mean"]],
                "y": [dot.y["mean"]],
                "error_x": error_bar(dot.x, dot.style.colour),
                "error_y": error_bar(dot.y, dot.style.colour),
                "customdata": [
                    f"<b>{safe(dot.label)}</b><br>{safe(x_title)} {interval_text(dot.x)}"
                    f"<br>{safe(y_title)} {interval_text(dot.y)}"
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {
                    "color": f"@{dot.style.colour}",
                    "symbol": dot.style.symbol,
                    "size": 11,
                    "line": {"color": "@paper", "width": 1},
                },
            }
        )
    layout = base_layout(340)
    layout["xaxis"] = axis(x_title)
    layout["yaxis"] = axis(y_title, rangemode="tozero")
    return {"data": data, "layout": layout}


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
    layout["xaxis"] = axis("value of a model (mean reward if everyone were given it)")
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
        "error_x": error_bars(values, style.colour),
        "customdata": [
            f"<b>{safe(model)}</b><br>{safe(style.name)} {interval_text(value)}"
            for model, value in zip(models, values, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": f"@{style.colour}",
            "size": 9 if style.name == "naive-log" else 8,
            "symbol": "x" if style.name == "naive-log" else style.symbol,
        },
    }


def heat_figure(
    alphas: Sequence[float],
    confoundings: Sequence[float],
    z: Floats,
    texts: list[list[str]],
    most: float,
) -> Figure:
    """Regret z (A, W), from 0 to `most`, over alignment (up) and confounding (right).

    texts: (A, W) what a cell says when it is pointed at.
    """
    layout = base_layout(64 + 40 * len(alphas))
    layout["xaxis"] = {**axis("confounding ω"), "type": "category", "showgrid": False}
    layout["yaxis"] = {**axis("alignment α"), "type": "category", "showgrid": False}
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [f"{each:g}" for each in confoundings],
                "y": [f"{each:g}" for each in alphas],
                "z": [plain(row) for row in z],
                "text": [
                    ["" if value is None else reward(value) for value in plain(row)] for row in z
                ],
                "texttemplate": "%{text}",
                "customdata": texts,
                "hovertemplate": "%{customdata}<extra></extra>",
                "colorscale": [[0, "@heat-0"], [0.5, "@heat-1"], [1, "@heat-2"]],
                "zmin": 0,
                "zmax": most or 1.0,
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": layout,
    }
