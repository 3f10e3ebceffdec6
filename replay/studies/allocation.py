"""What a right answer costs: regret, precision, money and harm of whole ways to experiment.

Any procedure that names a model within epsilon of the best with probability 1 - delta, whatever
the values are, needs on average at least T kl(delta, 1 - delta) requests, where

    1 / T = max over shares w of min over i != best of
            (gap_i + epsilon)^2 / (2 (v_best / w_best + v_i / w_i))

(Garivier & Kaufmann 2016, Gaussian rewards of known variance; with epsilon the best model is one
of several right answers, and the one that is easiest to prove). With the variance of the reward
itself it bounds an A/B test. With the residual variance it bounds a learner who already knows how
outputs make rewards, but not what each model adds to that; who knows more than that from a log,
and happens to be right, can do with fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from equipoise.policies.assignments.track_and_stop import optimal_weights
from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Entry,
    Findings,
    Line,
    Measured,
    Table,
    entry,
    in_sentence,
    measured,
    share,
)
from equipoise.replay.results.averages import (
    area_under,
    bootstrap_interval,
    resample_counts,
    resampled_means,
)
from equipoise.replay.studies.registry import Plan, study
from equipoise.replay.studies.streams import CHALLENGERS, Arm, ArmStreams, Setting, settled
from equipoise.store.batches import Floats

DELTA = 0.05


def lower_bound(values: Floats, variances: Floats, epsilon: float, delta: float = DELTA) -> float:
    """Randomized requests to name a model within epsilon of the best. values, variances: (K,)."""
    best = int(values.argmax())
    others = np.arange(len(values)) != best
    shares = optimal_weights(values, variances, epsilon)
    gaps = values[best] - values[others] + epsilon
    noise = variances[best] / shares[best] + variances[others] / shares[others]
    time = 1.0 / float((gaps**2 / (2.0 * noise)).min())
    kl = (1.0 - 2.0 * delta) * math.log((1.0 - delta) / delta)
    return time * kl


def scenario_bounds(
    scenario: Mapping[str, Any], models: Sequence[str], epsilons: Sequence[float]
) -> list[tuple[float, float]]:
    """Per epsilon: the bound with the residual variance, and with that of the reward itself."""
    values, residual, plain = (
        np.array([scenario[name][model] for model in models])
        for name in ("values", "residual_variances", "variances")
    )
    return [
        (lower_bound(values, residual, epsilon), lower_bound(values, plain, epsilon))
        for epsilon in epsilons
    ]


LIMITS = (0.005, 0.01, 0.02)
"""Regrets, reward units."""


def needed(streams: ArmStreams, setting: Setting, label: str, limit: float) -> tuple[float, Floats]:
    """The count, and those of bootstrap resamples of the seeds, the same for every arm (B,)."""
    curves = streams.curves(setting, label, "regret")
    point = settled(curves.mean(axis=0)[None], streams.checkpoints, limit)
    return float(point[0]), settled(resampled_means(curves), streams.checkpoints, limit)


def saving(
    streams: ArmStreams, setting: Setting, ours: Arm, other: Arm, limit: float
) -> tuple[float, float, float]:
    """How many times more the other needs, and its paired 95% interval.

    Who does not get there needs more than the last checkpoint and counts with it, so that the
    ratio is a lower bound where the other never gets there; 0 where only ours never does.
    """
    last = float(streams.checkpoints[-1])
    point, drawn = needed(streams, setting, ours.label, limit)
    others, others_drawn = needed(streams, setting, other.label, limit)

    def ratio(own: Floats, their: Floats) -> Floats:
        both = np.isinf(own) & np.isinf(their)
        ratios = np.where(np.isinf(own), 0.0, np.minimum(their, last) / np.minimum(own, last))
        return np.where(both, 1.0, ratios)

    ends = bootstrap_interval(ratio(drawn, others_drawn), streams.runs)
    return float(ratio(np.array(point), np.array(others))), *ends


def needed_tables(
    streams: ArmStreams, meta: Mapping[str, Any], ab_test: Arm, ours: Arm
) -> Iterator[Table]:
    """A table per limit: every arm's count, how often ours fits into an A/B test's, the bounds."""
    bounds = {
        setting: scenario_bounds(streams.scenario(setting), meta["models"], LIMITS)
        for setting in streams.settings
    }
    last = int(streams.checkpoints[-1])
    for place, limit in enumerate(LIMITS):
        rows: list[tuple[Entry, ...]] = []
        for setting in streams.settings:
            counts = [
                said_count(*needed(streams, setting, label, limit), last, streams.runs)
                for label in streams.labels
            ]
            times, low, high = saving(streams, setting, ours, ab_test, limit)
            residual, plain = bounds[setting][place]
            saved = in_sentence(entry(times, low, high), 1)
            rows.append((str(setting), *counts, saved, round(residual), round(plain)))
        yield Table(
            f"needed-{limit:g}",
            f"Randomized requests until the mean regret stays at or below {limit:g}",
            "On the grid of checkpoints [95% bootstrap interval over seeds]. Saving: an A/B test's"
            f" count over that of {ours.label}, paired; a lower bound where the A/B test does not"
            f" get there. Bounds: Garivier & Kaufmann's for naming a model within {limit:g} of the"
            f" best with probability {1 - DELTA:g}, with the residual variance and with that of"
            " the reward; another task than a low mean regret, for orientation.",
            ("setting", *streams.labels, "saving", "bound, residual", "bound, reward"),
            tuple(rows),
        )


def said_count(point: float, drawn: Floats, last: int, runs: int) -> str:
    """A count with its interval in words."""
    low, high = bootstrap_interval(drawn, runs, "closest_observation")
    if np.isnan(low):
        return _count(point, last)
    return f"{_count(point, last)} [{_count(low, last)}, {_count(high, last)}]"


def _count(count: float, last: int) -> str:
    return f"over {last:,}" if np.isinf(count) else f"{count:,.0f}"


MARKS = (100, 300, 1000, 3000)
"""Randomized requests of the arm without prices at whose spend and precision both are compared."""


def money_tables(streams: ArmStreams, plain: Arm, priced: Arm) -> Iterator[Table]:
    """Precision at equal money and money at equal precision, at the marks of `plain`."""
    marks = [mark for mark in MARKS if mark in streams.checkpoints]
    yield Table(
        "money",
        "Money and precision, with the price in the rule and without",
        "RMSE of the contrasts that matter (the best model against its"
        f" {CHALLENGERS} closest challengers) of {plain.label} at a number of randomized requests,"
        f" and the USD it spent on them; the RMSE of {priced.label} for the same money over it"
        " [paired 95% bootstrap interval; below 1 prices pay]; and the USD from which the latter"
        f" stays at that RMSE. Never: not with {streams.checkpoints[-1]:,} randomized requests; at"
        " once: before any, from the log.",
        ("setting", "EXP", "RMSE", "USD", "RMSE with prices, ratio", "USD with prices"),
        tuple(
            (str(setting), mark, *_compared(streams, setting, mark, plain, priced))
            for setting in streams.settings
            for mark in marks
        ),
    )


def _compared(
    streams: ArmStreams, setting: Setting, mark: int, plain: Arm, priced: Arm
) -> tuple[Entry, ...]:
    at = int(np.searchsorted(streams.checkpoints, mark))
    (squares, spent), (priced_squares, priced_spent) = (
        (
            streams.mattering_errors(setting, arm.label),
            streams.curves(setting, arm.label, "spend"),
        )
        for arm in (plain, priced)
    )
    runs = len(squares)
    every = np.full((1, runs), 1.0 / runs)
    resampled = resample_counts(runs) / runs

    def ratio(weights: Floats) -> Floats:
        level, money = weights @ squares[:, at], weights @ spent[:, at]
        curves, moneys = weights @ priced_squares, weights @ priced_spent
        rows = zip(money, moneys, curves, strict=True)
        there = np.array([np.interp(each, x, y, right=np.nan) for each, x, y in rows])
        return np.asarray(np.sqrt(there / level))

    level, money = float(squares[:, at].mean()), float(spent[:, at].mean())
    needed = spend_at(every @ priced_squares, every @ priced_spent, np.array([level]))[0]
    return (
        float(round(np.sqrt(level), 4)),
        float(round(money, 1)),
        _measured(float(ratio(every)[0]), ratio(resampled), runs),
        "never" if np.isinf(needed) else "at once" if needed <= 0.0 else float(round(needed, 1)),
    )


def _measured(point: float, drawn: Floats, runs: int) -> Measured:
    ends = bootstrap_interval(drawn[np.isfinite(drawn)], runs if np.isfinite(point) else 0)
    return entry(point, *ends)


def spend_at(errors: Floats, spend: Floats, level: Floats) -> Floats:
    """(N,) spend from which errors (N, C) stay at or below level (N,); inf for never.

    Linear in the spend (N, C) between the last checkpoint above the level and the next.
    """
    spent = np.full(len(errors), np.inf)
    for row, (curve, money, limit) in enumerate(zip(errors, spend, level, strict=True)):
        above = np.flatnonzero(~(curve <= limit))
        last = int(above[-1]) if len(above) else -1
        if last < 0:
            spent[row] = money[0]
        elif last + 1 < len(curve):
            start = curve[last]
            share = (start - limit) / (start - curve[last + 1]) if np.isfinite(start) else 1.0
            spent[row] = money[last] + share * (money[last + 1] - money[last])
    return spent


LIMIT = 0.01
"""Mean regret, reward units, at which randomized requests are counted."""
SAVINGS: dict[str, tuple[float, bool]] = {"swebench": (10.0, True), "alpacaeval": (1.5, False)}
"""By benchmark: how many times fewer requests than an A/B test, and whether than gateways too."""
AREA = 1.1
"""Elsewhere: the area under the regret curve over the smallest of the three."""


def target_table(
    streams: ArmStreams, benchmark: str, ab_test: Arm, gateway: Arm, ours: Arm
) -> tuple[Table, str]:
    """A row per setting and target, and a sentence that counts them."""
    times, both = SAVINGS.get(benchmark, (1.0, False))
    others = ([ab_test, gateway] if both else [ab_test]) if benchmark in SAVINGS else []
    rows: list[tuple[Entry, ...]] = []
    met = []
    for setting in streams.settings:
        for other in others:
            found, low, high = saving(streams, setting, ours, other, LIMIT)
            met.append(found >= times)
            rows.append(
                (
                    str(setting),
                    f"{times:g} times fewer than {other.label} at {LIMIT:g}",
                    f"{found:.1f} [{low:.1f}, {high:.1f}]",
                    "yes" if met[-1] else "NO",
                )
            )
        grid = streams.checkpoints
        curves = {
            arm.label: streams.curves(setting, arm.label, "regret")
            for arm in (ab_test, gateway, ours)
        }
        areas = {
            name: area_under(each.mean(axis=0)[None], grid)[0] for name, each in curves.items()
        }
        drawn = {name: area_under(resampled_means(each), grid) for name, each in curves.items()}
        least = np.minimum.reduce(list(drawn.values()))
        # A regret of 0 throughout is the best there is, however many others have it too.
        ratio = (areas[ours.label] + 1e-12) / (min(areas.values()) + 1e-12)
        ends = bootstrap_interval((drawn[ours.label] + 1e-12) / (least + 1e-12), streams.runs)
        met.append(bool(ratio <= AREA))
        rows.append(
            (
                str(setting),
                f"area at most {AREA:g} of the best of the three",
                in_sentence(entry(float(ratio), *ends), 2),
                "yes" if met[-1] else "NO",
            )
        )
    sentence = (
        f"{ours.label} meets {sum(met)} of {len(met)} targets on {benchmark} against an A/B test"
        f" ({ab_test.label}) and what gateways ship ({gateway.label})."
    )
    return (
        Table(
            "targets",
            "The targets",
            "Ratios with paired 95% bootstrap intervals. A saving counts checkpoints, from the"
            f" first one after 0; who never gets there counts with {streams.checkpoints[-1]:,}.",
            ("setting", "target", "measured", "met"),
            tuple(rows),
        ),
        sentence,
    )


TITLE = "How much randomization does a right answer cost, by how it is allocated?"
AB_TEST = Arm("uniform", "ipw")
GATEWAY = Arm("track-and-stop", "ipw")
OURS = Arm("fixed-rate+contrast", "hierarchical")
PRICED = Arm("fixed-rate+contrast", "hierarchical", priced=True)
ARMS = (
    AB_TEST,
    GATEWAY,
    Arm("uniform", "hierarchical"),
    Arm("top-two", "hierarchical"),
    OURS,
    PRICED,
)
PLAN = Plan(
    alphas=(0.0, 0.5, 1.0),
    confoundings=(0.5, 1.0),
    budget=4000,
    seeds=40,
    estimators=("ipw", "hierarchical"),
    arms=ARMS,
    refresh=50,
)


@study("allocation", TITLE, PLAN)
def allocation(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Areas under regret curves, requests needed, the targets, harm, and money."""
    streams = ArmStreams(results, meta, ARMS)
    targets, sentence = target_table(streams, meta["benchmark"], AB_TEST, GATEWAY, OURS)
    spent = money_tables(streams, OURS, PRICED) if PRICED.label in streams.labels else ()
    return Findings(
        "allocation",
        TITLE,
        (sentence,),
        (
            *(targets, _areas(streams)),
            *needed_tables(streams, meta, AB_TEST, OURS),
            *(_harm(streams), *spent, _coverage(streams)),
        ),
        tuple(_figure(streams)),
    )


