"""Moments of phi: of (phi, reward) in OBS and EXP rows, which linear scorers are fitted to, and of
phi in SIM rows, which their values are averaged over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Self, TypeVar

import numpy as np

from equipoise.agent.moments.additive import (
    Additive,
    Cells,
    add_means,
    add_scatter,
    between,
    merged_mean,
)
from equipoise.store.batches import Floats, Ints


@dataclass(slots=True)
class ScorerMoments(Additive):
    """Counts, weights, means and centred second moments of v = (phi without intercept, reward).

    With G groups, K models and p = len(v) (phi itself has p entries, its intercept included):
    count, weight: (G, K) rows and sum of w. mean: (G, K, p) weighted mean of v per model.
    centre: (G, p) weighted mean of v in the group; scatter: (G, p, p) = sum of
    w (v - centre)(v - centre)^T over the group's rows, whatever their model.
    Within-model (fixed-effect) moments follow by subtracting the spread of the model means
    (Frisch-Waugh-Lovell).
    """

    MEANS = (("weight", "mean", ""),)

    count: Floats
    weight: Floats
    mean: Floats
    centre: Floats
    scatter: Floats

    @classmethod
    def empty(cls, groups: int, models: int, features: int) -> Self:
        """The identity of `+`. features: p, the length of phi with its intercept."""
        return cls(
            count=np.zeros((groups, models)),
            weight=np.zeros((groups, models)),
            mean=np.zeros((groups, models, features)),
            centre=np.zeros((groups, features)),
            scatter=np.zeros((groups, features, features)),
        )

    def update(self, group: Ints, model: Ints, weight: Floats, rows: Floats) -> None:
        """Add n rows in place. group, model: (n,); weight: (n,) > 0; rows: (n, p)."""
        if len(group) == 0:
            return
        models = self.count.shape[1]
        by_arm = Cells(group * models + model)
        weight = weight[by_arm.order]
        rows = rows[by_arm.order]
        by_group = Cells(by_arm.sorted_cell // models)
        before = self.weight.sum(axis=1)
        add_scatter(by_group, weight, rows, before, self.centre, self.scatter)
        flat = self.count.size
        self.count.reshape(flat)[by_arm.present] += by_arm.sizes
        means = self.mean.reshape(flat, -1)
        add_means(by_arm, weight, rows, self.weight.reshape(flat), means)

    def __add__(self, other: Self) -> Self:
        total = Additive.__add__(self, other)
        sides = self.weight.sum(axis=1), self.centre, other.weight.sum(axis=1), other.centre
        total.centre = merged_mean(*sides)
        total.scatter += between(*sides)
        return total

    def part(self, groups: slice) -> Self:
        """A view of some of the groups; for reading only."""
        return type(self)(*(array[groups] for array in self.arrays().values()))


@dataclass(slots=True)
class SimulationMoments(Additive):
    """Per group of contexts and per model, with phi = [1, x, y, interactions] less its 1.

    count: (G, K). mean: (G, K, p - 1) mean of phi; scatter: (G, K, p - 1, p - 1) =
    sum (phi - mean)(phi - mean)^T. As x is the head of phi, these hold the regression of the
    rest of phi on z = [1, x] too. priced, cost: (G, K) rows with a price, and their mean price
    in USD.
    """

    MEANS = (("count", "mean", "scatter"), ("priced", "cost", ""))

    count: Floats
    mean: Floats
    scatter: Floats
    priced: Floats
    cost: Floats

    @classmethod
    def empty(cls, groups: int, models: int, features: int) -> Self:
        """features: p, the length of phi with its intercept."""
        return cls(
            count=np.zeros((groups, models)),
            mean=np.zeros((groups, models, features - 1)),
            scatter=np.zeros((groups, models, features - 1, features - 1)),
            priced=np.zeros((groups, models)),
            cost=np.zeros((groups, models)),
        )

    def update(self, group: Ints, model: Ints, rows: Floats, cost: Floats) -> None:
        """Add n rows in place. group, model, cost: (n,), cost NaN where unknown; rows (n, p-1)."""
        if len(group) == 0:
            return
        cells = Cells(group * self.count.shape[1] + model)
        rows, cost = rows[cells.order], cost[cells.order]
        flat, width = self.count.size, rows.shape[1]
        count = self.count.reshape(flat)
        add_scatter(
            cells,
            np.ones(len(rows)),
            rows,
            count,
            self.mean.reshape(flat, width),
            self.scatter.reshape(flat, width, width),
        )
        count[cells.present] += cells.sizes
        with_price = np.isfinite(cost)
        if with_price.any():
            priced = Cells(cells.sorted_cell[with_price])
            add_means(
                priced,
                np.ones(int(with_price.sum())),
                cost[with_price][:, None],
                self.priced.reshape(flat),
                self.cost.reshape(flat, 1),
            )


T = TypeVar("T")


def kept_for_replays(make: Callable[[SimulationMoments], T]) -> Callable[[SimulationMoments], T]:
    """A function of SIM moments that gives its last answer again for the same ones: replays come
    seldom, and every estimate of every report asks. Nobody may write to what it returns."""
    kept: tuple[SimulationMoments, Floats, T] | None = None

    @wraps(make)
    def known(simulation: SimulationMoments) -> T:
        nonlocal kept
        last = kept
        # Every row adds to its count, so the same object with the same counts holds the same rows.
        if (
            last is None
            or last[0] is not simulation
            or not np.array_equal(last[1], simulation.count)
        ):
            last = kept = simulation, simulation.count.copy(), make(simulation)
        return last[2]

    return known
