"""Bias, deviation, errors and regret of every family against the number of randomized requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    bias_and_deviation,
    listed,
    lowest,
    measured,
    root_mean_square,
)
from equipoise.replay.studies.registry import Plan, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "How much randomization does each estimator need?"
PLAN = Plan(alphas=(0.5,), confoundings=(1.0,), budget=4000)
START = 25

By: TypeAlias = dict[str, list[Measured]]


@study("exp-budget", TITLE, PLAN)
def exp_budget(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Five quantities per scenario, family and checkpoint."""
    streams = Streams(results)
    marks = [int(each) for each in streams.checkpoints if each >= START] or [streams.last]
    tables, figures, sentences = [], [], []
    for setting in streams.settings:
        quantities = _quantities(streams, setting, true_values(meta, setting, streams), marks)
        for (name, title, reading), by in zip(QUANTITIES, quantities, strict=True):
            tables.append(
                Table(
                    name=f"{name}-{setting.alpha:g}-{setting.confounding:g}",
                    title=f"{title}, {setting}",
                    caption=f"{reading} Reward units [95% interval]; lower is better.",
                    columns=("EXP", *streams.families),
                    rows=tuple(
                        (mark, *(by[family][place] for family in streams.families))
                        for place, mark in enumerate(marks)
                    ),
                )
            )
        figures += _figures(setting, marks, quantities)
        sentences.append(_sentence(streams, setting, marks))
    return Findings("exp-budget", TITLE, tuple(sentences), tuple(tables), tuple(figures))


QUANTITIES = (
    (
        "bias",
        "Bias of values",
        "Root mean square over models of the mean error over seeds, the noise of a finite number"
        " of seeds taken out.",
    ),
    (
        "deviation",
        "Standard deviation of values",
        "Over seeds, root mean square over models; bias² + deviation² = RMSE².",
    ),
    ("rmse", "RMSE of values", "Over seeds and models."),
    ("contrasts", "RMSE of contrasts", "Over seeds and pairs of models."),
    ("regret", "Regret", "Mean over seeds of what the recommended model loses to the best."),
)


def true_values(meta: Mapping[str, Any], setting: Setting, streams: Streams) -> np.ndarray:
    """(K,) true values of a scenario, from the description of the run."""
    for scenario in meta["scenarios"]:
        place = (scenario.get("world", ""), scenario["alpha"], scenario["confounding"])
        if Setting(*place) == setting:
            return np.array([scenario["values"][model] for model in meta["models"]])
    raise KeyError(str(setting))


def _quantities(
    streams: Streams, setting: Setting, truth: np.ndarray, marks: list[int]
) -> tuple[By, By, By, By, By]:
    bias: By = {}
    deviation: By = {}
    rest: tuple[By, By, By] = ({}, {}, {})
    summaries: tuple[tuple[str, Callable[[np.ndarray], Measured]], ...] = (
        ("rmse", root_mean_square),
        ("rmse_contrast", root_mean_square),
        ("regret", measured),
    )
    for family in streams.families:
        errors = streams.values(setting, family) - truth
        pairs = [bias_and_deviation(errors[:, streams.position(mark)]) for mark in marks]
        bias[family] = [each for each, _ in pairs]
        deviation[family] = [each for _, each in pairs]
        for by, (column, summarize) in zip(rest, summaries, strict=True):
            by[family] = [summarize(streams.at(setting, family, column, mark)) for mark in marks]
    return bias, deviation, *rest


def _figures(setting: Setting, marks: list[int], quantities: tuple[By, ...]) -> list[Curves]:
    panels = [
        CurvePanel(
            title=title,
            x=tuple(map(float, marks)),
            lines=tuple(Line(family, tuple(points)) for family, points in by.items()),
        )
        for (_, title, _), by in zip(QUANTITIES, quantities, strict=True)
    ]
    name = f"{setting.alpha:g}-{setting.confounding:g}"
    axis = "randomized requests"
    return [
        Curves(
            name=f"errors-{name}",
            title=f"Errors against EXP, {setting}",
            caption="Both axes are logarithmic: an error that falls with the root of EXP is a"
            " straight line; one that stops falling is bias.",
            x_label=axis,
            y_label="error, reward units",
            panels=tuple(panels[:4]),
            log_x=True,
            log_y=True,
        ),
        Curves(
            name=f"regret-{name}",
            title=f"Regret against EXP, {setting}",
            caption="Mean over seeds of what the recommended model loses to the best one.",
            x_label=axis,
            y_label="regret, reward units",
            panels=(panels[4],),
            log_x=True,
        ),
    ]


def _sentence(streams: Streams, setting: Setting, marks: list[int]) -> str:
    best = [
        lowest(
            {
                family: streams.at(setting, family, "rmse_contrast", mark) ** 2
                for family in streams.families
            }
        )
        for mark in marks
    ]
    turns = [
        f"{family} from {mark:,}"
        for place, (mark, family) in enumerate(zip(marks, best, strict=True))
        if place == 0 or best[place - 1] != family
    ]
    return f"{setting}: the smallest RMSE of contrasts has {listed(turns)} randomized requests on."
