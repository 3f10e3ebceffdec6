"""A plan as one CSV table: a row per requirement, the table it belongs to first."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec

from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.requirement import Requirement

TABLES = ("goals", "effects", "rates", "floors", "explained", "segments")
_BANDS = ("randomized", "requests", "hours", "money", "harm")
_ENDS = ("median", "low", "high", "needed")


def flat(row: Requirement) -> dict[str, Any]:
    """The fields of a row, bands as four columns; None where unknown."""
    told: dict[str, Any] = msgspec.to_builtins(row)
    result: dict[str, Any] = {}
    for name, value in told.items():
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
        told = msgspec.to_builtins(each)
        pairs = zip(told.pop("effects"), told.pop("chances"), told.pop("right"), strict=True)
        bought += [
            {"table": "bought", **told, "effect": effect, "chance": chance, "right": right}
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
