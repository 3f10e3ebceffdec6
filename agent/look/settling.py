"""What would settle it: the product's own plan for the numbers of a log."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from equipoise.agent.errors import PlanError
from equipoise.agent.look.findings import Findings, ModelRow
from equipoise.agent.planning.plan import Plan, make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request

LEAST_SHARE, LEAST_REQUESTS, MOST_COMPARED = 0.01, 20, 12
DIGITS = 4
"""Significant digits of the numbers that go into a plan, so that its command line is the plan."""
EFFECT = 0.05
"""The difference that is planned for where nobody names one, as a share of the reward's range."""
SOFT = re.compile(r"[^A-Za-z0-9._:/@+\-]+")


class Settled(msgspec.Struct, frozen=True):
    """What would settle it. rate: share of requests to randomize. command: the same plan on the
    command line. compared: models of the log to their names in it. why: why there is no plan, ""
    where there is one."""

    rate: float
    maximise: bool
    why: str
    command: str
    compared: dict[str, str]
    left_out: list[str]
    plan: Plan | None


def compared(models: Sequence[ModelRow]) -> dict[str, str]:
    """The models worth comparing, by the names that a configuration can hold."""
    kept = [
        model.name
        for model in models
        if model.share >= LEAST_SHARE and model.requests >= LEAST_REQUESTS
    ][:MOST_COMPARED]
    names: dict[str, str] = {}
    for model in kept:
        name = SOFT.sub("-", model).strip("-._:/@+")[:100] or "model"
        while name in names.values():
            name += "-2"
        names[model] = name
    return names


def settled(
    findings: Findings,
    *,
    effect: float | None = None,
    traffic: float | None = None,
    rate: float | None = None,
    minimise: bool = False,
    unread: Mapping[str, str] = MappingProxyType({}),
) -> Settled:
    """The product's own plan for the numbers of the log. unread: role to why the column of that
    name was not taken. Raises PlanError where an option is wrong; where the log lacks what a plan
    needs, `why` says so."""
    share, maximise = 0.1 if rate is None else rate, not minimise
    names = compared(findings.models)
    rest = [model.name for model in findings.models if model.name not in names]
    reward = findings.reward
    fields: dict[str, Any] = {}
    options = {"effect": effect, "traffic": traffic, "rate": rate}
    given = {name for name, value in options.items() if value is not None}
    if traffic is None:
        traffic = findings.traffic
    if len(names) < 2:
        why = "the log holds one model: there is nothing to compare it with"
        few = [f"{model.name} ({model.requests:,})" for model in findings.models[:8]]
        if len(few) > 1:
            why = f"too few requests of the models: {', '.join(few)}; a plan compares those with"
            why += f" {LEAST_REQUESTS} requests and {100 * LEAST_SHARE:g}% of the log, or more"
        return Settled(share, maximise, why, "", names, rest, None)
    if reward is None:
        fix = "name its column with --reward, or give one to requests first"
        why = f"no row has a reward: {unread.get('reward', fix)}"
        return Settled(share, maximise, why, "", names, rest, None)
    if traffic is None:
        fix = "say how many requests an hour there are with --traffic"
        why = f"no row has a time: {unread['at'] + '; ' if 'at' in unread else ''}{fix}"
        return Settled(share, maximise, why, "", names, rest, None)
    mean = rounded(reward.mean)
    room = reward.high - mean if not minimise else mean - reward.low
    if effect is None:
        effect = rounded(min(EFFECT * (reward.high - reward.low), room / 2.0), 2)
    if not room > 0:
        best = "lowest" if minimise else "highest"
        why = f"every reward is the {best} there can be: no model can be better"
        return Settled(share, maximise, why, "", names, rest, None)
    rows = [model for model in findings.models if model.name in names]
    fields |= {
        "names": list(names.values()),
        "traffic": rounded(traffic),
        "reward_rate": mean,
        "effect": effect,
    }
    if rate is not None:
        fields["rate"] = rate
    if (reward.low, reward.high) != (0.0, 1.0):
        fields |= {"reward_low": reward.low, "reward_high": reward.high}
    if minimise:
        fields["maximise"] = False
    if not reward.binary:
        most = ((mean - reward.low) * (reward.high - mean)) ** 0.5
        fields["reward_sd"] = min(rounded(reward.sd), _down(most))
    if all(model.cost is not None for model in rows):
        fields["prices"] = [rounded(model.cost or 0.0) for model in rows]
    total = sum(model.requests for model in rows)
    fields["mix"] = [rounded(model.requests / total) for model in rows]
    rated = reward.rated / findings.used
    if rated < 0.9995:
        fields |= {"rated": rounded(rated), "missing": "rated"}
    try:
        plan = make_plan(Problem.of_numbers(read_request(fields)))
    except PlanError as error:
        if error.field in given:
            raise
        return Settled(share, maximise, str(error), _command(fields), names, rest, None)
    return Settled(share, maximise, "", _command(fields), names, rest, plan)


def rounded(number: float, digits: int = DIGITS) -> float:
    return float(f"{number:.{digits}g}")


def _down(number: float) -> float:
    """To four digits, never up."""
    near = rounded(number)
    return near if near <= number else float(f"{number * (1 - 10.0**-DIGITS):.{DIGITS}g}")


def _command(fields: Mapping[str, Any]) -> str:
    names = fields["names"]
    words = ["equipoise plan", f"--models {','.join(names)}"]
    for name, value in fields.items():
        if name == "names":
            continue
        if name == "maximise":
            words.append("--minimise")
        elif name in ("prices", "mix"):
            pairs = ",".join(f"{who}={plain(each)}" for who, each in zip(names, value, strict=True))
            words.append(f"--{'price' if name == 'prices' else name} {pairs}")
        else:
            shown = value if isinstance(value, str) else plain(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def plain(number: float) -> str:
    return repr(number).removesuffix(".0")
