"""Shares of many paths are those that the policies freeze one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.planning.simulation.paths import ASSIGNMENTS, best_chances, optimal_shares
from equipoise.policies.assignments.track_and_stop import optimal_weights
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Limits, Snapshot

RNG = np.random.default_rng(5)
MEANS = RNG.uniform(0.2, 0.8, size=(12, 4))
VARIANCES = RNG.uniform(0.05, 0.25, size=(12, 4))
COUNTS = RNG.integers(12, 200, size=(12, 4)).astype(float)
COUNTS[0] = 5.0
COUNTS[1, 2] = 1.0
COSTS = np.array([0.1, 0.2, 0.05, 0.4])


def frozen(name, row, costs):
    few = COUNTS[row] < 2
    snapshot = Snapshot(
        models=("a", "b", "c", "d"),
        values=MEANS[row],
        covariance=np.diag(np.where(few, np.inf, VARIANCES[row] / COUNTS[row])),
        counts=COUNTS[row],
        sample_means=MEANS[row],
        sample_variances=np.where(few, np.nan, VARIANCES[row]),
        costs=costs,
        limits=Limits(0.1, 0.01, 1.0, 0.0),
        epsilon=0.02,
        delta=0.05,
    )
    return policy(name).freeze(snapshot).allocate(np.zeros((1, 0)))[1][0]


@pytest.mark.parametrize("name", sorted(ASSIGNMENTS))
def test_shares_are_those_of_the_policy(name):
    """Those that look at 4,096 draws differ from the integral by Monte Carlo error, below 0.03.

    Where the leader is all but sure the challengers' odds rest on a handful of draws, and the
    policy's shares are noise around the plan's.
    """
    mine = ASSIGNMENTS[name](COUNTS, MEANS, VARIANCES, COSTS, 0.02, 0.05)
    close = {"top-two": 0.03, "certify": 0.01}.get(name, 2e-3)
    sure = best_chances(MEANS, VARIANCES / COUNTS).max(axis=1) > 0.99
    assert sure.sum() <= 6
    for row in range(len(MEANS)):
        if name == "neyman" and row == 1:
            continue  # the policy fills in the largest variance, a plan starts alike
        if name == "top-two" and sure[row]:
            continue
        np.testing.assert_allclose(mine[row], frozen(name, row, COSTS), atol=close)


@pytest.mark.parametrize("name", sorted(ASSIGNMENTS))
def test_shares_follow_their_models_when_relabelled(name):
    order = np.array([2, 0, 3, 1])
    plain = ASSIGNMENTS[name](COUNTS, MEANS, VARIANCES, COSTS, 0.02, 0.05)
    turned = ASSIGNMENTS[name](
        COUNTS[:, order], MEANS[:, order], VARIANCES[:, order], COSTS[order], 0.02, 0.05
    )
    np.testing.assert_allclose(turned, plain[:, order], atol=1e-9)


def test_track_and_stop_stops_where_the_policy_does():
    """Around its threshold: gaps of 1 to 6 standard errors, 60 of them."""
    policy_, plan = [], []
    for gap in np.linspace(0.05, 0.3, 60):
        means, counts = np.array([0.5 + gap, 0.5]), np.array([100.0, 100.0])
        variances = np.array([0.25, 0.25])
        snapshot = Snapshot(
            models=("a", "b"),
            values=means,
            covariance=np.diag(variances / counts),
            counts=counts,
            sample_means=means,
            sample_variances=variances,
            costs=np.full(2, np.nan),
            limits=Limits(0.1, 0.01, 1.0, 0.0),
        )
        frozen_ = policy("track-and-stop").freeze(snapshot).allocate(np.zeros((1, 0)))[1][0]
        policy_.append(frozen_[0] > 0.99)
        arguments = counts[None], means[None], variances[None], np.full(2, np.nan), 0.0, 0.05
        plan.append(ASSIGNMENTS["track-and-stop"](*arguments)[0, 0] > 0.99)
    assert plan == policy_
    assert 0 < sum(plan) < 60


def test_optimal_shares_are_those_of_one_at_a_time():
    mine = optimal_shares(MEANS, VARIANCES, 0.01)
    for row in range(len(MEANS)):
        theirs = optimal_weights(MEANS[row], VARIANCES[row], 0.01)
        np.testing.assert_allclose(mine[row], theirs, atol=1e-5)


def test_chances_of_being_best_are_those_of_draws():
    """One million draws: standard error 0.0005; tolerance 5 of them and the grid's error."""
    noise = VARIANCES / COUNTS
    drawn = MEANS[3] + np.sqrt(noise[3]) * np.random.default_rng(1).standard_normal((10**6, 4))
    wins = np.bincount(drawn.argmax(axis=1), minlength=4) / 10**6
    np.testing.assert_allclose(best_chances(MEANS, noise)[3], wins, atol=4e-3)


def test_a_sure_winner_has_chance_one():
    sure = best_chances(np.array([[0.9, 0.1]]), np.array([[1e-8, 1e-8]]))
    np.testing.assert_allclose(sure, [[1.0, 0.0]], atol=1e-6)
