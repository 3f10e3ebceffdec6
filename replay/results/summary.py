"""A replay as one JSON-able dict: a row per scenario, policy and estimator, and plain sentences.

Every number is {"mean": x, "interval": [low, high]}: the mean over runs and its 95% bootstrap
interval over seeds (Wilson's for shares of runs), null where unknown. A dict of the same results
is always the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from equipoise.agent.answers.recommendation import KEEP_ROUTING
from equipoise.replay.results.averages import (
    FEWEST_RUNS,
    NAIVE,
    Floats,
    Mean,
    Pair,
    ResultsError,
    Runs,
    area_under,
    bootstrap_interval,
    mean_with_interval,
    resampled_means,
    runs_by_scenario,
    settles_at,
    share_with_interval,
)

Scenario: TypeAlias = Mapping[str, Any]

FAMILIES = (
    NAIVE,
    "ipw",
    "obs-only",
    "representation-exp",
    "cvci",
    "grounded",
    "doubly-robust",
    "hierarchical",
)
"""The order in which estimators are shown; others follow in the order of the results."""

LIMITS = (0.005, 0.01, 0.02)
"""Regrets (reward units) for which the randomized requests needed are reported."""

MEANS = (
    *("regret", "regret_action", "bias", "rmse", "rmse_contrast", "width"),
    *("exp_used", "requests", "spend", "harm"),
)
SIGNED = ("bias", "harm")
SHARES = ("covered", "ever_miscovered")

NEAR = 0.02
"""A mean regret (reward units) up to this is close enough not to be called wrong."""


def summarize(results: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize a replay.

    results: one row per run, checkpoint and estimator (see `equipoise.replay.harness.stream`).
    meta: benchmark, title, source, models, version, options, and scenarios with alpha,
    confounding, values, naive_limit (both model -> reward) and routing_value. usage_log: False
    where every request was randomized, so that there is neither a log nor a routing to speak of.
    invented, exclusions, certainty: what was made up, left out, and would be needed.
    Raises ResultsError for results that cannot be averaged or a scenario without truth.
    """
    truths = {(each["alpha"], each["confounding"]): each for each in meta["scenarios"]}
    epsilon = float(meta["options"].get("epsilon", 0.0))
    scenarios, rows = [], []
    log = bool(meta.get("usage_log", True))
    for scenario, runs in runs_by_scenario(results, epsilon).items():
        if not log:
            runs = {pair: each for pair, each in runs.items() if pair[1] != NAIVE}
        if scenario not in truths:
            raise ResultsError(f"meta: no scenario has alpha, confounding = {scenario}")
        of_setting = [
            _row(scenario, pair, runs[pair], meta["models"], log) for pair in ordered(runs)
        ]
        scenarios.append(_scenario(truths[scenario], of_setting, meta))
        rows += of_setting
    return {
        "benchmark": meta["benchmark"],
        "title": meta["title"],
        "version": meta["version"],
        "options": dict(meta["options"]),
        "headline": " ".join([invented_sentence(meta), headline(scenarios)]).strip(),
        "notes": list(notes(scenarios, rows, meta)),
        "naive": {
            "misleads": any(each["naive"]["misleads"] for each in scenarios),
            "scenarios": len(scenarios),
            "scenarios_misled": sum(each["naive"]["misleads"] for each in scenarios),
            "sentence": naive_sentence(scenarios) if meta.get("usage_log", True) else "",
        },
        "scenarios": scenarios,
        "rows": rows,
    }


def ordered(pairs: Mapping[Pair, Runs]) -> list[Pair]:
    """Pairs by policy as in the results, then by estimator in the order of FAMILIES."""
    policies = list(dict.fromkeys(policy for policy, _ in pairs))
    estimators = [*FAMILIES, *(estimator for _, estimator in pairs)]
    return sorted(pairs, key=lambda pair: (policies.index(pair[0]), estimators.index(pair[1])))


def _row(
    scenario: tuple[float, float], pair: Pair, runs: Runs, models: Sequence[str], log: bool
) -> dict[str, Any]:
    recommended, share = _most_often(runs.last["recommended"], models)
    action, action_share = _most_often(runs.last["action"], [*models, KEEP_ROUTING])
    decided = np.isfinite(runs.final("decided_at"))
    right, regret = _share(runs.right), _mean(runs.final("regret"), "regret")
    return {
        "alpha": scenario[0],
        "confounding": scenario[1],
        "policy": pair[0],
        "estimator": pair[1],
        "runs": len(runs.seeds),
        "log": log,
        "recommended": recommended,
        "recommended_share": share,
        "action": action,
        "action_share": action_share,
        "verdict": _verdict(recommended, right["mean"], regret["mean"]),
        "right": right,
        "settled": {f"{limit:g}": _settled(runs, limit) for limit in LIMITS},
        **_areas(runs),
        **{name: _mean(runs.final(name), name) for name in MEANS},
        **{name: _share(runs.final(name)) for name in SHARES},
        "decided": _share(decided.astype(float)),
        "decided_at": _mean(runs.final("decided_at")),
        "decided_wrong": _share(1.0 - runs.final("decided_right")),
    }


