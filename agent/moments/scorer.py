"""Weighted moments of (phi, reward) for linear scorers, per group of units and per model."""

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
class ScorerMoments(Additive):
    """Counts, weights, means and centred second moments of v = (phi without intercept, reward).

    With G groups, K models and p = len(v) (phi itself has p entries, its intercept included):
    count, weight: (G, K) rows and sum of w. mean: (G, K, p) weighted mean of v per model.
    centre: (G, p) weighted mean of v in the group; scatter: (G, p, p) = sum of
    w (v - centre)(v - centre)^T over the group's rows, whatever their model.
    Within-model (fixed-effect) moments follow by subtracting the spread of the model means
    (Frisch-Waugh-Lovell).
    """

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
        self.require_same_shape(other)
        mine, theirs = self.weight.sum(axis=1), other.weight.sum(axis=1)
        return type(self)(
            count=self.count + other.count,
            weight=self.weight + other.weight,
            mean=merged_mean(self.weight, self.mean, other.weight, other.mean),
            centre=merged_mean(mine, self.centre, theirs, other.centre),
            scatter=self.scatter + other.scatter + between(mine, self.centre, theirs, other.centre),
        )

    def part(self, groups: slice) -> Self:
        """A view of some of the groups; for reading only."""
        return type(self)(*(array[groups] for array in self.arrays().values()))
