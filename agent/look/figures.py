"""Charts of a log as SVG: requests a day, and differences of means."""

from __future__ import annotations

import html
from collections.abc import Sequence

from equipoise.agent.answers.wording import count, figure
from equipoise.agent.look.findings import Comparison, Findings

_COLOURS = 4


def signed(number: float) -> str:
    """A difference with its sign."""
    return f"+{figure(number)}" if number > 0 else figure(number)


_WIDTH, _HEIGHT, _HEAD, _FOOT = 720, 190, 30, 28


def days_figure(found: Findings) -> str:
    """Requests a day by model, as stacked bars."""
    days = list(found.days.items())
    if len(days) < 2:
        return ""
    days = days[-120:]
    names = [model.name for model in found.models[: _COLOURS - 1]]
    most = max(sum(each.values()) for _, each in days)
    step = _WIDTH / len(days)
    bars = []
    for at, (day, each) in enumerate(days):
        base = float(_HEIGHT - _FOOT)
        rest = sum(number for name, number in each.items() if name not in names)
        for index, number in enumerate([*(each.get(name, 0) for name in names), rest]):
            high = number / most * (_HEIGHT - _FOOT - _HEAD)
            base -= high
            bars.append(
                f'<rect x="{at * step + step * 0.1:.1f}" y="{base:.1f}" width="{step * 0.8:.1f}"'
                f' height="{high:.1f}" fill="var(--line-{index})"><title>{day}: {number:,}'
                "</title></rect>"
            )
    ends = "".join(
        f'<text x="{x}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{day}</text>'
        for x, anchor, day in ((0, "start", days[0][0]), (_WIDTH, "end", days[-1][0]))
    )
    shown = [*names, *(["other models"] if len(found.models) > len(names) else [])]
    keys = "".join(
        f'<span style="--key:var(--line-{index})">{html.escape(name)}</span>'
        for index, name in enumerate(shown)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Requests a day by model">'
        f'<text x="0" y="18">{count(most)} a day</text>{"".join(bars)}{ends}</svg>'
        f'<p class="keys">{keys}</p>'
    )


_ROW, _NAMES = 56, 240


def differences(comparisons: Sequence[Comparison]) -> str:
    """Each difference as the log has it, and among requests alike, against 0."""
    lines = []
    for each in comparisons[:8]:
        name = f"{each.model} - {each.against}"
        lines.append((name, "as the log has it", each.naive, each.low, each.high, 1))
        if each.adjusted is not None:
            low, high = each.adjusted_low or 0.0, each.adjusted_high or 0.0
            lines.append(("", "among requests alike", each.adjusted, low, high, 0))
    if not lines:
        return ""
    ends = [0.0, *(line[3] for line in lines), *(line[4] for line in lines)]
    least, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> float:
        return _NAMES + 20 + (value - least) / span * (_WIDTH - _NAMES - 130)

    bottom = _ROW * len(lines) + 8
    drawn = [f'<path class="goal" d="M{x(0):.1f} 4V{bottom}"/>']
    for at, (name, kind, middle, low, high, colour) in enumerate(lines):
        y = _ROW * at + 28
        drawn.append(
            f'<text x="0" y="{y - 7}">{html.escape(name[:34])}</text>'
            f'<text x="0" y="{y + 16}">{kind}</text>'
            f'<path class="curve" style="stroke:var(--line-{colour})" d="M{x(low):.1f} {y}'
            f'H{x(high):.1f}"/><circle cx="{x(middle):.1f}" cy="{y}" r="5"'
            f' fill="var(--line-{colour})"/>'
            f'<text x="{x(high) + 8:.1f}" y="{y + 5}">{signed(middle)}</text>'
        )
    label = "Differences of mean reward with 95% intervals; the dashed line is no difference"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 4}" role="img" aria-label="{label}">'
        f"{''.join(drawn)}</svg>"
    )


def p_value(p: float) -> str:
    """A p-value as people read it.

    >>> p_value(0.2345), p_value(0.00004), p_value(1.0)
    ('0.23', 'below 0.0001', '1')
    """
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