def mean_regrets(streams: ArmStreams, label: str) -> dict[Any, Floats]:
    """(R,) area under each run's regret curve over the randomized requests, by setting."""
    grid = streams.checkpoints
    return {
        setting: area_under(streams.curves(setting, label, "regret"), grid) / grid[-1]
        for setting in streams.settings
    }


def _areas(streams: ArmStreams) -> Table:
    regrets = {label: mean_regrets(streams, label) for label in streams.labels}
    rows: list[tuple[Entry, ...]] = [
        (str(setting), *(measured(regrets[label][setting], least=0.0) for label in streams.labels))
        for setting in streams.settings
    ]
    overall = [np.mean(list(regrets[label].values()), axis=0) for label in streams.labels]
    return Table(
        "area",
        f"Mean regret over the first {streams.checkpoints[-1]:,} randomized requests",
        "Area under the curve of the recommended model's regret, over its length; reward units"
        " [95% interval]; lower is better.",
        ("setting", *streams.labels),
        (*rows, ("mean of all settings", *map(measured, overall))),
    )


def _harm(streams: ArmStreams) -> Table:
    return Table(
        "harm",
        "Harm: reward lost to each randomized request against the routed model",
        "Expected reward of the routed model less that of the assigned one, per randomized request;"
        " negative: randomized users were served better [95% interval]; lower is better.",
        ("setting", *streams.labels),
        tuple(
            (
                str(setting),
                *(
                    measured(
                        streams.final(setting, label, "harm")
                        / streams.final(setting, label, "exp_used")
                    )
                    for label in streams.labels
                ),
            )
            for setting in streams.settings
        ),
    )


