"""What a right answer costs: regret, precision, money and harm of whole ways to experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.averages import Floats, area_under
from equipoise.replay.experiments.allocation_money import money_tables
from equipoise.replay.experiments.allocation_needed import needed_tables
from equipoise.replay.experiments.allocation_targets import target_table
from equipoise.replay.experiments.arms import Arm, ArmStreams
from equipoise.replay.experiments.findings import (
    CurvePanel,
    Curves,
    Entry,
    Findings,
    Line,
    Table,
)
from equipoise.replay.experiments.measures import measured, share
from equipoise.replay.experiments.registry import Plan, experiment

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


@experiment("allocation", TITLE, PLAN)
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
    found = {label: mean_regrets(streams, label) for label in streams.labels}
    rows: list[tuple[Entry, ...]] = [
        (str(setting), *(measured(found[label][setting]) for label in streams.labels))
        for setting in streams.settings
    ]
    overall = [np.mean(list(found[label].values()), axis=0) for label in streams.labels]
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
