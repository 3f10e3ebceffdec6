"""Figures of the plan's page, drawn as they stand: certainty against spend, and the calendar."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence as Rows

import numpy as np

from equipoise.agent.planning.sentences import count, duration
from equipoise.agent.planning.tables import Curve

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 56
COLOURS = 4
_STRONG = 0.55
"""Chance from which a calendar's cell is dark enough for letters of the other colour."""
_CELLS = 35


def curve_figure(curves: Rows[Curve], power: float) -> str:
    """Chance that the goal is reached against randomized requests, one line a policy, as SVG."""
    ends = [_end(curve) for curve in curves]
    first = min(curve.randomized[0] for curve in curves)
    low = max(1.0, min(first * 10, max(ends) / 20))
    span = math.log(max(ends) / low)

    def x(spent: float) -> float:
        share = math.log(max(spent, low) / low) / span
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(chance: float) -> float:
        return TOP + (1.0 - chance) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for chance in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="frame" d="M{LEFT} {y(chance):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y(chance) + 5:.1f}" text-anchor="end">{chance:.0%}</text>'
        )
    for tick in _ticks(low, max(ends)):
        x_tick = f"{x(tick):.1f}"
        parts.append(f'<path class="frame" d="M{x_tick} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{x_tick}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
            f"{count(tick)}</text>"
        )
    parts.append(f'<path class="goal" d="M{LEFT} {y(power):.1f}H{WIDTH - RIGHT}"/>')
    for index, curve in enumerate(curves):
        points = [
            f"{x(spent):.1f} {y(chance):.1f}"
            for spent, chance in zip(curve.randomized, curve.chance, strict=True)
            if low <= spent <= max(ends)
        ]
        colour = f"var(--line-{index % COLOURS})"
        if points:
            path = "L".join(points)
            parts.append(f'<path class="curve" style="stroke:{colour}" d="M{path}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">randomized requests</text>'
    )
    keys = "".join(
        f'<span style="--key:var(--line-{index % COLOURS})">{html.escape(curve.policy)}</span>'
        for index, curve in enumerate(curves)
    )
    label = "Chance that the goal is reached, by randomized requests and policy"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'{"".join(parts)}</svg><p class="keys">{keys}</p>'
    )


def calendar(curve: Curve, traffic: float, rate: float) -> str:
    """Days (hours or weeks where they fit better) with what is randomized in each, and the chance
    to know by its end. "" where the curve knows no time."""
    if curve.hours is None:
        return ""
    reached = np.array(curve.chance)
    certain = np.flatnonzero(reached >= 0.98)
    last = curve.hours[int(certain[0])] if len(certain) else curve.hours[-1]
    name, length = next(
        ((n, h) for n, h in (("hour", 1.0), ("day", 24.0), ("week", 168.0)) if last / h <= _CELLS),
        ("year", 8760.0),
    )
    cells = []
    for number in range(1, min(math.ceil(last / length), _CELLS) + 1):
        chance = float(np.interp(number * length, [0.0, *curve.hours], [0.0, *curve.chance]))
        strong = ' class="strong"' if chance >= _STRONG else ""
        cells.append(
            f'<div{strong} style="background:rgb(var(--heat) / {chance:.2f})">{name} {number}'
            f"<b>{chance:.0%}</b></div>"
        )
    each = count(traffic * length * rate)
    told = (
        f"Every {name}: {count(traffic * length)} requests, {each} of them randomized by"
        f" {html.escape(curve.policy)}. In each cell the chance to know by its end; from"
        f" {duration(last)} on nearly certain."
    )
    if not len(certain):
        told = told.partition("; from")[0] + "."
    return f'<p class="note">{told}</p><div class="calendar">{"".join(cells)}</div>'


def _end(curve: Curve) -> float:
    """Where a curve is worth showing up to: certainty, or the last look."""
    done = next((i for i, chance in enumerate(curve.chance) if chance >= 0.999), None)
    return curve.randomized[-1 if done is None else done]


def _ticks(low: float, high: float) -> list[float]:
    found = [
        step * 10.0**exponent
        for exponent in range(math.floor(math.log10(low)), int(math.log10(high)) + 1)
        for step in (1.0, 2.0, 5.0)
    ]
    return [tick for tick in found if low <= tick <= high]
