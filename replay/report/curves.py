"""Curves with bands as plain plotly dicts; unless told otherwise, against randomized requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.replay.averages import Counts, Floats, Mean
from equipoise.replay.report.frame import (
    Figure,
    axis,
    base_layout,
    error_bars,
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
