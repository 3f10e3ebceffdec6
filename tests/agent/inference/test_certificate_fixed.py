"""Fixed-n comparisons against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from equipoise.agent.inference.certificate import FIXED_N, fixed_half_width


@pytest.mark.parametrize("alpha", [0.1, 0.025, 0.001])
def test_z_interval_is_scipys(alpha):
    sample = np.random.default_rng(1).gamma(2.0, size=25)
    squares = ((sample - sample.mean()) ** 2).sum()
    low, high = stats.norm.interval(1 - 2 * alpha, sample.mean(), stats.sem(sample))
    assert fixed_half_width(25.0, squares, alpha) == pytest.approx((high - low) / 2, rel=1e-12)


def test_too_few_rewards_are_unknown_and_no_spread_is_zero():
    assert np.isnan(fixed_half_width(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 0.05)).all()
    assert fixed_half_width(5.0, 0.0, 0.05) == 0.0


def test_the_label_says_what_it_is_not():
    assert "not under peeking" in FIXED_N
