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

    def observed(
        self, mean: Floats, in_time: tuple[Floats, Floats] | None = None
    ) -> tuple[Floats, Floats]:
        """E[1{observed}] and E[R 1{observed}] for rewards with these means (any shape), exact.

        in_time: P(in time) of a failure and of a success, linear in the reward between; of shapes
        that broadcast with mean; None where all rewards are.
        """
        spread = mean * (1.0 - mean)
        if self._bounded:
            spread = spread / (1.0 + self._concentration)
        square = mean**2 + spread
        if in_time is None:
            return self._sure + self._slope * mean, self._sure * mean + self._slope * square
        cube = square
        if self._bounded:
            # E R^3 = E R^2 · (a + 2) / (a + b + 2), a the first parameter of the Beta.
            total = self._concentration
            cube = square * (mean * total + 2.0) / (total + 2.0)
        # P(observed | r) = (sure + slope r)(failures + rise r), a polynomial in r.
        failures, rise = in_time[0], in_time[1] - in_time[0]
        first, second = self._sure * failures, self._slope * rise
        between = self._sure * rise + self._slope * failures
        return (
            first + between * mean + second * square,
            first * mean + between * square + second * cube,
        )

    def _beta(self, mean: Floats, rng: np.random.Generator) -> Floats:
        # A ratio of gammas stays exact at means 0 and 1, where a Beta's parameters are not legal.
        up = rng.standard_gamma(mean * self._concentration)
        down = rng.standard_gamma((1.0 - mean) * self._concentration)
        reward: Floats = up / (up + down)
        return reward