def _scenario(
    truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]
) -> dict[str, Any]:
    values: dict[str, float] = dict(truth["values"])
    limits: dict[str, float] = dict(truth["naive_limit"])
    best = max(values.values())
    winners = [name for name, value in values.items() if value >= best - 1e-9]
    routing = float(truth["routing_value"])
    pairs = [row for row in rows if row["estimator"] != NAIVE]
    scenario: dict[str, Any] = {
        "alpha": truth["alpha"],
        "confounding": truth["confounding"],
        "runs": max(row["runs"] for row in rows),
        "models": [
            {"model": name, "value": number(values[name]), "naive_limit": number(limits[name])}
            for name in meta["models"]
        ],
        "best": {"models": winners, "value": number(best)},
        "routing": {
            "value": number(routing),
            "beats_best": bool(routing >= best),
            "advised_by": sum(row["action"] == KEEP_ROUTING for row in pairs),
        },
        "naive": _naive(rows, values, limits),
        "usage_log": bool(meta.get("usage_log", True)),
        "epsilon": float(meta["options"].get("epsilon", 0.0)),
        "exp_used": number(float(np.mean([row["exp_used"]["mean"] for row in pairs or rows]))),
        "pairs": len(pairs),
        "pairs_right": sum(row["verdict"] == "right" for row in pairs),
        "pairs_near": sum(row["verdict"] == "near" for row in pairs),
    }
    if not scenario["usage_log"]:
        scenario["naive"] = {**dict.fromkeys(scenario["naive"]), "misleads": False}
        scenario["routing"] = {"value": None, "beats_best": False, "advised_by": 0}
    scenario["naive"]["sentence"] = naive_sentence([scenario])
    scenario["routing"]["sentence"] = routing_sentence(scenario)
    scenario["pairs_sentence"] = pairs_sentence(scenario)
    scenario["headline"] = scenario_headline(scenario)
    return scenario


def _naive(
    rows: Sequence[Mapping[str, Any]], values: Mapping[str, float], limits: Mapping[str, float]
) -> dict[str, Any]:
    """What the log alone recommends: in the runs, or with endless data where none looked."""
    answers = [row for row in rows if row["estimator"] == NAIVE and row["recommended"] is not None]
    best = max(values.values())
    if answers:
        model = str(answers[0]["recommended"])
        right = float(np.mean([row["right"]["mean"] for row in answers]))
        share = float(np.mean([row["recommended_share"] for row in answers]))
    else:
        model = max(limits, key=lambda name: limits[name])
        right, share = float(values[model] >= best - 1e-9), 1.0
    return {
        "model": model,
        "value": number(values[model]),
        "limit": number(limits[model]),
        "loss": number(best - values[model]),
        "recommended_share": number(share),
        "right_share": number(right),
        "misleads": right <= 0.5,
    }


def _verdict(recommended: str | None, right: float, regret: float | None) -> str:
    """Right in most runs, else near or wrong by the mean regret; silent without an answer."""
    if recommended is None or regret is None:
        return "silent"
    if right > 0.5:
        return "right"
    return "near" if regret <= NEAR else "wrong"


def _most_often(words: Sequence[str | None], order: Sequence[str]) -> tuple[str | None, float]:
    """What most runs say and their share; ties go to what comes first in `order`."""
    counts = Counter(words)
    first: list[str | None] = [*order, *words, None]
    winner = max(counts, key=lambda name: (counts[name], -first.index(name)))
    return winner, number(counts[winner] / len(words)) or 0.0


def _areas(runs: Runs) -> dict[str, Any]:
    """Area under the regret curve (reward units x EXP), and the same per randomized request."""
    area = area_under(runs.numbers["regret"], runs.checkpoints)
    return {
        "regret_area": _mean(area, "regret"),
        "regret_average": _mean(runs.average_regret, "regret"),
    }


def _settled(runs: Runs, limit: float) -> dict[str, Any]:
    """EXP from which the mean regret stays <= limit. null: not within the replay."""
    regret = runs.numbers["regret"]
    at = settles_at(mean_with_interval(regret).mean[None], runs.checkpoints, limit)[0]
    resampled = settles_at(resampled_means(regret), runs.checkpoints, limit)
    # A quantile between two draws would average a number with "never".
    ends = bootstrap_interval(resampled, len(regret), "inverted_cdf")
    interval = None if math.isnan(ends[0]) else [number(end) for end in ends]
    return {"exp": number(at), "interval": interval}


def _mean(values: Floats, column: str = "") -> dict[str, Any]:
    least = -math.inf if column in SIGNED else 0.0
    return as_json(mean_with_interval(values[:, None], least))


def _share(values: Floats) -> dict[str, Any]:
    return as_json(share_with_interval(values[:, None]))


def as_json(means: Mean, position: int = 0) -> dict[str, Any]:
    """One of C means as {"mean", "interval"}."""
    low, high = number(means.low[position]), number(means.high[position])
    interval = None if low is None or high is None else [low, high]
    return {"mean": number(means.mean[position]), "interval": interval}


