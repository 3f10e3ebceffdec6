"""Fixed-n comparisons against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from equipoise.agent.inference.fixed import LABEL, t_half_width, z_half_width


@pytest.mark.parametrize("alpha", [0.1, 0.025, 0.001])
def test_welch_interval_is_scipys(alpha):
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(0, 1, 7), rng.normal(1, 3, 40), rng.normal(2, 0.1, 2)
    samples = [a, b, c]
    counts = np.array([len(s) for s in samples], float)
    squares = np.array([((s - s.mean()) ** 2).sum() for s in samples])
    found = t_half_width(counts, squares, alpha)
    for i, one in enumerate(samples):
        for j, two in enumerate(samples):
            if i != j:
                ends = stats.ttest_ind(one, two, equal_var=False).confidence_interval(1 - 2 * alpha)
                assert found[i, j] == pytest.approx((ends.high - ends.low) / 2, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.025, 0.001])
def test_z_interval_is_scipys(alpha):
    sample = np.random.default_rng(1).gamma(2.0, size=25)
    squares = ((sample - sample.mean()) ** 2).sum()
    low, high = stats.norm.interval(1 - 2 * alpha, sample.mean(), stats.sem(sample))
    assert z_half_width(25.0, squares, alpha) == pytest.approx((high - low) / 2, rel=1e-12)


def test_too_few_rewards_are_unknown_and_no_spread_is_zero():
    assert np.isnan(z_half_width(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 0.05)).all()
    assert z_half_width(5.0, 0.0, 0.05) == 0.0
    wide = t_half_width(np.array([1.0, 5.0, 6.0]), np.array([0.0, 0.0, 0.0]), 0.05)
    assert np.isnan(wide[0]).all()
    assert np.isnan(wide[:, 0]).all()
    assert (wide[1:, 1:] == 0).all()


def test_runs_may_come_first():
    counts, squares = np.array([[5.0, 9.0], [30.0, 2.0]]), np.array([[1.0, 4.0], [3.0, 0.5]])
    both = t_half_width(counts, squares, 0.05)
    for run in range(2):
        np.testing.assert_array_equal(both[run], t_half_width(counts[run], squares[run], 0.05))


def test_the_label_says_what_it_is_not():
    assert "not under peeking" in LABEL
