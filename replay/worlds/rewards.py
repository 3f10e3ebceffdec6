"""Rewards with an exact mean, and rewards that never arrive."""

from __future__ import annotations

import numpy as np

from equipoise.replay.worlds.options import WorldOptions
from equipoise.store.batches import Floats


class Rewards:
    """Draws rewards in [0, 1] around given means; some of them are never seen.

    Every draw takes the same number of words from the generator whatever the means are, so that
    two policies that serve different models stay on common random numbers.
    """

    def __init__(self, options: WorldOptions) -> None:
        self._bounded = options.reward == "bounded"
        self._concentration = options.concentration
        # P(observed | reward) = sure + slope · reward.
        self._sure = 1.0 - options.missing - max(options.missing_by_reward, 0.0)
        self._slope = options.missing_by_reward
        self._complete = options.missing == 0 and options.missing_by_reward == 0

    def draw(self, mean: Floats, rng: np.random.Generator) -> Floats:
        """(n,) rewards with the given means (n,), NaN where they never arrive."""
        if self._bounded:
            reward = self._beta(mean, np.random.default_rng(int(rng.integers(2**63))))
        else:
            reward = (rng.random(len(mean)) < mean).astype(np.float64)
        if not self._complete:
            reward[rng.random(len(mean)) >= self._sure + self._slope * reward] = np.nan
        return reward

    def observed(self, mean: Floats) -> tuple[Floats, Floats]:
        """E[1{observed}] and E[R 1{observed}] for rewards with these means (any shape), exact."""
        spread = mean * (1.0 - mean)
        if self._bounded:
            spread = spread / (1.0 + self._concentration)
        square = mean**2 + spread
        return self._sure + self._slope * mean, self._sure * mean + self._slope * square

    def _beta(self, mean: Floats, rng: np.random.Generator) -> Floats:
        # A ratio of gammas stays exact at means 0 and 1, where a Beta's parameters are not legal.
        up = rng.standard_gamma(mean * self._concentration)
        down = rng.standard_gamma((1.0 - mean) * self._concentration)
        reward: Floats = up / (up + down)
        return reward
