"""Certified sums: against raw rows, against the definition of the bound, and over many runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from equipoise.agent.inference.bounded import (
    Centres,
    CertifiedMoments,
    certified_winner,
    contrast_bounds,
    value_bounds,
)
from equipoise.agent.inference.mixture import LAMBDAS, lower_mean


def rows(rng, n, values, rate=0.4, missing=0.0, tilt=None):
    """n rows of a Bernoulli world; routing prefers the last model."""
    models = len(values)
    shares = np.full(models, 1 / models) if tilt is None else tilt
    routed = rng.integers(models - 2, models, n)
    randomized = rng.random(n) < rate
    model = np.where(randomized, rng.choice(models, n, p=shares), routed)
    reward = (rng.random(n) < values[model]).astype(float)
    weight = np.where(randomized, 1 / (rate * shares[model]), 0.0)
    routing = np.where(model == routed, 1 / (1 - rate + rate * shares[routed]), 0.0)
    return model, weight, routing, reward, rng.random(n) >= missing


def centres(rng, models):
    size = models + 1
    return Centres(rng.random(size), rng.random(size), 2 * rng.random((size, size)))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_sums_equal_a_loop_over_raw_rows(missing):
    rng = np.random.default_rng(0)
    values = np.array([0.2, 0.7, 0.5])
    moments = CertifiedMoments.empty(3)
    gain, loss, squares = np.zeros(4), np.zeros(4), np.zeros((4, 4))
    gain_squares, loss_squares = np.zeros(4), np.zeros(4)
    for size in (1, 40, 17):
        centre = centres(rng, 3)
        model, weight, routing, _, known = rows(rng, size, values, missing=missing)
        reward = rng.random(size)
        moments.update(centre, model, weight, routing, reward, known)
        for t in range(size):
            w = np.zeros(4)
            w[model[t]] = weight[t]
            w[3] = routing[t]
            won, lost = (reward[t], 1 - reward[t]) if known[t] else (0.0, 0.0)
            gain += w * won
            loss += w * lost
            gain_squares += (w * won - centre.gain) ** 2
            loss_squares += (w * lost - centre.loss) ** 2
            d = w[:, None] * won + w[None, :] * lost
            squares += ((d - centre.contrast) / 2) ** 2
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(moments.gain, gain, rtol=1e-12)
    np.testing.assert_allclose(moments.loss, loss, rtol=1e-12)
    np.testing.assert_allclose(moments.gain_squares, gain_squares, rtol=1e-11)
    np.testing.assert_allclose(moments.loss_squares, loss_squares, rtol=1e-11)
    np.testing.assert_allclose(moments.contrast_squares[off], squares[off], rtol=1e-11)
    assert moments.rows[0] == 58


def test_bound_solves_its_equation():
    """Against scipy's root of the mixture, in theta."""
    t, total, squares, b, alpha = 5000.0, 6200.0, 900.0, 2.0, 0.01
    penalty = (-np.log1p(-LAMBDAS) - LAMBDAS) * squares

    def log_mixture(theta):
        return np.log(np.mean(np.exp(LAMBDAS * (total - t * theta) / b - penalty)))

    root = optimize.brentq(
        lambda theta: log_mixture(theta) - np.log(1 / alpha), 1.0, 1.24, xtol=1e-14
    )
    bound = lower_mean(t, np.array(total), np.array(squares), b, alpha)
    assert bound == pytest.approx(root, abs=1e-10)
    assert bound <= root + 1e-14


def test_bound_is_unknown_without_rows():
    assert lower_mean(0.0, np.zeros(2), np.zeros(2), 1.0, 0.05).tolist() == [-np.inf, -np.inf]


def test_merging_shards_is_the_whole():
    rng = np.random.default_rng(1)
    values, centre = np.array([0.2, 0.7, 0.5]), Centres.neutral(3)
    one, two, both = (CertifiedMoments.empty(3) for _ in range(3))
    first, second = rows(rng, 100, values), rows(rng, 60, values)
    one.update(centre, *first)
    two.update(centre, *second)
    both.update(centre, *(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    for name, array in (one + two).arrays().items():
        np.testing.assert_allclose(array, both.arrays()[name], rtol=1e-12, err_msg=name)


def run_until(rng, values, looks, rate=0.4, missing=0.0, tilt=None):
    """Moments at each look of one run, centres refreshed at every look."""
    moments = CertifiedMoments.empty(len(values))
    for size in np.diff([0, *looks]):
        batch = rows(rng, int(size), values, rate, missing, tilt)
        moments.update(moments.centres(), *batch)
        yield moments


@pytest.mark.parametrize(
    ("values", "missing", "tilt"),
    [
        ([0.5, 0.45, 0.6], 0.0, None),
        ([0.99, 0.95, 0.97], 0.0, None),
        ([0.02, 0.01, 0.04], 0.1, None),
        ([0.5, 0.45, 0.6], 0.3, [0.05, 0.9, 0.05]),
    ],
)
def test_no_run_misses_more_often_than_it_may(values, missing, tilt):
    """Share of 300 runs in which any contrast or value is ever missed, at a level of 10%.

    12 looks each, contrasts at alpha / 12 ordered pairs of 4 candidates together and values at
    alpha / 8. Under the guarantee at most 10% of runs miss each; more than 15% has probability
    below 0.4% (binomial). The runs are seeded.
    """
    rng = np.random.default_rng(11)
    values = np.array(values)
    tilt = None if tilt is None else np.array(tilt)
    looks = np.unique(np.geomspace(20, 6000, 12).astype(int))
    routing = values[-2:].mean()
    truth = np.append(values, routing)
    missed_contrast = missed_value = 0
    for _ in range(300):
        bad_contrast = bad_value = False
        for moments in run_until(rng, values, looks, missing=missing, tilt=tilt):
            lower = contrast_bounds(moments, 0.1 / 12)
            bad_contrast |= bool((lower > truth[:, None] - truth[None, :] + 1e-12).any())
            low, high = value_bounds(moments, 0.1 / 8)
            bad_value |= bool(((low > truth) | (high < truth)).any())
        missed_contrast += bad_contrast
        missed_value += bad_value
    assert missed_contrast <= 45
    assert missed_value <= 45


def test_a_clear_winner_is_certified_and_mirrors_when_smaller_is_better():
    rng = np.random.default_rng(2)
    values = np.array([0.3, 0.8, 0.5])
    *_, moments = run_until(rng, values, [500, 4000])
    assert certified_winner(moments, 0.05, 0.0, 1) == 1
    assert certified_winner(moments, 0.05, 0.0, -1) == 0


def test_equal_models_are_not_certified_unless_the_difference_does_not_matter():
    rng = np.random.default_rng(3)
    *_, moments = run_until(rng, np.array([0.5, 0.5, 0.5]), [1000, 8000, 40_000])
    assert certified_winner(moments, 0.05, 0.0, 1) is None
    assert certified_winner(moments, 0.05, 0.2, 1) is not None
