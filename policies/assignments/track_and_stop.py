"""Assignment `track-and-stop`: the baseline, after what model gateways ship today.

Garivier & Kaufmann's optimal shares at plug-in means and variances of the randomized rewards,
blind to contexts, costs and the estimator; all weight on the leader once the stop statistic

    min over i != L of (gap_i + epsilon)^2 / (2 (v_L / n_L + v_i / n_i)) > ln((1 + ln N) / delta).

Its weaknesses are kept, because it is what others are compared with: plug-in variances (zero
while a rare outcome has not been seen) and a threshold without a correction for the number of
models, as in TensorZero's description of it. One thing differs: the start is uniformly random
instead of a round robin, so that every reward keeps a propensity.

Optimal shares (`optimal_weights`). With leader L, gaps d_i = mean_L - mean_i + epsilon and
variances v, the time to a certified decision is shortest when the shares w maximise

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

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Flags, Floats, Snapshot

START_REWARDS = 10
"""rewards every model has before plug-in moments are believed"""
_TIE = 1e-12  # means that agree to this share of the largest one are equal
_BISECTIONS = 200  # more than enough to halve any bracket down to neighbouring floats


@assignment(
    "track-and-stop",
    uses_estimate=False,
    idea="the shares that decide soonest: most to the models close to the best",
)
def track_and_stop(snapshot: Snapshot) -> ConstantShares:
    """Uniform start, then optimal shares, then the leader alone (above the floor)."""
    means = snapshot.sign * snapshot.sample_means
    variances, counts = snapshot.sample_variances, snapshot.counts
    if counts.min() < START_REWARDS or not np.isfinite([means, variances]).all():
        return uniform_shares(snapshot)
    statistic = stop_statistic(means, variances, counts, snapshot.epsilon)
    if statistic > stop_threshold(float(counts.sum()), snapshot.delta):
        return ConstantShares(leaders(means).astype(np.float64))
    return ConstantShares(optimal_weights(means, variances, snapshot.epsilon))


def stop_statistic(means: Floats, variances: Floats, counts: Floats, epsilon: float) -> float:
    """min over i != L of (gap_i + epsilon)^2 / (2 (v_L / n_L + v_i / n_i)); inf for one model.

    means, variances, counts: (K,), larger means are better. The smallest over the leaders where
    several tie. Zero variances are taken as they are: a gap without noise is infinite evidence,
    a gap of 0 is none.
    """
    smallest = math.inf
    noise = variances / counts
    for leader in np.flatnonzero(leaders(means)):
        others = np.arange(len(means)) != leader
        gaps = np.maximum(means[leader] - means[others], 0.0) + epsilon
        scale = 2.0 * (noise[leader] + noise[others])
        evidence = np.where(gaps > 0.0, np.inf, 0.0)
        np.divide(gaps**2, scale, out=evidence, where=scale > 0.0)
        smallest = min(smallest, float(evidence.min(initial=math.inf)))
    return smallest


def stop_threshold(rewards: float, delta: float) -> float:
    """ln((1 + ln N) / delta) for N rewards in all."""
    return math.log((1.0 + math.log(rewards)) / delta)


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
