"""Arms of an experiment that compares allocations: a policy, and the family that reads its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.averages import Counts, Floats, settles_at
from equipoise.replay.experiments.streams import Setting, Streams
from equipoise.replay.sweep import Cell
from equipoise.replay.worlds import WorldOptions

CHALLENGERS = 3
"""The contrasts that matter: the truly best model against this many of its closest challengers."""


@dataclass(frozen=True, slots=True)
class Arm:
    """policy: a name of the registry. family: steers it and reads it. priced: whether the rule
    weighs what a model costs; such an arm is run only where the benchmark knows costs."""

    policy: str
    family: str
    priced: bool = False

    @property
    def label(self) -> str:
        """Its name in tables, and in the column `policy` of the results."""
        return f"{self.policy} / {self.family}" + (", priced" if self.priced else "")


def arm_cells(
    arms: Sequence[Arm],
    alphas: Sequence[float],
    confoundings: Sequence[float],
    seeds: int,
    worlds: Sequence[tuple[str, WorldOptions | None]],
) -> list[Cell]:
    """All cells of an experiment with arms, in a fixed order; the same seeds in every arm."""
    return [
        Cell(
            *(alpha, confounding, arm.policy, arm.family, (arm.family,), seed, label, options),
            priced=arm.priced,
            name=arm.label,
        )
        for label, options in worlds
        for alpha in alphas
        for confounding in confoundings
        for arm in arms
        for seed in range(seeds)
    ]


class ArmStreams:
    """Results by setting and arm; the same seed is the same row everywhere.

    labels: arms in the order given. settings, checkpoints (C,), seeds (R,) as in Streams.
    """

    def __init__(self, results: pd.DataFrame, meta: Mapping[str, Any], arms: Sequence[Arm]) -> None:
        ran = set(results["policy"])
        self._families = {arm.label: arm.family for arm in arms if arm.label in ran}
        self._streams = {
            label: Streams(results[(results["policy"] == label) & (results["estimator"] == family)])
            for label, family in self._families.items()
        }
        self._meta = meta
        first = next(iter(self._streams.values()))
        self.labels = tuple(self._streams)
        self.settings = first.settings
        self.checkpoints: Counts = np.unique(
            np.concatenate([each.checkpoints for each in self._streams.values()])
        )

    def curves(self, setting: Setting, label: str, column: str) -> Floats:
        """(R, C) a column of numbers."""
        return self._streams[label].curves(setting, self._families[label], column)

    def final(self, setting: Setting, label: str, column: str) -> Floats:
        """(R,) a column of numbers at the end."""
        last: Floats = self.curves(setting, label, column)[:, -1]
        return last

    def mattering_errors(self, setting: Setting, label: str) -> Floats:
        """(R, C) mean squared error of the contrasts that matter."""
        truth = self.truth(setting)
        order = np.argsort(-truth, kind="stable")
        best, near = order[0], order[1 : 1 + CHALLENGERS]
        values = self._streams[label].values(setting, self._families[label])
        contrasts = values[..., [best]] - values[..., near]
        error: Floats = ((contrasts - (truth[best] - truth[near])) ** 2).mean(axis=-1)
        return error

    def scenario(self, setting: Setting) -> Mapping[str, Any]:
        """The description of a setting, from that of the run."""
        for scenario in self._meta["scenarios"]:
            place = (scenario.get("world", ""), scenario["alpha"], scenario["confounding"])
            if Setting(*place) == setting:
                found: Mapping[str, Any] = scenario
                return found
        raise KeyError(str(setting))

    def truth(self, setting: Setting) -> Floats:
        """(K,) true values of a setting."""
        values = self.scenario(setting)["values"]
        return np.array([values[model] for model in self._meta["models"]])


def settled(curves: Floats, checkpoints: Counts, limit: float) -> Floats:
    """(N,) checkpoint from which each curve of (N, C) stays <= limit, not before the first one
    after 0; inf for never."""
    return np.maximum(
        settles_at(curves, checkpoints, limit), float(checkpoints[checkpoints > 0][0])
    )
