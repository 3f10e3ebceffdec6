"""The mean among those who rate: scores, sums and ends, each against another way to get them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.inference import mixture
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.mixture import contrast_bound, evidence_of
from equipoise.agent.inference.rated import (
    LONE,
    Contrasts,
    RatedFrozen,
    RatedMoments,
    RatedRows,
    contrast_bounds,
    ends_of_rating,
    parts_under,
    value_bounds,
)
from equipoise.agent.inference.score import Rows, ScoreCentres, ScoreMoments, Tuning
from tests.agent.inference.rows import MODELS, columns

CAPS = (0.0, 8.0, np.inf)
THETAS = (0.0, 0.25, 0.8, 1.0)


def raters(c, undelivered=0.0, seed=0):
    """The rows of columns as those of who rates: unknown rewards are unrated, a few undelivered."""
    lost = np.random.default_rng(seed).random(len(c.rate)) < undelivered
    reward = np.where(c.known & ~lost, c.reward, 0.0)
    free = (~c.known & ~lost).astype(float)
    low = np.column_stack([reward, free])
    high = np.column_stack([np.where(lost, 1.0, reward), free])
    rows, (least, most) = c.rows(), ends_of_rating(low, high)
    plain = Rows(rows.chance, rows.drawn, rows.predicted, least, most, rows.shares)
    return RatedRows(plain, low, high)


def tunings(seed):
    """Predictions of who rates and of S R, some of them above the first."""
    rng = np.random.default_rng(seed)
    return tuple(
        Tuning(rng.uniform(0.0, top, MODELS + 1), rng.uniform(0.0, 0.5, MODELS + 1))
        for top in (0.5, 0.4)
    )


def frozen(tuning, size, seed=0):
    rng = np.random.default_rng(seed)
    start, end = rng.random((2, 2, len(CAPS), size))
    return RatedFrozen(
        tuning, np.stack([start[0], end[0] - start[0]]), np.stack([start[1], end[1] - start[1]])
    )


def moments(rows, seed=1):
    """Sums of rows, all decided under one rule."""
    size = MODELS + 1 + rows.rows.shares.shape[1]
    rating, rewards = tunings(seed)
    sums = RatedMoments.empty(len(CAPS), size, MODELS)
    sums.update(rows, rating, frozen(rewards, size), CAPS)
    return sums


def mirrored(rows):
    """The same rows with r -> 1 - r: S R becomes S (1 - R)."""
    rated = 1.0 - rows.low[:, 1], 1.0 - rows.high[:, 1]
    low = np.column_stack([rated[1] - rows.high[:, 0], rows.high[:, 1]])
    high = np.column_stack([rated[0] - rows.low[:, 0], rows.low[:, 1]])
    return RatedRows(rows.rows, low, high)


@pytest.mark.parametrize("theta", THETAS)
def test_scores_are_those_of_rewards_in_which_a_missing_one_counts_as_theta(theta):
    """Row by row, and within the caps for every theta, however small the chance."""
    c = columns(4, lost=0.7)
    c = replace(c, rate=np.where(np.arange(200) % 2, 1e-6, c.rate))
    rows, (rating, rewards) = raters(c, undelivered=0.1), tunings(5)
    b = rating.apply(rows.rows.predicted)
    a = np.minimum(rewards.apply(rows.rows.predicted), b)
    for cap, (low, high) in zip(CAPS, parts_under(rows, rating, rewards, CAPS), strict=True):
        low, high = low[0] + theta * low[1], high[0] + theta * high[1]
        if np.isfinite(cap):
            assert low.min() >= -cap - 1e-6
            assert high.max() <= 1 + cap + 1e-6
        for t in range(len(c.rate)):
            for m in range(MODELS + 1):
                chance, mu = rows.rows.chance[t, m], a[t, m] + (1 - b[t, m]) * theta
                room = min(1.0, cap / (1 / chance - 1))
                down, up = room * mu, 1 - room * (1 - mu)
                if rows.rows.drawn[t, m]:
                    down += (rows.low[t] @ [1, theta] - down) / chance
                    up += (rows.high[t] @ [1, theta] - up) / chance
                assert low[t, m] == pytest.approx(down, rel=1e-9, abs=1e-9)
                assert high[t, m] == pytest.approx(up, rel=1e-9, abs=1e-9)


def test_merged_sums_are_those_of_all_rows():
    rows = raters(columns(6, lost=0.6), undelivered=0.05)
    parts = [
        RatedRows(
            Rows(*(getattr(rows.rows, name)[at] for name in Rows.__slots__)),
            rows.low[at],
            rows.high[at],
        )
        for at in (slice(0, 70), slice(70, 200))
    ]
    merged, whole = moments(parts[0]) + moments(parts[1]), moments(rows)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(merged.arrays()[name], array, rtol=1e-9, atol=1e-9)


def rejected(sums, xi, squares, bound, alpha):
    return evidence_of(xi / bound, squares / bound**2) >= np.log(1 / alpha)


def at(sums, x, y):
    """Sums of xi and of squares of the contrast of every pair at x of the one and y of the other,
    and of each one alone, from the two scores at those thetas: (C, A, A), (C, A), (C, A)."""
    one, other, cross = sums.low_products, sums.high_products, sums.cross
    up = one[0] + 2 * x * one[1] + x * x * one[2]
    down = other[0] + 2 * y * other[1] + y * y * other[2]
    both = cross[0, 0] + x * cross[1, 0] + y * cross[0, 1] + x * y * cross[1, 1]
    rows = sums.rows[0]
    a = sums.low[0] + x * sums.low[1] - rows * x
    b = rows * y - sums.high[0] - y * sums.high[1]
    return a[:, :, None] + b[:, None], up[:, :, None] + down[:, None] - 2 * both, (a, up), (b, down)


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.5), (0.05, 0.9, 0.3)])
def test_ends_are_those_of_every_theta_looked_at_one_by_one(shares):
    """Against a fine grid of theta, and of the difference: never above it, and close to it."""
    rng, alpha = np.random.default_rng(7), 0.2
    c = columns(7, count=6000, policies=False)
    known = rng.random(6000) < np.array(shares)[c.model]
    c = replace(
        c, known=known, reward=(rng.random(6000) < np.array([0.9, 0.3, 0.5])[c.model]) * 1.0
    )
    sums = moments(raters(c, undelivered=0.02))
    finite = sums.taken([0, 1])
    bound = contrast_bound(np.array(CAPS[:2]), MODELS + 1, MODELS)
    lone = np.array(CAPS[:2])[:, None] + 1.0
    fine = np.linspace(0, 1, 257)

    def open_at(level, theta, side):
        xi, square = at(finite, theta, theta)[2 + side]
        return ~rejected(finite, (xi / lone).T, (square / lone**2).T, 1.0, level)

    def ends(level):
        low = np.array([open_at(level, theta, 0) for theta in fine])
        high = np.array([open_at(level, theta, 1) for theta in fine])
        return fine[low.argmax(axis=0)], fine[::-1][high[::-1].argmax(axis=0)]

    low, high = value_bounds(sums, CAPS, alpha)
    least, most = ends(alpha)
    assert (low <= least + 1e-9).all()
    assert (high >= most - 1e-9).all()
    np.testing.assert_allclose(low, least, atol=0.006)
    np.testing.assert_allclose(high, most, atol=0.006)
    least, most = ends(alpha * LONE)
    grid = np.linspace(0, 1, 129)
    smallest = np.full((MODELS + 1, MODELS + 1), 1.0)
    for x in grid:
        for y in grid:
            xi, square, *_ = at(finite, x, y)
            xi, square = np.moveaxis(xi / bound, 0, -1), np.moveaxis(square / bound**2, 0, -1)
            open_ = ~rejected(finite, xi, square, 1.0, alpha * (1 - 2 * LONE))
            open_ &= (x >= least)[:, None] & (y <= most)
            smallest = np.where(open_, np.minimum(smallest, x - y), smallest)
    np.fill_diagonal(smallest, 0.0)
    lower = contrast_bounds(sums, CAPS, MODELS, alpha)
    assert (lower <= smallest + 1e-9).all()
    np.testing.assert_allclose(lower, smallest, atol=0.03)
    assert (lower > -0.9).sum() > 8, "some of it is known"


def test_where_all_rate_a_contrast_is_that_of_rewards():
    """By the share of the level that it has; no cap clips here, so the scores are the same."""
    c = columns(8, count=3000, lost=0.0, policies=False)
    c = replace(c, rate=np.full(3000, 0.9), probabilities=np.full((3000, MODELS), 1 / MODELS))
    rows, caps = raters(c), (8.0, np.inf)
    rewards = tunings(8)[1]
    everybody = Tuning(np.ones(MODELS + 1), np.zeros(MODELS + 1))
    half = np.full((len(caps), MODELS + 1), 0.5)
    sums = RatedMoments.empty(len(caps), MODELS + 1, MODELS)
    flat = np.stack([half, np.zeros_like(half)])
    sums.update(rows, everybody, RatedFrozen(rewards, flat, flat), caps)
    plain = ScoreMoments.empty(len(caps), MODELS + 1)
    plain.update(rows.rewards, rewards, ScoreCentres(half, half), caps)
    np.testing.assert_allclose(sums.low[0], plain.low)
    np.testing.assert_allclose(sums.low[1], 0.0, atol=1e-9)
    ours = contrast_bounds(sums, caps, MODELS, 0.05)
    theirs = mixture.contrast_bounds(plain, caps, MODELS, 0.05 * (1 - 2 * LONE))
    assert (ours >= theirs - 1e-4).all(), "the two models alone only add to it"
    assert np.isclose(ours, theirs, atol=1e-4).mean() > 0.6
    squares = plain.contrast_squares()[-1]
    np.testing.assert_allclose(sums.fixed_squares(), squares, rtol=1e-6, atol=1e-6)


def test_minimising_is_maximising_the_mirror_image_and_labels_say_nothing():
    c = columns(9, count=2000, lost=0.5, policies=False)
    rows = raters(c, undelivered=0.05)
    rating, rewards = (Tuning(tuned.offset, np.zeros(MODELS + 1)) for tuned in tunings(9))
    other = Tuning(np.maximum(rating.offset - rewards.offset, 0.0), np.zeros(MODELS + 1))
    rewards = Tuning(rating.offset - other.offset, np.zeros(MODELS + 1))
    size = MODELS + 1
    known = frozen(rewards, size)
    ends = [np.stack([1.0 - part.sum(axis=0), part[1]]) for part in (known.high, known.low)]
    sums, mirror, moved = (RatedMoments.empty(len(CAPS), size, MODELS) for _ in range(3))
    sums.update(rows, rating, known, CAPS)
    mirror.update(mirrored(rows), rating, RatedFrozen(other, *ends), CAPS)
    lower, turned = (contrast_bounds(each, CAPS, MODELS, 0.1) for each in (sums, mirror))
    np.testing.assert_allclose(turned, lower.T, atol=2e-3)
    assert (lower > -0.9).sum() > size
    low, high = value_bounds(sums, CAPS, 0.1)
    other_low, other_high = value_bounds(mirror, CAPS, 0.1)
    np.testing.assert_allclose(other_low, 1.0 - high, atol=2e-3)
    np.testing.assert_allclose(other_high, 1.0 - low, atol=2e-3)
    order = np.array([2, 0, 1, 3])
    swapped = RatedRows(raters(c.relabelled(order[:3]), undelivered=0.05).rows, rows.low, rows.high)
    moved.update(
        swapped,
        Tuning(rating.offset[order], np.zeros(size)),
        RatedFrozen(
            Tuning(rewards.offset[order], np.zeros(size)),
            known.low[:, :, order],
            known.high[:, :, order],
        ),
        CAPS,
    )
    np.testing.assert_allclose(
        contrast_bounds(moved, CAPS, MODELS, 0.1), lower[np.ix_(order, order)], atol=1e-9
    )


def test_nothing_is_known_without_rows_and_of_a_model_that_nobody_rates():
    empty = RatedMoments.empty(len(CAPS), 3, 2)
    assert value_bounds(empty, CAPS, 0.05)[0].tolist() == [0.0] * 3
    assert value_bounds(empty, CAPS, 0.05)[1].tolist() == [1.0] * 3
    lower = contrast_bounds(empty, CAPS, 2, 0.05)
    assert (lower == np.where(np.eye(3), 0.0, -1.0)).all()
    c = columns(10, count=3000, policies=False)
    sums = moments(raters(replace(c, known=c.known & (c.model != 1))))
    assert value_bounds(sums, CAPS, 0.05)[0][1] == 0.0
    assert value_bounds(sums, CAPS, 0.05)[1][1] == 1.0


def test_sums_at_a_theta_are_those_of_the_declared_value():
    """Every pair, both ways: a product of parts of one candidate with those of another."""
    rows = raters(columns(12, count=400, policies=False))
    sums = moments(rows)
    for theta in THETAS:
        at, x = sums.at(theta), np.array([1.0, theta])
        np.testing.assert_allclose(at.low, np.tensordot(x, sums.low, 1))
        np.testing.assert_allclose(at.high, np.tensordot(x, sums.high, 1))
        cross = np.einsum("i,j,ijcab->cab", x, x, sums.cross)
        np.testing.assert_allclose(at.cross, cross, rtol=1e-9, atol=1e-9)


def test_levels_of_pairs_are_those_of_each_pair_alone():
    sums = moments(raters(columns(13, count=1500, policies=False)))
    size = MODELS + 1
    prior = EraPrior(1500.0, 0.2, np.full(MODELS, 1.0 / MODELS))
    alpha = np.geomspace(1e-4, 0.1, size * size).reshape(size, size)
    found = contrast_bounds(sums, CAPS, MODELS, alpha, prior)
    for a, b in ((0, 1), (1, 0), (2, 0), (0, 2)):
        alone = contrast_bounds(sums, CAPS, MODELS, float(alpha[a, b]), prior)
        assert found[a, b] == pytest.approx(alone[a, b], abs=1e-9)


def test_an_end_has_nothing_open_below_it(monkeypatch):
    """Where differences below an edge are open again, they are not lost to the halving."""

    def ruled_out(self, most, least=None):
        least = most if least is None else least
        return ~((most >= -0.45) & (least <= -0.35))

    monkeypatch.setattr(Contrasts, "ruled_out", ruled_out)
    ends = contrast_bounds(RatedMoments.empty(len(CAPS), 3, 2), CAPS, 2, 0.05)
    off = ~np.eye(3, dtype=bool)
    assert (ends[off] <= -0.45).all()
    assert (ends[off] >= -0.8).all()
