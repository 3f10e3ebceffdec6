"""A simulator that is wrong in several ways: how far it pulls each family, and whom it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Entry,
    Findings,
    Line,
    Measured,
    Table,
    in_sentence,
    listed,
    measured,
)
from equipoise.replay.results.averages import Floats
from equipoise.replay.studies.registry import Plan, Variant, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "How far does a wrong simulator pull each estimator?"
FAITHFUL = "faithful"
KINDS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "drift": ("simulator_drift", (0.1, 0.3, 1.0), ()),
    "truncation": ("simulator_truncation", (0.1, 0.3, 0.6), ()),
    "missing at random": ("simulator_missing", (0.1, 0.3, 0.6), ()),
    "missing tilted": ("simulator_missing", (0.1, 0.3, 0.6), ("simulator_missing_tilt=1",)),
}
"""Kinds of mismatch: the option, its levels, and what comes with it."""


def label(kind: str, level: float) -> str:
    """The name of a kind of mismatch at a level."""
    return f"{kind} {level:g}"


PLAN = Plan(
    alphas=(0.5,),
    confoundings=(1.0,),
    budget=1000,
    variants=(
        Variant(FAITHFUL),
        *(
            Variant(label(kind, level), (f"{option}={level:g}", *more))
            for kind, (option, levels, more) in KINDS.items()
            for level in levels
        ),
    ),
)
CHANGES = (
    ("rmse_contrast", "RMSE of contrasts"),
    ("bias", "bias (mean error over models)"),
    ("regret", "regret"),
)
CERTIFIED = ("width", "covered", "ever_miscovered", "decided_at", "decided_right")
IPW = "ipw"
ROUNDING = 1e-12
"""Differences up to this are 0. The log is summed in chunks, and fewer replays before the traffic
move the ends of chunks, which moves the last bit of a sum."""
SCALES = (
    "Drift is in standard deviations of a feature, the others in shares of replays; tilted: those"
    " with a low expected reward go first."
)


@study("simulator", TITLE, PLAN)
def simulator(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Changes against the faithful simulator in the same seeds, per kind, level and family."""
    streams = Streams(results)
    mark = streams.last
    tables: list[Table] = []
    figures: list[Curves] = []
    sentences: list[str] = []
    for base in (each for each in streams.settings if each.world == FAITHFUL):
        mismatched = [
            each
            for each in streams.settings
            if each == Setting(each.world, base.alpha, base.confounding) and each != base
        ]
        name = f"{base.alpha:g}-{base.confounding:g}"
        for column, title in CHANGES:
            tables.append(
                Table(
                    name=f"{column}-{name}",
                    title=f"Change in {title} with {mark:,} randomized requests, {base}",
                    caption="Against the faithful simulator in the same seeds, reward units"
                    f" [95% interval]; 0 is not moved. {SCALES}",
                    columns=("simulator", *streams.families),
                    rows=tuple(
                        (
                            setting.world,
                            *(
                                measured(change(streams, base, setting, family, column, mark))
                                for family in streams.families
                            ),
                        )
                        for setting in mismatched
                    ),
                )
            )
        tables.append(_unmoved(streams, base, mismatched, name))
        figures.append(_figure(streams, base, name, mark))
        sentences += _sentences(streams, base, mismatched, mark)
    return Findings("simulator", TITLE, tuple(sentences), tuple(tables), tuple(figures))


def change(
    streams: Streams, base: Setting, setting: Setting, family: str, column: str, mark: int
) -> Floats:
    """(R,) a column under a wrong simulator minus the same under the faithful one."""
    here = streams.at(setting, family, column, mark)
    return settled(here - streams.at(base, family, column, mark))


def settled(difference: Floats) -> Floats:
    """Differences without what is only rounding."""
    return np.where(np.abs(difference) <= ROUNDING, 0.0, difference)


