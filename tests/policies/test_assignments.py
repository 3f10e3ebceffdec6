"""`uniform`, `neyman`, `thompson` and `top-two`, each against its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from equipoise.policies.assignments.neyman import neyman
from equipoise.policies.assignments.thompson import SCORER_DRAWS, thompson
from equipoise.policies.assignments.top_two import top_two, top_two_shares
from equipoise.policies.assignments.uniform import uniform
from equipoise.policies.kernels import BestDrawShares, ConstantShares
from equipoise.policies.snapshot import ContextScorer, Floats, Snapshot

MakeSnapshot = Callable[..., Snapshot]


def normalised(kernel: ConstantShares) -> Floats:
    return np.asarray(kernel.shares / kernel.shares.sum())


def scorer(models: int = 2, **changes: Floats) -> ContextScorer:
    """A value per model that is theta[m] at every context, with residual variance 1."""
    design = np.zeros((models, 2, models))
    design[np.arange(models), 0, np.arange(models)] = 1.0
    plain = ContextScorer(
        theta=np.zeros(models),
        covariance=np.eye(models),
        design=design,
        noise_keys=tuple(f"model:{m}" for m in range(models)),
        residual_variances=np.ones(models),
        value_design=np.eye(models),
        spread=np.zeros((models, models, models)),
    )
    return replace(plain, **changes)


def test_uniform(make_snapshot: MakeSnapshot) -> None:
    np.testing.assert_allclose(normalised(uniform(make_snapshot(4))), 0.25)


def test_neyman_is_deviation_over_root_cost(make_snapshot: MakeSnapshot) -> None:
    snapshot = make_snapshot(
        3, sample_variances=np.array([0.04, 0.16, 0.36]), costs=np.array([1.0, 4.0, 9.0])
    )
    np.testing.assert_allclose(normalised(neyman(snapshot)), 1 / 3, rtol=1e-12)
    free = replace(snapshot, costs=np.full(3, np.nan))
    np.testing.assert_allclose(normalised(neyman(free)), [1 / 6, 2 / 6, 3 / 6], rtol=1e-12)


def test_neyman_minimises_the_variance_of_the_money(make_snapshot: MakeSnapshot) -> None:
    """No other split of the same spend gives a smaller sum of v / n."""
    rng = np.random.default_rng(0)
    variances, costs = rng.uniform(0.1, 1.0, 4), rng.uniform(0.1, 1.0, 4)
    shares = neyman(make_snapshot(4, sample_variances=variances, costs=costs)).shares

    def loss(n: Floats) -> float:
        return float((variances / n).sum() * (costs * n).sum())

    best = loss(shares)
    for _ in range(200):
        assert loss(shares * np.exp(rng.normal(0, 0.1, 4))) >= best * (1 - 1e-12)


def test_neyman_with_unknowns(make_snapshot: MakeSnapshot) -> None:
    """Unknown variance: the largest known one. One unknown or free cost: costs do not count."""
    some = make_snapshot(3, sample_variances=np.array([0.04, np.nan, 0.16]))
    np.testing.assert_allclose(normalised(neyman(some)), [0.2, 0.4, 0.4], rtol=1e-12)
    for cost in (np.nan, 0.0):
        partly = replace(some, costs=np.array([1.0, cost, 100.0]))
        np.testing.assert_allclose(normalised(neyman(partly)), [0.2, 0.4, 0.4], rtol=1e-12)
    nothing = make_snapshot(3, costs=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(normalised(neyman(nothing)), 1 / 3, rtol=1e-12)


def test_neyman_prefers_the_scorers_residuals(make_snapshot: MakeSnapshot) -> None:
    snapshot = make_snapshot(
        2,
        sample_variances=np.array([1.0, 1.0]),
        scorer=scorer(residual_variances=np.array([1.0, 9.0])),
    )
    np.testing.assert_allclose(normalised(neyman(snapshot)), [0.25, 0.75], rtol=1e-12)


def test_thompson_is_the_probability_of_being_best(make_snapshot: MakeSnapshot) -> None:
    """4,096 draws of two models; false-alarm rate below 1e-4."""
    snapshot = make_snapshot(2, values=np.array([0.6, 0.5]), covariance=np.diag([0.01, 0.02]))
    kernel = thompson(snapshot)
    assert isinstance(kernel, ConstantShares)
    exact = stats.norm.cdf(0.1 / np.sqrt(0.03))
    assert abs(normalised(kernel)[0] - exact) < 4 * np.sqrt(exact * (1 - exact) / 2048)


def test_thompson_follows_the_context(make_snapshot: MakeSnapshot) -> None:
    """Model 0 is worth 0 everywhere, model 1 is worth x * theta, theta ~ N(1, 0.25).

    Share of model 1 at x > 0: P(theta > 0) = Phi(2), at x < 0 the rest; 256 draws in pairs,
    false-alarm rate below 1e-4 (binomial at 128).
    """
    design = np.zeros((2, 2, 1))
    design[1, 1, 0] = 1.0
    worth = ContextScorer(
        theta=np.array([1.0]),
        covariance=np.array([[0.25]]),
        design=design,
        noise_keys=("phi:0",),
        residual_variances=np.ones(2),
        value_design=np.array([[0.0], [1.0]]),
        spread=np.zeros((2, 1, 1)),
    )
    known = {"values": np.zeros(2), "covariance": np.eye(2)}
    kernel = thompson(make_snapshot(2, scorer=worth, **known))
    assert isinstance(kernel, BestDrawShares)
    assert kernel.coefficients.shape == (SCORER_DRAWS, 2, 2)
    exact = stats.norm.cdf(2.0)
    pi = kernel.probabilities(np.array([[0.5], [-3.0], [7.0]]), None, 0.0)
    error = 4 * np.sqrt(exact * (1 - exact) / 128)
    assert abs(pi[0, 1] - exact) < error
    np.testing.assert_allclose(pi[1, ::-1], pi[0], atol=1e-12)
    np.testing.assert_array_equal(pi[2], pi[0])
    smaller = thompson(make_snapshot(2, scorer=worth, sign=-1, **known))
    flipped = smaller.probabilities(np.array([[0.5]]), None, 0.0)
    assert abs(flipped[0, 0] - exact) < error


def test_thompson_and_top_two_wait_for_every_model(make_snapshot: MakeSnapshot) -> None:
    values, covariance = np.array([0.9, np.nan, 0.1]), np.diag([0.01, np.inf, 0.01])
    for with_scorer in (None, scorer(3)):
        snapshot = make_snapshot(3, values=values, covariance=covariance, scorer=with_scorer)
        for kernel in (thompson(snapshot), top_two(snapshot)):
            assert isinstance(kernel, ConstantShares)
            np.testing.assert_allclose(normalised(kernel), 1 / 3, rtol=1e-15)


def test_thompson_without_a_usable_scorer(make_snapshot: MakeSnapshot) -> None:
    known = {"values": np.array([0.5, 0.6]), "covariance": np.eye(2)}
    plain = thompson(make_snapshot(2, **known))
    for broken in (
        scorer(theta=np.array([np.nan, 0.0])),
        scorer(covariance=np.full((2, 2), np.inf)),
    ):
        kernel = thompson(make_snapshot(2, scorer=broken, **known))
        assert kernel.encode() == plain.encode()


def test_top_two_shares_by_hand() -> None:
    """alpha = (.5, .3, .2): the odds are 1, 3/7, 1/4."""
    shares = top_two_shares(np.array([0.5, 0.3, 0.2]), 0.5)
    odds = [1.0, 3 / 7, 1 / 4]
    expected = [
        0.5 * (0.5 + 0.5 * (odds[1] + odds[2])),
        0.3 * (0.5 + 0.5 * (odds[0] + odds[2])),
        0.2 * (0.5 + 0.5 * (odds[0] + odds[1])),
    ]
    np.testing.assert_allclose(shares, expected, rtol=1e-12)
    assert shares.sum() == pytest.approx(1.0, abs=1e-12)


def test_top_two_shares_by_playing_it() -> None:
    """Russo's procedure played 100,000 times; chi-square, false-alarm rate 1e-4."""
    rng = np.random.default_rng(4)
    alpha, beta, plays = np.array([0.6, 0.3, 0.1]), 0.3, 100_000
    first = rng.choice(3, size=plays, p=alpha)
    played = first.copy()
    for row in np.flatnonzero(rng.random(plays) >= beta):
        while played[row] == first[row]:
            played[row] = rng.choice(3, p=alpha)
    expected = plays * top_two_shares(alpha, beta)
    assert stats.chisquare(np.bincount(played, minlength=3), expected).pvalue > 1e-4


def test_top_two_keeps_half_for_the_challengers(make_snapshot: MakeSnapshot) -> None:
    """Even when the leader is certain, and however certain it is."""
    values, covariance = np.array([9.0, 0.0, 0.0]), 0.01 * np.eye(3)
    shares = normalised(top_two(make_snapshot(3, values=values, covariance=covariance)))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=1e-3)
    assert normalised(top_two(make_snapshot(1, values=np.ones(1), covariance=np.eye(1)))) == 1.0
