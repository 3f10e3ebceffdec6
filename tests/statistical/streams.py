"""Worlds of the coverage study, with many runs side by side and the truth known exactly.

A request has a context x and a latent trait u, both +1 or -1 with equal chances. Model m is
rewarded with probability
    values[m] + taste a_m u + sway s_m x + drift s_m cos(2 pi t / rows),
with affinities a_m from -1/2 to 1 and signs s_m = +1, -1, +1, …; it may not leave [0, 1], so that
nothing is clipped and every mean is a finite sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stream:
    """One world.

    herding: how far the trait decides the routed model; u = 1 goes to the last one and u = -1 to
    the first with this probability, all others are routed evenly. missing: share of rewards that
    never come. lag: by up to how many frozen rules the watermark is behind. prediction: 'none',
    'log' (what an infinite log says of each routed model in each context, with its confounding),
    'wrong' (values in reverse order, context the wrong way round), 'garbage' (noise, used as it
    is: nothing tunes it away).
    """

    values: tuple[float, ...]
    rows: int
    taste: float = 0.0
    herding: float = 0.0
    sway: float = 0.0
    drift: float = 0.0
    missing: float = 0.0
    lag: int = 0
    prediction: str = "none"

    def __post_init__(self):
        room = abs(self.taste) + abs(self.sway) + abs(self.drift)
        if min(self.values) < room or max(self.values) > 1.0 - room:
            raise ValueError(f"values {self.values} leave no room for effects of {room}")

    @property
    def models(self):
        return len(self.values)

    def signs(self):
        """(K,) s_m."""
        return np.where(np.arange(self.models) % 2 == 0, 1.0, -1.0)

    def affinities(self):
        """(K,) a_m: who is routed to the first or the last model likes it more than others do."""
        return np.linspace(-0.5, 1.0, self.models)

    def routing(self):
        """(2, K) probability of being routed to each model, for u = -1 and u = +1."""
        shares = np.full((2, self.models), (1.0 - self.herding) / self.models)
        shares[0, 0] += self.herding
        shares[1, -1] += self.herding
        return shares

    def truth(self):
        """(rows, K + 1) running averages of the conditional means, today's routing last."""
        wave = np.cos(2.0 * np.pi * np.arange(self.rows) / self.rows)
        wave = np.cumsum(wave) / np.arange(1, self.rows + 1)
        models = np.array(self.values) + self.drift * self.signs() * wave[:, None]
        shares = self.routing()
        routed = models @ shares.mean(axis=0)
        routed = routed + 0.5 * self.taste * (shares[1] - shares[0]) @ self.affinities()
        return np.column_stack([models, routed])

    def predictions(self, x, rng):
        """(runs, n, K) raw predictions; x: (runs, n)."""
        shape, values = (*x.shape, self.models), np.array(self.values)
        if self.prediction == "none":
            return np.zeros(shape)
        if self.prediction == "garbage":
            return rng.random(shape)
        sway = self.sway * self.signs() * x[..., None]
        if self.prediction == "wrong":
            return np.clip(values[::-1] - 0.1 * x[..., None] - sway, 0.0, 1.0)
        shares = self.routing()
        trait = (shares[1] - shares[0]) / np.maximum(shares.sum(axis=0), 1e-12)
        return values + self.taste * self.affinities() * trait + sway


@dataclass(frozen=True)
class Requests:
    """n requests of each run: x, routed (runs, n); reward (runs, n, K) under every model; known
    (runs, n); raw predictions (runs, n, K)."""

    x: np.ndarray
    routed: np.ndarray
    reward: np.ndarray
    known: np.ndarray
    predicted: np.ndarray


def requests(stream, start, size, runs, rng):
    """Requests start … start + size - 1 of all runs."""
    shape = (runs, size)
    x = np.where(rng.random(shape) < 0.5, 1.0, -1.0)
    u = (rng.random(shape) < 0.5).astype(int)
    edges = stream.routing().cumsum(axis=1)[:, :-1]
    routed = (rng.random(shape)[..., None] > edges[u]).sum(axis=-1)
    wave = np.cos(2.0 * np.pi * np.arange(start, start + size) / stream.rows)[:, None]
    chance = np.array(stream.values) + stream.drift * stream.signs() * wave
    chance = chance + stream.taste * stream.affinities() * (2 * u - 1)[..., None]
    chance = chance + stream.sway * stream.signs() * x[..., None]
    reward = (rng.random(shape)[..., None] < chance).astype(float)
    known = rng.random(shape) >= stream.missing
    return Requests(x, routed, reward, known, stream.predictions(x, rng))
