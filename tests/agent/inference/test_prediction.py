"""The fit of the predictions: against weighted least squares, and switched off when useless."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.inference.prediction import TuningMoments
from equipoise.agent.inference.score import Tuning
from tests.agent.inference.rows import MODELS, columns, scores
from tests.agent.moments.table import assert_same_bits


def moments_of(c):
    moments = TuningMoments.empty(MODELS)
    moments.update(c.rows())
    return moments


def predictive(seed, count=4000, signal=0.8, lost=0.0):
    """Rows whose reward follows the prediction of the model that was served."""
    c = columns(seed, count, lost=lost, policies=False)
    rng = np.random.default_rng(seed + 100)
    served = c.predicted[np.arange(count), c.model]
    reward = 0.1 + signal * served + (0.9 - signal) * rng.random(count)
    return replace(c, rate=np.maximum(c.rate, 0.3), reward=np.clip(reward, 0.0, 1.0))


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_fit_is_weighted_least_squares_drawn_to_the_slope_of_all_models(lost):
    """numpy's polyfit with weights sqrt(W (W - 1)) per candidate; the pooling is written out."""
    c = predictive(0, lost=lost)
    tuned = moments_of(c).tuning()
    rows = c.rows()
    fits = []
    for m in range(MODELS + 1):
        use = rows.drawn[:, m] & c.known
        weight = 1.0 / rows.chance[use, m]
        v, q, r = weight * (weight - 1.0), rows.predicted[use, m], c.reward[use]
        slope, _ = np.polyfit(q, r, 1, w=np.sqrt(v))
        q, r = q - v @ q / v.sum(), r - v @ r / v.sum()
        fits.append((slope, v.sum() ** 2 / (v**2).sum(), v / v.sum(), q, r))
    information = np.array([n * (v @ q**2) for _, n, v, q, _ in fits])
    slopes = np.array([fit[0] for fit in fits])
    models = slice(0, MODELS)
    pooled = information[models] @ slopes[models] / information[models].sum()
    around = np.array([v @ (r - pooled * q) ** 2 for _, _, v, q, r in fits])
    error = (information * around)[models].sum() / information[models].sum() ** 2
    pooled *= max(1.0 - error / pooled**2, 0.0)
    variance = np.array(
        [v @ (r - s * q) ** 2 * n / (n - 2.0) / (n * (v @ q**2)) for s, n, v, q, r in fits]
    )
    between = max(((slopes - pooled) ** 2 - variance)[models].mean(), 0.0)
    expected = pooled + between / (between + variance) * (slopes - pooled)
    np.testing.assert_allclose(tuned.factor, np.clip(expected, 0.0, 1.0), rtol=1e-8)
    assert ((tuned.factor > 0.6) & (tuned.factor < 0.95)).all()
    for m in range(MODELS + 1):
        use = rows.drawn[:, m] & c.known
        weight = 1.0 / rows.chance[use, m]
        v, effective = weight * (weight - 1.0), fits[m][1]
        mean = 0.5 + (v @ c.reward[use] / v.sum() - 0.5) * effective / (effective + 1.0)
        usual = v @ rows.predicted[use, m] / v.sum()
        assert tuned.usual[m] == pytest.approx(usual, rel=1e-8)
        assert tuned.offset[m] == pytest.approx(mean - tuned.factor[m] * usual, rel=1e-8)


def test_models_that_differ_keep_slopes_of_their_own():
    """The scorer is right for one model and says nothing of the others: with 6,000 rows the first
    slope is near 1 and the others are near 0, not all at their mean."""
    c, rng = garbage(9, 6000), np.random.default_rng(10)
    served = c.predicted[np.arange(6000), c.model]
    c = replace(c, reward=np.where(c.model == 0, served, rng.random(6000)))
    factor = moments_of(c).tuning().factor
    assert factor[0] > 0.95
    assert (factor[1:MODELS] < 0.15).all()


def test_merging_shards_is_the_whole():
    c = columns(1)
    one, two, both = (moments_of(c.taken(p)) for p in (slice(0, 70), slice(70, None), slice(None)))
    for name, array in (one + two).arrays().items():
        np.testing.assert_allclose(array, both.arrays()[name], rtol=1e-11, atol=1e-11)
    assert_same_bits(both + TuningMoments.empty(MODELS), both)


def test_without_rows_predictions_are_off():
    for moments in (TuningMoments.empty(MODELS), moments_of(columns(2).taken(slice(0, 0)))):
        tuned = moments.tuning()
        assert (tuned.offset == 0.5).all()
        assert (tuned.factor == 0.0).all()


def test_one_row_and_constant_rewards_give_finite_fits():
    one = moments_of(columns(3).taken(slice(0, 1))).tuning()
    assert np.isfinite(one.offset).all()
    assert (one.factor == 0).all()
    c = garbage(4, 600)
    constant = moments_of(replace(c, reward=np.full(600, 0.7))).tuning()
    assert np.isfinite(constant.offset).all()
    np.testing.assert_allclose(constant.factor, 0.0, atol=1e-9)
    np.testing.assert_allclose(constant.apply(c.rows().predicted), 0.7, atol=0.01)


def test_rows_without_a_prediction_count_for_the_mean_and_for_nothing_else():
    c = columns(5, policies=False)
    kept = np.ones(200, dtype=bool)
    kept[:50] = False
    broken = c.predicted.copy()
    broken[:50] = np.nan
    whole, part = moments_of(replace(c, predicted=broken)), moments_of(c.taken(kept))
    alone = moments_of(c.taken(~kept))
    for name, array in whole.arrays().items():
        expected = part.arrays()[name]
        if name.startswith("bare"):
            twin = {"bare": "weight", "bare_sq": "weight_sq", "bare_r": "r"}[name]
            expected = alone.arrays()[twin]
        np.testing.assert_allclose(array, expected, rtol=1e-11, atol=1e-11)
    none = moments_of(replace(c, predicted=np.full_like(c.predicted, np.nan))).tuning()
    assert (none.factor == 0.0).all()
    mean = moments_of(c)
    rows = mean.weight**2 / mean.weight_sq
    expected = 0.5 + mean.r / mean.weight * rows / (rows + 1.0)
    np.testing.assert_allclose(none.apply(c.rows().predicted * np.nan)[0], expected, rtol=1e-9)


