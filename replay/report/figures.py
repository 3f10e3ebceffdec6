"""Figures as plain plotly dicts: dots with intervals (curves: curves.py, heat maps: maps.py).

Text that comes from files is escaped here, since plotly reads a little HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.replay.averages import Floats, Mean
from equipoise.replay.headline import reward
from equipoise.replay.report.frame import (
    Figure,
    axis,
    base_layout,
    error_bars,
    interval_text,
    picked,
    rule,
    safe,
    short,
)
from equipoise.replay.report.palette import Style
from equipoise.replay.report.scales import root_axis, root_position


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
