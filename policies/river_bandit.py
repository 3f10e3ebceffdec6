"""Assignments `river-ucb`, `river-epsilon-greedy`, `river-thompson`: river's bandits as baselines.

A river policy answers with an arm and forgets how likely that answer was. Here its state is
loaded from the snapshot's counts and means, it is asked many times with its own randomness, and
the shares of its answers become the assignment: that gives it the propensity it does not keep.

Rewards are put in standard units, larger being better (river's UCB asks for that, through a
reward scaler): the answer then does not depend on the unit of the reward. Thompson sampling
draws from N(mean, 1 / n), the posterior of a mean. What river ships is another: its Gaussian draws
with the deviation of one reward, so it never stops exploring, and its Beta counts any reward but 0
as a success. Arms are
offered in an order shuffled by the snapshot's seed from their names, because river breaks ties
by position.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Snapshot

PULLS = 256
EPSILON = 0.1
"""share of epsilon-greedy's pulls that ignore the rewards"""


@assignment(
    "river-ucb",
    uses_estimate=False,
    idea="the model with the highest upper bound (bandit of river)",
)
def river_ucb(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.UCB with delta = 1 (UCB1): arms without a reward first, in random order."""
    means = _standard_means(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    from river import bandit, stats

    policy = bandit.UCB(delta=1.0, seed=snapshot.seed)
    rewards = {name: stats.Mean._from_state(count, mean) for name, count, mean in means}
    return _shares_of_pulls(policy, rewards, snapshot)


@assignment(
    "river-epsilon-greedy",
    uses_estimate=False,
    idea="mostly the best mean so far (bandit of river)",
)
def river_epsilon_greedy(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.EpsilonGreedy; an arm without a reward has river's mean of 0, the average."""
    means = _standard_means(snapshot)
    if means is None:
        return uniform_shares(snapshot)
    from river import bandit, stats

    policy = bandit.EpsilonGreedy(epsilon=EPSILON, seed=snapshot.seed)
    rewards = {name: stats.Mean._from_state(count, mean) for name, count, mean in means}
    return _shares_of_pulls(policy, rewards, snapshot)


@assignment(
    "river-thompson",
    uses_estimate=False,
    idea="Thompson sampling with Beta posteriors (bandit of river)",
)
def river_thompson(snapshot: Snapshot) -> ConstantShares:
    """river.bandit.ThompsonSampling on Gaussian means; uniform until every arm has a reward."""
    means = _standard_means(snapshot)
    if means is None or snapshot.counts.min() <= 0:
        return uniform_shares(snapshot)
    from river import bandit, proba

    gaussian: Any = proba.Gaussian  # river leaves its constructors untyped
    policy = bandit.ThompsonSampling(reward_obj=gaussian(), seed=snapshot.seed)
    rewards = {}
    for name, count, mean in means:
        seed = f"{snapshot.seed}:{name}"
        rewards[name] = gaussian._from_state(2, mean, 1.0 / count, 1, seed=seed)
    return _shares_of_pulls(policy, rewards, snapshot)


def _standard_means(snapshot: Snapshot) -> list[tuple[str, float, float]] | None:
    """(name, count, mean) of every model with a reward, in standard units.

    The mean and variance of all rewards are 0 and 1 there. None while that unit does not exist:
    no reward has differed from another.
    """
    counts = snapshot.counts
    rewards = counts.sum()
    means = np.where(counts > 0, snapshot.sample_means, 0.0)
    if rewards < 2:
        return None
    centre = (counts * means).sum() / rewards
    within = np.where(counts > 1, (counts - 1.0) * snapshot.sample_variances, 0.0).sum()
    between = (counts * (means - centre) ** 2).sum()
    variance = (within + between) / (rewards - 1.0)
    if not variance > 0.0:
        return None
    standard = snapshot.sign * (means - centre) / np.sqrt(variance)
    rows = zip(snapshot.models, counts.tolist(), standard.tolist(), strict=True)
    return [(name, count, mean) for name, count, mean in rows if count > 0]


def _shares_of_pulls(policy: Any, rewards: dict[str, Any], snapshot: Snapshot) -> ConstantShares:
    """Load the arms' rewards and counts, then ask PULLS times: asking teaches river nothing."""
    policy._rewards.update(rewards)
    policy._counts.update(dict(zip(snapshot.models, snapshot.counts.tolist(), strict=True)))
    policy._n = float(snapshot.counts.sum())
    order = random.Random(f"{snapshot.seed}:order")
    arms = sorted(snapshot.models)
    pulls = dict.fromkeys(arms, 0)
    for _ in range(PULLS):
        order.shuffle(arms)
        pulls[policy.pull(list(arms))] += 1
    return ConstantShares(np.array([pulls[name] for name in snapshot.models], dtype=np.float64))