def number(value: float) -> float | None:
    """A float of 10 digits, so that the last bits of a sum never show; None where unknown."""
    value = float(value)
    return float(f"{value:.10g}") + 0.0 if math.isfinite(value) else None


def headline(scenarios: Sequence[Scenario]) -> str:
    """The result of a replay in a few sentences."""
    if len(scenarios) == 1:
        return scenario_headline(scenarios[0])
    pairs = sum(each["pairs"] for each in scenarios)
    right = sum(each["pairs_right"] for each in scenarios)
    parts = [naive_sentence(scenarios)] if scenarios[0]["usage_log"] else []
    if pairs:
        parts.append(
            f"{_with_requests(scenarios)}, {right} of {pairs} combinations of setting, policy and "
            "estimator find the best model."
        )
    routed = sum(each["routing"]["beats_best"] for each in scenarios)
    if routed:
        parts.append(f"In {routed} settings no single model beats today's routing.")
    return " ".join(parts)


def scenario_headline(scenario: Scenario) -> str:
    """The result of one scenario: the log, the truth, the pairs, and today's routing."""
    naive, best = scenario["naive"], scenario["best"]
    often = _in_most_runs(naive)
    if not scenario["usage_log"]:
        first = f"The best model is {best_name(scenario)} at {reward(best['value'])}."
    elif naive["misleads"]:
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


def invented_sentence(meta: Mapping[str, Any]) -> str:
    """What of a replay is no measurement, by name; empty where a description does not say."""
    if "invented" not in meta:
        return ""
    names = [each["name"] for each in meta["invented"]]
    if names:
        return f"Invented: {_listed(names)}."
    return "Rewards are those of the table, nothing is invented but which request comes when."


def notes(
    scenarios: Sequence[Scenario], rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]
) -> Iterator[str]:
    """What else a reader has to know: inventions, what was left out, intervals, what is missing."""
    details = [each["detail"] for each in meta.get("invented", ())]
    if details:
        yield f"What is invented: {'; '.join(details)}."
    if meta.get("scale"):
        yield f"{meta['scale']}."
    left_out = meta.get("exclusions", {})
    if left_out:
        yield f"Left out: {'; '.join(f'{why}: {count:,}' for why, count in left_out.items())}."
    if meta.get("without_log"):
        yield (
            f"There is no usage log, which {_listed(meta['without_log'])} need:"
            f" {meta['without_log_words']}."
        )
    if epsilon := meta["options"].get("epsilon"):
        yield f"A model within {epsilon:g} of the best counts as right, and is what is certified."
    runs = max(each["runs"] for each in scenarios)
    if runs < FEWEST_RUNS:
        many = "This is 1 run" if runs == 1 else f"These are means of {runs} runs"
        yield f"{many}. Intervals need at least {FEWEST_RUNS} runs (seeds)."
    if len(scenarios) == 1 and meta.get("certainty"):
        yield certainty_sentence(meta["certainty"], rows)


def certainty_sentence(certainty: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What it takes to certify the best model, and how to plan for it."""
    best = max(row["decided"]["mean"] for row in rows)
    known = f"Certified in {percent(best)} of the runs of the best policy" if best else ""
    known = known or "Nothing was certified"
    if certainty["median"] is None:
        return (
            f"{known}; the best models are too close for {certainty['policy']} to tell apart: "
            "a larger epsilon asks for less."
        )
    needed = _rounded(certainty["median"])
    return (
        f"{known}; half of such experiments certify by {needed} randomized requests under "
        f"{certainty['policy']}. Plan one: {certainty['command']}"
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rounded(count: float) -> str:
    """To two digits.

    >>> _rounded(12_345.0), _rounded(87.0)
    ('12,000', '87')
    """
    return f"{round(count, min(0, 2 - len(str(int(count))))):,.0f}"


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
    if naive["model"] is None:
        return ""
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
    routing, best = scenario["routing"], scenario["best"]
    if routing["value"] is None:
        return ""
    advisers = routing["advised_by"]
    advice = f" {advisers} of {scenario['pairs']} pairs advise to keep it." if advisers else ""
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
        finders = f"every policy × estimator pair finds {target(scenario, name=True)}{in_most}"
    elif not right:
        finders = f"no policy × estimator pair finds {target(scenario, name=True)}{in_most}"
    else:
        found = f"{target(scenario, name=True)}{in_most}"
        finders = f"{right} of {pairs} policy × estimator pairs find {found}"
    if near and scenario["epsilon"] < NEAR:
        verb = "comes" if near == 1 else "come"
        more = f" more {verb}" if right else f" {verb}"
        finders += f", {near}{more} within {NEAR:g} of it"
    return f"{_with_requests([scenario])}, {finders}{_log_alone(scenario)}."


def target(scenario: Scenario, name: bool = False) -> str:
    """What counts as right: the best model, or one within epsilon of it."""
    best = best_name(scenario) if name else "the best model"
    epsilon = scenario["epsilon"]
    return f"a model within {epsilon:g} of {best}" if epsilon else best


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
