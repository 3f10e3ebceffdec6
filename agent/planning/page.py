"""A plan as one HTML file: no script, no network, for wide and narrow, light and dark screens."""

from __future__ import annotations

import html
from collections.abc import Callable
from collections.abc import Sequence as Rows
from importlib.resources import files

from equipoise.agent.planning.figures import calendar, curve_figure
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Band, Requirement
from equipoise.agent.planning.sentences import (
    count,
    dollars,
    duration,
    family_lines,
    split_sentence,
    store_sentence,
)
from equipoise.agent.planning.split import Split
from equipoise.agent.planning.tables import Bought

_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'"
_HEAD = ("plan for", "median", "80% of experiments", "time", "money", "harm")


def as_page(plan: Plan) -> str:
    """The whole page."""
    style = files("equipoise.agent.planning").joinpath("page.css").read_text(encoding="utf-8")
    parts = [f'<p class="answer">{html.escape(plan.sentence)}</p>']
    if plan.stored:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in family_lines(plan.stored))
        said = html.escape(store_sentence(plan.stored))
        parts.insert(0, f"<section><p>{said}</p><ul>{lines}</ul></section>")
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
    told = "Chance to know, by what was spent; the dashed line is the power asked for."
    found = [_section("Certainty against spend", told, curve_figure(plan.curves, plan.power))]
    best = plan.recommended
    curve = next((each for each in plan.curves if best and each.policy == best.policy), None)
    if best is not None and curve is not None and plan.traffic is not None:
        found.append(_section("Traffic calendar", "", calendar(curve, plan.traffic, best.rate)))
    return found


def _section(title: str, note: str, body: str) -> str:
    if not body:
        return ""
    told = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{told}{body}</section>"


def _effects(plan: Plan) -> list[Requirement]:
    shown = plan.recommended or next(iter(plan.effects), None)
    rows = [row for row in plan.effects if shown is not None and row.policy == shown.policy]
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


def _span(band: Band) -> str:
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
