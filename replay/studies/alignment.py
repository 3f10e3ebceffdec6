"""Regret of every family as the reward moves from visible structure (α = 0) to the task (α = 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Findings,
    Line,
    Measured,
    Table,
    beaten,
    in_sentence,
    listed,
    lowest,
    measured,
    tied,
)
from equipoise.replay.results.averages import Floats, area_under
from equipoise.replay.studies.registry import FIFTHS, Plan, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "Which estimator loses least as the reward moves away from what logs already show?"
PLAN = Plan(alphas=FIFTHS, confoundings=(1.0,), budget=1000)


@study("alignment", TITLE, PLAN)
def alignment(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Regret at marks of EXP and its area under the curve, per α, ω and family."""
    streams = Streams(results)
    tables, figures, sentences = [], [], []
    for omega in streams.confoundings:
        panels = []
        for name, title, losses in _quantities(streams, omega):
            rows = {
                alpha: {family: measured(each, least=0.0) for family, each in by_family.items()}
                for alpha, by_family in losses.items()
            }
            tables.append(
                Table(
                    name=f"{name}-{omega:g}",
                    title=f"{title}, ω = {omega:g}",
                    caption="Reward units, mean over seeds [95% interval]; lower is better.",
                    columns=("α", *streams.families),
                    rows=tuple(
                        (alpha, *(row[family] for family in streams.families))
                        for alpha, row in rows.items()
                    ),
                )
            )
            panels.append(_panel(title, streams, rows))
            sentences.append(_sentence(title, omega, losses))
        figures.append(
            Curves(
                name=f"alignment-{omega:g}",
                title=f"Regret against alignment, ω = {omega:g}",
                caption="α = 0: the reward is a taste for what outputs look like; α = 1: success"
                " at the task.",
                x_label="alignment α",
                y_label="regret, reward units",
                panels=tuple(panels),
            )
        )
    return Findings("alignment", TITLE, tuple(sentences), tuple(tables), tuple(figures))


def _quantities(
    streams: Streams, omega: float
) -> Iterator[tuple[str, str, dict[float, dict[str, Floats]]]]:
    """Name, title and losses (R,) by α and family of everything that is compared."""
    grid = streams.checkpoints
    for mark in streams.marks():
        yield (
            f"regret-{mark}",
            f"Regret with {mark:,} randomized requests",
            {
                alpha: {
                    family: streams.at(Setting("", alpha, omega), family, "regret", mark)
                    for family in streams.families
                }
                for alpha in streams.alphas
            },
        )
    yield (
        "area",
        f"Mean regret over the first {streams.last:,} randomized requests (area under the curve"
        f" over {streams.last:,})",
        {
            alpha: {
                family: area_under(
                    streams.curves(Setting("", alpha, omega), family, "regret"), grid
                )
                / streams.last
                for family in streams.families
            }
            for alpha in streams.alphas
        },
    )


def _panel(title: str, streams: Streams, rows: dict[float, dict[str, Measured]]) -> CurvePanel:
    return CurvePanel(
        title=title.partition(" (")[0],
        x=tuple(rows),
        lines=tuple(
            Line(family, tuple(row[family] for row in rows.values())) for family in streams.families
        ),
    )


def _sentence(title: str, omega: float, losses: dict[float, dict[str, Floats]]) -> str:
    """Who is never beaten, and how far the best is from the worst."""
    lost = {alpha: beaten(by_family) for alpha, by_family in losses.items()}
    families = list(next(iter(losses.values())))
    never = [family for family in families if not any(row[family] for row in lost.values())]
    alpha = max(losses)
    best = lowest(losses[alpha])
    text = (
        f"{title.partition(' (')[0]}, ω = {omega:g}: the lowest mean at α = {alpha:g} is"
        f" {in_sentence(measured(losses[alpha][best], least=0.0))}"
        f" ({listed(tied(losses[alpha]))}); "
    )
    if not never:
        return text + "every family is beaten at some α, so none can be chosen beforehand."
    return text + f"not beaten at any α beyond the noise of seeds: {listed(never)}."
