"""Sequences on each model's own rewards, without weights.

Where e and pi never depend on the request and traffic is stationary, the rewards of the rows that
drew m are, given the past and the draw, of mean V(m): no weight is needed and a small propensity
costs nothing but its rarity. Both conditions are assumptions that the bounded sequence does not
make; they are printed with the interval (`ASSUMPTION`).

One end: the mixture of `mixture` over the rewards of one model. A contrast: rows of a and of b are
disjoint in time, so the product of the lower mixture of a and the upper mixture of b is a
supermartingale at the true pair of values; the pairs it does not rule out at level alpha form a
convex region, and the end of V(a) - V(b) is its smallest difference. With s_a, s_b the sums of xi
that levels l and log(1/alpha) - l admit, that is
    min over l of  (total_a - s_a(l)) / n_a - (total_b + s_b(log(1/alpha) - l)) / n_b,
here over a grid of l whose rectangles cover the region, so the end is never too high. It is
narrower than the union of two ends at half the level: for equal n by about a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.inference.mixture import LOWEST_LEVEL, lower_mean, reach
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Floats, Ints

ASSUMPTION = "assumes stationary traffic and probabilities that never depended on the request"
LEVELS = 64
"""Rectangles that cover the region of a contrast."""


@dataclass(frozen=True, slots=True)
class RewardCentres:
    """Frozen with a rule: expected rewards for the lower and upper ends, (K,), in [0, 1]."""

    low: Floats
    high: Floats

    @classmethod
    def neutral(cls, models: int) -> Self:
        return cls(np.full(models, 0.5), np.full(models, 0.5))


@dataclass(slots=True)
class RewardMoments(Additive):
    """Sums over the rewards of rows that drew each of K models, scaled to [0, 1], all (K,).

    count; low, high: sums of the reward for lower and for upper ends (they differ where rewards
    are missing); low_squares, high_squares: sums of squares around the centres in force.
    """

    count: Floats
    low: Floats
    high: Floats
    low_squares: Floats
    high_squares: Floats

    @classmethod
    def empty(cls, models: int) -> Self:
        return cls(*(np.zeros(models) for _ in range(5)))

    def update(self, centres: RewardCentres, model: Ints, low: Floats, high: Floats) -> None:
        """Add n randomized rows in place. model: (n,); low, high: (n,) rewards in [0, 1]."""
        models = len(self.count)
        self.count += np.bincount(model, minlength=models)
        self.low += np.bincount(model, low, models)
        self.high += np.bincount(model, high, models)
        self.low_squares += np.bincount(model, (low - centres.low[model]) ** 2, models)
        self.high_squares += np.bincount(model, (high - centres.high[model]) ** 2, models)

    def centres(self, known: Floats | None = None, rows: float = 1.0) -> RewardCentres:
        """Centres for the next rule: the running means, drawn by `rows` rewards to what is known.

        known: (K,) what the rewards are expected to be, 1/2 if None.
        """
        weight, drawn = self.count + rows, rows * (0.5 if known is None else known)
        return RewardCentres((self.low + drawn) / weight, (self.high + drawn) / weight)

    def rarer(self) -> Floats:
        """(K,) amount of the rarer outcome: min of sum R and sum (1 - R). It never falls."""
        return np.minimum(self.low, self.count - self.high)


def value_bounds(moments: RewardMoments, alpha: float) -> tuple[Floats, Floats]:
    """(..., K) lower and upper ends on the [0, 1] scale, each at one-sided level alpha."""
    count = np.maximum(moments.count, 1.0)
    low = lower_mean(1.0, moments.low, moments.low_squares, 1.0, alpha) / count
    lost = moments.count - moments.high
    high = 1.0 - lower_mean(1.0, lost, moments.high_squares, 1.0, alpha) / count
    seen = moments.count > 0
    return np.where(seen, np.clip(low, 0, 1), 0.0), np.where(seen, np.clip(high, 0, 1), 1.0)


def contrast_bounds(moments: RewardMoments, alpha: float, levels: int = LEVELS) -> Floats:
    """(..., K, K) lower ends of V(a) - V(b) on the [0, 1] scale, each at one-sided level alpha."""
    top = np.log(1.0 / alpha)
    grid = np.linspace(LOWEST_LEVEL, top - LOWEST_LEVEL, levels + 1)
    seen = moments.count > 0
    count = np.where(seen, moments.count, 1.0)
    # (..., K, levels + 1): how far below and above its mean each level lets a value be.
    below = reach(grid, moments.low_squares[..., None]) / count[..., None]
    above = reach(grid, moments.high_squares[..., None]) / count[..., None]
    mean_low, mean_high = moments.low / count, moments.high / count
    below = np.minimum(below, mean_low[..., None])
    above = np.minimum(above, 1.0 - mean_high[..., None])
    # Between two grid points the region lies in the rectangle of the higher level of each side.
    slack = below[..., :, None, 1:] + above[..., None, :, ::-1][..., :-1]
    lower = (mean_low[..., :, None] - mean_high[..., None, :]) - slack.max(axis=-1)
    both = seen[..., :, None] & seen[..., None, :]
    lower = np.where(both, np.clip(lower, -1.0, 1.0), -1.0)
    diagonal = np.arange(lower.shape[-1])
    lower[..., diagonal, diagonal] = 0.0
    return lower
