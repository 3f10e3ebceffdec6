"""Random questions to the planner, sensible ones and edges, and what every answer must hold.

    python tests/agent/planning/random_plans.py 10000

asks so many (hypothesis, seeded) and prints how many were answered and how many refused, by field.
Every question must get a plan that can be said in every form, or one line that names field, value
and limit.
"""

from __future__ import annotations

import io
import math
import sys
from collections import Counter
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from equipoise.agent.errors import PlanError
from equipoise.agent.planning.output.page import as_page
from equipoise.agent.planning.output.terminal import as_csv, print_plan
from equipoise.agent.planning.plan import Plan, make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.requirement import Interval80
from equipoise.agent.planning.simulation.paths import ASSIGNMENTS

MOST = 2
"""Simulated experiments per case: what is asked is whether there is an answer, not how good."""

_EDGES = [0.0, -1.0, 1.0, 5e-324, 1e-300, 1e-12, 1e-6, 0.5, 0.999999, 1e6, 1e12, 1e300]
_ODD = st.sampled_from([*_EDGES, float("nan"), float("inf")])


def _number(low: float, high: float, *edges: float) -> st.SearchStrategy[float]:
    """Within the range, its ends and some edges often."""
    ends = st.sampled_from([low, high, *edges])
    return st.one_of(st.floats(low, high, allow_nan=False), ends)


def _amount(low: float, high: float) -> st.SearchStrategy[float]:
    """Over many orders of magnitude."""
    powers = st.floats(math.log10(low), math.log10(high)).map(lambda power: 10.0**power)
    return st.one_of(powers, st.sampled_from([low, high]))


