"""Money at equal precision, with the price of a model in the rule and without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from equipoise.replay.averages import TAILS, Floats, resample_counts
from equipoise.replay.experiments.arms import CHALLENGERS, Arm, ArmStreams
from equipoise.replay.experiments.findings import Entry, Table
from equipoise.replay.experiments.streams import Setting

MARKS = (100, 300, 1000, 3000)
"""Randomized requests of the arm without prices whose precision the other one has to reach."""


def money_tables(streams: ArmStreams, plain: Arm, priced: Arm) -> Iterator[Table]:
    """USD until the contrasts that matter are as precise as `plain` has them at each mark."""
    marks = [mark for mark in MARKS if mark in streams.checkpoints]
    yield Table(
        "money",
        "Money at equal precision, with and without the price in the rule",
        "RMSE of the contrasts that matter (the best model against its"
        f" {CHALLENGERS} closest challengers), the USD that {plain.label} spends on randomized"
        f" requests until then, the USD at which {priced.label} reaches the same RMSE and stays"
        " there (interpolated between checkpoints), and how many times less that is [paired 95%"
        " bootstrap interval]; more is better.",
        ("setting", "EXP", "RMSE", "USD without", "USD with", "times less"),
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

    def read(weights: Floats) -> tuple[Floats, Floats, Floats]:
        level, without = np.sqrt(weights @ squares[:, at]), weights @ spent[:, at]
        rmse = np.sqrt(weights @ priced_squares)
        return level, without, spend_at(rmse, weights @ priced_spent, level)

    runs = len(squares)
    level, without, with_prices = (each[0] for each in read(np.full((1, runs), 1.0 / runs)))
    _, drawn_without, drawn_with = read(resample_counts(runs) / runs)
    low, high = np.quantile(drawn_without / drawn_with, TAILS)
    return (
        float(round(level, 4)),
        float(round(without, 1)),
        float(round(with_prices, 1)) if np.isfinite(with_prices) else "never",
        f"{without / with_prices:.2f} [{low:.2f}, {high:.2f}]",
    )


def spend_at(rmse: Floats, spend: Floats, level: Floats) -> Floats:
    """(N,) spend from which rmse (N, C) stays at or below level (N,); inf for never.

    Linear in the spend (N, C) between the last checkpoint above the level and the next.
    """
    found = np.full(len(rmse), np.inf)
    for row, (errors, money, limit) in enumerate(zip(rmse, spend, level, strict=True)):
        above = np.flatnonzero(~(errors <= limit))
        last = int(above[-1]) if len(above) else -1
        if last < 0:
            found[row] = max(money[0], 1e-12)
        elif last + 1 < len(errors):
            start = errors[last]
            share = (start - limit) / (start - errors[last + 1]) if np.isfinite(start) else 1.0
            found[row] = money[last] + share * (money[last + 1] - money[last])
    return found
