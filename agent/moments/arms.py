"""Moments of rewards: of EXP per group and model, by logged propensities; of today's routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.moments.additive import Additive, Cells, add_variation
from equipoise.store.batches import Flags, Floats, Ints


@dataclass(slots=True)
class ArmMoments(Additive):
    """EXP rewards of each assigned model, weighted by w = 1 / (e pi), all (G, K) unless said.

    count; weight = sum w; weight_sq = sum w^2; mean, scatter: weighted mean of the reward and
    sum w (r - mean)^2; plain_mean, plain_scatter: the same with w = 1.
    The predictor that the doubly robust correction subtracts is that of the request's SIM row,
    or of the regression of phi on z = [1, x] where it has none:
    sim_weight, sim_sum (G, K, p - 1): sum of w, of w phi over rows with a SIM row;
    live_weight, live_sum (G, K, d): sum of w, of w x over rows without.
    """

    MEANS = (("weight", "mean", "scatter"), ("count", "plain_mean", "plain_scatter"))

    count: Floats
    weight: Floats
    weight_sq: Floats
    mean: Floats
    scatter: Floats
    plain_mean: Floats
    plain_scatter: Floats
    sim_weight: Floats
    sim_sum: Floats
    live_weight: Floats
    live_sum: Floats

    @classmethod
    def empty(cls, groups: int, models: int, features: int, context: int) -> Self:
        """features: p, the length of phi with its intercept; context: d, the length of x."""
        cells = (groups, models)
        return cls(
            count=np.zeros(cells),
            weight=np.zeros(cells),
            weight_sq=np.zeros(cells),
            mean=np.zeros(cells),
            scatter=np.zeros(cells),
            plain_mean=np.zeros(cells),
            plain_scatter=np.zeros(cells),
            sim_weight=np.zeros(cells),
            sim_sum=np.zeros((*cells, features - 1)),
            live_weight=np.zeros(cells),
            live_sum=np.zeros((*cells, context)),
        )

    def update(
        self,
        group: Ints,
        model: Ints,
        weight: Floats,
        reward: Floats,
        simulated: Flags,
        predicted: Floats,
        x: Floats,
    ) -> None:
        """Add n EXP rows in place.

        group, model, weight, reward: (n,). simulated: (n,) whether the request has a SIM row for
        its model; predicted: (n, p - 1) phi of that row (ignored where not simulated); x: (n, d).
        """
        if len(group) == 0:
            return
        cells = Cells(group * self.count.shape[1] + model)
        order, here = cells.order, cells.present
        weight, reward, simulated = weight[order], reward[order], simulated[order]
        flat = self.count.size
        count = self.count.reshape(flat)
        add_variation(
            cells,
            np.ones(len(weight)),
            reward,
            count,
            self.plain_mean.reshape(flat),
            self.plain_scatter.reshape(flat),
        )
        add_variation(
            cells,
            weight,
            reward,
            self.weight.reshape(flat),
            self.mean.reshape(flat),
            self.scatter.reshape(flat),
        )
        self.weight_sq.reshape(flat)[here] += cells.sums(weight * weight)
        without = weight
        if simulated.any():
            with_row = np.where(simulated, weight, 0.0)
            self.sim_weight.reshape(flat)[here] += cells.sums(with_row)
            rows = np.where(simulated[:, None], predicted[order], 0.0)
            self.sim_sum.reshape(flat, -1)[here] += cells.sums(with_row[:, None] * rows)
            without = weight - with_row
        self.live_weight.reshape(flat)[here] += cells.sums(without)
        self.live_sum.reshape(flat, -1)[here] += cells.sums(without[:, None] * x[order])


@dataclass(slots=True)
class RoutingMoments(Additive):
    """Rewards of rows served as routed, w = 1 / (1 - e + e pi(routed)), w = 1 for bulk logs.

    count, weight, mean, scatter: (G,), the last two as in ArmMoments.
    """

    MEANS = (("weight", "mean", "scatter"),)

    count: Floats
    weight: Floats
    mean: Floats
    scatter: Floats

    @classmethod
    def empty(cls, groups: int) -> Self:
        return cls(*(np.zeros(groups) for _ in range(4)))

    def update(self, group: Ints, weight: Floats, reward: Floats) -> None:
        """Add n rows in place; all arguments (n,)."""
        if len(group) == 0:
            return
        cells = Cells(group)
        weight, reward = weight[cells.order], reward[cells.order]
        self.count[cells.present] += cells.sizes
        add_variation(cells, weight, reward, self.weight, self.mean, self.scatter)