_ALWAYS: dict[str, st.SearchStrategy[Any]] = {
    "models": st.sampled_from([2] * 16 + [3] * 12 + [4, 5, 7, 64]),
    "policies": st.lists(st.sampled_from(list(ASSIGNMENTS)), min_size=1, max_size=2),
    "traffic": _amount(1e-3, 1e9),
    "reward_rate": _number(0.0, 1.0, 0.02, 0.5, 0.98, 0.999999),
    "effect": _amount(1e-4, 1.0),
}
_OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "power": _number(1e-6, 0.999999, 0.5, 0.8),
    "half_width": _amount(1e-6, 1.0),
    "regret": _amount(1e-6, 1.0),
    "budget_requests": _amount(1e-3, 1e12),
    "budget_money": _amount(1e-3, 1e12),
    "budget_harm": _amount(1e-3, 1e12),
    "reward_sd": _amount(1e-6, 0.5),
    "maximise": st.booleans(),
    "price": _amount(1e-9, 1e3),
    "prices": st.lists(_amount(1e-9, 1e3), min_size=2, max_size=5),
    "rate": _number(1e-6, 1.0, 1e-3, 0.25, 0.5, math.nextafter(0.5, 1.0), 0.8),
    "floor": _amount(1e-6, 0.5),
    "delta": _amount(1e-12, 0.5),
    "epsilon": _amount(1e-6, 0.9),
    "sequence": st.sampled_from(["bounded", "per-model", "asymptotic"]),
    "explained": _number(0.0, 0.999999, 0.25, 0.5, 0.75),
    "explainable": _number(0.001, 0.999, 0.0),
    "columns": st.one_of(st.integers(1, 50), st.sampled_from([1, 10_000])),
    "replay_price": _amount(1e-9, 1e3),
    "hour_price": _amount(1e-3, 1e6),
    "window": _amount(1e-3, 1e4),
    "horizon": _amount(1e-3, 1e5),
    "segments": st.one_of(st.integers(0, 5), st.just(64)),
    "rated": _number(0.0, 1.0, 0.01, 0.08, 0.5, 0.97),
    "missing": st.one_of(st.just("worst-case"), _number(0.0, 1.0)),
    "mix": st.lists(_amount(1e-3, 1.0), min_size=2, max_size=5).map(
        lambda shares: [share / sum(shares) for share in shares]
    ),
    "names": st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True),
    "candidate": st.sampled_from("abcde"),
    "title": st.just("A <plan> & its [name]"),
    "seed": st.one_of(st.integers(0, 9), st.just(2**63)),
}
_OUTSIDE: dict[str, st.SearchStrategy[Any]] = {
    "models": st.sampled_from([-1, 0, 1, 65, 2**70]),
    "prices": st.just([]),
    "mix": st.sampled_from([[], [0.5, 0.1], [2.0, -1.0]]),
    "names": st.sampled_from([[], ["a", "a"], ["", "b"]]),
    "candidate": st.just("nobody"),
    "title": st.just(""),
    "policies": st.sampled_from([[], ["contrast"], ["uniform", ""]]),
    "sequence": st.sampled_from(["", "other"]),
    "columns": st.sampled_from([-1, 0, 10_001, 2**70]),
    "segments": st.sampled_from([-1, 65, 2**70]),
    "seed": st.sampled_from([-1, 2**70]),
    "missing": st.sampled_from(["never", -1.0, 2.0]),
    "maximise": st.just(0),
}
"""What no number of a kind may be; for the others `_ODD`."""
_REWARDS = ("effect", "half_width", "regret", "reward_sd", "epsilon")


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A question: what is nearly always asked, some of everything else, now and then an edge."""
    named = {*draw(st.sets(st.sampled_from(sorted(_OPTIONAL)), max_size=8)), *_ALWAYS}
    if draw(st.integers(0, 3)) == 0:
        named -= draw(st.sets(st.sampled_from(sorted(_ALWAYS))))
    every = {**_ALWAYS, **_OPTIONAL}
    data = {name: draw(every[name]) for name in sorted(named)}
    if {"models", "prices"} <= named and draw(st.booleans()):
        data["models"] = len(data["prices"])
    for name in ("mix", "names"):
        if name in data and draw(st.booleans()):
            data["models"] = len(data[name])
    if "reward_rate" in named and data.get("maximise", True) and draw(st.booleans()):
        # Leave room for the effect.
        data["reward_rate"] = min(data["reward_rate"], 1.0 - data.get("effect", 0.0))
    if draw(st.integers(0, 3)) == 0:
        low = draw(_number(-10.0, 10.0, -1e12, 1e12, 1e6))
        span = draw(_amount(1e-6, 1e6))
        data["reward_low"], data["reward_high"] = low, low + span
        data.update({name: data[name] * span for name in _REWARDS if name in data})
        for name in ("reward_rate", "missing"):
            if isinstance(data.get(name), float):
                data[name] = low + data[name] * span
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(every)))
        data[name] = draw(_OUTSIDE.get(name, _ODD))
    return data


def answered(data: dict[str, Any]) -> str:
    """The field that was refused, or "" for a plan; raises where neither holds what it must."""
    try:
        plan = make_plan(Problem.of_numbers(read_request(data)), most=MOST)
    except PlanError as error:
        refused = error
    else:
        hold(plan)
        return ""
    line = str(refused)
    assert "\n" not in line, line
    assert refused.field in line, line
    assert refused.limit in line, line
    return refused.field


def hold(plan: Plan) -> None:
    """What every plan holds: no number that is none, bands in order, chances from 0 to 1."""
    _finite(msgspec.structs.asdict(plan), "plan")
    for name in ("goals", "effects", "rates", "floors", "explained", "segments"):
        for row in getattr(plan, name):
            for band in (row.randomized, row.requests, row.hours, row.money, row.harm):
                if band is not None:
                    _ordered(band)
    if plan.question is not None:
        for world in plan.question.worlds:
            for yes, no in zip(world.yes, world.no, strict=True):
                assert 0.0 <= yes <= yes + no <= 1.0 + 1e-12
    for curve in plan.curves:
        assert all(0.0 <= chance <= 1.0 for chance in curve.chance)
    for each in plan.bought:
        assert all(0.0 <= chance <= 1.0 for chance in [*each.chances, *each.right])
    json = msgspec.json.encode(plan)
    assert msgspec.json.decode(json, type=Plan) == plan
    assert plan.sentence
    assert "nan" not in f" {plan.sentence} ".split()
    as_csv(plan)
    as_page(plan)
    print_plan(plan, Console(file=io.StringIO(), width=80))


def _ordered(band: Interval80) -> None:
    ends = [math.inf if end is None else end for end in (band.low, band.median, band.high)]
    assert ends == sorted(ends), band


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float):
        assert math.isfinite(value), f"{where} is {value}"
    elif isinstance(value, msgspec.Struct):
        _finite(msgspec.structs.asdict(value), where)
    elif isinstance(value, dict):
        for name, each in value.items():
            _finite(each, f"{where}.{name}")
    elif isinstance(value, list):
        for each in value:
            _finite(each, where)


def main(count: int) -> None:
    """Ask `count` random questions and print what became of them."""
    fields: Counter[str] = Counter()

    @seed(1)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans())
    def ask(data: dict[str, Any]) -> None:
        fields[answered(data)] += 1

    ask()
    print(f"{fields.total()} asked, {fields.pop('')} answered, refused by field: {dict(fields)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
