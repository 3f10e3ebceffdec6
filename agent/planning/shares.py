"""Assignment shares of the policies a plan simulates, for N paths at once.

The same formulas as `equipoise.policies`, which freeze one rule at a time; a plan freezes one for
every path at every look. tests/agent/planning/test_shares.py holds the two to each other. Plans
know no contexts, so only context-free assignments are offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import special

from equipoise.policies.assignments.top_two import BETA
from equipoise.policies.assignments.track_and_stop import START_REWARDS
from equipoise.policies.posterior import VALUE_DRAWS
from equipoise.policies.snapshot import Flags, Floats

Shares: TypeAlias = Callable[[Floats, Floats, Floats, Floats, float, float], Floats]

_NODES = 32
_BISECTIONS = 24
_LEAST_VARIANCE = 1e-9


def best_chances(means: Floats, variances: Floats) -> Floats:
    """(N, K) probability that each of K independent normals is the largest.

    The integral of phi_i(x) prod over j != i of Phi_j(x) by the midpoint rule, on a grid that
    spans every normal that can still win.
    """
    sd = np.sqrt(np.maximum(variances, _LEAST_VARIANCE))
    low = (means - 4.5 * sd).max(axis=1)
    high = (means + 4.5 * sd).max(axis=1)
    x = low[:, None] + (high - low)[:, None] * (np.arange(_NODES) + 0.5) / _NODES
    z = x[:, None, :] - means[:, :, None]
    z /= sd[:, :, None]
    below = special.ndtr(z)
    # phi_i / Phi_i, times all Phi: where a Phi is 0 nothing can win anyway.
    z *= z
    z *= -0.5
    own = np.exp(z, out=z)
    own /= np.maximum(below, 1e-300)
    # A normal far narrower than the grid's step may fall between two nodes.
    weight = np.einsum("nkj,nj->nk", own, below.prod(axis=1)) / sd + 1e-300
    result: Floats = weight / weight.sum(axis=1, keepdims=True)
    return result


def optimal_shares(means: Floats, variances: Floats, epsilon: float) -> Floats:
    """(N, K) Garivier & Kaufmann's shares, as `policies.optimal_weights`, one leader each."""
    rows = np.arange(len(means))
    leader = means.argmax(axis=1)
    gaps = np.maximum(means[rows, leader][:, None] - means, 1e-6) + epsilon
    ratio = np.maximum(variances, _LEAST_VARIANCE)
    ratio = ratio / ratio[rows, leader][:, None]
    ratio[rows, leader] = 0.0
    gaps[rows, leader] = np.inf
    q = (gaps / gaps.min(axis=1, keepdims=True)) ** 2
    q[rows, leader] = 1.0
    low = 1.0 / np.sqrt(ratio.sum(axis=1))
    high = 1.0 / np.sqrt(np.where(q == 1.0, ratio, 0.0).sum(axis=1))
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)[:, None]
        total = (ratio * (middle / (q + middle * (q - 1.0))) ** 2).sum(axis=1)
        below = total < 1.0
        low, high = np.where(below, middle[:, 0], low), np.where(below, high, middle[:, 0])
    s = high[:, None]
    weights = ratio * s / (q + s * (q - 1.0))
    weights[rows, leader] = 1.0
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result


def _all(holds: Flags) -> Flags:
    """(N, 1) whether it holds for every model."""
    return np.asarray(holds.all(axis=1, keepdims=True), dtype=np.bool_)


def _uniform(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    return np.full(means.shape, 1.0 / means.shape[1])


def _neyman(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    known = _all(counts > 1)
    sd = np.sqrt(np.maximum(np.where(known, variances, 1.0), _LEAST_VARIANCE))
    priced = bool((np.isfinite(costs) & (costs > 0)).all())
    shares = sd / np.sqrt(costs) if priced else sd
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result


def _top_two(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    known = _all(counts > 1)
    size = means.shape[1]
    chance = best_chances(
        np.where(known, means, 0.0),
        np.where(known, variances / np.maximum(counts, 1.0), 1.0),
    )
    chance = (chance * VALUE_DRAWS + 0.5) / (VALUE_DRAWS + 0.5 * size)
    odds = chance / (1.0 - chance)
    shares: Floats = chance * (BETA + (1.0 - BETA) * (odds.sum(axis=1, keepdims=True) - odds))
    return np.where(known, shares, 1.0 / size)


def _track_and_stop(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    rows, size = np.arange(len(means)), means.shape[1]
    started = _all(counts >= START_REWARDS)
    leader = means.argmax(axis=1)
    noise = variances / np.maximum(counts, 1.0)
    gaps = means[rows, leader][:, None] - means + epsilon
    scale = np.maximum(2.0 * (noise[rows, leader][:, None] + noise), 1e-300)
    evidence = gaps**2 / scale
    evidence[rows, leader] = np.inf
    total = np.maximum(counts.sum(axis=1), 1.0)
    threshold = np.log((1.0 + np.log(total)) / delta)
    stopped = np.asarray(evidence.min(axis=1) > threshold)[:, None]
    alone = np.arange(size)[None, :] == leader[:, None]
    shares = np.where(stopped, alone, optimal_shares(means, variances, epsilon))
    return np.where(started, shares, 1.0 / size)


ASSIGNMENTS: dict[str, Shares] = {
    "uniform": _uniform,
    "neyman": _neyman,
    "top-two": _top_two,
    "track-and-stop": _track_and_stop,
}
"""Assignments that a plan can simulate, by the name of the policy."""
