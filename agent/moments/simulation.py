"""Moments of SIM rows: what each model would output on the cached contexts, and its price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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
class SimulationMoments(Additive):
    """Per group of contexts and per model, with phi = [1, x, y, interactions] less its 1.

    count: (G, K). mean: (G, K, p - 1) mean of phi; scatter: (G, K, p - 1, p - 1) =
    sum (phi - mean)(phi - mean)^T. As x is the head of phi, these hold the regression of the
    rest of phi on z = [1, x] too. priced, cost: (G, K) rows with a price, and their mean price
    in USD.
    """

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
        known = np.isfinite(cost)
        if known.any():
            priced = Cells(cells.sorted_cell[known])
            add_means(
                priced,
                np.ones(int(known.sum())),
                cost[known][:, None],
                self.priced.reshape(flat),
                self.cost.reshape(flat, 1),
            )

    def __add__(self, other: Self) -> Self:
        self.require_same_shape(other)
        return type(self)(
            count=self.count + other.count,
            mean=merged_mean(self.count, self.mean, other.count, other.mean),
            scatter=self.scatter
            + other.scatter
            + between(self.count, self.mean, other.count, other.mean),
            priced=self.priced + other.priced,
            cost=merged_mean(self.priced, self.cost, other.priced, other.cost),
        )
