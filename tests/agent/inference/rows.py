"""Certified rows of a small confounded world, and what one row says, written out longhand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from equipoise.agent.inference.score import Rows, Tuning, scores_under

MODELS = 3
POLICIES = 2


def scores(rows, tuning, cap):
    """(n, A) low and high scores under one cap."""
    return next(scores_under(rows, tuning, (cap,)))


@dataclass(frozen=True)
class Columns:
    """The columns `Rows.of` takes, by its names."""

    rate: np.ndarray
    probabilities: np.ndarray
    randomized: np.ndarray
    model: np.ndarray
    routed: np.ndarray
    predicted: np.ndarray
    reward: np.ndarray
    known: np.ndarray
    missing: float | None = None
    shares: np.ndarray | None = None

    def rows(self):
        return Rows.of(**self.__dict__)

    def taken(self, index):
        parts = {n: v if v is None or np.isscalar(v) else v[index] for n, v in vars(self).items()}
        return Columns(**parts)

    def relabelled(self, order):
        """Model order[i] becomes model i."""
        place = np.argsort(order)
        return replace(
            self,
            probabilities=self.probabilities[:, order],
            model=place[self.model],
            routed=place[self.routed],
            predicted=self.predicted[:, order],
            shares=None if self.shares is None else self.shares[:, :, order],
        )

    def mirrored(self):
        """The same rows with reward and predictions r -> 1 - r: minimise for maximise."""
        return replace(
            self,
            predicted=1.0 - self.predicted,
            reward=1.0 - self.reward,
            missing=None if self.missing is None else 1.0 - self.missing,
        )


def columns(seed, count=200, lost=0.2, missing=None, policies=True):
    """n rows whose gate and shares depend on the request."""
    rng = np.random.default_rng(seed)
    probabilities = 0.03 / MODELS + 0.97 * rng.dirichlet(np.ones(MODELS), count)
    rate = rng.uniform(0.05, 1.0, count)
    randomized = rng.random(count) < rate
    drawn = (rng.random(count)[:, None] > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    routed = rng.integers(0, MODELS, count)
    return Columns(
        rate,
        probabilities,
        randomized,
        np.where(randomized, drawn, routed),
        routed,
        rng.random((count, MODELS)),
        rng.random(count),
        rng.random(count) >= lost,
        missing,
        rng.dirichlet(np.ones(MODELS), (count, POLICIES)) if policies else None,
    )


def tuning(seed):
    rng = np.random.default_rng(seed)
    return Tuning(rng.uniform(-0.2, 0.6, MODELS + 1), rng.uniform(0.0, 1.0, MODELS + 1))


def longhand(c, t, tuned, cap):
    """(low, high) scores of row t for models, routing and policies, one formula at a time."""
    low_reward, high_reward = (0.0, 1.0) if c.missing is None else (c.missing, c.missing)
    if c.known[t]:
        low_reward = high_reward = c.reward[t]
    low, high = [], []
    for m in range(MODELS + 1):
        if m < MODELS:
            chance = c.rate[t] * c.probabilities[t, m]
            drawn, raw = c.randomized[t] and c.model[t] == m, c.predicted[t, m]
        else:
            chance = 1 - c.rate[t] + c.rate[t] * c.probabilities[t, c.routed[t]]
            drawn, raw = c.model[t] == c.routed[t], c.predicted[t, c.routed[t]]
        mu = min(max(tuned.offset[m] + tuned.factor[m] * raw, 0.0), 1.0)
        room = np.inf if chance == 1 else cap / (1 / chance - 1)
        mu_low, mu_high = min(mu, room), max(mu, 1 - room)
        low.append(mu_low + (low_reward - mu_low) / chance if drawn else mu_low)
        high.append(mu_high + (high_reward - mu_high) / chance if drawn else mu_high)
    if c.shares is not None:
        for share in c.shares[t]:
            low.append(sum(share[m] * low[m] for m in range(MODELS)))
            high.append(sum(share[m] * high[m] for m in range(MODELS)))
    return np.array(low), np.array(high)
