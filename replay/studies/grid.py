"""Paired regret differences over α x ω: when is a small experiment worth more than a large log?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from equipoise.replay.findings.findings import (
    Findings,
    Heatmaps,
    HeatPanel,
    Measured,
    Table,
    above_zero,
    lowest,
    measured,
)
from equipoise.replay.results.averages import Floats
from equipoise.replay.studies.registry import FIFTHS, Plan, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "When is a small experiment worth more than a large log?"
OBS_BASED = ("obs-only", "cvci", "grounded")
PLAN = Plan(
    alphas=FIFTHS,
    confoundings=FIFTHS,
    budget=1000,
    needs=("obs-only", "representation-exp", "grounded"),
)


@study("grid", TITLE, PLAN)
def grid(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Two panels of paired differences per mark of EXP, and the regrets behind them."""
    streams = Streams(results)
    tables, figures, sentences = [], [], []
    for mark in streams.marks():
        cells = {setting: _Cell(streams, setting, mark) for setting in streams.settings}
        against = {place: measured(cell.against_best) for place, cell in cells.items()}
        corrected = {place: measured(cell.correction) for place, cell in cells.items()}
        figures.append(
            Heatmaps(
                name=f"grid-{mark}",
                title=f"Paired differences of regret with {mark:,} randomized requests",
                caption="Left, the best of obs-only, cvci and grounded is the one with the lowest"
                " mean regret in the cell, named in the table: it is chosen after looking, which"
                " flatters it, and the interval does not know of the choice.",
                x_label="self-selection ω",
                y_label="alignment α",
                below="the first of the two loses less",
                above="the second one loses less",
                panels=(
                    _panel("representation-exp − best OBS-based", streams, against),
                    _panel("grounded − obs-only", streams, corrected),
                ),
            )
        )
        tables.append(
            Table(
                name=f"grid-{mark}",
                title=f"Regret with {mark:,} randomized requests, cell by cell",
                caption="Reward units, mean over seeds [95% interval]; lower is better.",
                columns=("α, ω", *streams.families, "best OBS-based"),
                rows=tuple(
                    (
                        f"{place.alpha:g}, {place.confounding:g}",
                        *(
                            measured(streams.at(place, family, "regret", mark), least=0.0)
                            for family in streams.families
                        ),
                        cell.best,
                    )
                    for place, cell in cells.items()
                ),
            )
        )
        sentences += [
            _sentence(mark, against, "representation-exp", "the best OBS-based family"),
            _sentence(mark, corrected, "grounded", "obs-only"),
        ]
    return Findings("grid", TITLE, tuple(sentences), tuple(tables), tuple(figures))


class _Cell:
    """One cell: the best OBS-based family and the two differences (R,)."""

    def __init__(self, streams: Streams, setting: Setting, mark: int) -> None:
        regret: dict[str, Floats] = {
            family: streams.at(setting, family, "regret", mark) for family in streams.families
        }
        self.best = lowest({name: regret[name] for name in OBS_BASED if name in regret})
        self.against_best: Floats = regret["representation-exp"] - regret[self.best]
        self.correction: Floats = regret["grounded"] - regret["obs-only"]


def _panel(title: str, streams: Streams, differences: dict[Setting, Measured]) -> HeatPanel:
    return HeatPanel(
        title=title,
        x=tuple(streams.confoundings),
        y=tuple(streams.alphas),
        cells=tuple(
            tuple(differences[Setting("", alpha, omega)] for omega in streams.confoundings)
            for alpha in streams.alphas
        ),
    )


def _sentence(mark: int, differences: dict[Setting, Measured], first: str, second: str) -> str:
    better = sum(each.high is not None and each.high < 0 for each in differences.values())
    worse = sum(above_zero(each) for each in differences.values())
    every = len(differences)
    return (
        f"With {mark:,} randomized requests {first} loses less than {second} in {better} of"
        f" {every} cells and more in {worse}; in {every - better - worse} the interval holds 0."
    )
