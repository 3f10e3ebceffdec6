"""Curves of findings as plotly figures: panels with common axes and styles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from equipoise.replay.averages import Floats, Mean
from equipoise.replay.experiments.findings import CurvePanel, Curves, Findings, Line
from equipoise.replay.experiments.wording import exact, finite
from equipoise.replay.report.curves import Across, Curve, Upwards, curves_figure, linear
from equipoise.replay.report.frame import axis, safe
from equipoise.replay.report.palette import Style, estimator_style
from equipoise.replay.report.scales import log_axis
from equipoise.replay.report.scenario import Panel

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
