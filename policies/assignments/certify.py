"""Assignment `certify`: the shares under which the best model is soonest certified.

The certificate compares the leader L with every other model b, and is there when the last of these
comparisons is. Under the bounded sequence a comparison takes, up to a factor that all have in
common,
    n(L, b) = (v_L / pi_L + v_b / pi_b) / (gap_b + epsilon)^2
randomized requests: the variance of the contrast's score over the square of its drift. Garivier &
Kaufmann's shares minimise the largest of these for the leader at hand, and starve the others while
it is in doubt. Here
    sum over L of P(L is the best) * max over b of n(L, b)
is minimised, with the square of a gap as its posterior expectation, (v_L - v_b + epsilon)^2 + the
variance of the contrast: a comparison that is still open counts as the distance it may have.

Two things are the sequence's own. The control variate of a score is cut where the weight is large
(`agent.inference.score`): below a share of (1 - V) / K, or V / K for the leader, some of the
prediction's distance comes back as variance,
    v = residual variance + max(0, 1 - V - K pi)^2,
so that small shares cost more than Gaussian theory says; this is the floor, at its optimum. And
the maximum is softened to a power mean, since a decision waits for all comparisons and not for the
mean of the slowest.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.posterior import smoothed_best_probabilities
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Floats, Snapshot

POWER = 4.0
"""Of the mean that stands for the maximum over comparisons."""
KNOWN_REWARDS = 4.0
"""Rewards that a variance of 1/4 stands for: rare outcomes may not have been seen."""
_FIRST_STEP, _SLOWER, _STEPS = 0.25, 8.0, 40
_LEAST = 1e-9


@assignment(
    "certify",
    uses_contexts=False,
    idea="the shares under which the best model is soonest certified",
)
def certify(snapshot: Snapshot) -> ConstantShares:
    """Shares from the values, their covariance and the variance of a reward; uniform while a value
    or every variance is unknown."""
    best = smoothed_best_probabilities(snapshot)
    scorer = snapshot.scorer
    variances = snapshot.sample_variances if scorer is None else scorer.residual_variances
    finite = np.isfinite(variances)
    if best is None or not finite.any():
        return uniform_shares(snapshot)
    low, high = snapshot.reward_range or (0.0, 1.0)
    scale = high - low
    values = snapshot.oriented_values / scale
    level = (snapshot.values - low) / scale
    level = level if snapshot.sign > 0 else 1.0 - level
    spread = np.diagonal(snapshot.covariance)
    apart = (spread[:, None] + spread[None, :] - 2.0 * snapshot.covariance) / scale**2
    gaps = values[:, None] - values[None, :] + snapshot.epsilon / scale
    own = cautious(np.where(finite, variances, 0.25 * scale**2) / scale**2, snapshot.counts)
    return ConstantShares(certifying_shares(best, gaps, apart, own, np.clip(level, 0.0, 1.0)))


def cautious(variances: Floats, counts: Floats) -> Floats:
    """(..., K) variances on the [0, 1] scale drawn to 1/4, the largest, where rewards are few."""
    result: Floats = (counts * variances + 0.25 * KNOWN_REWARDS) / (counts + KNOWN_REWARDS)
    return result


def certifying_shares(
    best: Floats, gaps: Floats, apart: Floats, variances: Floats, level: Floats
) -> Floats:
    """(..., K) shares that minimise the expected requests until the last comparison is made.

    best: (..., K) chance to be the best; gaps: (..., K, K) by which a leads b, epsilon included;
    apart: (..., K, K) posterior variances of the contrasts; variances, level: (..., K) of a reward,
    and what it is worth. All on the [0, 1] scale.
    """
    size = best.shape[-1]
    if size == 1:
        return np.ones_like(best)
    off = ~np.eye(size, dtype=bool)
    distance = np.where(off, 1.0 / np.maximum(gaps**2 + np.maximum(apart, 0.0), _LEAST), 0.0)
    shares = np.full(best.shape, 1.0 / size)
    for step in range(_STEPS):
        cut = [np.maximum(end - size * shares, 0.0) for end in (level, 1.0 - level)]
        of_leader, of_other = (variances + part**2 for part in cut)
        noise = (of_leader / shares)[..., :, None] + (of_other / shares)[..., None, :]
        needed = distance * noise
        longest = np.maximum(needed.max(axis=-1, keepdims=True), 1e-300)
        # What a little less of a comparison saves of the power mean over b.
        part = (needed / longest) ** (POWER - 1.0)
        total = ((needed / longest) ** POWER).sum(axis=-1, keepdims=True)
        weight = best[..., None] * part * total ** (1.0 / POWER - 1.0) * distance
        # A share that is too small for its control variate also loses variance to the cut.
        gains = [variances + part**2 + 2.0 * size * shares * part for part in cut]
        saved = gains[0] * weight.sum(axis=-1) + gains[1] * weight.sum(axis=-2)
        # At the optimum the last bit of every share saves as much: saved / shares^2 is the same.
        rate = np.maximum(saved, 1e-300) / shares**2
        rate = rate / (shares * rate).sum(axis=-1, keepdims=True)
        shares = shares * rate ** (_FIRST_STEP / (1.0 + step / _SLOWER))
        shares = shares / shares.sum(axis=-1, keepdims=True)
    return shares
