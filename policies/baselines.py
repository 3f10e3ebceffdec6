"""Baselines: what bandit libraries really serve, beside what a textbook would serve.

A library's policy answers with an arm and forgets how likely that answer was. Here the
probabilities come first: the closed form of what the library draws, or a numerical integral of it,
becomes the shares of a rule, is logged, and is then drawn from. No library is asked; the tests hold
the shares to the answers of river and mabwiser themselves.

Rewards are put in standard units, larger being better: the mean and variance of all rewards are 0
and 1, so that no answer depends on the unit of the reward. An arm that no reward has reached
therefore has the libraries' mean of 0, which is the average. Where a library prefers the arm that
is named first, arms that tie share alike here.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Floats, Ints, Snapshot

EPSILON = 0.1
"""share of epsilon-greedy's pulls that ignore the rewards"""
POINTS = 2048
"""of the integrals over (0, 1): their integrands rise, so each is within 1 / (2 * POINTS)"""


@assignment(
    "river-ucb",
    uses_estimate=False,
    baseline=True,
    idea="the model with the highest upper bound, as river's bandit.UCB serves it",
)
def river_ucb(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.UCB(delta=1), which is UCB1: arms without a reward first, alike."""
    means, _ = _standard(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    counts = snapshot.counts
    tried = np.maximum(counts, 1.0)
    bounds = means + np.sqrt(2.0 * np.log(counts.sum()) / tried)
    return ConstantShares(_largest(np.where(counts > 0.0, bounds, np.inf)))


@assignment(
    "river-epsilon-greedy",
    uses_estimate=False,
    baseline=True,
    idea="mostly the best mean so far, as river's bandit.EpsilonGreedy serves it",
)
def river_epsilon_greedy(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.EpsilonGreedy: the best arm is drawn among the others too when exploring."""
    means, _ = _standard(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    best = _largest(means)
    return ConstantShares((1.0 - EPSILON) * best / best.sum() + EPSILON / len(best))


@assignment(
    "river-thompson",
    uses_estimate=False,
    baseline=True,
    idea="what river's bandit.ThompsonSampling serves on Gaussian rewards: draws spread as single "
    "rewards do, so it never settles on a model (textbook-thompson does)",
)
def river_thompson(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.ThompsonSampling(proba.Gaussian()): draws from N(mean, variance of a reward).

    That is the distribution of the next reward, not the posterior of the mean. An arm with one
    reward draws that reward, one without draws 0, always.
    """
    means, variances = _standard(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    return ConstantShares(largest_of_normals(means, np.sqrt(variances)))


@assignment(
    "textbook-thompson",
    uses_estimate=False,
    baseline=True,
    idea="Thompson sampling on sample means alone: draws from the posterior of each mean",
)
def textbook_thompson(snapshot: Snapshot) -> ConstantShares:
    """N(mean, 1 / n) for each arm in standard units; uniform until every arm has a reward."""
    means, _ = _standard(snapshot)
    if means is None or snapshot.counts.min() <= 0:
        return uniform_shares(snapshot)
    return ConstantShares(largest_of_normals(means, 1.0 / np.sqrt(snapshot.counts)))


@assignment(
    "mabwiser-softmax",
    uses_estimate=False,
    baseline=True,
    idea="what mabwiser's LearningPolicy.Softmax serves: the largest component of a Dirichlet draw "
    "around the softmax, so better models get more than their softmax (textbook-softmax)",
)
def mabwiser_softmax(snapshot: Snapshot) -> ConstantShares:
    """LearningPolicy.Softmax(tau=1): a Dirichlet's parameters are the softmax of the means."""
    means, _ = _standard(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    softmax = _softmax(means)
    return ConstantShares(largest_of_dirichlet(softmax + np.finfo(np.float64).eps))


@assignment(
    "textbook-softmax",
    uses_estimate=False,
    baseline=True,
    idea="each model in proportion to exp(mean), in standard units (Boltzmann exploration)",
)
def textbook_softmax(snapshot: Snapshot) -> ConstantShares:
    """softmax(means) at temperature 1; an arm without a reward has the average, 0."""
    means, _ = _standard(snapshot)
    return uniform_shares(snapshot) if means is None else ConstantShares(_softmax(means))


def largest_of_normals(means: Floats, deviations: Floats) -> Floats:
    """(K,) how likely each of K independent normals is the largest, each within 1 / (2 * POINTS).

    A deviation of 0 makes it a constant; constants that tie share alike.
    """
    from scipy.special import ndtr, ndtri

    fixed = deviations <= 0.0
    scale = np.where(fixed, 1.0, deviations)
    highest = means[fixed].max() if fixed.any() else -np.inf
    moving = np.flatnonzero(~fixed)

    def below(value: Floats, others: Ints) -> Floats:
        """(points,) that all these normals lie below each value (points,)."""
        z = (value[:, None] - means[others]) / scale[others]
        return np.asarray(ndtr(z).prod(axis=1), dtype=np.float64)

    shares = np.zeros(len(means))
    normal = ndtri(_midpoints())
    for arm in moving:
        drawn = means[arm] + scale[arm] * normal
        shares[arm] = (below(drawn, moving[moving != arm]) * (drawn > highest)).mean()
    if fixed.any():
        first = fixed & (means == highest)
        shares[first] = below(np.array([highest]), moving)[0] / first.sum()
    return shares


def largest_of_dirichlet(alpha: Floats) -> Floats:
    """(K,) how likely each component of a Dirichlet(alpha) is the largest, each within
    1 / (2 * POINTS).

    Its components are independent gammas over their sum, so the sum does not matter.
    """
    from scipy.special import gammainc, gammaincinv

    shares = np.zeros(len(alpha))
    for arm in range(len(alpha)):
        drawn = gammaincinv(alpha[arm], _midpoints())
        others = np.delete(alpha, arm)
        shares[arm] = gammainc(others, drawn[:, None]).prod(axis=1).mean()
    return shares


def _midpoints() -> Floats:
    return np.asarray((np.arange(POINTS) + 0.5) / POINTS, dtype=np.float64)


def _largest(values: Floats) -> Floats:
    """(K,) 1 where a value is the largest of all, 0 elsewhere."""
    return np.asarray(values == values.max(), dtype=np.float64)


def _softmax(means: Floats) -> Floats:
    raised = np.exp(means - means.max())
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def _standard(snapshot: Snapshot) -> tuple[Floats | None, Floats]:
    """(K,) means and (K,) variances of each arm's rewards in standard units; both 0 for an arm
    without a reward, and the variance 0 for one with a single reward.

    No means while that unit does not exist: no reward has differed from another.
    """
    counts = snapshot.counts
    rewards = counts.sum()
    means = np.where(counts > 0, snapshot.sample_means, 0.0)
    variances = np.where(counts > 1, snapshot.sample_variances, 0.0)
    if rewards < 2:
        return None, variances
    centre = (counts * means).sum() / rewards
    within = ((counts - 1.0) * variances)[counts > 1].sum()
    between = (counts * (means - centre) ** 2).sum()
    variance = (within + between) / (rewards - 1.0)
    if not variance > 0.0:
        return None, variances
    standard = snapshot.sign * (means - centre) / np.sqrt(variance)
    return np.where(counts > 0, standard, 0.0), variances / variance
