"""The tables of a replay's report: verdicts, costs, certificates, and every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from equipoise.agent.answers.recommendation import KEEP_ROUTING
from equipoise.policies.registry import ASSIGNMENTS
from equipoise.replay.findings.findings import Entry, Measured, Percentage, Table, Verdict
from equipoise.replay.findings.page import label
from equipoise.replay.results.averages import NAIVE
from equipoise.replay.results.summary import NEAR, minus, percent, reward

Row: TypeAlias = Mapping[str, Any]

REGRET = "Regret is the true value of the best model less that of the recommended one."
LOST = ("harm (rewards lost)",)
HARM = (
    "Harm: rewards lost in all by serving the randomized requests another model than the routed "
    "one, such as thumbs-up that did not come; negative where they gained. "
)
SHARES = ("decided", "decided_wrong", "covered", "ever_miscovered")


def distinct(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def number(value: Mapping[str, Any], share: bool = False) -> Measured:
    """A number of the summary. share: of runs, to be read as a percentage."""
    low, high = value["interval"] or (None, None)
    return (Percentage if share else Measured)(value["mean"], low, high)


def verdicts(rows: Sequence[Row], settings: int) -> Table:
    """Who recommends what in the end: estimators down, policies across."""
    policies = distinct(rows, "policy")
    lines: list[tuple[Entry, ...]] = []
    for estimator in distinct(rows, "estimator"):
        cells: list[Entry] = [label(estimator)]
        for policy in policies:
            pair = [row for row in rows if (row["policy"], row["estimator"]) == (policy, estimator)]
            verdict = _verdict(pair[0]) if settings == 1 and pair else _average_verdict(pair)
            cells.append(verdict if pair else "not run")
        lines.append(tuple(cells))
    log = any(row["estimator"] == NAIVE for row in rows)
    caption = "The usage log alone compares the models' mean rewards in it. " * log + (
        "Each cell: whether the model "
        "recommended in the end is right (a best one; with epsilon, one that is within epsilon of "
        f"it), its regret and its name. {REGRET} near: not right, but a mean regret of at most "
        f"{NEAR:g}."
    )
    runs = rows[0]["runs"]
    if settings > 1:
        caption = (
            f"Averages over {settings} settings: share of runs that end with a best model, mean "
            f"regret, and the mean regret in the worst setting. {REGRET}"
        )
    elif runs > 1:
        caption += (
            f" Over {runs} runs: how many of them are right, the mean regret, and the name that "
            "most of them recommend."
        )
    caption += _baselines(policies)
    return Table(
        "verdicts", "Who finds the best model?", caption, ("estimator", *policies), tuple(lines)
    )


def _baselines(policies: Sequence[str]) -> str:
    """Which columns are there to be compared with, and what it is that they serve."""
    pairs = {name: name.partition("+")[2] or name for name in policies}
    said = [
        f"{name} is {ASSIGNMENTS[part].idea}"
        for name, part in pairs.items()
        if part in ASSIGNMENTS and ASSIGNMENTS[part].baseline
    ]
    return f" Baselines: {'; '.join(said)}." if said else ""


def _verdict(row: Row) -> Verdict:
    runs, right = row["runs"], row["right"]["mean"]
    if row["verdict"] == "silent":
        return Verdict("silent")
    often = "" if runs == 1 else f"{round(runs * right)}/{runs}".rjust(2 * len(str(runs)) + 1)
    return Verdict(
        row["verdict"],
        row["recommended"],
        number(row["regret"]),
        percent(right).rjust(4) if runs >= 100 else often,
        "advises to keep today’s routing" if row["action"] == KEEP_ROUTING and row["log"] else "",
    )


def _average_verdict(rows: Sequence[Row]) -> Verdict:
    regrets = [row["regret"]["mean"] for row in rows if row["regret"]["mean"] is not None]
    if not regrets:
        return Verdict("silent")
    right = float(np.mean([row["right"]["mean"] for row in rows]))
    regret = Measured(float(np.mean(regrets)))
    grade: Any = "right" if right > 0.5 else "wrong"
    return Verdict(grade, f"≤ {reward(max(regrets))}", regret, percent(right).rjust(4))


def costs(rows: Sequence[Row], log: bool) -> Table:
    """What each policy used and risked; a range where estimators steered different streams."""
    lines: list[tuple[Entry, ...]] = []
    for policy in distinct(rows, "policy"):
        streams = [row for row in rows if row["policy"] == policy and row["estimator"] != NAIVE]
        streams = streams or [row for row in rows if row["policy"] == policy]
        decided = percent(float(np.mean([row["decided"]["mean"] for row in streams])))
        at = _range(streams, "decided_at", ",.0f")
        lines.append(
            (
                policy,
                _range(streams, "exp_used", ",.0f"),
                _range(streams, "spend", ",.2f"),
                *([_range(streams, "harm", ",.1f")] if log else []),
                decided if decided == "0%" else f"{decided} at {at}",
                _range(streams, "decided_wrong", ".0%"),
            )
        )
    return Table(
        "costs",
        "At what cost?",
        "Spend: USD on randomized requests, if costs are known. "
        + HARM * log
        + "Certified: share of runs that named the best model (with epsilon, one that is within "
        "epsilon of it) with a guarantee, after how many randomized requests, and how many of "
        "those runs were wrong.",
        ("policy", "randomized", "spend (USD)", *LOST[:log], "certified", "wrong"),
        tuple(lines),
    )


def _range(rows: Sequence[Row], column: str, form: str) -> str:
    """The mean of a column, as low to high where it differs between estimators."""
    means = [row[column]["mean"] for row in rows if row[column]["mean"] is not None]
    if not means:
        return "–"
    low, high = format(min(means), form), format(max(means), form)
    return minus(low if low == high else f"{low} to {high}")


def certificates(rows: Sequence[Row], log: bool) -> Table:
    """What each policy used, and what it certified. Streams that are the same share a line."""
    columns = (
        *("exp_used", "spend", *["harm"][:log], "decided", "decided_at", "decided_wrong"),
        *("width", "covered", "ever_miscovered"),
    )
    lines: list[tuple[Entry, ...]] = []
    for policy in distinct(rows, "policy"):
        streams: dict[tuple[Measured, ...], list[str]] = {}
        for row in rows:
            if row["policy"] == policy and row["estimator"] != NAIVE:
                cells = tuple(number(row[name], name in SHARES) for name in columns)
                streams.setdefault(cells, []).append(row["estimator"])
        for cells, estimators in streams.items():
            steered = f", steered by {', '.join(estimators)}" if len(streams) > 1 else ""
            lines.append((policy + steered, *cells))
    return Table(
        "certified",
        "What is certified",
        "Certified intervals rest on the logged probabilities, and on requests being served as "
        "logged, alone: neither the usage log nor the simulator nor an estimator can break them. "
        "They hold at all moments at once, and are wider for it. " + HARM * log,
        (
            *("policy", "randomized", "spend (USD)", *LOST[:log], "share certified"),
            *("EXP until certified", "share wrong", "half-width", "share covered in the end"),
            "share ever missed",
        ),
        tuple(lines),
    )


def every_number(rows: Sequence[Row], log: bool) -> Table:
    limits, advice = list(rows[0]["settled"]), ["regret_action"][:log]
    lines: list[tuple[Entry, ...]] = []
    for row in rows:
        share = row["recommended_share"]
        often = "" if share == 1 else f" ({percent(share)} of runs)"
        lines.append(
            (
                f"{row['policy']} × {label(row['estimator'])}",
                "–" if row["recommended"] is None else row["recommended"] + often,
                number(row["right"], share=True),
                *(number(row[n]) for n in ("regret", *advice, "regret_average")),
                *(_settled(row["settled"][limit]) for limit in limits),
                *(number(row[n]) for n in ("bias", "rmse", "rmse_contrast")),
                *(number(row[n]) for n in ("exp_used", "spend", *["harm"][:log])),
            )
        )
    columns = (
        *("policy × estimator", "recommends", "share right", "regret"),
        *["regret of the advice"][:log],
        *("average regret", *(f"EXP until regret ≤ {limit}" for limit in limits)),
        *("bias", "RMSE", "RMSE of contrasts", "randomized", "spend (USD)", *LOST[:log]),
    )
    return Table("numbers", "Every number", "Means over runs.", columns, tuple(lines))


def _settled(value: Mapping[str, Any]) -> str:
    """When a regret settled, and its interval, of which an end may be never."""
    number = "not reached" if value["exp"] is None else f"{value['exp']:,.0f}"
    ends = ["never" if end is None else f"{end:,.0f}" for end in value["interval"] or ()]
    return number if not ends or ends == ["never"] * 2 else f"{number} [{', '.join(ends)}]"
