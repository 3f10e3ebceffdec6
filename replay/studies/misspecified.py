"""A scorer that is wrong on purpose: the direct method, its correction and the plain A/B test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    in_sentence,
    measured,
    root_mean_square,
    share,
)
from equipoise.replay.harness.stream import DIRECT
from equipoise.replay.results.averages import Floats
from equipoise.replay.studies.expbudget import true_values
from equipoise.replay.studies.registry import Plan, Variant, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "Does the gap between direct method and doubly robust reveal a wrong scorer?"
ROBUST = "doubly-robust"
RIGHT = "all features"
PLAN = Plan(
    alphas=(0.5,),
    confoundings=(2.0,),
    budget=3000,
    seeds=40,
    estimators=("ipw", "obs-only", ROBUST),
    needs=(ROBUST,),
    extra=(DIRECT,),
    variants=(
        Variant(RIGHT),
        Variant("1 hidden", ("hidden_outputs=1",)),
        Variant("2 hidden", ("hidden_outputs=2",)),
        Variant("bent", ("warp=2",)),
    ),
)
MARKS = (100, 300, 1000, 3000)
FALSE_ALARM = 0.05


@study("misspecified", TITLE, PLAN)
def misspecified(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Errors of every row per variant of the scorer, and its DM-DR gap against the right one's."""
    streams = Streams(results)
    marks = streams.marks(MARKS)
    scenarios = sorted({(each.alpha, each.confounding) for each in streams.settings})
    tables: list[Table] = []
    figures: list[Curves] = []
    sentences: list[str] = []
    for alpha, omega in scenarios:
        variants = [each for each in streams.settings if each == Setting(each.world, alpha, omega)]
        gaps = {each.world: gap(streams, each) for each in variants}
        ends = dict.fromkeys((marks[0], marks[-1]))
        tables += [_errors(streams, meta, variants, mark) for mark in ends]
        tables.append(_diagnostic(streams, variants, gaps, marks))
        figures.append(_figure(streams, variants, marks))
        sentences += _sentences(streams, variants, gaps, marks[-1])
    return Findings("misspecified", TITLE, tuple(sentences), tuple(tables), tuple(figures))


def gap(streams: Streams, setting: Setting) -> Floats:
    """(R, C) root mean square over models of direct method minus doubly robust."""
    difference = streams.values(setting, DIRECT) - streams.values(setting, ROBUST)
    root: Floats = np.sqrt((difference**2).mean(axis=2))
    return root


def flagged(gaps: Floats, right: Floats) -> Floats:
    """(R,) 1 where a gap is larger than those of all but 5% of streams with the right scorer."""
    finite = right[np.isfinite(right)]
    limit = np.quantile(finite, 1 - FALSE_ALARM, method="higher") if len(finite) else np.nan
    return np.where(np.isfinite(gaps) & np.isfinite(limit), gaps > limit, np.nan)


def _errors(
    streams: Streams, meta: Mapping[str, Any], variants: Sequence[Setting], mark: int
) -> Table:
    place = streams.position(mark)
    rows = []
    for setting in variants:
        truth = true_values(meta, setting, streams)
        for family in streams.families:
            errors = streams.values(setting, family)[:, place] - truth
            bias, deviation = bias_and_deviation(errors)
            rows.append(
                (
                    f"{setting.world}: {family}",
                    bias,
                    deviation,
                    root_mean_square(streams.at(setting, family, "rmse", mark)),
                    measured(streams.at(setting, family, "regret", mark), least=0.0),
                )
            )
    return Table(
        name=f"errors-{mark}-{variants[0].alpha:g}-{variants[0].confounding:g}",
        title=f"Errors with {mark:,} randomized requests, {variants[0]}",
        caption="Reward units [95% interval]. Bias, standard deviation and RMSE of values are root"
        " mean squares over models; the noise of a finite number of seeds is taken out of the"
        " bias.",
        columns=("what the scorer sees", "bias", "standard deviation", "RMSE", "regret"),
        rows=tuple(rows),
    )


def _diagnostic(
    streams: Streams, variants: Sequence[Setting], gaps: Mapping[str, Floats], marks: Sequence[int]
) -> Table:
    rows = []
    for mark in marks:
        place = streams.position(mark)
        right = gaps[RIGHT][:, place]
        for setting in variants:
            here = gaps[setting.world][:, place]
            misspecified = setting.world != RIGHT
            rows.append(
                (
                    f"{mark:,}: {setting.world}",
                    measured(here, least=0.0),
                    measured(here - right) if misspecified else None,
                    share(flagged(here, right)) if misspecified else None,
                    root_mean_square(streams.at(setting, DIRECT, "rmse", mark)),
                )
            )
    return Table(
        name=f"gap-{variants[0].alpha:g}-{variants[0].confounding:g}",
        title=f"The gap as a diagnostic, {variants[0]}",
        caption="Gap: root mean square over models of direct method minus doubly robust, reward"
        f" units. Excess: against {RIGHT!r} in the same seeds. Flagged: share of streams whose gap"
        f" is larger than those of all but 5% of the streams with {RIGHT!r}, at the same EXP.",
        columns=("EXP: what the scorer sees", "gap", "excess", "flagged", "RMSE of direct method"),
        rows=tuple(rows),
    )


def _figure(streams: Streams, variants: Sequence[Setting], marks: Sequence[int]) -> Curves:
    def points(setting: Setting, family: str) -> tuple[Measured, ...]:
        return tuple(root_mean_square(streams.at(setting, family, "rmse", at)) for at in marks)

    return Curves(
        name=f"rmse-{variants[0].alpha:g}-{variants[0].confounding:g}",
        title=f"RMSE of values against EXP, {variants[0]}",
        caption="A panel for each thing the scorer may see; a line that stops falling is biased.",
        x_label="randomized requests",
        y_label="RMSE, reward units",
        panels=tuple(
            CurvePanel(
                setting.world,
                tuple(map(float, marks)),
                tuple(Line(family, points(setting, family)) for family in streams.families),
            )
            for setting in variants
        ),
        log_x=True,
        log_y=True,
    )


def _sentences(
    streams: Streams, variants: Sequence[Setting], gaps: Mapping[str, Floats], mark: int
) -> list[str]:
    place = streams.position(mark)
    misspecified = [each for each in variants if each.world != RIGHT]
    sentences = []
    for setting in misspecified:
        direct, robust = (
            root_mean_square(streams.at(setting, family, "rmse", mark))
            for family in (DIRECT, ROBUST)
        )
        right = gaps[RIGHT][:, place]
        excess = measured(gaps[setting.world][:, place] - right)
        caught = share(flagged(gaps[setting.world][:, place], right))
        sentences.append(
            f"{setting}, scorer with {setting.world}, {mark:,} randomized requests: RMSE of the"
            f" direct method {in_sentence(direct)}, of doubly robust {in_sentence(robust)}; the gap"
            f" between them exceeds that with all features by {in_sentence(excess)} and flags"
            f" {in_sentence(caught, 2)} of the streams at a false-alarm rate of 0.05."
        )
    return sentences
