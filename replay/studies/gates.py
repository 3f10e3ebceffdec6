"""Does it pay to choose which requests are randomized? Gates at equal EXP and assignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Findings,
    Line,
    Measured,
    Table,
    entry,
    root_mean_square,
)
from equipoise.replay.results.averages import Floats, bootstrap_interval, resample_counts
from equipoise.replay.studies.registry import Plan, study
from equipoise.replay.studies.streams import CHALLENGERS, Arm, ArmStreams, Setting

TITLE = "Does it pay to choose which requests are randomized?"
PLAIN = "fixed-rate"
GATES = ("active", "contrast")
PAIRS = (
    ("uniform", "hierarchical"),
    ("contrast", "hierarchical"),
    ("uniform", "representation-exp"),
)
"""Assignments and families under which the gates are compared."""
MARKS = (100, 300, 1000)
CUT, COST = 0.8, 1.05
"""A gate pays where the ratio of RMSEs is at most CUT, and must never be above COST."""
PLAN = Plan(
    alphas=(0.5, 1.0),
    confoundings=(1.0,),
    budget=1000,
    seeds=40,
    exp_rate=0.2,
    estimators=tuple(dict.fromkeys(family for _, family in PAIRS)),
    arms=tuple(
        Arm(f"{gate}+{assignment}", family)
        for assignment, family in PAIRS
        for gate in (PLAIN, *GATES)
    ),
    refresh=50,
)


Ratios: TypeAlias = Mapping[tuple[Setting, tuple[str, str], str, int], Measured]


@study("gates", TITLE, PLAN)
def gates(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """RMSE of the contrasts that matter per gate, and its ratio to that of the fixed rate."""
    streams = ArmStreams(results, meta, PLAN.arms)
    marks = [mark for mark in MARKS if mark in streams.checkpoints] or [
        int(streams.checkpoints[-1])
    ]
    ratios = {
        (setting, pair, gate, mark): ratio(streams, setting, pair, gate, mark)
        for setting in streams.settings
        for pair in PAIRS
        for gate in GATES
        for mark in marks
    }
    return Findings(
        "gates",
        TITLE,
        tuple(_sentences(meta["benchmark"], ratios, marks)),
        (_ratio_table(streams, ratios, marks), _rmse_table(streams, marks)),
        tuple(_figures(streams)),
    )


def ratio(
    streams: ArmStreams, setting: Setting, pair: tuple[str, str], gate: str, mark: int
) -> Measured:
    """RMSE of the contrasts that matter under a gate over that under the fixed rate, paired."""
    at = int(np.searchsorted(streams.checkpoints, mark))
    ours, plain = (
        streams.mattering_errors(setting, Arm(f"{name}+{pair[0]}", pair[1]).label)[:, at]
        for name in (gate, PLAIN)
    )
    counts = resample_counts(len(ours))
    drawn = np.sqrt((counts @ ours) / (counts @ plain))
    ends = bootstrap_interval(drawn, len(ours))
    return entry(float(np.sqrt(ours.mean() / plain.mean())), *ends)


def _sentences(benchmark: str, ratios: Ratios, marks: list[int]) -> Iterator[str]:
    for gate in GATES:
        cells = [each for place, each in ratios.items() if place[2] == gate]
        means = [each.mean for each in cells if each.mean is not None]
        pays = sum(mean <= CUT for mean in means)
        costs = sum(mean > COST for mean in means)
        surely = sum(each.low is not None and each.low > 1.0 for each in cells)
        yield (
            f"{gate} on {benchmark}: the RMSE of the contrasts that matter is"
            f" {np.median(means):.2f} times that of a fixed rate in the median of {len(means)}"
            f" cells (setting × assignment × family × EXP), between {min(means):.2f} and"
            f" {max(means):.2f}; {pays} cells are at most {CUT:g}, {costs} above {COST:g}, and"
            f" in {surely} the interval lies above 1."
        )


def _ratio_table(
    streams: ArmStreams,
    ratios: Ratios,
    marks: list[int],
) -> Table:
    return Table(
        "ratios",
        "RMSE of the contrasts that matter against a fixed rate, at equal EXP and assignment",
        f"The best model against its {CHALLENGERS} closest challengers; ratio [paired"
        " 95% bootstrap interval]; lower is better, below 1 the gate pays.",
        ("setting, assignment / family, EXP", *GATES),
        tuple(
            (
                f"{setting}, {' / '.join(pair)}, {mark:,}",
                *(ratios[setting, pair, gate, mark] for gate in GATES),
            )
            for setting in streams.settings
            for pair in PAIRS
            for mark in marks
        ),
    )


def _rmse_table(streams: ArmStreams, marks: list[int]) -> Table:
    def rmse(setting: Setting, label: str, mark: int) -> Measured:
        at = int(np.searchsorted(streams.checkpoints, mark))
        errors: Floats = streams.mattering_errors(setting, label)[:, at]
        return root_mean_square(np.sqrt(errors))

    return Table(
        "rmse",
        "RMSE of the contrasts that matter",
        "Reward units [95% interval]; lower is better.",
        ("setting, EXP", *streams.labels),
        tuple(
            (
                f"{setting}, {mark:,}",
                *(rmse(setting, label, mark) for label in streams.labels),
            )
            for setting in streams.settings
            for mark in marks
        ),
    )


def _figures(streams: ArmStreams) -> Iterator[Curves]:
    grid = streams.checkpoints
    from_first = int(np.searchsorted(grid, 25))
    for setting in streams.settings:
        errors = {label: streams.mattering_errors(setting, label) for label in streams.labels}
        yield Curves(
            name=f"rmse-{setting.alpha:g}-{setting.confounding:g}",
            title=f"RMSE of the contrasts that matter against randomized requests, {setting}",
            caption="Both axes are logarithmic.",
            x_label="randomized requests",
            y_label="RMSE, reward units",
            panels=(
                CurvePanel(
                    title="",
                    x=tuple(map(float, grid[from_first:])),
                    lines=tuple(
                        Line(
                            label,
                            tuple(
                                root_mean_square(np.sqrt(column)) for column in each.T[from_first:]
                            ),
                        )
                        for label, each in errors.items()
                    ),
                ),
            ),
            log_x=True,
            log_y=True,
        )
