"""The nearest values inside certified bounds, against a general solver and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from equipoise.agent.inference import projection
from equipoise.agent.inference.projection import nearest


def bounds(rng, count, wide):
    """Ends and contrasts that hold for some truth, as tight as chance makes them."""
    truth = rng.random(count)
    lower, upper = truth - wide * rng.random(count), truth + wide * rng.random(count)
    contrasts = truth[:, None] - truth[None, :] - wide * rng.random((count, count))
    np.fill_diagonal(contrasts, 0.0)
    return truth, lower, upper, contrasts


def feasible(values, lower, upper, contrasts, slack=1e-9):
    ahead = values[:, None] - values[None, :]
    return (
        (values >= lower - slack).all()
        and (values <= upper + slack).all()
        and (ahead >= contrasts - slack).all()
    )


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_solution_of_the_quadratic_programme(seed):
    """SLSQP on the same bounds comes no nearer, to 1e-6."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 5))
    _, lower, upper, contrasts = bounds(rng, count, 0.2)
    values, variances = rng.normal(0.5, 0.5, count), rng.uniform(0.5, 2.0, count)
    got = nearest(values, variances, lower, upper, contrasts)
    assert feasible(got, lower, upper, contrasts)
    rules = [
        {"type": "ineq", "fun": lambda v, a=a, b=b: v[a] - v[b] - contrasts[a, b]}
        for a in range(count)
        for b in range(count)
        if a != b
    ]

    def distance(v):
        return float((((v - values) ** 2) / variances).sum())

    found = minimize(
        distance,
        (lower + upper) / 2,
        bounds=list(zip(lower, upper, strict=True)),
        constraints=rules,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert distance(got) <= found.fun + 1e-6


def test_values_inside_are_left_alone_and_unknown_ones_stay_unknown():
    values = np.array([0.4, np.nan, 0.6])
    got = nearest(values, np.ones(3), np.zeros(3), np.ones(3), np.full((3, 3), -1.0))
    np.testing.assert_array_equal(got, values)


def test_it_never_moves_away_from_a_truth_that_is_inside():
    """In the norm of the variances, over 200 random cases; exact up to rounding."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        count = int(rng.integers(2, 8))
        truth, lower, upper, contrasts = bounds(rng, count, 0.3)
        values, variances = rng.normal(0.5, 0.6, count), rng.uniform(0.1, 3.0, count)
        got = nearest(values, variances, lower, upper, contrasts)
        assert feasible(got, lower, upper, contrasts, 1e-8)
        before = ((values - truth) ** 2 / variances).sum()
        assert ((got - truth) ** 2 / variances).sum() <= before + 1e-9


def test_bounds_that_contradict_each_other_keep_every_value_within_its_ends():
    lower, upper = np.array([0.2, 0.5]), np.array([0.4, 0.9])
    got = nearest(np.array([0.9, 0.1]), np.ones(2), lower, upper, np.array([[0, 0.5], [-1, 0]]))
    assert (got >= lower).all()
    assert (got <= upper).all()


def test_relabelling_and_rescaling():
    rng = np.random.default_rng(9)
    _, lower, upper, contrasts = bounds(rng, 5, 0.2)
    values, variances = rng.normal(0.5, 0.5, 5), rng.uniform(0.5, 2.0, 5)
    plain = nearest(values, variances, lower, upper, contrasts)
    order = rng.permutation(5)
    moved = nearest(
        values[order], variances[order], lower[order], upper[order], contrasts[np.ix_(order, order)]
    )
    np.testing.assert_allclose(moved, plain[order], atol=1e-9)
    scaled = nearest(
        100 * values - 7, 1e4 * variances, 100 * lower - 7, 100 * upper - 7, 100 * contrasts
    )
    np.testing.assert_allclose(scaled, 100 * plain - 7, atol=1e-7)


def test_values_inside_need_no_solver(monkeypatch):
    """It takes a third of a second to import."""
    rng = np.random.default_rng(3)
    truth, lower, upper, contrasts = bounds(rng, 4, 0.2)
    monkeypatch.setattr(projection, "load_solver", None)
    np.testing.assert_array_equal(nearest(truth, np.ones(4), lower, upper, contrasts), truth)
    with pytest.raises(TypeError):
        nearest(truth + 1.0, np.ones(4), lower, upper, contrasts)