def largest_change(one: Floats, other: Floats) -> float:
    """The largest absolute difference; unknown in both is none, unknown in one is infinite."""
    same = (np.isnan(one) & np.isnan(other)) | (one == other)
    difference = np.where(same, 0.0, np.abs(settled(one - other)))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def unmoved(streams: Streams, base: Setting, setting: Setting) -> dict[str, float]:
    """Largest change, at any checkpoint and seed, of what must not depend on the simulator."""
    changes = {}
    if IPW in streams.families:
        changes["values of ipw"] = largest_change(
            streams.values(base, IPW), streams.values(setting, IPW)
        )
    family = streams.families[0]
    for column in CERTIFIED:
        changes[column.replace("_", " ")] = largest_change(
            streams.curves(base, family, column), streams.curves(setting, family, column)
        )
    return changes


def _unmoved(streams: Streams, base: Setting, mismatched: list[Setting], name: str) -> Table:
    rows = [(setting.world, unmoved(streams, base, setting)) for setting in mismatched]
    columns = tuple(rows[0][1]) if rows else ()
    return Table(
        name=f"unmoved-{name}",
        title=f"What no simulator may move, {base}",
        caption="The largest absolute change over all seeds and checkpoints, rounding of sums"
        f" (up to {ROUNDING:g}) apart; the certified columns are the width of intervals, whether"
        " they cover, and when and what they decide.",
        columns=("simulator", *columns),
        rows=tuple((world, *changes.values()) for world, changes in rows),
    )


def _figure(streams: Streams, base: Setting, name: str, mark: int) -> Curves:
    worlds = {
        each.world
        for each in streams.settings
        if (each.alpha, each.confounding) == (base.alpha, base.confounding)
    }
    panels = []
    for kind, (_, levels, _) in KINDS.items():
        there = [level for level in levels if label(kind, level) in worlds]
        lines = []
        for family in streams.families:
            points = [Measured(0.0, 0.0, 0.0)]
            for level in there:
                setting = Setting(label(kind, level), base.alpha, base.confounding)
                moved = change(streams, base, setting, family, "rmse_contrast", mark)
                points.append(measured(moved))
            lines.append(Line(family, tuple(points)))
        panels.append(CurvePanel(kind, (0.0, *there), tuple(lines)))
    return Curves(
        name=f"pull-{name}",
        title=f"Change in RMSE of contrasts against the size of the mismatch, {base}",
        caption=f"Against the faithful simulator in the same seeds. {SCALES}",
        x_label="size of the mismatch",
        y_label="change in RMSE, reward units",
        panels=tuple(panels),
    )


def _sentences(streams: Streams, base: Setting, mismatched: list[Setting], mark: int) -> list[str]:
    most: dict[str, tuple[Measured, str]] = {}
    for family in streams.families:
        changes = {
            each.world: measured(change(streams, base, each, family, "rmse_contrast", mark))
            for each in mismatched
        }
        world = max(changes, key=lambda name: _size(changes[name].mean))
        most[family] = (changes[world], world)
    still = [name for name, (value, _) in most.items() if value.mean == 0]
    pulled = sorted(
        (name for name in most if name not in still), key=lambda name: -_size(most[name][0].mean)
    )
    sentences = []
    largest = max(max(unmoved(streams, base, each).values()) for each in mismatched)
    columns = "the values of ipw and the certified" if IPW in streams.families else "the certified"
    if largest == 0:
        sentences.append(
            f"{base}: no mismatch moves {columns} columns at all, at any checkpoint of any seed."
        )
    else:
        sentences.append(f"{base}: {columns} columns move by up to {largest:g}.")
    if pulled:
        strongest = [f"{name} by {in_sentence(most[name][0])} ({most[name][1]})" for name in pulled]
        sentences.append(
            f"Most that the RMSE of contrasts changes with {mark:,} randomized requests: "
            f"{listed(strongest)}."
        )
    if still:
        sentences.append(f"Not moved: {listed(still)}.")
    return sentences


def _size(number: Entry) -> float:
    return abs(number) if isinstance(number, float) else -1.0
