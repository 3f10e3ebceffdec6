"""Garivier & Kaufmann's optimal shares for finding the best of K Gaussian arms.

With leader L, gaps d_i = mean_L - mean_i + epsilon and variances v, the time to a certified
decision is shortest when the shares w maximise

    min over i != L of  d_i^2 / (v_L / w_L + v_i / w_i)

(Garivier & Kaufmann 2016, *Optimal best arm identification with fixed confidence*, with unequal
variances and an indifference epsilon; Gaussian divergences with known variances.)

Solution. At the optimum every term is equal, say to w_L * y; then
w_i / w_L = v_i y / (d_i^2 - v_L y), and setting the derivative of the common value to 0 gives
sum over i of v_L w_i^2 / (v_i w_L^2) = 1. With q_i = (d_i / d_min)^2, rho_i = v_i / v_L and
s = t / (1 - t) for t = v_L y / d_min^2 in (0, 1), these read

    w_i / w_L = rho_i s / (q_i + s (q_i - 1)),
    F(s) = sum of rho_i (s / (q_i + s (q_i - 1)))^2 = 1.

F grows from 0, between rho s^2 of the closest arms and sum(rho) s^2: that brackets the root.
Zero variances are taken as they are. An arm that does not vary needs (nearly) no share and only
caps y at d_i^2 / v_L; a leader that does not vary needs none, and w_i is proportional to
v_i / d_i^2.
"""

from __future__ import annotations

import math

import numpy as np

from equipoise.policies.snapshot import Flags, Floats

_TIE = 1e-12  # means that agree to this share of the largest one are equal
_BISECTIONS = 200  # more than enough to halve any bracket down to neighbouring floats


def leaders(means: Floats) -> Flags:
    """(K,) the models whose mean is the largest; several where they tie."""
    tolerance = _TIE * np.abs(means).max()
    return np.asarray(means >= means.max() - tolerance, dtype=np.bool_)


def optimal_weights(means: Floats, variances: Floats, epsilon: float) -> Floats:
    """(K,) optimal shares; larger means are better.

    means, variances: (K,) finite, variances >= 0, taken as known. epsilon >= 0, in the unit of
    the means. Several leaders share the average of the solutions with each of them as leader.
    With epsilon = 0 a tie can never be decided: the shares are the limit as the gap between
    the tied models closes, in which the others get nothing.
    """
    top = leaders(means)
    if top.all() or (epsilon == 0.0 and top.sum() > 1):
        # Among tied models every gap is the same, so its size does not matter.
        weights = np.zeros(len(means))
        weights[top] = _average_over_leaders(np.ones(int(top.sum())), variances[top], None)
        return weights
    gaps = np.where(top, 0.0, means.max() - means) + epsilon
    return _average_over_leaders(gaps, variances, top)


def _average_over_leaders(gaps: Floats, variances: Floats, top: Flags | None) -> Floats:
    candidates = np.flatnonzero(np.ones(len(gaps), dtype=np.bool_) if top is None else top)
    solutions = [weights_for_leader(int(leader), gaps, variances) for leader in candidates]
    return np.asarray(np.mean(solutions, axis=0), dtype=np.float64)


def weights_for_leader(leader: int, gaps: Floats, variances: Floats) -> Floats:
    """(K,) optimal shares where `leader` leads by gaps (K,) > 0; its own gap is not read."""
    weights = np.zeros(len(gaps))
    others = np.arange(len(gaps)) != leader
    noisy = others & (variances > 0.0)
    if not noisy.any():
        weights[leader] = 1.0
        return weights
    closest = gaps[noisy].min()
    squares = (gaps / closest) ** 2
    if variances[leader] == 0.0:
        weights[noisy] = variances[noisy] / squares[noisy]
        return _normalised(weights)
    ratio, q = variances[noisy] / variances[leader], squares[noisy]
    s = _root(ratio, q)
    silent = others & ~noisy
    if silent.any() and squares[silent].min() < 1.0:
        t = squares[silent].min()
        s = min(s, t / (1.0 - t))
    weights[leader] = 1.0
    weights[noisy] = ratio * s / (q + s * (q - 1.0))
    return _normalised(weights)


def _normalised(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _root(ratio: Floats, q: Floats) -> float:
    """The s > 0 with sum ratio (s / (q + s (q - 1)))^2 = 1, by bisection of log s."""
    low = 1.0 / math.sqrt(ratio.sum())
    high = 1.0 / math.sqrt(ratio[q == 1.0].sum())
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        if ((middle / (q + middle * (q - 1.0))) ** 2 @ ratio) < 1.0:
            low = middle
        else:
            high = middle
    return high
