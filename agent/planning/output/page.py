"""A plan as one HTML file: no script, no network, for wide and narrow, light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from importlib.resources import files

import numpy as np

from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Interval80, Requirement
from equipoise.agent.planning.sentences import (
    count,
    dollars,
    duration,
    family_lines,
    split_sentence,
    store_sentence,
)
from equipoise.agent.planning.tables import Bought, Curve, Split

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
    text = (
        f"Every {name}: {count(traffic * length)} requests, {each} of them randomized by"
        f" {html.escape(curve.policy)}. In each cell the chance to know by its end; from"
        f" {duration(last)} on nearly certain."
    )
    if not len(certain):
        text = text.partition("; from")[0] + "."
    return f'<p class="note">{text}</p><div class="calendar">{"".join(cells)}</div>'


def _end(curve: Curve) -> float:
    """Where a curve is worth showing up to: certainty, or the last look."""
    done = next((i for i, chance in enumerate(curve.chance) if chance >= 0.999), None)
    return curve.randomized[-1 if done is None else done]


def _ticks(low: float, high: float) -> list[float]:
    ticks = [
        step * 10.0**exponent
        for exponent in range(math.floor(math.log10(low)), int(math.log10(high)) + 1)
        for step in (1.0, 2.0, 5.0)
    ]
    return [tick for tick in ticks if low <= tick <= high]


_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'"
_HEAD = ("plan for", "median", "80% of experiments", "time", "money", "harm")


def as_page(plan: Plan) -> str:
    """The whole page."""
    style = (
        files("equipoise.agent.planning.output").joinpath("page.css").read_text(encoding="utf-8")
    )
    parts = [f'<p class="answer">{html.escape(plan.sentence)}</p>']
    if plan.stored:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in family_lines(plan.stored))
        summary = html.escape(store_sentence(plan.stored))
        parts.insert(0, f"<section><p>{summary}</p><ul>{lines}</ul></section>")
    parts += _figures(plan)
    parts += [
        _section(
            "What the goal takes",
            "",
            _table("policy and reading", plan.goals, _goal, plan.recommended),
        ),
        _section(
            "As a function of the difference",
            "Nobody knows the true difference before the experiment: half of it costs four times"
            " as much.",
            _table("difference", _effects(plan), lambda row: f"{row.effect:.3g}"),
        ),
        _section(
            "Experiment or wait",
            "Randomizing a larger share costs as much in all, and is over sooner.",
            _table("share randomized", plan.rates, lambda row: f"{row.rate:.3g}"),
        ),
        _section(
            "The price of the floor",
            "The floor keeps every model's probability, and so the weights, in bounds.",
            _table("floor, policy", plan.floors, lambda row: f"{row.floor:.3g}, {row.policy}"),
        ),
        _section(
            "What a prediction from replays (SIM) would save",
            "By the share of the reward's variance that it explains.",
            _table("explained", plan.explained, lambda row: f"{row.explained:.0%}"),
        ),
        _section("How to pay", split_sentence(plan.splits), _splits(plan.splits)),
        _section("Each segment by itself", "", _table("policy", plan.segments, _goal)),
        _section("What the budget buys", "", _bought(plan.bought)),
    ]
    rests = "".join(f"<li>{html.escape(line)}</li>" for line in plan.assumptions)
    offered = "".join(f"<li>not offered: {html.escape(line)}</li>" for line in plan.not_offered)
    parts.append(f"<section><h2>What this rests on</h2><ul>{rests}{offered}</ul></section>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Randomization plan</title><style>{style}</style></head>"
        f"<body><main><h1>Randomization plan</h1>{''.join(parts)}</main></body></html>\n"
    )


def _figures(plan: Plan) -> list[str]:
    if not plan.curves:
        return []
    note = "Chance to know, by what was spent; the dashed line is the power asked for."
    sections = [_section("Certainty against spend", note, curve_figure(plan.curves, plan.power))]
    best = plan.recommended
    curve = next((each for each in plan.curves if best and each.policy == best.policy), None)
    if best is not None and curve is not None and plan.traffic is not None:
        sections.append(_section("Traffic calendar", "", calendar(curve, plan.traffic, best.rate)))
    return sections


def _section(title: str, note: str, body: str) -> str:
    if not body:
        return ""
    paragraph = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{paragraph}{body}</section>"


def _effects(plan: Plan) -> list[Requirement]:
    example = plan.recommended or next(iter(plan.effects), None)
    rows = [row for row in plan.effects if example is not None and row.policy == example.policy]
    return sorted(rows, key=lambda row: row.effect)


def _goal(row: Requirement) -> str:
    goal = "" if row.goal == "effect" else f", {row.goal}"
    return f"{row.policy}, {row.reading}{goal}"


def _table(
    first: str,
    rows: Rows[Requirement],
    name: Callable[[Requirement], str],
    best: Requirement | None = None,
) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{title}</th>" for title in (first, *_HEAD))
    body = ""
    for row in rows:
        cells = (
            html.escape(name(row)),
            _unknown(row.randomized.needed, row.note),
            _unknown(row.randomized.median, row.note),
            _span(row.randomized),
            "" if row.hours is None or row.hours.needed is None else duration(row.hours.needed),
            "" if row.money is None or row.money.needed is None else dollars(row.money.needed),
            "" if row.harm.median is None else f"{row.harm.median:.3g}",
        )
        marked = ' class="best"' if best is not None and row == best else ""
        body += f"<tr{marked}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _grid(head, body)


def _unknown(number: float | None, note: str) -> str:
    if number is not None:
        return count(number)
    return f'<span title="{html.escape(note)}">cannot know</span>'


def _span(band: Interval80) -> str:
    if band.low is None:
        return ""
    return f"{count(band.low)} to {'…' if band.high is None else count(band.high)}"


def _bought(rows: Rows[Bought]) -> str:
    if not rows:
        return ""
    titles = ("policy", "randomized", "time", "money", "lead known to", "finds", "harm")
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for row in rows:
        cells = (
            html.escape(row.policy),
            count(row.randomized),
            "" if row.hours is None else duration(row.hours),
            "" if row.money is None else dollars(row.money),
            "nothing yet" if row.half_width is None else f"± {row.half_width:.3g}",
            "nothing" if row.smallest_effect is None else f"{row.smallest_effect:.3g}",
            f"{row.harm:.3g}",
        )
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _grid(head, body)


def _splits(rows: Rows[Split]) -> str:
    if not rows:
        return ""
    titles = ("replays", "predict", "EXP", "time", "EXP costs", "replays cost", "waiting", "in all")
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for row in rows:
        cells = (
            count(row.replays),
            f"{row.explained:.0%}",
            _unknown(row.randomized, "too few of the simulated experiments get there"),
            "" if row.hours is None else duration(row.hours),
            "" if row.exp_money is None else dollars(row.exp_money),
            dollars(row.replay_money),
            dollars(row.waiting_money),
            "" if row.total is None else dollars(row.total),
        )
        marked = ' class="best"' if row.cheapest else ""
        body += f"<tr{marked}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _grid(head, body)


def _grid(head: str, body: str) -> str:
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