def garbage(seed, count):
    """Uniform draws at a rate of .4; predictions that say nothing of the rewards."""
    c = columns(seed, count, lost=0.0, policies=False)
    rng = np.random.default_rng([seed, 1])
    randomized = rng.random(count) < 0.4
    return replace(
        c,
        rate=np.full(count, 0.4),
        probabilities=np.full((count, MODELS), 1.0 / MODELS),
        randomized=randomized,
        model=np.where(randomized, rng.integers(0, MODELS, count), c.routed),
    )


def cost_of_garbage(seed, count):
    """(sd of the scores of later rows over that with the running mean alone, share switched off)
    after a fit on `count` rows."""
    c = garbage(seed, count + 2000)
    tuned = moments_of(c.taken(slice(0, count))).tuning()
    plain = Tuning(tuned.apply(np.full((1, MODELS + 1), 0.5))[0], np.zeros(MODELS + 1))
    rest = c.taken(slice(count, None)).rows()
    spread = [scores(rest, t, np.inf)[0][:, :MODELS].var(axis=0).sum() for t in (tuned, plain)]
    return np.sqrt(spread[0] / spread[1]), (tuned.factor == 0).mean()


def test_garbage_is_mostly_switched_off_and_costs_next_to_nothing():
    """60 seeded fits on 300 rows, some 40 rewards of each model.

    Over 600 such fits the mean cost is 1.0014 with a standard error of 0.0006 for a mean of 60,
    and 69% are off with one of 5%: the limits are more than three standard errors away (p < 1e-3).
    """
    cost, off = np.array([cost_of_garbage(seed, 300) for seed in range(60)]).mean(axis=0)
    assert cost < 1.0033
    assert off > 0.52


def test_garbage_never_widens_by_two_percent_once_there_are_rewards():
    """20 seeded fits on 6,000 rows; the largest of 60 such fits widened by 0.14%."""
    assert max(cost_of_garbage(seed, 6000)[0] for seed in range(20)) < 1.02


@pytest.mark.parametrize("way", ["right", "wrong"])
def test_a_good_prediction_narrows_the_score_whichever_way_it_points(way):
    """A scorer learned from a confounded log may point the wrong way: that is worth as much."""
    c = predictive(7)
    if way == "wrong":
        c = replace(c, predicted=1.0 - c.predicted)
    tuned = moments_of(c.taken(slice(0, 2000))).tuning()
    assert ((tuned.factor > 0) == (way == "right")).all()
    rest = c.taken(slice(2000, None)).rows()
    plain = Tuning(np.full(MODELS + 1, 0.55), np.zeros(MODELS + 1))
    fitted, mean = (scores(rest, t, np.inf)[0].var(axis=0) for t in (tuned, plain))
    assert (fitted[:MODELS] < 0.5 * mean[:MODELS]).all()


def test_the_wrong_way_takes_more_evidence_than_the_right_one():
    """40 seeded fits of a weak signal on 300 rows: the share of them that use the prediction."""
    used = []
    for turned in (False, True):
        cases = [predictive(seed, 300, signal=0.15) for seed in range(40)]
        raw = [1.0 - c.predicted if turned else c.predicted for c in cases]
        fits = [
            moments_of(replace(c, predicted=q)).tuning() for c, q in zip(cases, raw, strict=True)
        ]
        used.append(np.mean([(fit.factor[:MODELS] != 0).any() for fit in fits]))
    assert 0.1 < used[1] < used[0] - 0.1


def test_no_slope_has_another_sign_than_the_common_one():
    for seed in range(30):
        for c in (predictive(seed, 200, signal=0.1), garbage(seed, 300)):
            for q in (c.predicted, 1.0 - c.predicted):
                factor = moments_of(replace(c, predicted=q)).tuning().factor
                assert not ((factor > 0).any() and (factor < 0).any())


def test_relabelling_relabels_and_the_mirror_image_mirrors():
    c, order = predictive(8), np.array([2, 0, 1])
    tuned = moments_of(c).tuning()
    moved = moments_of(c.relabelled(order)).tuning()
    every = np.append(order, MODELS)
    np.testing.assert_allclose(moved.factor, tuned.factor[every], rtol=1e-9)
    np.testing.assert_allclose(moved.offset, tuned.offset[every], rtol=1e-9)
    mirrored = moments_of(c.mirrored()).tuning()
    np.testing.assert_allclose(mirrored.factor, tuned.factor, rtol=1e-9)
    np.testing.assert_allclose(mirrored.offset, 1 - tuned.offset - tuned.factor, rtol=1e-9)


def test_what_is_known_counts_as_ten_rewards():
    known = np.linspace(0.1, 0.9, MODELS + 1)
    np.testing.assert_allclose(TuningMoments.empty(MODELS).tuning(known).offset, known)
    moments = TuningMoments.empty(MODELS)
    # Thirty rewards of equal weight, and no prediction of them.
    moments.bare[:], moments.bare_sq[:], moments.bare_r[:] = 60.0, 120.0, 60.0 * (0.8 - 0.5)
    drawn = (30.0 * 0.8 + 10.0 * known) / 40.0
    np.testing.assert_allclose(moments.tuning(known).offset, drawn)
