"""What is asked of a sequence over many runs: did it ever miss, when did it decide."""

from __future__ import annotations

import numpy as np


class EverMissed:
    """Runs in which a lower end ever lies above the truth.

    truth: function of t to theta, (A, A) for contrasts and (1, A) for values.
    """

    def __init__(self, sequence, truth):
        self.sequence, self.truth = sequence, truth
        self.missed = None

    def look(self, sums):
        if self.missed is None:
            self.missed = np.zeros(sums.low.shape[1], dtype=bool)
        theta = self.truth(sums.t)
        evidence = self.sequence.evidence(sums, theta)
        off = _off_diagonal(theta)
        suspects = np.flatnonzero((evidence > 0)[:, off].any(axis=1) & ~self.missed)
        if len(suspects):
            lower = self.sequence.lower(sums, suspects)
            self.missed[suspects] = (lower > theta + 1e-12)[:, off].any(axis=1)

    @property
    def rate(self):
        return float(self.missed.mean())


class FirstDecision:
    """When a run is first certified to have a model within epsilon of the best, and which one."""

    def __init__(self, sequence, models, epsilon=0.0):
        self.sequence, self.models, self.epsilon = sequence, models, epsilon
        self.winner = self.at = None

    def look(self, sums):
        runs, size = sums.low.shape[1:]
        if self.winner is None:
            self.winner = np.full(runs, -1)
            self.at = np.full(runs, np.inf)
        if self.sequence.models_only:
            size = self.models
        theta = np.full((size, size), -self.epsilon)
        evidence = self.sequence.evidence(sums, theta)[:, : self.models, : self.models]
        evidence = np.where(np.eye(self.models, dtype=bool), np.inf, evidence)
        suspects = np.flatnonzero((evidence.min(axis=2) > 0).any(axis=1) & (self.winner < 0))
        if not len(suspects):
            return
        lower = self.sequence.lower(sums, suspects)[:, : self.models, : self.models]
        lower = np.where(np.eye(self.models, dtype=bool), np.inf, lower).min(axis=2)
        best = lower.argmax(axis=1)
        certain = lower.max(axis=1) > -self.epsilon
        self.winner[suspects[certain]] = best[certain]
        randomized = sums.rewards.count.sum(axis=1)
        self.at[suspects[certain]] = randomized[suspects[certain]]


def _off_diagonal(theta):
    rows, columns = theta.shape
    return ~np.eye(rows, dtype=bool) if rows == columns else np.ones(theta.shape, dtype=bool)


def contrasts_of(stream, size=None):
    """Function of t: (A, A) true running contrasts of the first `size` candidates."""
    values = stream.truth()[:, :size]
    return lambda t: values[t - 1][:, None] - values[t - 1][None, :]


def values_of(stream, upper=False):
    """Function of t: (1, A) true running values, or minus them for upper ends."""
    values = stream.truth()
    return lambda t: -values[t - 1][None] if upper else values[t - 1][None]
