"""Moments of the rewards of traffic served as routed: the value of today's routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.moments.additive import Additive
from equipoise.agent.moments.cells import Cells
from equipoise.agent.moments.centred import add_variation, between, merged_mean
from equipoise.store.batches import Floats, Ints


@dataclass(slots=True)
class RoutingMoments(Additive):
    """Rewards of rows served as routed, w = 1 / (1 - e + e pi(routed)), w = 1 for bulk logs.

    count, weight, mean, scatter: (G,), the last two as in ArmMoments.
    """

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

    def __add__(self, other: Self) -> Self:
        self.require_same_shape(other)
        return type(self)(
            count=self.count + other.count,
            weight=self.weight + other.weight,
            mean=merged_mean(self.weight, self.mean, other.weight, other.mean),
            scatter=self.scatter
            + other.scatter
            + between(self.weight, self.mean, other.weight, other.mean),
        )