def _coverage(streams: ArmStreams) -> Table:
    def missed(label: str) -> Floats:
        runs = [streams.final(setting, label, "ever_miscovered") for setting in streams.settings]
        return np.concatenate(runs)

    return Table(
        "coverage",
        "Certified intervals that ever missed the truth",
        "Share of runs, over all settings, in which the certified intervals of all contrasts"
        " together missed a true value at any checkpoint [95% interval]; the level is that of the"
        " run, 5% unless said otherwise.",
        ("arm", "runs", "ever missed"),
        tuple((label, len(missed(label)), share(missed(label))) for label in streams.labels),
    )


def _figure(streams: ArmStreams) -> list[Curves]:
    grid = streams.checkpoints
    return [
        Curves(
            name=f"regret-{setting.alpha:g}-{setting.confounding:g}",
            title=f"Regret against randomized requests, {setting}",
            caption="Mean over seeds of what the recommended model loses to the best one.",
            x_label="randomized requests",
            y_label="regret, reward units",
            panels=(
                CurvePanel(
                    title="",
                    x=tuple(map(float, grid)),
                    lines=tuple(
                        Line(
                            label,
                            tuple(
                                measured(column)
                                for column in streams.curves(setting, label, "regret").T
                            ),
                        )
                        for label in streams.labels
                    ),
                ),
            ),
        )
        for setting in streams.settings
    ]
