"""Axes on which small numbers can be told apart, with ticks at round numbers.

A square-root scale opens up what is close to zero and, unlike a logarithmic one, shows zero.
Plotly has none, so positions are transformed here and ticks are labelled with the numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from equipoise.replay.averages import Floats
from equipoise.replay.report.frame import axis

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
