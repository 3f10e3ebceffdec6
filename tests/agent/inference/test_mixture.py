"""Mixtures over lambda: roots against scipy, one sequence as a special case, the union bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from equipoise.agent.inference.mixture import (
    LAMBDAS,
    LOWEST_LEVEL,
    evidence_of,
    lower_mean,
    lower_mean_of,
    reach,
    tuned_weights,
)

PSI = -np.log1p(-LAMBDAS) - LAMBDAS


def root_of_average(rows, totals, squares, bounds, alpha, weights=None):
    """theta where the average of the sequences' mixtures is 1 / alpha, by bisection.

    weights: (C, J) logs, equal ones if None.
    """

    def excess(theta):
        parts = [
            LAMBDAS * (total - rows * theta) / bound - PSI * square
            for total, square, bound in zip(totals, squares, bounds, strict=True)
        ]
        exponent = np.concatenate(parts)
        weight = -np.log(len(exponent)) if weights is None else weights.ravel()
        return special.logsumexp(exponent + weight) - np.log(1 / alpha)

    return optimize.brentq(excess, -1e6, 1e6, xtol=1e-13, rtol=8.9e-16, maxiter=500)


@pytest.mark.parametrize("alpha", [0.4, 0.05, 1e-4, 1e-12])
@pytest.mark.parametrize(
    ("rows", "total", "squares", "bound"),
    [
        (5000.0, 6200.0, 900.0, 2.0),
        (1.0, 0.4, 0.0, 1.0),
        (3.0, 60.0, 40.0, 12.0),
        (1e6, 4e5, 2e5, 1.0),
        (400.0, 0.0, 1.5, 2.0),
        (2e4, -50.0, 3e3, 42.0),
    ],
)
def test_bound_solves_its_equation_and_is_never_above(rows, total, squares, bound, alpha):
    root = root_of_average(rows, [total], [squares], [bound], alpha)
    ours = lower_mean(rows, np.array(total), np.array(squares), bound, alpha)
    assert ours == pytest.approx(root, rel=1e-7, abs=1e-9)
    assert ours <= root + 1e-12 * max(1.0, abs(root))


@pytest.mark.parametrize("alpha", [0.05, 1e-4, 1e-12])
def test_bound_of_several_solves_its_equation_and_is_never_above(alpha):
    rng = np.random.default_rng(0)
    for rows in (1.0, 30.0, 1000.0, 3e5):
        totals = rows * 0.6 + np.sqrt(rows) * rng.normal(size=3)
        squares = rows * rng.random(3) * np.array([1.0, 0.2, 0.01])
        bounds = np.array([2.0, 12.0, 90.0])
        root = root_of_average(rows, totals, squares, bounds, alpha)
        ours = lower_mean_of(rows, totals, squares, bounds, alpha)
        assert ours == pytest.approx(root, rel=1e-6, abs=1e-8)
        assert ours <= root + 1e-12 * max(1.0, abs(root))


@pytest.mark.parametrize("alpha", [0.05, 1e-4])
def test_a_bound_of_tuned_weights_solves_its_equation_at_each_level(alpha):
    """Leading axes: two levels at once, each with weights of its own."""
    rng, caps, bounds = np.random.default_rng(7), np.array([0.0, 20.0]), np.array([2.0, 22.0])
    levels = np.array([alpha, alpha / 30.0])
    weights = tuned_weights(5000.0, 0.2, caps, bounds, levels)
    assert weights.shape == (2, 2, len(LAMBDAS))
    np.testing.assert_allclose(special.logsumexp(weights, axis=(1, 2)), 0.0, atol=1e-12)
    for rows in (1.0, 300.0, 2e5):
        totals = rows * 0.3 + np.sqrt(rows) * rng.normal(size=2)
        squares = rows * rng.random(2) * np.array([0.2, 0.02])
        pair = np.broadcast_to(totals, (2, 2)), np.broadcast_to(squares, (2, 2))
        ours = lower_mean_of(rows, *pair, bounds, levels, weights)
        for level, weight, bound in zip(levels, weights, ours, strict=True):
            root = root_of_average(rows, totals, squares, bounds, level, weight)
            assert bound == pytest.approx(root, rel=1e-6, abs=1e-8)
            assert bound <= root + 1e-12 * max(1.0, abs(root))
            at = (totals - rows * bound) / bounds
            assert evidence_of(at, squares, weight) == pytest.approx(np.log(1 / level), abs=1e-5)


def test_weights_lie_where_the_plan_expects_the_decision():
    """At the planned size the bound is narrower than with equal weights, by about what a grid of 18
    bets and two caps costs, and a plan that is wrong by a factor of 30 still gives a bound."""
    caps, bounds, alpha, variance = np.array([0.0, 20.0]), np.array([2.0, 22.0]), 0.01, 0.25
    requests = 2e4
    total = requests * 20.0 * np.array([1.0, 0.5])
    found = {}
    for planned in (requests / 30.0, requests, requests * 30.0):
        weights = tuned_weights(planned, variance, caps, bounds, alpha)
        found[planned] = -lower_mean_of(
            requests, np.zeros(2), total / bounds**2, bounds, alpha, weights
        )
    equal = -lower_mean_of(requests, np.zeros(2), total / bounds**2, bounds, alpha)
    fixed = np.sqrt(2.0 * np.log(1.0 / alpha) * total[1]) / requests
    assert fixed < found[requests] < 0.87 * equal
    assert found[requests] == min(found.values())
    assert max(found.values()) < 1.6 * equal


def test_one_sequence_is_the_mixture_of_one():
    rng = np.random.default_rng(1)
    totals, squares = 500 * rng.random((4, 3)), 200 * rng.random((4, 3))
    one = lower_mean(700.0, totals, squares, 2.0, 0.01)
    of_one = lower_mean_of(700.0, totals[..., None], squares[..., None], np.array([2.0]), 0.01)
    np.testing.assert_allclose(of_one, one, atol=1e-9)


def test_a_useless_sequence_costs_at_most_log_2_of_evidence():
    total, squares = np.array([420.0, 420.0]), np.array([60.0, 1e9])
    both = lower_mean_of(700.0, total, squares, np.array([2.0, 50.0]), 0.01)
    alone = lower_mean(700.0, total[0], squares[0], 2.0, 0.005)
    assert both == pytest.approx(alone, abs=1e-9)


def test_nothing_is_known_without_rows():
    assert lower_mean(0.0, np.zeros(2), np.zeros(2), 1.0, 0.05).tolist() == [-np.inf] * 2
    none = lower_mean_of(0.0, np.zeros((2, 3)), np.zeros((2, 3)), np.ones(3), 0.05)
    assert none.tolist() == [-np.inf] * 2


@pytest.mark.parametrize("squares", [0.0, 0.3, 40.0, 1e5])
def test_reach_is_the_largest_sum_the_level_admits_and_never_below(squares):
    count = len(LAMBDAS) + 1
    for level in (LOWEST_LEVEL + 1e-3, -1.0, 0.0, 0.5, 3.0, 12.0):

        def excess(s, level=level):
            exponent = np.append(LAMBDAS * s - PSI * squares, 0.0)
            return special.logsumexp(exponent) - np.log(count) - level

        root = optimize.brentq(excess, -1e8, 1e8, xtol=1e-12, rtol=8.9e-16, maxiter=500)
        ours = reach(np.array(level), np.array(squares))
        assert ours == pytest.approx(root, rel=1e-6, abs=1e-7)
        assert ours >= root - 1e-10 * max(1.0, abs(root))
    assert reach(np.array(LOWEST_LEVEL - 1e-9), np.array(squares)) == -np.inf


def test_the_step_is_a_supermartingale_for_every_law_bounded_below():
    """exp(lambda xi - psi xi^2) <= 1 + lambda xi on xi >= -1, which is all that is used."""
    xi = np.concatenate([np.linspace(-1, 1, 4001), np.geomspace(1, 1e6, 2000)])[:, None]
    assert (np.exp(LAMBDAS * xi - PSI * xi**2) <= 1 + LAMBDAS * xi + 1e-12).all()
