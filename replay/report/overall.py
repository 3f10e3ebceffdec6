"""All settings of a replay together: mean curves, and the worst setting of each estimator.

Nobody knows a setting beforehand: what counts is the mean over them, and the worst of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from string import Template
from typing import Any

import numpy as np

from equipoise.replay.averages import (
    NAIVE,
    TAILS,
    Counts,
    Floats,
    Mean,
    Pair,
    Runs,
    Scenario,
    area_under,
    mean_with_interval,
    resampled_means,
)
from equipoise.replay.report.embedded import part
from equipoise.replay.report.palette import estimator_style
from equipoise.replay.report.scenario import curve_panels
from equipoise.replay.report.sheet import Sheet, line_keys
from equipoise.replay.report.tables import figure, table, text
from equipoise.replay.summary import as_json

Settings = Mapping[Scenario, Mapping[Pair, Runs]]


def overall_section(
    sheet: Sheet, settings: Settings, policies: Sequence[str], estimators: Sequence[str]
) -> str:
    """Curves and a table over all settings. policies, estimators: those of the report."""
    pairs = [(policy, name) for policy in policies for name in estimators]
    joint = {
        pair: together(found)
        for pair in pairs
        if len(found := [runs[pair] for runs in settings.values() if pair in runs]) > 1
    }
    styles = {name: estimator_style(name, estimators) for name in estimators}
    families = {pair: runs for pair, runs in joint.items() if pair[1] != NAIVE}
    return Template(part("overall.html")).substitute(
        settings=len(settings),
        keys=line_keys(list(styles.values())),
        family_keys=line_keys([style for name, style in styles.items() if name != NAIVE]),
        regret=sheet.grid(curve_panels(joint, policies, styles, "regret", "mean regret")),
        errors=sheet.grid(
            curve_panels(families, policies, styles, "rmse_contrast", "RMSE of contrasts")
        ),
        table=_table(settings, joint),
    )


def together(found: Sequence[Runs]) -> Runs:
    """The mean over settings, run by run: of the seeds and checkpoints that all of them have.

    A number that is unknown in one setting is unknown.
    """
    seeds = reduce(np.intersect1d, [np.array(each.seeds) for each in found])
    grid: Counts = reduce(np.intersect1d, [each.checkpoints for each in found])
    rows = [np.isin(each.seeds, seeds) for each in found]
    columns = [np.isin(each.checkpoints, grid) for each in found]
    picked = list(zip(found, rows, columns, strict=True))
    return replace(
        found[0],
        seeds=tuple(seeds.tolist()),
        checkpoints=grid,
        numbers={
            name: np.mean([each.numbers[name][row][:, at] for each, row, at in picked], axis=0)
            for name in found[0].numbers
        },
        reached=np.min([each.reached[at] for each, _, at in picked], axis=0),
        values=None,
    )


def worst(found: Sequence[Runs], seeds: Sequence[int]) -> tuple[int, Mean]:
    """Which setting has the largest mean final regret, and that regret as means of (1,).

    The interval resamples seeds and looks for the worst setting anew each time.
    """
    finals = np.array([each.final("regret")[np.isin(each.seeds, seeds)] for each in found]).T
    means: Floats = finals.mean(axis=0)
    low, high = np.nan, np.nan
    if len(finals) > 1:
        low, high = np.quantile(resampled_means(finals).max(axis=1), TAILS)
    at = int(means.argmax())
    return at, Mean(means[at : at + 1], np.array([low]), np.array([high]))


def _table(settings: Settings, joint: Mapping[Pair, Runs]) -> str:
    headings = (
        *("policy × estimator", "worst setting", "regret there", "regret, mean over settings"),
        *("average regret on the way", "RMSE of contrasts"),
    )
    lines = []
    for pair, runs in joint.items():
        here = {key: found[pair] for key, found in settings.items() if pair in found}
        at, regret = worst(list(here.values()), runs.seeds)
        alpha, confounding = list(here)[at]
        cells = (
            figure(as_json(regret)),
            figure(_mean(runs.final("regret"))),
            figure(_mean(_on_the_way(runs))),
            figure(_mean(runs.final("rmse_contrast"))),
        )
        name = "usage log alone" if pair[1] == NAIVE else pair[1]
        lines.append(
            f'<tr><th scope="row">{text(pair[0])} × {text(name)}</th>'
            f'<td class="word">α = {alpha:g}, ω = {confounding:g}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return table(headings, lines, "found", words={1})


def _mean(values: Floats) -> dict[str, Any]:
    return as_json(mean_with_interval(values[:, None]))


def _on_the_way(runs: Runs) -> Floats:
    """(R,) the area under each regret curve, divided by its length."""
    length = float(runs.checkpoints[-1] - runs.checkpoints[0])
    if not length:
        return runs.final("regret")
    return area_under(runs.numbers["regret"], runs.checkpoints) / length
