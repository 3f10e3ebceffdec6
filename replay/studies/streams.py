"""Arms of a study (a policy and the family that reads its data), and its results as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from equipoise.replay.harness.sweep import Cell
from equipoise.replay.results.averages import Counts, Floats, settles_at
from equipoise.replay.results.summary import FAMILIES
from equipoise.replay.worlds import World, WorldOptions

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


def reward_variances(world: World) -> dict[str, dict[str, float]]:
    """Per model: `variances` of its rewards over all traffic, `residual_variances` around the best
    linear function of context and outputs plus a constant per model."""
    means = world.means.mean(axis=1)
    noise = (world.rewards.variance(world.means).mean(axis=1) + world.means.var(axis=1)).mean(
        axis=0
    )
    misfit = _misfit(world, means)
    return {
        "variances": dict(zip(world.models, (noise + means.var(axis=0)).tolist(), strict=True)),
        "residual_variances": dict(zip(world.models, (noise + misfit).tolist(), strict=True)),
    }


def _misfit(world: World, means: Floats) -> Floats:
    """(K,) mean square of what a linear scorer with model effects leaves of E[R | context, m]."""
    contexts, models = means.shape
    x = np.broadcast_to(world.benchmark.x[:, None], (contexts, models, world.benchmark.x.shape[1]))
    features = np.concatenate([x, world.outputs], axis=2)
    centred = (features - features.mean(axis=0)).reshape(contexts * models, -1)
    target = (means - means.mean(axis=0)).ravel()
    slopes, *_ = np.linalg.lstsq(centred, target, rcond=None)
    residual = (target - centred @ slopes).reshape(contexts, models)
    return np.asarray((residual**2).mean(axis=0))


class ArmStreams:
    """Results by setting and arm; the same seed is the same row everywhere.

    labels: arms in the order given. settings, checkpoints (C,), seeds (R,) as in Streams. runs:
    how many seeds.
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
        self.runs = len(first.seeds)
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
                description: Mapping[str, Any] = scenario
                return description
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
        carried = np.take_along_axis(table, np.maximum(latest, 0), axis=1)
        return np.where(latest >= 0, carried, np.nan)

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
    ordered = [name for name in FAMILIES if name in names]
    return (*ordered, *(name for name in names if name not in FAMILIES))
