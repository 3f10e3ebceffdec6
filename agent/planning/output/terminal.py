"""A plan on the terminal, and as one CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence as Rows
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from equipoise.agent.answers.wording import brief, count, dollars, figure, percent, tenths
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Requirement
from equipoise.agent.planning.sentences import family_lines, split_sentence, store_sentence
from equipoise.agent.planning.tables import Split


def print_plan(plan: Plan, console: Console | None = None, *, every: bool = True) -> None:
    """Print a plan in the order of its page. every: also the tables that the page folds."""
    console = console or Console()
    console.print(f"{plan.title}, {plan.date}: {', '.join(plan.models)}", markup=False)
    if plan.stored:
        console.print(store_sentence(plan.stored), markup=False)
        for line in family_lines(plan.stored):
            console.print(f"  - {line}", markup=False)
    console.print(plan.sentence, style="bold", markup=False)
    for note in (plan.billed, plan.why):
        if note:
            console.print(note, markup=False)
    if len(plan.levers) > 1:
        _table(console, plan, "What would make it cheaper or faster", plan.levers_as_rows())
    for line in plan.answers:
        console.print(line, markup=False)
    if plan.bought:
        _bought(console, plan)
    if every:
        _tables(console, plan)
    console.print("Asked:", "; ".join(f"{each.name} {each.value}" for each in plan.inputs))
    for line in plan.assumptions:
        console.print(f"  - {line}", markup=False)
    for line in plan.not_offered:
        console.print(f"  - not offered: {line}", markup=False)
    if not every:
        console.print(
            "More tables (by policy, difference, share, floor, prediction): --all, --html FILE,"
            " --csv FILE or --json."
        )


def _tables(console: Console, plan: Plan) -> None:
    """Every other table."""
    several = len({row.goal for row in plan.goals}) > 1
    name = _goal if several else _reading
    _table(console, plan, _title(plan), [(name(row), row) for row in plan.goals])
    if len(plan.effects) > 1:
        policy = _shown_policy(plan)
        rows = [(figure(row.effect), row) for row in plan.effects if row.policy == policy]
        _table(console, plan, f"By the difference, {policy}", rows)
    rates = [(percent(row.rate), row) for row in plan.rates]
    _table(console, plan, "EXP against waiting: share of requests randomized", rates)
    floors = [(f"{percent(row.floor)} ({row.policy})", row) for row in plan.floors]
    _table(console, plan, "The price of the floor", floors)
    explained = [(percent(row.explained), row) for row in plan.explained]
    _table(console, plan, "What a prediction from replays would save", explained)
    _splits(console, plan.splits)
    segments = [(_goal(row), row) for row in plan.segments]
    _table(console, plan, "Each segment by itself", segments)


def _bought(console: Console, plan: Plan) -> None:
    priced = any(each.bill is not None for each in plan.bought)
    timed = plan.traffic is not None
    bought = Table(box=SIMPLE_HEAD, title="What the budget buys", title_justify="left")
    names = ["", "randomized", *(["time"] if timed else []), *([plan.money_name] if priced else [])]
    for heading in (*names, "lead known to", "finds", plan.harm_name):
        bought.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for each in plan.bought:
        bought.add_row(
            each.policy,
            count(each.randomized),
            *([brief(each.hours)] if timed else []),
            *([dollars(each.bill)] if priced else []),
            "nothing yet" if each.half_width is None else f"± {figure(each.half_width)}",
            "nothing" if each.smallest_effect is None else figure(each.smallest_effect),
            figure(0.0 - each.harm),
        )
    console.print(bought)


def _title(plan: Plan) -> str:
    if any(row.goal == "effect" for row in plan.goals):
        return f"What a difference of {figure(plan.effect)} takes"
    return "What the goal takes"


def _splits(console: Console, splits: Rows[Split]) -> None:
    if not splits:
        return
    title = "How to pay: replays of contexts on every model against EXP"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("replays", "predict", "EXP", "time", "EXP costs", "replays cost", "in all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in splits:
        table.add_row(
            count(each.replays),
            tenths(each.explained),
            _cell(each.randomized),
            brief(each.hours),
            "" if each.exp_money is None else dollars(each.exp_money),
            dollars(each.replay_money),
            "" if each.total is None else dollars(each.total),
            style="bold" if each.cheapest else None,
        )
    console.print(table)
    console.print(split_sentence(splits))


def _shown_policy(plan: Plan) -> str:
    return plan.recommended.policy if plan.recommended else plan.effects[0].policy


def _reading(row: Requirement) -> str:
    return f"{row.policy}, {row.reading}"


def _goal(row: Requirement) -> str:
    goal = {"effect": "", "half-width": ", ± width", "regret": ", regret"}[row.goal]
    return _reading(row) + goal


def _table(console: Console, plan: Plan, title: str, rows: Rows[tuple[str, Requirement]]) -> None:
    if not rows:
        return
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for heading, _ in plan.columns:
        table.add_column(heading, justify="right", no_wrap=True)
    reasons: dict[str, str] = {}
    for name, row in rows:
        if row.randomized.needed is None:
            reasons[name] = row.note or "the last look that was simulated came before"
            table.add_row(name, "cannot know")
        else:
            table.add_row(name, *(cell(row) for _, cell in plan.columns))
    console.print(table)
    for name, reason in reasons.items():
        console.print(f"  cannot know, {name}: {reason}", markup=False)


def _cell(number: float | None) -> str:
    return "cannot know" if number is None else count(number)


TABLES = ("goals", "effects", "rates", "floors", "explained", "segments")
_BANDS = ("randomized", "requests", "hours", "money", "extra", "harm")
_ENDS = ("median", "low", "high", "needed")


def flat(row: Requirement) -> dict[str, Any]:
    """The fields of a row, bands as four columns; None where unknown."""
    fields: dict[str, Any] = msgspec.to_builtins(row)
    result: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _BANDS:
            for end in _ENDS:
                result[f"{name}_{end}"] = None if value is None else value[end]
        else:
            result[name] = value
    return result


def as_csv(plan: Plan) -> str:
    """Every requirement, then ways to pay and what the budget buys in tables of their own below."""
    rows = [{"table": name, **flat(row)} for name in TABLES for row in getattr(plan, name)]
    rows += [
        {"table": "levers", "lever": each.kind, "lever_value": each.value, **flat(each.row)}
        for each in plan.levers
    ]
    rows += _looks(plan)
    bought = []
    for each in plan.bought:
        fields = msgspec.to_builtins(each)
        pairs = zip(fields.pop("effects"), fields.pop("chances"), fields.pop("right"), strict=True)
        bought += [
            {"table": "bought", **fields, "effect": effect, "chance": chance, "right": right}
            for effect, chance, right in pairs
        ]
    paid = [{"table": "splits", **msgspec.to_builtins(each)} for each in plan.splits]
    bought = [*paid, *bought]
    names = list(dict.fromkeys(name for row in [*rows, *bought] for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, *bought])
    return text.getvalue()


def _looks(plan: Plan) -> list[dict[str, Any]]:
    """The shares of experiments that say yes and no, a row a world and look."""
    asked = plan.question
    if asked is None:
        return []
    hours: Rows[float | None] = asked.hours or [None] * len(asked.requests)
    return [
        {
            "table": "question",
            "lead": world.lead,
            "requests": requests,
            "hours": when,
            "yes": yes,
            "no": no,
        }
        for world in asked.worlds
        for requests, when, yes, no in zip(asked.requests, hours, world.yes, world.no, strict=True)
    ]
