"""A plan as one HTML file: no script, no network, for wide and narrow, light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence as Rows
from importlib.resources import files

import numpy as np

from equipoise.agent.answers.wording import count, dollars, duration, figure, percent, tenths
from equipoise.agent.planning.levers import Question
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.sentences import (
    family_lines,
    split_sentence,
    store_sentence,
    world_words,
)
from equipoise.agent.planning.tables import Curve, Split

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
            f'<text x="{LEFT - 8}" y="{y(chance) + 5:.1f}" text-anchor="end">'
            f"{tenths(chance)}</text>"
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
            f"<b>{tenths(chance)}</b></div>"
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


def as_page(plan: Plan) -> str:
    """The whole page: the answer, its cheapest lever, yes or no, and pictures; the rest folded."""
    style = (
        files("equipoise.agent.planning.output").joinpath("page.css").read_text(encoding="utf-8")
    )
    title = html.escape(plan.title)
    about = f"{plan.date}; {html.escape(', '.join(plan.models))}"
    parts = [f'<h1>{title}</h1><p class="note">{about}</p>']
    if plan.stored:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in family_lines(plan.stored))
        summary = html.escape(store_sentence(plan.stored))
        parts.append(f"<section><p>{summary}</p><ul>{lines}</ul></section>")
    answer = f"<p>{html.escape(plan.sentence)}</p>"
    notes = (plan.billed, plan.why)
    answer += "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes if note)
    parts.append(f'<div class="answer">{answer}</div>')
    if len(plan.levers) > 1:
        note = "First what asks for nothing less, then what does. The first line is the plan."
        table = _table(plan, "change", plan.levers_as_rows())
        parts.append(_section("What would make it cheaper or faster", note, table))
    else:
        table = _table(plan, "policy and reading", [(_goal(row), row) for row in plan.goals[:1]])
        parts.append(_section("What the goal takes", "", table))
    if plan.question is not None:
        note = " ".join(plan.answers[:1])
        parts.append(
            _section("Yes, no, or cannot say", note, _verdicts(plan.question, percent(plan.power)))
        )
    if plan.bought:
        parts.append(_section("What the budget buys", "", _bought(plan)))
    parts += _figures(plan)
    asked = "".join(
        f"<dt>{html.escape(each.name)}</dt><dd>{html.escape(each.value)}</dd>"
        for each in plan.inputs
    )
    parts.append(f"<section><h2>What was asked</h2><dl>{asked}</dl></section>")
    parts += _folded(plan)
    rests = "".join(f"<li>{html.escape(line)}</li>" for line in plan.assumptions)
    offered = "".join(f"<li>not offered: {html.escape(line)}</li>" for line in plan.not_offered)
    parts.append(f"<section><h2>What this rests on</h2><ul>{rests}{offered}</ul></section>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _folded(plan: Plan) -> list[str]:
    """Every other table, behind its title."""
    asked = plan.question
    tables = [
        (
            "By policy and certified sequence",
            "",
            _table(
                plan,
                "policy and reading",
                [(_goal(row), row) for row in plan.goals],
                plan.recommended,
            ),
        ),
        ("Yes, no, or cannot say, by time", "", "" if asked is None else _by_time(asked)),
        (
            "By the difference",
            "Nobody knows the true difference before the experiment: half of it costs four times"
            " as much.",
            _table(plan, "difference", [(figure(row.effect), row) for row in _effects(plan)]),
        ),
        (
            "Experiment or wait",
            "Randomizing a larger share needs about as many randomized requests, and is over"
            " sooner.",
            _table(plan, "share randomized", [(percent(row.rate), row) for row in plan.rates]),
        ),
        (
            "The price of the floor",
            "The floor keeps every model's probability, and so the weights, in bounds.",
            _table(
                plan,
                "floor, policy",
                [(f"{percent(row.floor)}, {row.policy}", row) for row in plan.floors],
            ),
        ),
        (
            "What a prediction from replays (SIM) would save",
            "By the share of the reward's variance that it explains.",
            _table(plan, "explained", [(percent(row.explained), row) for row in plan.explained]),
        ),
        ("How to pay", split_sentence(plan.splits), _splits(plan.splits)),
        (
            "Each segment by itself",
            "",
            _table(plan, "policy", [(_goal(row), row) for row in plan.segments]),
        ),
    ]
    return [_section(title, note, body, folded=True) for title, note, body in tables if body]


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


def _section(title: str, note: str, body: str, *, folded: bool = False) -> str:
    if not body:
        return ""
    paragraph = f'<p class="note">{html.escape(note)}</p>' if note else ""
    if folded:
        name = f"<summary>{html.escape(title)}</summary>"
        return f"<details>{name}{paragraph}{body}</details>"
    return f"<section><h2>{html.escape(title)}</h2>{paragraph}{body}</section>"


def _effects(plan: Plan) -> list[Requirement]:
    example = plan.recommended or next(iter(plan.effects), None)
    rows = [row for row in plan.effects if example is not None and row.policy == example.policy]
    return sorted(rows, key=lambda row: row.effect)


def _goal(row: Requirement) -> str:
    goal = "" if row.goal == "effect" else f", {row.goal}"
    return f"{row.policy}, {row.reading}{goal}"


def _table(
    plan: Plan,
    first: str,
    rows: Rows[tuple[str, Requirement]],
    best: Requirement | None = None,
) -> str:
    """Named rows; without prices there is no column of money, without traffic none of time."""
    if not rows:
        return ""
    columns = plan.columns
    head = "".join(f"<th>{title}</th>" for title in (first, *(name for name, _ in columns)))
    body = ""
    for name, row in rows:
        marked = ' class="best"' if best is not None and row == best else ""
        cells = f"<td>{html.escape(name)}</td>"
        if row.randomized.needed is None:
            why = html.escape(row.note or "the last look that was simulated came before")
            cells += f'<td class="why" colspan="{len(columns)}">cannot know: {why}</td>'
        else:
            cells += "".join(f"<td>{cell(row)}</td>" for _, cell in columns)
        body += f"<tr{marked}>{cells}</tr>"
    return _grid(head, body)


def _verdicts(asked: Question, power: str) -> str:
    """A row for each world: what is said at the planned end."""
    titles = ("if it is", "yes", "no", "cannot say", f"{power} answered after", "lead known to")
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for world in asked.worlds:
        yes, no = world.yes[asked.at], world.no[asked.at]
        soonest = count(world.answered) if world.hours is None else duration(world.hours)
        known = "nothing yet" if world.half_width is None else f"± {figure(world.half_width)}"
        shares = (tenths(yes), tenths(no), tenths(1.0 - yes - no))
        cells = (world_words(world), *shares, soonest, known)
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    at = count(asked.requests[asked.at]) + " requests"
    at = at if asked.hours is None else duration(asked.hours[asked.at])
    caption = f'<p class="note">Share of experiments that say so by {at}.</p>'
    return _grid(head, body) + caption


def _by_time(asked: Question) -> str:
    """Every fourth look: yes, no and neither in each world."""
    titles = ["after", *(world_words(world) for world in asked.worlds)]
    head = "".join(f"<th>{title}: yes, no, neither</th>" for title in titles[1:])
    body = ""
    for look in range(asked.at % 4, len(asked.requests), 4):
        after = f"{count(asked.requests[look])} requests"
        after = after if asked.hours is None else duration(asked.hours[look])
        cells = [
            f"{tenths(world.yes[look])}, {tenths(world.no[look])},"
            f" {tenths(1.0 - world.yes[look] - world.no[look])}"
            for world in asked.worlds
        ]
        body += f"<tr><td>{after}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _grid(f"<th>after</th>{head}", body)


def _bought(plan: Plan) -> str:
    rows = plan.bought
    priced, timed = any(row.bill is not None for row in rows), plan.traffic is not None
    titles = ["policy", "randomized", *(["time"] if timed else [])]
    titles += [*([plan.money_name] if priced else []), "lead known to", "finds", plan.harm_name]
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for row in rows:
        cells = [html.escape(row.policy), count(row.randomized)]
        cells += [duration(row.hours)] if timed else []
        cells += [dollars(row.bill)] if priced else []
        cells += [
            "nothing yet" if row.half_width is None else f"± {figure(row.half_width)}",
            "nothing" if row.smallest_effect is None else figure(row.smallest_effect),
            figure(0.0 - row.harm),
        ]
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
            tenths(row.explained),
            "cannot know" if row.randomized is None else count(row.randomized),
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
