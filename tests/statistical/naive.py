"""Fixed-n intervals looked at again and again: what certified sequences are there to prevent."""

from __future__ import annotations

import numpy as np
from scipy import stats
from sequences import squares_of

from equipoise.agent.inference.certificate import fixed_half_width

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
        width = fixed_half_width(sums.t, squares_of(sums, -1)[runs], self.alpha)
        return low[:, :, None] - high[:, None, :] - width


def welch_half_width(counts, squares, alpha):
    """(..., K, K) one-sided half-width of Welch's t interval for mean(a) - mean(b), unweighted.

    counts, squares: (..., K) rewards of each model and their centred sum of squares. NaN where
    either has fewer than two rewards; 0 where neither varies.
    """
    freedom = np.where(counts > 1, counts - 1.0, np.nan)
    share = squares / freedom / counts
    spread = share[..., :, None] + share[..., None, :]
    parts = share**2 / freedom
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = spread**2 / (parts[..., :, None] + parts[..., None, :])
        width = stats.t.isf(alpha, degrees) * np.sqrt(spread)
    return np.where(spread > 0, width, spread)


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
        width = welch_half_width(rewards.count, count * mean * (1.0 - mean), self.alpha)
        return mean[:, :, None] - mean[:, None, :] - width
