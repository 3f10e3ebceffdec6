"""Results of an experiment as arrays of seeds x checkpoints, paired over settings and families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from equipoise.replay.averages import Counts, Floats
from equipoise.replay.summary import FAMILIES

MARKS = (100, 1000)
"""Randomized requests at which regrets are compared, where a run gets there."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """Where streams were run. world: label of the variant of the world."""

    world: str
    alpha: float
    confounding: float

    def __str__(self) -> str:
        return f"α = {self.alpha:g}, ω = {self.confounding:g}"


class Streams:
    """Streams by setting and family; the same seed is the same row everywhere.

    settings, families: in the order in which they are shown. seeds: (R,). checkpoints: (C,).
    A stream that ended before a checkpoint keeps its last row.
    """

    def __init__(self, results: pd.DataFrame) -> None:
        places = results[["world", "alpha", "confounding"]].drop_duplicates()
        self.settings = [
            Setting(*place)
            for place in zip(*(places[name].tolist() for name in places.columns), strict=True)
        ]
        self.families = in_order(results["estimator"].unique().tolist())
        self.seeds: Counts = np.sort(results["seed"].unique()).astype(np.int64)
        self.checkpoints: Counts = np.sort(results["checkpoint"].unique()).astype(np.int64)
        keys = ["world", "alpha", "confounding", "estimator"]
        self._frames: dict[tuple[Setting, str], pd.DataFrame] = {}
        for key, frame in results.groupby(keys, sort=False):
            world, alpha, confounding, family = cast(tuple[str, float, float, str], key)
            self._frames[Setting(world, alpha, confounding), family] = frame

    @property
    def alphas(self) -> list[float]:
        """Alignments in increasing order."""
        return sorted({setting.alpha for setting in self.settings})

    @property
    def confoundings(self) -> list[float]:
        """Strengths of self-selection in increasing order."""
        return sorted({setting.confounding for setting in self.settings})

    @property
    def last(self) -> int:
        """The last checkpoint."""
        return int(self.checkpoints[-1])

    def marks(self, wanted: Sequence[int] = MARKS) -> list[int]:
        """Those of the wanted checkpoints that were reached, or the last one."""
        return [mark for mark in wanted if mark in self.checkpoints] or [self.last]

    def curves(self, setting: Setting, family: str, column: str) -> Floats:
        """(R, C) a column of numbers, NaN where the family says nothing."""
        table = self._wide(setting, family, column).to_numpy(dtype=float)
        # Only after its end does a stream keep its last row: what is unknown on the way stays so.
        ran = self._wide(setting, family, "checkpoint").notna().to_numpy()
        latest = np.maximum.accumulate(np.where(ran, np.arange(ran.shape[1]), -1), axis=1)
        kept = np.take_along_axis(table, np.maximum(latest, 0), axis=1)
        return np.where(latest >= 0, kept, np.nan)

    def at(self, setting: Setting, family: str, column: str, mark: int) -> Floats:
        """(R,) a column of numbers at a checkpoint."""
        column_at: Floats = self.curves(setting, family, column)[:, self.position(mark)]
        return column_at

    def values(self, setting: Setting, family: str) -> Floats:
        """(R, C, K) estimated values of the models."""
        table = self._wide(setting, family, "values").ffill(axis=1)
        flat = [np.asarray(each, dtype=float) for row in table.to_numpy() for each in row]
        return np.stack(flat).reshape(*table.shape, -1)

    def position(self, mark: int) -> int:
        """Where a checkpoint stands among all."""
        return int(np.searchsorted(self.checkpoints, mark))

    def _wide(self, setting: Setting, family: str, column: str) -> pd.DataFrame:
        frame = self._frames[setting, family]
        table: Any = frame.set_index(["seed", "checkpoint"], drop=False)[column].unstack()
        wide: pd.DataFrame = table.reindex(index=self.seeds, columns=self.checkpoints)
        return wide


def in_order(families: Sequence[str]) -> tuple[str, ...]:
    """Families as they are shown everywhere, others behind them."""
    names = list(families)
    known = [name for name in FAMILIES if name in names]
    return (*known, *(name for name in names if name not in FAMILIES))
