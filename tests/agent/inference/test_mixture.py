"""Mixtures over lambda: roots against scipy, one sequence as a special case, the union bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from equipoise.agent.inference.mixture import (
    LAMBDAS,
    LOWEST_LEVEL,
    lower_mean,
    lower_mean_of,
    reach,
)

PSI = -np.log1p(-LAMBDAS) - LAMBDAS


def root_of_average(rows, totals, squares, bounds, alpha):
    """theta where the average of the sequences' mixtures is 1 / alpha, by bisection."""

    def excess(theta):
        parts = [
            LAMBDAS * (total - rows * theta) / bound - PSI * square
            for total, square, bound in zip(totals, squares, bounds, strict=True)
        ]
        exponent = np.concatenate(parts)
        return special.logsumexp(exponent) - np.log(len(exponent)) - np.log(1 / alpha)

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
