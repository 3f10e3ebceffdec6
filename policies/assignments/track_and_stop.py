"""Assignment `track-and-stop`: the baseline, after what model gateways ship today.

Garivier & Kaufmann's optimal shares at plug-in means and variances of the randomized rewards,
blind to contexts, costs and the estimator; all weight on the leader once the stop statistic

    min over i != L of (gap_i + epsilon)^2 / (2 (v_L / n_L + v_i / n_i)) > ln((1 + ln N) / delta).

Its weaknesses are kept, because it is what others are compared with: plug-in variances (zero
while a rare outcome has not been seen) and a threshold without a correction for the number of
models, as in TensorZero's description of it. One thing differs: the start is uniformly random
instead of a round robin, so that every reward keeps a propensity.
"""

from __future__ import annotations

import math

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.optimal_weights import leaders, optimal_weights
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Floats, Snapshot

START_REWARDS = 10
"""rewards every model has before plug-in moments are believed"""


@assignment("track-and-stop", uses_estimate=False)
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
