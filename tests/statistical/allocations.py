"""Plug-in allocations over many runs at once, for the coverage study.

Simplified on purpose: shares from the running means of each run, no shrinkage and no warm-up, so
that the sequences meet the most adaptive traffic. Every share is mixed with the floor. A rule is
given for the two contexts that a request may have; only `contrast` treats them differently.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.planning.simulation.paths import _certify

FLOOR_SHARE = 0.1
"""The floor is this share of 1 / K, as it is in the agent unless declared."""
DRAWS = 48
CONTEXTS = 2


def uniform(mean, count, rng):
    return np.full(mean.shape, 1.0 / mean.shape[1])


def neyman(mean, count, rng):
    spread = np.sqrt(mean * (1.0 - mean)) + 1e-3
    return spread / spread.sum(axis=1, keepdims=True)


def top_two(mean, count, rng):
    """Half for the draws' best, half for their second; Gaussian posterior, plug-in variance."""
    runs, models = mean.shape
    spread = np.sqrt((mean * (1.0 - mean) + 1e-3) / np.maximum(count, 1.0))
    draws = mean[:, None] + spread[:, None] * rng.standard_normal((runs, DRAWS, models))
    order = np.argsort(draws, axis=2)
    shares = np.zeros((runs, models))
    for place in (-1, -2):
        for model in range(models):
            shares[:, model] += 0.5 * (order[:, :, place] == model).mean(axis=1)
    return shares


def track_and_stop(mean, count, rng):
    """Shares of Garivier & Kaufmann's optimum with plug-in variances, in its closed-form
    approximation: v_i / gap_i^2 for the others, sd_L sqrt(sum w_i^2 / v_i) for the leader."""
    runs = np.arange(len(mean))
    leader = mean.argmax(axis=1)
    variance = mean * (1.0 - mean) + 1e-4
    gap = np.maximum(mean[runs, leader][:, None] - mean, 1e-2)
    weight = variance / gap**2
    weight[runs, leader] = 0.0
    lead = np.sqrt(variance[runs, leader] * (weight**2 / variance).sum(axis=1))
    weight[runs, leader] = lead
    return weight / weight.sum(axis=1, keepdims=True)


def certify(mean, count, rng):
    """The shares that ship, on plug-in moments; chances of the plan's simulation."""
    variance = mean * (1.0 - mean) + 1e-3
    return _certify(count, mean, variance, np.full(mean.shape[1], np.nan), 0.0, 0.05)


ALLOCATIONS = {
    "uniform": uniform,
    "neyman": neyman,
    "top-two": top_two,
    "track-and-stop": track_and_stop,
    "certify": certify,
}
NAMES = (*ALLOCATIONS, "contrast")


def rule(name, rate, mean, count, rng):
    """Gate e (CONTEXTS,) and shares pi (runs, CONTEXTS, K), mixed with the floor.

    mean, count: (runs, K). `contrast` randomizes context 1 four times as often as context 0 and
    spends it there on the best two models, in context 0 by Neyman's shares. `leader F` gives the
    last model all that is left when the others have F / K, for good.
    """
    models = mean.shape[1]
    if name.startswith("leader "):
        floor = float(name.split()[1]) / models
        shares = np.full(models, floor)
        shares[-1] = 1.0 - (models - 1) * floor
        return np.full(CONTEXTS, rate), np.broadcast_to(shares, (len(mean), CONTEXTS, models))
    if name == "contrast":
        gate = rate * np.array([0.4, 1.6])
        shares = np.stack([neyman(mean, count, rng), top_two(mean, count, rng)], axis=1)
    else:
        gate = np.full(CONTEXTS, rate)
        shares = np.repeat(ALLOCATIONS[name](mean, count, rng)[:, None], CONTEXTS, axis=1)
    return gate, FLOOR_SHARE / models + (1.0 - FLOOR_SHARE) * shares
