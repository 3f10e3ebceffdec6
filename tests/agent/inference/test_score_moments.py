"""Sums of scores: against a loop over raw rows, merged, copied."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.inference.prediction import Frozen
from equipoise.agent.inference.score import ScoreCentres, ScoreMoments
from tests.agent.inference.rows import MODELS, POLICIES, columns, longhand, tuning
from tests.agent.moments.table import assert_same_bits

CAPS = (0.0, 7.5, np.inf)
SIZE = MODELS + 1 + POLICIES


def centres(seed):
    rng = np.random.default_rng(seed)
    return ScoreCentres(rng.random((len(CAPS), SIZE)), rng.random((len(CAPS), SIZE)))


def moments_of(c, seed=0):
    moments = ScoreMoments.empty(len(CAPS), SIZE)
    moments.update(c.rows(), tuning(seed), centres(seed), CAPS)
    return moments


def test_sums_equal_a_loop_over_raw_rows():
    moments = ScoreMoments.empty(len(CAPS), SIZE)
    low, high = np.zeros((len(CAPS), SIZE)), np.zeros((len(CAPS), SIZE))
    low_squares, high_squares = low.copy(), low.copy()
    contrast = np.zeros((len(CAPS), SIZE, SIZE))
    for part, count in enumerate((1, 40, 17)):
        c, tuned, centre = columns(part, count), tuning(part), centres(part)
        moments.update(c.rows(), tuned, centre, CAPS)
        for t in range(count):
            for k, cap in enumerate(CAPS):
                one, two = longhand(c, t, tuned, cap)
                u, v = one - centre.low[k], two - centre.high[k]
                low[k] += one
                high[k] += two
                low_squares[k] += u**2
                high_squares[k] += v**2
                contrast[k] += (u[:, None] - v[None, :]) ** 2
    assert moments.rows[0] == 58
    np.testing.assert_allclose(moments.low, low, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(moments.high, high, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(moments.low_squares, low_squares, rtol=1e-11)
    np.testing.assert_allclose(moments.high_squares, high_squares, rtol=1e-11)
    np.testing.assert_allclose(moments.contrast_squares(), contrast, rtol=1e-9, atol=1e-9)
    means = moments.means()
    np.testing.assert_allclose(means[0], low / 58, rtol=1e-11)
    np.testing.assert_allclose(means[1], high / 58, rtol=1e-11)


def test_merging_shards_is_the_whole_and_empty_is_the_identity():
    c = columns(3)
    one, two, both = (moments_of(c.taken(p)) for p in (slice(0, 60), slice(60, None), slice(None)))
    for name, array in (one + two).arrays().items():
        np.testing.assert_allclose(array, both.arrays()[name], rtol=1e-12, atol=1e-12)
    assert_same_bits(both + ScoreMoments.empty(len(CAPS), SIZE), both)


def test_sums_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="different shape"):
        moments_of(columns(3)) + ScoreMoments.empty(1, SIZE)


def test_no_rows_leave_everything_as_it_was_and_means_unknown():
    moments = ScoreMoments.empty(len(CAPS), SIZE)
    moments.update(columns(0, 0).rows(), tuning(0), centres(0), CAPS)
    assert_same_bits(moments, ScoreMoments.empty(len(CAPS), SIZE))
    assert np.isnan(moments.means()).all()
    neutral = moments.centres()
    assert (neutral.low == 0.5).all()
    assert (neutral.high == 0.5).all()


def test_centres_are_the_running_means_within_the_range():
    moments = moments_of(columns(5, 2))
    low, high = moments.means()
    assert (low[0] >= 0).all()
    assert high[2].min() < 0
    np.testing.assert_array_equal(moments.centres().low, np.clip(low, 0, 1))
    np.testing.assert_array_equal(moments.centres().high, np.clip(high, 0, 1))


def test_cap_0_is_the_plain_weighted_reward_and_loss():
    """Whatever is predicted: psi_low = W R and 1 - psi_high = W (1 - R)."""
    c = columns(5)
    rows, moments = c.rows(), moments_of(c)
    weight = np.where(rows.drawn, 1.0 / rows.chance, 0.0)
    gain, loss = weight.T @ rows.low, weight.T @ (1.0 - rows.high)
    np.testing.assert_allclose(moments.low[0, : MODELS + 1], gain, rtol=1e-12)
    np.testing.assert_allclose(200 - moments.high[0, : MODELS + 1], loss, rtol=1e-10)


def test_all_certified_sums_of_shards_are_those_of_the_whole():
    frozen = Frozen.neutral(MODELS, SIZE, len(CAPS))

    def certified(c):
        moments = CertificateMoments.empty(MODELS, SIZE, len(CAPS))
        moments.update(c.rows(), frozen, CAPS, c.model, c.randomized, c.known)
        return moments

    c = columns(5)
    one, two, both = (certified(c.taken(p)) for p in (slice(0, 60), slice(60, None), slice(None)))
    assert both.randomized == np.count_nonzero(c.randomized)
    assert both.missing == np.count_nonzero(~c.known)
    for name, array in (one + two).arrays().items():
        np.testing.assert_allclose(array, both.arrays()[name], rtol=1e-12, atol=1e-12)
    for name, array in one.copy().arrays().items():
        assert array.tobytes() == one.arrays()[name].tobytes()
        assert not np.shares_memory(array, one.arrays()[name])
