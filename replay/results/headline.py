"""Plain sentences about a replay: what the log says, what is true, who finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Scenario: TypeAlias = Mapping[str, Any]

NEAR = 0.02
"""A mean regret (reward units) up to this is close enough not to be called wrong."""


def headline(scenarios: Sequence[Scenario]) -> str:
    """The result of a replay in a few sentences."""
    if len(scenarios) == 1:
        return scenario_headline(scenarios[0])
    pairs = sum(each["pairs"] for each in scenarios)
    right = sum(each["pairs_right"] for each in scenarios)
    parts = [naive_sentence(scenarios)]
    if pairs:
        parts.append(
            f"{_with_requests(scenarios)}, {right} of {pairs} combinations of setting, policy and "
            "estimator find the best model."
        )
    kept = sum(each["routing"]["beats_best"] for each in scenarios)
    if kept:
        parts.append(f"In {kept} settings no single model beats today's routing.")
    return " ".join(parts)


def scenario_headline(scenario: Scenario) -> str:
    """The result of one scenario: the log, the truth, the pairs, and today's routing."""
    naive, best = scenario["naive"], scenario["best"]
    often = _in_most_runs(naive)
    if naive["misleads"]:
        first = (
            f"The usage log recommends {naive['model']}, which is worth "
            f"{reward(naive['value'])}{often}; the best model is {best_name(scenario)} at "
            f"{reward(best['value'])}."
        )
    else:
        first = (
            f"The usage log recommends {naive['model']}{often}, worth {reward(naive['value'])}, "
            "and it is right: no model is better."
        )
    parts = [first, pairs_sentence(scenario)]
    if scenario["routing"]["beats_best"]:
        parts.append(routing_sentence(scenario))
    return " ".join(part for part in parts if part)


def naive_sentence(scenarios: Sequence[Scenario]) -> str:
    """Whether the naive comparison of the log misleads."""
    if len(scenarios) > 1:
        misled = [each["naive"] for each in scenarios if each["naive"]["misleads"]]
        if not misled:
            return f"The usage log names a best model in all {len(scenarios)} settings."
        worst = max(naive["loss"] for naive in misled)
        return (
            f"In {len(misled)} of {len(scenarios)} settings the usage log recommends a model that "
            f"is not the best, which loses up to {reward(worst)}."
        )
    naive = scenarios[0]["naive"]
    often, model = _in_most_runs(naive), naive["model"]
    if naive["misleads"]:
        return (
            f"The naive comparison of the usage log misleads: it puts {model} first{often}. The "
            f"requests that choose {model} do earn {reward(naive['limit'])} on average, but given "
            f"to everyone it is worth {reward(naive['value'])}, "
            f"{reward(naive['loss'])} less than {best_name(scenarios[0])}."
        )
    return (
        f"The naive comparison of the usage log does not mislead here: it names "
        f"{naive['model']}{often}, which is a best model."
    )


def routing_sentence(scenario: Scenario) -> str:
    """Whether today's routing is better than every single model."""
    routing, best, kept = scenario["routing"], scenario["best"], scenario["routing"]["advised_by"]
    advice = f" {kept} of {scenario['pairs']} pairs advise to keep it." if kept else ""
    if routing["beats_best"]:
        return (
            "No single model beats what is deployed: today's routing is worth "
            f"{reward(routing['value'])}, the best single model, {best_name(scenario)}, "
            f"{reward(best['value'])}.{advice}"
        )
    return (
        f"Today's routing is worth {reward(routing['value'])}; {best_name(scenario)} for everyone "
        f"would add {reward(best['value'] - routing['value'])}.{advice}"
    )


def pairs_sentence(scenario: Scenario) -> str:
    """How many pairs of policy and estimator find a best model in the end; may be empty."""
    pairs, right, near = scenario["pairs"], scenario["pairs_right"], scenario["pairs_near"]
    if not pairs:
        return ""
    in_most = " in most of their runs" if scenario["runs"] > 1 else ""
    if right == pairs:
        found = f"every policy × estimator pair finds {best_name(scenario)}{in_most}"
    elif not right:
        found = f"no policy × estimator pair finds {best_name(scenario)}{in_most}"
    else:
        found = f"{right} of {pairs} policy × estimator pairs find {best_name(scenario)}{in_most}"
    if near:
        found += f", {near} {'more come' if right else 'come'} within {NEAR:g} of it"
    return f"{_with_requests([scenario])}, {found}{_log_alone(scenario)}."


def _log_alone(scenario: Scenario) -> str:
    share = scenario["naive"]["right_share"]
    if not scenario["naive"]["misleads"]:
        return ""
    if not share:
        return "; the log alone never does"
    return f"; the log alone does in {percent(share)} of the runs"


def _with_requests(scenarios: Sequence[Scenario]) -> str:
    used = sum(each["exp_used"] for each in scenarios) / len(scenarios)
    rounded = round(used, min(0, 2 - len(str(int(used)))))
    about = "" if abs(used - rounded) < 0.5 else "about "
    return f"With {about}{rounded:,.0f} randomized requests"


def _in_most_runs(naive: Mapping[str, Any]) -> str:
    share = naive["recommended_share"]
    return "" if share is None or share == 1 else f" (in {percent(share)} of the runs)"


def best_name(scenario: Scenario) -> str:
    """The best model, or all that tie."""
    return " or ".join(scenario["best"]["models"])


def reward(value: float | None) -> str:
    """A number in reward units for people.

    >>> reward(0.4118), reward(-0.0001), reward(1234.5), reward(None)
    ('0.412', '0.000', '1,234', 'unknown')
    >>> reward(-0.25)
    '−0.250'
    """
    if value is None:
        return "unknown"
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else minus(text)


def minus(number: str) -> str:
    """A formatted number with a minus sign in place of the hyphen."""
    return number.replace("-", "−")


def percent(share: float) -> str:
    """A share as a whole percentage; only all and none are 100% and 0%.

    >>> percent(0.8), percent(0.999), percent(0.001), percent(1.0)
    ('80%', '>99%', '<1%', '100%')
    """
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{share:.0%}"


def printable(text: str) -> str:
    """Text from a file without control characters, which could move a terminal's cursor."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
