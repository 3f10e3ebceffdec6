"""Curves against randomized requests, with bands, as plain plotly dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.replay.averages import Counts, Floats, Mean
from equipoise.replay.report.frame import (
    Figure,
    axis,
    base_layout,
    interval_text,
    picked,
    plain,
    rule,
    safe,
)
from equipoise.replay.report.palette import Style
from equipoise.replay.report.scales import log_axis, root_axis, root_position

REQUESTS = "randomized requests (√ scale)"


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity against randomized requests: at (C,), with means and intervals of (C,)."""

    style: Style
    at: Counts
    means: Mean


@dataclass(frozen=True, slots=True)
class Upwards:
    """The vertical axis of curves: its dict, where a number stands on it, its lower end."""

    axis: Mapping[str, Any]
    position: Callable[[Floats], Floats]
    bottom: float = 0.0


def linear(title: str, most: float) -> Upwards:
    """From 0 to `most`."""
    return Upwards({**axis(title), "range": [0, most]}, lambda values: values)


def rooted(title: str, most: float) -> Upwards:
    """From 0 to `most` on a square-root scale."""
    return Upwards(root_axis(title, most), root_position)


def logarithmic(title: str, least: float, most: float) -> Upwards:
    """From `least` to `most`, both > 0; what is not positive is left out."""

    def position(values: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.where(values > 0, np.maximum(values, least / 100), np.nan)

    return Upwards(log_axis(title, least, most), position, least)


def curves_figure(
    curves: Sequence[Curve],
    upwards: Upwards,
    band_opacity: float = 0.14,
    level: float | None = None,
) -> Figure:
    """Lines over their bands. level: a horizontal line to compare with."""
    bands, lines = [], []
    for curve in curves:
        band = _band(curve, upwards, band_opacity)
        bands += [band] if band else []
        lines.append(_line(curve, upwards))
    ends = [float(curve.at[-1]) for curve in curves if len(curve.at)]
    layout = base_layout(300)
    layout["hovermode"] = "x unified"
    # The first line of the box that opens says the number; the axis only knows its root.
    layout["xaxis"] = {
        **root_axis(REQUESTS, max([*ends, 1.0])),
        "unifiedhovertitle": {"text": " "},
    }
    layout["yaxis"] = dict(upwards.axis)
    if level is not None:
        layout["shapes"] = [rule("y", level)]
    return {"data": [*bands, *_counter(curves, upwards.bottom), *lines], "layout": layout}


def _line(curve: Curve, upwards: Upwards) -> dict[str, Any]:
    shown = np.isfinite(upwards.position(curve.means.mean))
    return {
        "type": "scatter",
        "mode": "lines" if np.count_nonzero(shown) > 1 else "lines+markers",
        "name": safe(curve.style.name),
        "x": plain(root_position(curve.at[shown].astype(float))),
        "y": plain(upwards.position(curve.means.mean[shown])),
        "customdata": [interval_text(value) for value in picked(curve.means, shown)],
        "hovertemplate": "%{customdata}",
        "line": {
            "color": f"@{curve.style.colour}",
            "dash": curve.style.dash,
            "width": 3 if curve.style.name == "hierarchical" else 2,
        },
    }


def _band(curve: Curve, upwards: Upwards, opacity: float) -> dict[str, Any] | None:
    low, high = upwards.position(curve.means.low), upwards.position(curve.means.high)
    shown = np.isfinite(low) & np.isfinite(high)
    if np.count_nonzero(shown) < 2:
        return None
    at = plain(root_position(curve.at[shown].astype(float)))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": safe(curve.style.name),
        "x": at + at[::-1],
        "y": plain(high[shown]) + plain(low[shown])[::-1],
        "fill": "toself",
        "fillcolor": f"@{curve.style.colour}/{opacity:g}",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _counter(curves: Sequence[Curve], bottom: float) -> list[dict[str, Any]]:
    """An invisible line whose text is the number of requests."""
    if not curves:
        return []
    longest = max(curves, key=lambda curve: len(curve.at))
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "",
            "x": plain(root_position(longest.at.astype(float))),
            "y": [bottom] * len(longest.at),
            "customdata": [f"<b>{at:,} randomized requests</b>" for at in longest.at.tolist()],
            "hovertemplate": "%{customdata}<extra></extra>",
            "line": {"width": 0, "color": "@paper/0"},
        }
    ]
