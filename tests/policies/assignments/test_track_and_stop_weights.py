"""Optimal shares: closed forms, golden values, scipy's optimizer, optimality conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from equipoise.policies.assignments.track_and_stop import (
    leaders,
    optimal_weights,
    weights_for_leader,
)
from equipoise.policies.snapshot import Floats


def objective(weights: Floats, means: Floats, variances: Floats, epsilon: float) -> float:
    """min over i of (gap + epsilon)^2 / (v_L / w_L + v_i / w_i), as the definition has it."""
    leader = int(np.argmax(means))
    smallest = math.inf
    for i in range(len(means)):
        if i == leader:
            continue
        noise = 0.0
        for arm in (leader, i):
            if variances[arm] > 0.0:
                noise += variances[arm] / weights[arm] if weights[arm] > 0.0 else math.inf
        gap = means[leader] - means[i] + epsilon
        smallest = min(smallest, gap**2 / noise if noise > 0.0 else math.inf)
    return smallest


def instance(seed: int, models: int) -> tuple[Floats, Floats, float]:
    rng = np.random.default_rng(seed)
    means = rng.uniform(0.0, 1.0, size=models)
    variances = 10.0 ** rng.uniform(-2.0, 1.0, size=models)
    return means, variances, float(rng.choice([0.0, 0.01, 0.2]))


def test_two_arms_are_split_by_their_standard_deviations() -> None:
    weights = optimal_weights(np.array([1.0, 0.5]), np.array([1.0, 4.0]), 0.0)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], rtol=1e-14)
    # With two arms the gap has no influence.
    again = optimal_weights(np.array([1.0, 0.999]), np.array([1.0, 4.0]), 0.3)
    np.testing.assert_allclose(again, weights, rtol=1e-12)


@pytest.mark.parametrize("models", range(2, 12))
def test_equal_challengers(models: int) -> None:
    """Against K - 1 equal arms the leader gets sqrt(K - 1) times the share of each."""
    means = np.zeros(models)
    means[2 % models] = 1.0
    weights = optimal_weights(means, np.full(models, 0.7), 0.05)
    challenger = 1.0 / (models - 1 + math.sqrt(models - 1))
    expected = np.full(models, challenger)
    expected[2 % models] = math.sqrt(models - 1) * challenger
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


# means, variances, epsilon, shares, value: by scipy's SLSQP (`by_scipy` below), to seven digits.
GOLDEN = [
    ([0.5, 0.4, 0.3], [0.25, 0.24, 0.21], 0.0, [0.4780006, 0.4642572, 0.0577422], 0.009615692),
    (
        [0.9, 0.8, 0.85, 0.2],
        [0.09, 0.16, 0.1275, 0.16],
        0.01,
        [0.4088492, 0.1126890, 0.4761124, 0.0023494],
        0.007378199,
    ),
    ([1.0, 3.0, 2.0], [1.0, 4.0, 9.0], 0.5, [0.0165383, 0.3942187, 0.5892430], 0.088511290),
]


@pytest.mark.parametrize(("means", "variances", "epsilon", "shares", "value"), GOLDEN)
def test_golden_values(
    means: list[float], variances: list[float], epsilon: float, shares: list[float], value: float
) -> None:
    weights = optimal_weights(np.array(means), np.array(variances), epsilon)
    np.testing.assert_allclose(weights, shares, atol=2e-7)
    reached = objective(weights, np.array(means), np.array(variances), epsilon)
    assert reached == pytest.approx(value, rel=1e-7)


def by_scipy(means: Floats, variances: Floats, epsilon: float) -> tuple[Floats, float]:
    """Shares and value by SLSQP: maximise z under z <= every term and shares on the simplex."""
    models = len(means)
    leader = int(np.argmax(means))
    others = [i for i in range(models) if i != leader]
    gaps = means[leader] - means + epsilon
    scale = objective(np.full(models, 1.0 / models), means, variances, epsilon)

    def terms(point: Floats) -> Floats:
        w = point[:-1]
        noise = variances[leader] / w[leader] + variances[others] / w[others]
        return np.asarray(gaps[others] ** 2 / noise / scale - point[-1])

    best, value = np.full(models, 1.0 / models), 0.0
    for seed in range(3):
        start = np.random.default_rng(seed).dirichlet(np.full(models, 5.0))
        found = optimize.minimize(
            lambda point: -point[-1],
            np.append(start, objective(start, means, variances, epsilon) / scale),
            bounds=[(1e-9, 1.0)] * models + [(0.0, None)],
            constraints=[
                {"type": "ineq", "fun": terms},
                {"type": "eq", "fun": lambda point: point[:-1].sum() - 1.0},
            ],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-13},
        )
        w = np.clip(found.x[:-1], 1e-12, None)
        w /= w.sum()
        if (reached := objective(w, means, variances, epsilon)) > value:
            best, value = w, reached
    return best, value


@pytest.mark.parametrize("seed", range(12))
def test_against_an_optimizer(seed: int) -> None:
    models = 2 + seed % 5
    means, variances, epsilon = instance(seed, models)
    weights = optimal_weights(means, variances, epsilon)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    shares, value = by_scipy(means, variances, epsilon)
    ours = objective(weights, means, variances, epsilon)
    assert ours >= value * (1.0 - 1e-9)
    assert ours == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(weights, shares, atol=2e-3)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.integers(-8, 8))
def test_the_conditions_of_optimality(models: int, seed: int, power: int) -> None:
    """All terms are equal and sum v_L w_i^2 / (v_i w_L^2) = 1, at any scale; nothing is better."""
    means, variances, epsilon = instance(seed, models)
    means, variances, epsilon = means * 10.0**power, variances * 10.0**power, epsilon * 10.0**power
    weights = optimal_weights(means, variances, epsilon)
    leader = int(np.argmax(means))
    others = np.arange(models) != leader
    gaps = means[leader] - means + epsilon
    noise = variances[leader] / weights[leader] + variances[others] / weights[others]
    terms = gaps[others] ** 2 / noise
    np.testing.assert_allclose(terms, terms[0], rtol=1e-9)
    balance = variances[leader] * (weights[others] / weights[leader]) ** 2 / variances[others]
    assert balance.sum() == pytest.approx(1.0, rel=1e-9)
    value = objective(weights, means, variances, epsilon)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = weights * np.exp(rng.normal(0.0, 0.05, size=models))
        assert objective(other / other.sum(), means, variances, epsilon) <= value * (1.0 + 1e-9)


def test_a_challenger_that_does_not_vary_needs_no_share() -> None:
    """It caps the value at d^2 w_L / v_L: here that binds, and the rest goes to the leader."""
    means, variances = np.array([1.0, 0.9, 0.2]), np.array([1.0, 0.0, 1.0])
    weights = optimal_weights(means, variances, 0.0)
    # y = 0.1^2; w_2 / w_L = y / (0.8^2 - y)
    ratio = 0.01 / 0.63
    np.testing.assert_allclose(weights, np.array([1.0, 0.0, ratio]) / (1.0 + ratio), rtol=1e-12)
    far = optimal_weights(np.array([1.0, 0.2, 0.9]), variances, 0.0)
    np.testing.assert_allclose(far, [0.5, 0.0, 0.5], atol=1e-12)


def test_a_leader_that_does_not_vary_needs_no_share() -> None:
    weights = optimal_weights(np.array([1.0, 0.5, 0.8]), np.array([0.0, 1.0, 2.0]), 0.0)
    # w_i proportional to v_i / d_i^2: 1 / 0.25 against 2 / 0.04
    np.testing.assert_allclose(weights, [0.0, 4.0 / 54.0, 50.0 / 54.0], rtol=1e-12)


def test_nothing_varies() -> None:
    np.testing.assert_array_equal(
        optimal_weights(np.array([0.1, 0.3, 0.2]), np.zeros(3), 0.0), [0.0, 1.0, 0.0]
    )
    np.testing.assert_allclose(optimal_weights(np.full(3, 0.2), np.zeros(3), 0.1), 1.0 / 3.0)


def test_variances_near_zero_come_close_to_zero() -> None:
    means = np.array([1.0, 0.9, 0.2])
    for zero, near in (([1.0, 0.0, 1.0], [1.0, 1e-14, 1.0]), ([0.0, 1.0, 2.0], [1e-14, 1.0, 2.0])):
        np.testing.assert_allclose(
            optimal_weights(means, np.array(near), 0.01),
            optimal_weights(means, np.array(zero), 0.01),
            atol=1e-5,
        )


@pytest.mark.parametrize("models", [1, 2, 3, 6])
def test_full_ties_are_symmetric(models: int) -> None:
    for epsilon in (0.0, 0.1):
        weights = optimal_weights(np.full(models, 0.3), np.full(models, 0.2), epsilon)
        np.testing.assert_allclose(weights, 1.0 / models, rtol=1e-12)


def test_tied_leaders_share_whatever_their_order() -> None:
    means, variances = np.array([0.5, 0.5, 0.2, 0.1]), np.array([0.2, 0.3, 0.1, 0.2])
    weights = optimal_weights(means, variances, 0.02)
    gaps = np.array([0.02, 0.02, 0.32, 0.42])
    expected = (weights_for_leader(0, gaps, variances) + weights_for_leader(1, gaps, variances)) / 2
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    swapped = optimal_weights(means, variances[[1, 0, 2, 3]], 0.02)
    np.testing.assert_allclose(swapped, weights[[1, 0, 2, 3]], rtol=1e-12)


def test_a_tie_without_epsilon_is_the_limit_of_a_closing_gap() -> None:
    variances = np.array([0.2, 0.3, 0.1, 0.2])
    tied = optimal_weights(np.array([0.5, 0.5, 0.2, 0.1]), variances, 0.0)
    near = optimal_weights(np.array([0.5, 0.5 - 1e-7, 0.2, 0.1]), variances, 0.0)
    np.testing.assert_allclose(tied, near, atol=1e-6)
    assert tied[2] == tied[3] == 0.0


def test_leaders_tie_up_to_rounding() -> None:
    assert leaders(np.array([0.3, 0.1 + 0.2, 0.2])).tolist() == [True, True, False]
    assert leaders(np.array([-0.3, -0.1 - 0.2, -0.2])).tolist() == [False, False, True]
    assert leaders(np.zeros(2)).tolist() == [True, True]


def test_extreme_gaps_stay_on_the_simplex() -> None:
    for gap in (1e-9, 1e-12, 1e9):
        weights = optimal_weights(np.array([1.0 + gap, 1.0, 0.0]), np.array([1.0, 2.0, 3.0]), 0.0)
        assert np.isfinite(weights).all()
        assert (weights >= 0.0).all()
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
