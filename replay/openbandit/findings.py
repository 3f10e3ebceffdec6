"""What the logs say, as findings: sentences, tables and a figure. Clicks per 1,000 rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Entry,
    Findings,
    Line,
    Measured,
    Table,
)
from equipoise.replay.openbandit.replays import LogResults, path_rate
from equipoise.replay.openbandit.values import ESTIMATORS, Brief, Value, difference
from equipoise.replay.results.summary import minus

PER = 1000.0
UNIT = "Clicks per 1,000 rows, with 95% intervals."

_LABELS = {"ips": "IPS", "snips": "self-normalised IPS", "dr": "doubly robust"}
_POLICY = {"random": "uniform log's policy", "bts": "Thompson log's policy"}
_LOG = {"random": "uniform log", "bts": "Thompson log"}


def findings(results: Mapping[str, LogResults]) -> Findings:
    """The findings of a run."""
    crossed = any(result.elsewhere is not None for result in results.values())
    return Findings(
        experiment="openbandit",
        title="What does a real log without counterfactuals say about policies it did not run?",
        sentences=tuple(_sentences(results)),
        tables=(
            _logs(results),
            *([_cross_check(results)] if crossed else []),
            _policies(results),
            _replays(results),
            _items(results),
        ),
        figures=(_by_position(results),),
    )


def scaled(value: Measured) -> Measured:
    """Per 1,000 rows."""
    ends = [None if x is None else PER * x for x in (value.mean, value.low, value.high)]
    return Measured(ends[0], ends[1], ends[2])


def _sentences(results: Mapping[str, LogResults]) -> Iterator[str]:
    for name, result in results.items():
        if result.elsewhere is not None:
            other = next(key for key in results if key != name)
            value = result.policies[other]["dr"].mix
            gap = difference(value, result.elsewhere.mix, same_log=False)
            yield (
                f"The {_POLICY[other]} valued on the {_LOG[name]} (doubly robust) is worth"
                f" {_said(value.measured)} clicks per 1,000 rows; its own log shows"
                f" {_said(result.elsewhere.mix.measured)}. {_verdict(gap)}"
            )
    for name, result in results.items():
        yield from _about_replays(name, result)
    yield (
        "Rows are taken as independent. The files hold no user and no page, so that several rows"
        " of one page count as several: intervals are, if anything, too narrow."
    )


def _about_replays(name: str, result: LogResults) -> Iterator[str]:
    log = result.log
    kept = np.mean([np.count_nonzero(r.kept) for rs in result.replays.values() for r in rs])
    clicks = np.mean([log.reward[r.kept].sum() for rs in result.replays.values() for r in rs])
    sample = f"{kept:,.0f} rows and {clicks:.1f} clicks on average"
    if not log.is_uniform:
        yield (
            f"On the {_LOG[name]} rejection would leave {len(log) * log.propensity.min():.1f} rows,"
            f" so kept rows count 1 / propensity there ({sample}): one row weighs up to"
            f" {1.0 / log.propensity.min():,.0f}, and what the replays say is an indication."
        )
        return
    gaps = {
        p: difference(result.path_rate(p), _uniform(result), same_log=True) for p in result.replays
    }
    apart = [policy for policy, gap in gaps.items() if _excludes_zero(gap)]
    judged = (
        f"by all rows, weighted, {', '.join(apart)} can be told from uniform"
        if apart
        else "even with all rows, weighted, no policy can be told from uniform"
    )
    yield (
        f"Rejection on the {_LOG[name]} keeps one in {len(log.items)} of its {len(log):,} rows:"
        f" {sample}, from which a policy can hardly learn; {judged}."
    )


def _uniform(result: LogResults) -> Value:
    """The uniform policy, estimated as `path_rate` estimates a policy."""
    return path_rate(result.log, [np.full(len(result.log), 1.0 / len(result.log.items))])


def _verdict(gap: Measured) -> str:
    if gap.mean is None:
        return "The log does not show enough of that policy for a comparison."
    if _excludes_zero(gap):
        return f"They disagree: the difference is {_said(gap)}."
    return f"They agree within the noise: the difference is {_said(gap)}."


def _logs(results: Mapping[str, LogResults]) -> Table:
    positions = next(iter(results.values())).log.positions
    rows: list[tuple[Entry, ...]] = []
    for result in results.values():
        log = result.log
        own = (result.own.mix, *result.own.positions)
        cells: list[Entry] = [log.behaviour, len(log), int(log.reward.sum()), len(log.items)]
        rows.append((*cells, float(log.propensity.min()), *(scaled(v.measured) for v in own)))
    return Table(
        name="logs",
        title="The logs and their own click rates",
        caption=f"{UNIT} Smallest propensity: of any row; the largest weight is one over it.",
        columns=(
            "log",
            "rows",
            "clicks",
            "items",
            "smallest propensity",
            "click rate",
            *(f"at position {name}" for name in positions),
        ),
        rows=tuple(rows),
    )


def _cross_check(results: Mapping[str, LogResults]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for name, result in results.items():
        if result.elsewhere is None:
            continue
        other = next(key for key in results if key != name)
        for estimator in ESTIMATORS:
            value = result.policies[other][estimator].mix
            gap = difference(value, result.elsewhere.mix, same_log=False)
            entries = (value.measured, result.elsewhere.mix.measured, gap)
            about = f"{_POLICY[other]}, {_LABELS[estimator]}"
            rows.append(
                (about, _LOG[name], round(value.effective_rows), *(scaled(e) for e in entries))
            )
    return Table(
        name="cross-check",
        title="Each logging policy valued on the other log, against what its own log shows",
        caption=f"{UNIT} The other policy is taken as its shares of items at each position, over"
        " this log's mix of positions. A difference away from 0 would say that an estimate"
        " cannot be trusted.",
        columns=("policy, estimator", "valued on", "effective rows", "estimate", "own log", "gap"),
        rows=tuple(rows),
    )


def _policies(results: Mapping[str, LogResults]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for name, result in results.items():
        for policy, estimates in result.policies.items():
            for estimator, estimated in estimates.items():
                parts = (estimated.mix, *estimated.positions)
                rows.append(
                    (
                        f"{_POLICY.get(policy, policy)}, {_LABELS[estimator]}",
                        _LOG[name],
                        *(scaled(part.measured) for part in parts),
                    )
                )
    positions = next(iter(results.values())).log.positions
    return Table(
        name="policies",
        title="What policies are worth, over all positions and at each",
        caption=f"{UNIT} best-item shows one item everywhere, found on other blocks of time than"
        " those it is valued on.",
        columns=(
            "policy, estimator",
            "valued on",
            "all positions",
            *(f"position {where}" for where in positions),
        ),
        rows=tuple(rows),
    )


def _replays(results: Mapping[str, LogResults]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for name, result in results.items():
        for policy, replays in result.replays.items():
            rate, path = result.kept_rate(policy), result.path_rate(policy)
            kept = [int(np.count_nonzero(replay.kept)) for replay in replays]
            clicks = [float(result.log.reward[replay.kept].sum()) for replay in replays]
            rows.append(
                (
                    policy,
                    _LOG[name],
                    float(np.mean(kept)),
                    float(np.mean(clicks)),
                    scaled(rate.measured),
                    scaled(path.measured),
                    scaled(difference(path, _uniform(result), same_log=True)),
                    *(scaled(result.final(policy, e).measured) for e in ("snips", "dr")),
                )
            )
    return Table(
        name="replays",
        title="Our allocation policies, replayed on the logs",
        caption=f"{UNIT} Rows and clicks kept: means over seeds. On the uniform log a row is kept"
        " where the agent chose the logged item, whatever else it holds; every seed draws another"
        " order of the rows. On the Thompson log kept rows count 1 / propensity. Intervals take"
        " the log's rows as the sample, so that more seeds do not narrow them beyond what the log"
        " says. All rows: the same mean over the rules in force, each logged row weighing what"
        " the rule gives its item over the propensity, which is far more precise than keeping rows"
        " by chance; beside it its distance from the uniform policy on the same log. Final rule:"
        " the last rule of each replay, on rows it never learned from.",
        columns=(
            "policy",
            "log",
            "rows kept",
            "clicks kept",
            "click rate, kept rows",
            "click rate, all rows",
            "minus uniform",
            "final rule, IPS",
            "final rule, doubly robust",
        ),
        rows=tuple(rows),
    )


def _items(results: Mapping[str, LogResults]) -> Table:
    items = next(iter(results.values())).log.items
    by_item = {
        (name, item): estimates
        for name, result in results.items()
        for item, estimates in zip(result.log.items, result.items, strict=True)
    }
    return Table(
        name="items",
        title="The click rate of every item, over all positions",
        caption=f"{UNIT} Each position weighs its share of the log; empty where an item was not"
        " shown twice at every position.",
        columns=("item", *(f"{_LOG[n]}, {_LABELS[e]}" for n in results for e in ("snips", "dr"))),
        rows=tuple(
            (item, *(_entry(by_item.get((n, item)), e) for n in results for e in ("snips", "dr")))
            for item in items
        ),
    )


def _by_position(results: Mapping[str, LogResults]) -> Curves:
    panels = []
    for name, result in results.items():
        lines = {"own policy": result.own.positions}
        for policy, estimates in result.policies.items():
            if policy in _POLICY:
                lines[f"{_POLICY[policy]}, doubly robust"] = estimates["dr"].positions
        places = tuple(float(where) for where in result.log.positions)
        panels.append(
            CurvePanel(
                _LOG[name],
                places,
                tuple(
                    Line(label, tuple(scaled(part.measured) for part in parts))
                    for label, parts in lines.items()
                ),
            )
        )
    return Curves(
        name="positions",
        title="Click rates by position",
        caption=f"{UNIT} The intervals take the log's rows as the sample.",
        x_label="position",
        y_label="clicks per 1,000 rows",
        panels=tuple(panels),
    )


def _entry(estimates: Mapping[str, list[Brief]] | None, estimator: str) -> Measured:
    return Measured(None) if estimates is None else scaled(estimates[estimator][0].measured)


def _excludes_zero(gap: Measured) -> bool:
    return gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0)


def _said(value: Measured) -> str:
    if value.mean is None or value.low is None or value.high is None:
        return "unknown"
    return minus(f"{PER * value.mean:.1f} [{PER * value.low:.1f}, {PER * value.high:.1f}]")
