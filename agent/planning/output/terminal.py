"""A plan on the terminal, and as one CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Interval80, Requirement
from equipoise.agent.planning.sentences import (
    brief,
    count,
    dollars,
    family_lines,
    split_sentence,
    store_sentence,
)
from equipoise.agent.planning.tables import Split


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    console = console or Console()
    if plan.stored:
        console.print(store_sentence(plan.stored))
        for line in family_lines(plan.stored):
            console.print(f"  - {line}")
    several = len({row.goal for row in plan.goals}) > 1
    _table(console, _title(plan), plan.goals, _goal if several else _reading)
    if len(plan.effects) > 1:
        rows = [row for row in plan.effects if row.policy == _shown_policy(plan)]
        _table(console, f"By the difference, {_shown_policy(plan)}", rows, "{0.effect:.3g}".format)
    for title, rows, name in (
        ("EXP against waiting: share of requests randomized", plan.rates, "{0.rate:.3g}"),
        ("The price of the floor", plan.floors, "{0.floor:.3g} ({0.policy})"),
        ("What a prediction from replays would save", plan.explained, "{0.explained:.0%}"),
    ):
        _table(console, title, rows, name.format)
    _splits(console, plan.splits)
    _table(console, "Each segment by itself", plan.segments, _goal)
    if plan.bought:
        bought = Table(box=SIMPLE_HEAD, title="What the budget buys", title_justify="left")
        for heading in ("", "randomized", "time", "money", "lead known to", "finds", "harm"):
            bought.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for each in plan.bought:
            bought.add_row(
                each.policy,
                count(each.randomized),
                brief(each.hours),
                "" if each.money is None else dollars(each.money),
                "nothing yet" if each.half_width is None else f"± {each.half_width:.3g}",
                "nothing" if each.smallest_effect is None else f"{each.smallest_effect:.3g}",
                _amount(each.harm),
            )
        console.print(bought)
    console.print(f"[bold]{plan.sentence}[/]")
    for line in plan.assumptions:
        console.print(f"  - {line}")
    for line in plan.not_offered:
        console.print(f"  - not offered: {line}")


def _title(plan: Plan) -> str:
    if any(row.goal == "effect" for row in plan.goals):
        return f"What a difference of {plan.effect:.3g} takes"
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
            f"{each.explained:.0%}",
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


def _table(
    console: Console, title: str, rows: Rows[Requirement], name: Callable[[Requirement], str]
) -> None:
    if not rows:
        return
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("", "plan for", "80% of them", "time", "money", "harm"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            name(row),
            _cell(row.randomized.needed),
            _span(row.randomized),
            "" if row.hours is None else brief(row.hours.needed),
            "" if row.money is None or row.money.needed is None else dollars(row.money.needed),
            _amount(row.harm.median),
        )
    console.print(table)


def _cell(number: float | None) -> str:
    return "unknown" if number is None else count(number)


def _span(band: Interval80) -> str:
    high = "…" if band.high is None else count(band.high)
    return "" if band.low is None else f"{count(band.low)} to {high}"


def _amount(number: float | None) -> str:
    if number is None:
        return ""
    return f"{float(f'{number:.3g}'):,.0f}" if abs(number) >= 100 else f"{number:.3g}"


TABLES = ("goals", "effects", "rates", "floors", "explained", "segments")
_BANDS = ("randomized", "requests", "hours", "money", "harm")
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
