"""Fixed-n intervals looked at again and again: what certified sequences are there to prevent."""

from __future__ import annotations

import numpy as np
from sequences import squares_of

from equipoise.agent.inference import fixed

MIN_REWARDS = 30
"""Rewards of each model before these look."""


class NaiveZ:
    """Fixed-n z intervals of the scores, looked at again and again."""

    models_only = False

    def __init__(self, alpha):
        self.alpha = alpha

    def evidence(self, sums, theta):
        here = sums.rewards.count.min(axis=1) >= MIN_REWARDS
        return np.where(here[:, None, None], self.lower(sums, slice(None)) - theta, -np.inf)

    def lower(self, sums, runs):
        low, high = sums.low[-1][runs] / sums.t, sums.high[-1][runs] / sums.t
        width = fixed.z_half_width(sums.t, squares_of(sums, -1)[runs], self.alpha)
        return low[:, :, None] - high[:, None, :] - width


class NaiveT:
    """Welch's t intervals of the rewards as they are, looked at again and again."""

    models_only = True

    def __init__(self, alpha):
        self.alpha = alpha

    def evidence(self, sums, theta):
        here = sums.rewards.count.min(axis=1) >= MIN_REWARDS
        return np.where(here[:, None, None], self.lower(sums, slice(None)) - theta, -np.inf)

    def lower(self, sums, runs):
        rewards = sums.rewards_of(runs)
        count = np.maximum(rewards.count, 1.0)
        mean = rewards.low / count
        width = fixed.t_half_width(rewards.count, count * mean * (1.0 - mean), self.alpha)
        return mean[:, :, None] - mean[:, None, :] - width
