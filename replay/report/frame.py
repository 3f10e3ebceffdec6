"""What all figures share: layout, axes, error bars, and text and numbers that are safe to embed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from equipoise.replay.averages import Floats, Mean
from equipoise.replay.headline import printable, reward

Figure: TypeAlias = dict[str, Any]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def safe(text: str) -> str:
    """Text for a plotly label: tags and entities show as they are written."""
    return html.escape(printable(text), quote=False)


def interval_text(value: Mapping[str, Any]) -> str:
    """ "0.012 [0.003, 0.020]", or without an interval where there is none."""
    text = reward(value["mean"])
    if value["interval"] is None:
        return text
    low, high = value["interval"]
    return f"{text} [{reward(low)}, {reward(high)}]"


def short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def picked(means: Mean, shown: Any) -> list[dict[str, Any]]:
    mean, low, high = (plain(each[shown]) for each in (means.mean, means.low, means.high))
    return [
        {"mean": m, "interval": None if a is None or b is None else [a, b]}
        for m, a, b in zip(mean, low, high, strict=True)
    ]


def plain(values: Floats) -> list[float | None]:
    """Numbers of 6 digits, as many as a figure can show; None where unknown."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def error_bars(values: Sequence[Mapping[str, Any]], colour: str, opacity: float) -> dict[str, Any]:
    """Intervals around means, as plotly wants them: lengths up and down."""
    plus, minus = [], []
    for value in values:
        low, high = value["interval"] or (value["mean"], value["mean"])
        known = value["mean"] is not None
        plus.append(max(high - value["mean"], 0.0) if known else None)
        minus.append(max(value["mean"] - low, 0.0) if known else None)
    return {
        "type": "data",
        "symmetric": False,
        "array": plus,
        "arrayminus": minus,
        "color": f"@{colour}/{opacity:g}",
        "thickness": 1.5,
        "width": 0,
    }


def rule(along: str, value: float) -> dict[str, Any]:
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


def axis(title: str, **others: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 12}, "standoff": 8},
        "gridcolor": "@grid",
        "linecolor": "@grid",
        "zerolinecolor": "@grid",
        "automargin": True,
        "fixedrange": True,
        **others,
    }


def base_layout(height: int) -> dict[str, Any]:
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
