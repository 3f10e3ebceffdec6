"""What a plan was asked, in words: names, numbers and units, for whoever reads it later."""

from __future__ import annotations

import msgspec
import numpy as np

from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.wording import count, dollars, duration, figure, percent


class Input(msgspec.Struct, frozen=True):
    """One line of what was asked: its name, and the value with its unit."""

    name: str
    value: str


def inputs(problem: Problem, effect: float) -> list[Input]:
    """Everything that the numbers of a plan follow from. effect: on the [0, 1] scale."""
    request = problem.request
    lines = [
        ("models", ", ".join(problem.names)),
        ("traffic", _traffic(problem)),
        ("mean reward today", _reward(problem)),
        ("rewards", _rewards(problem)),
        ("requests that are rated", _rated(problem)),
        ("difference to find", figure(effect * problem.scale)),
        ("power", percent(request.power)),
        ("wrong in at most", f"{percent(request.delta)} of such experiments, at any look"),
        ("within the best counts as best", _optional(request.epsilon)),
        ("half-width", "" if request.half_width is None else f"± {figure(request.half_width)}"),
        ("regret", "" if request.regret is None else figure(request.regret)),
        ("share randomized", percent(request.rate)),
        ("least probability of a model", percent(problem.floor)),
        ("certified by", f"the {request.sequence} sequence"),
        ("explained by replays", percent(problem.explained) if problem.explained else ""),
        ("prices", _prices(problem)),
        ("today's routing", _mix(problem)),
        ("budget", _budget(problem)),
        ("reward is final after", duration(request.window) if request.window else ""),
        ("horizon", "none" if request.horizon is None else duration(request.horizon)),
        ("segments", str(request.segments) if request.segments else ""),
        ("seed", str(request.seed)),
    ]
    return [Input(name, value) for name, value in lines if value]


def _optional(value: float) -> str:
    return figure(value) if value else ""


def _traffic(problem: Problem) -> str:
    traffic = problem.request.traffic
    if traffic is None:
        return ""
    return f"{count(traffic)} requests an hour ({count(24.0 * traffic)} a day)"


def _reward(problem: Problem) -> str:
    rate = problem.request.reward_rate
    return "" if rate is None or problem.source != "numbers" else figure(rate)


def _rewards(problem: Problem) -> str:
    request = problem.request
    kind = "0 or 1" if problem.variances is None else "between"
    low, high = figure(request.reward_low), figure(request.reward_high)
    text = f"{low} or {high}" if kind == "0 or 1" else f"{low} to {high}"
    if request.reward_sd is not None:
        text += f", standard deviation {figure(request.reward_sd)}"
    return f"{text}, {'larger' if request.maximise else 'smaller'} is better"


def _rated(problem: Problem) -> str:
    """The share, and what the others count as."""
    rated = float(problem.rated.mean())
    if rated == 1.0:
        return "100%: every reward comes (--rated SHARE where not)"
    missing = problem.request.missing_value
    others = "the worst case" if problem.missing is None else figure(missing or 0.0)
    return f"{percent(rated)}; the others count as {others}"


def _prices(problem: Problem) -> str:
    prices = problem.prices
    if not np.isfinite(prices).any():
        return ""
    if (prices == prices[0]).all():
        return f"{dollars(float(prices[0]))} (USD) a request"
    each = [
        f"{name} {dollars(price) if np.isfinite(price) else 'unknown'}"
        for name, price in zip(problem.names, prices.tolist(), strict=True)
    ]
    return f"{', '.join(each)} (USD a request)"


def _mix(problem: Problem) -> str:
    if problem.mix is None:
        return ""
    pairs = zip(problem.names, problem.mix.tolist(), strict=True)
    text = ", ".join(f"{name} {percent(share)}" for name, share in pairs)
    return text if problem.today is None else f"{text}; {dollars(problem.today)} a request"


def _budget(problem: Problem) -> str:
    request = problem.request
    parts = [
        "" if request.budget_requests is None else f"{count(request.budget_requests)} requests",
        "" if request.budget_money is None else f"{dollars(request.budget_money)} (USD)",
        "" if request.budget_harm is None else f"{figure(request.budget_harm)} reward lost",
    ]
    return ", ".join(part for part in parts if part)
