"""What all figures and pages share: colours, axes, layout, and what a page carries inside.

A colour in a figure is "@name" or "@name/opacity"; report.js looks it up in report.css when it
draws, for the light and the dark scheme and for print.

A square-root scale opens up what is close to zero and, unlike a logarithmic one, shows zero.
Plotly has none, so positions are transformed here and ticks are labelled with the numbers.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np

from equipoise.replay.results.averages import Floats, Mean
from equipoise.replay.results.headline import printable, reward
from equipoise.replay.results.summary import FAMILIES

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "hexagon")
OTHERS = 4
"""Colours for estimators that are not one of FAMILIES."""
POLICIES = 6
"""Colours for policies; a seventh begins again with another dash."""


@dataclass(frozen=True, slots=True)
class Style:
    """How an estimator or a policy is drawn, everywhere the same."""

    name: str
    colour: str
    dash: str
    symbol: str


FAMILY_DASHES = {
    "naive-log": "dot",
    "ipw": "solid",
    "obs-only": "dash",
    "representation-exp": "solid",
    "cvci": "longdash",
    "grounded": "dashdot",
    "doubly-robust": "solid",
    "hierarchical": "solid",
}
FAMILY_SYMBOLS = {
    "naive-log": "x",
    "ipw": "square",
    "obs-only": "diamond",
    "representation-exp": "triangle-up",
    "cvci": "triangle-down",
    "grounded": "hexagon",
    "doubly-robust": "star",
    "hierarchical": "circle",
}


def estimator_style(name: str, known: Sequence[str]) -> Style:
    """Style of an estimator; `known` are all estimators of the report, in order."""
    if name in FAMILIES:
        return Style(name, name, FAMILY_DASHES[name], FAMILY_SYMBOLS[name])
    others = [each for each in known if each not in FAMILIES]
    index = others.index(name)
    # One dash further than the mark: no family looks like that without its colour.
    dash, symbol = DASHES[(index + 1) % len(DASHES)], SYMBOLS[index % len(SYMBOLS)]
    return Style(name, f"other-{index % OTHERS}", dash, symbol)


def policy_style(name: str, known: Sequence[str]) -> Style:
    """Style of a policy; `known` are all policies of the report, in order."""
    index = list(known).index(name)
    dash = DASHES[(index // POLICIES + index) % len(DASHES)]
    return Style(name, f"policy-{index % POLICIES}", dash, SYMBOLS[index % len(SYMBOLS)])


APART = 0.17
"""Least distance between two ticks, as a share of the axis."""


def root_position(values: Floats) -> Floats:
    """Where values >= 0 stand on a square-root axis; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        position: Floats = np.sqrt(np.maximum(values, 0.0))
    return position


def root_axis(title: str, most: float) -> dict[str, Any]:
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


def log_axis(title: str, least: float, most: float) -> dict[str, Any]:
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
    numbers = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [each for each in numbers if least * (1 - 1e-9) <= each <= most * (1 + 1e-9)]


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


def part(name: str) -> str:
    """A file of this package: template, style or script."""
    return files("equipoise.replay.report").joinpath(name).read_text(encoding="utf-8")


def embedded(figures: str, plotting: bool = True) -> dict[str, str]:
    """What templates call style, figures, plotly, script, and allowed: the scripts that may run.

    figures: JSON that may stand inside a script element. plotting: whether any needs plotly,
    which is most of a page's size.
    """
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs() if plotting else "", part("report.js")
    return {
        "style": part("report.css"),
        "figures": figures,
        "plotly": plotly,
        "script": script,
        "allowed": " ".join(_digest(each) for each in (plotly, script)),
    }


def _digest(script: str) -> str:
    """A script's hash as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
