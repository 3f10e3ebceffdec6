"""Money and precision, with the price of a model in the rule and without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from equipoise.replay.averages import TAILS, Floats, resample_counts
from equipoise.replay.experiments.arms import CHALLENGERS, Arm, ArmStreams
from equipoise.replay.experiments.findings import Entry, Measured, Table
from equipoise.replay.experiments.measures import entry
from equipoise.replay.experiments.streams import Setting

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
        _measured(float(ratio(every)[0]), ratio(resampled)),
        "never" if np.isinf(needed) else "at once" if needed <= 0.0 else float(round(needed, 1)),
    )


def _measured(point: float, drawn: Floats) -> Measured:
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(point) or len(known) < 2:
        return entry(point, np.nan, np.nan)
    low, high = np.quantile(known, TAILS)
    return entry(point, float(low), float(high))


def spend_at(errors: Floats, spend: Floats, level: Floats) -> Floats:
    """(N,) spend from which errors (N, C) stay at or below level (N,); inf for never.

    Linear in the spend (N, C) between the last checkpoint above the level and the next.
    """
    found = np.full(len(errors), np.inf)
    for row, (curve, money, limit) in enumerate(zip(errors, spend, level, strict=True)):
        above = np.flatnonzero(~(curve <= limit))
        last = int(above[-1]) if len(above) else -1
        if last < 0:
            found[row] = money[0]
        elif last + 1 < len(curve):
            start = curve[last]
            share = (start - limit) / (start - curve[last + 1]) if np.isfinite(start) else 1.0
            found[row] = money[last] + share * (money[last + 1] - money[last])
    return found
