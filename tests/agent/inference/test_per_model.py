"""The per-model sequence: sums, roots, the region of a contrast found by another road."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special

from equipoise.agent.inference.mixture import LAMBDAS, lower_mean
from equipoise.agent.inference.per_model import (
    ASSUMPTION,
    RewardCentres,
    RewardMoments,
    contrast_bounds,
    value_bounds,
)
from tests.agent.moments.table import assert_same_bits

PSI = -np.log1p(-LAMBDAS) - LAMBDAS


def batch(rng, count, models=3, lost=0.0):
    model = rng.integers(0, models, count)
    reward = rng.beta(0.5 + model, 1.5)
    known = rng.random(count) >= lost
    return model, np.where(known, reward, 0.0), np.where(known, reward, 1.0)


def moments_of(seed, count=400, lost=0.0):
    rng = np.random.default_rng(seed)
    moments = RewardMoments.empty(3)
    for _ in range(4):
        moments.update(moments.centres(), *batch(rng, count // 4, lost=lost))
    return moments


def test_sums_equal_a_loop_over_raw_rows():
    rng = np.random.default_rng(0)
    moments = RewardMoments.empty(3)
    expected = {name: np.zeros(3) for name in moments.arrays()}
    for count in (1, 40, 17):
        centres = RewardCentres(rng.random(3), rng.random(3))
        model, low, high = batch(rng, count, lost=0.3)
        moments.update(centres, model, low, high)
        for m, one, two in zip(model, low, high, strict=True):
            expected["count"][m] += 1
            expected["low"][m] += one
            expected["high"][m] += two
            expected["low_squares"][m] += (one - centres.low[m]) ** 2
            expected["high_squares"][m] += (two - centres.high[m]) ** 2
    for name, array in moments.arrays().items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-12)
    centres = moments.centres()
    np.testing.assert_allclose(centres.low, (expected["low"] + 0.5) / (expected["count"] + 1))
    np.testing.assert_allclose(centres.high, (expected["high"] + 0.5) / (expected["count"] + 1))


def test_merging_shards_is_the_whole():
    rng, centres = np.random.default_rng(1), RewardCentres.neutral(3)
    one, two, both = (RewardMoments.empty(3) for _ in range(3))
    first, second = batch(rng, 100), batch(rng, 60)
    one.update(centres, *first)
    two.update(centres, *second)
    both.update(centres, *(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    for name, array in (one + two).arrays().items():
        np.testing.assert_allclose(array, both.arrays()[name], rtol=1e-12)
    assert_same_bits(both + RewardMoments.empty(3), both)


def test_value_ends_are_the_mixture_of_each_models_own_rewards():
    moments = moments_of(2)
    low, high = value_bounds(moments, 0.01)
    for m in range(3):
        n = float(moments.count[m])
        one = lower_mean(n, moments.low[[m]], moments.low_squares[[m]], 1.0, 0.01)[0]
        two = lower_mean(n, n - moments.high[[m]], moments.high_squares[[m]], 1.0, 0.01)[0]
        assert low[m] == pytest.approx(max(one, 0.0), abs=1e-12)
        assert high[m] == pytest.approx(min(1 - two, 1.0), abs=1e-12)


def evidence(s, squares):
    exponent = np.append(LAMBDAS * s - PSI * squares, 0.0)
    return special.logsumexp(exponent) - np.log(len(exponent))


def exact_contrast(moments, a, b, alpha):
    """Smallest V(a) - V(b) over the pairs in the unit square that the product does not rule out.

    For each V(b) on a fine grid the smallest V(a) by bisection.
    """
    n, top = moments.count, np.log(1 / alpha)
    best = 1.0
    for v_b in np.linspace(0.0, 1.0, 501):
        of_b = evidence(n[b] * v_b - moments.high[b], moments.high_squares[b])

        def excess(v_a, of_b=of_b):
            return evidence(moments.low[a] - n[a] * v_a, moments.low_squares[a]) + of_b - top

        if excess(1.0) > 0:
            continue
        v_a = 0.0 if excess(0.0) <= 0 else optimize.brentq(excess, 0.0, 1.0)
        best = min(best, v_a - v_b)
    return best


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_contrast_end_covers_the_exact_region_and_hardly_more(alpha):
    moments = moments_of(3)
    lower = contrast_bounds(moments, alpha)
    for a, b in ((0, 1), (1, 0), (2, 0)):
        exact = exact_contrast(moments, a, b, alpha)
        assert lower[a, b] <= exact + 1e-3
        assert lower[a, b] == pytest.approx(exact, abs=0.02)


def test_finer_rectangles_narrow_the_contrast_and_never_pass_the_limit():
    moments = moments_of(4)
    ends = [contrast_bounds(moments, 0.01, levels=n)[2, 0] for n in (8, 32, 64, 4096)]
    assert ends[0] < ends[1] < ends[2] < ends[3]
    assert ends[3] - ends[2] < 0.01


def test_contrast_is_narrower_than_the_union_of_two_ends():
    moments, alpha = moments_of(5, 4000), 0.01
    low, high = value_bounds(moments, alpha / 2)
    lower = contrast_bounds(moments, alpha)
    union = low[:, None] - high[None, :]
    mean = (moments.low / moments.count)[:, None] - (moments.high / moments.count)[None, :]
    off = ~np.eye(3, dtype=bool)
    assert ((mean - lower)[off] < 0.85 * (mean - union)[off]).all()


def test_missing_rewards_move_both_ends_outwards():
    full, holed = moments_of(6), moments_of(6, lost=0.4)
    low, high = value_bounds(holed, 0.05)
    assert (low < value_bounds(full, 0.05)[0]).all()
    assert (high > value_bounds(full, 0.05)[1]).all()
    off = ~np.eye(3, dtype=bool)
    assert (contrast_bounds(holed, 0.05) < contrast_bounds(full, 0.05))[off].all()


def test_a_model_without_rewards_is_unknown():
    moments = RewardMoments.empty(3)
    moments.update(moments.centres(), np.array([0]), np.array([0.7]), np.array([0.7]))
    low, high = value_bounds(moments, 0.05)
    assert low[1:].tolist() == [0, 0]
    assert high[1:].tolist() == [1, 1]
    lower = contrast_bounds(moments, 0.05)
    assert (lower[~np.eye(3, dtype=bool)] == -1).all()
    assert (np.diag(lower) == 0).all()


def test_constant_rewards_give_proper_ends():
    moments = RewardMoments.empty(2)
    for _ in range(50):
        moments.update(moments.centres(), np.array([0, 1]), np.ones(2), np.ones(2))
    low, high = value_bounds(moments, 0.05)
    assert ((low > 0.8) & (low < 1)).all()
    assert (high == 1).all()
    assert (contrast_bounds(moments, 0.05) <= 0).all()


def test_minimising_is_maximising_the_mirror_image_and_relabelling_relabels():
    rng, order = np.random.default_rng(7), np.array([2, 0, 1])
    plain, mirror, moved = (RewardMoments.empty(3) for _ in range(3))
    for _ in range(4):
        model, low, high = batch(rng, 80, lost=0.2)
        plain.update(plain.centres(), model, low, high)
        mirror.update(mirror.centres(), model, 1 - high, 1 - low)
        moved.update(moved.centres(), np.argsort(order)[model], low, high)
    low, high = value_bounds(plain, 0.05)
    other_low, other_high = value_bounds(mirror, 0.05)
    np.testing.assert_allclose(other_low, 1 - high, atol=1e-9)
    np.testing.assert_allclose(other_high, 1 - low, atol=1e-9)
    lower = contrast_bounds(plain, 0.05)
    np.testing.assert_allclose(contrast_bounds(mirror, 0.05), lower.T, atol=1e-9)
    np.testing.assert_allclose(contrast_bounds(moved, 0.05), lower[np.ix_(order, order)], atol=1e-9)


def test_the_rarer_outcome_counts_both_ways_and_never_falls():
    moments, before = RewardMoments.empty(2), np.zeros(2)
    rng = np.random.default_rng(8)
    for _ in range(30):
        model, low, high = batch(rng, 5, models=2, lost=0.3)
        moments.update(moments.centres(), model, low, high)
        assert (moments.rarer() >= before).all()
        before = moments.rarer()
    wins, losses = moments.low, moments.count - moments.high
    np.testing.assert_array_equal(before, np.minimum(wins, losses))


def test_the_assumption_is_stated():
    assert "stationary" in ASSUMPTION
    assert "never depended on the request" in ASSUMPTION
