"""The bounded sequence over caps: its equation, the floor of its steps, its mean by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.mixture import (
    contrast_bound,
    contrast_bounds,
    tuned_weights,
    usual_caps,
    value_bounds,
)
from equipoise.agent.inference.score import Rows, ScoreMoments, Tuning
from tests.agent.inference.rows import MODELS, POLICIES, columns, scores, tuning
from tests.agent.inference.test_mixture import LAMBDAS, PSI, root_of_average

CAPS = (0.0, 7.5, np.inf)
SIZE = MODELS + 1 + POLICIES


def moments_of(c, seed=0):
    moments = ScoreMoments.empty(len(CAPS), SIZE)
    for part in np.array_split(np.arange(len(c.rate)), 4):
        moments.update(c.taken(part).rows(), tuning(seed), moments.centres(), CAPS)
    return moments


def test_value_bounds_solve_their_equations():
    moments, alpha = moments_of(columns(0, 2000)), 0.01
    low, high = value_bounds(moments, CAPS, alpha)
    bounds = np.array([1.0, 8.5])
    for a in range(SIZE):
        squares = moments.low_squares[:2, a] / bounds**2
        root = root_of_average(2000.0, moments.low[:2, a], squares, bounds, alpha)
        assert low[a] == pytest.approx(max(root, 0.0), abs=1e-8)
        squares = moments.high_squares[:2, a] / bounds**2
        root = root_of_average(2000.0, -moments.high[:2, a], squares, bounds, alpha)
        assert high[a] == pytest.approx(min(-root, 1.0), abs=1e-8)


def test_contrast_bounds_solve_their_equations():
    moments, alpha = moments_of(columns(1, 2000)), 0.01
    lower = contrast_bounds(moments, CAPS, MODELS, alpha)
    for a, b in itertools.product(range(SIZE), range(SIZE)):
        models = a < MODELS and b < MODELS
        bounds = np.array([2.0, 9.5]) if models else np.array([2.0, 17.0])
        totals = moments.low[:2, a] - moments.high[:2, b]
        squares = moments.contrast_squares()[:2, a, b] / bounds**2
        root = root_of_average(2000.0, totals, squares, bounds, alpha)
        assert lower[a, b] == pytest.approx(0.0 if a == b else max(root, -1.0), abs=1e-8)


@pytest.mark.parametrize("cap", [0.0, 1.0, 7.5])
def test_no_step_falls_below_minus_one(cap):
    """Over weights up to 1e4, any predictions and any centres in [0, 1], 0 and 1 among them."""
    rng = np.random.default_rng(2)
    count = 5000
    c = columns(3, count, lost=0.1)
    rate = np.where(rng.random(count) < 0.5, c.rate, 1e-3)
    c = type(c)(**{**vars(c), "rate": rate, "reward": rng.choice([0.0, 1.0, 0.4], count)})
    low, high = scores(c.rows(), tuning(4), cap)
    bound = contrast_bound(np.array([cap]), SIZE, MODELS)[0]
    centres = rng.choice([0.0, 1.0, 0.3], (2, count, SIZE))
    u, v = low - centres[0], high - centres[1]
    xi = (u[:, :, None] - v[:, None, :]) / bound
    assert xi[:, ~np.eye(SIZE, dtype=bool)].min() >= -1.0 - 1e-9
    assert (u / (cap + 1.0)).min() >= -1.0 - 1e-9
    assert (-v / (cap + 1.0)).min() >= -1.0 - 1e-9


def test_the_bound_of_a_contrast_of_models_is_reached():
    """k + 2 is not a mere convenience: a step of -1 exists, so a smaller bound would be wrong."""
    cap, chance = 3.0, 0.1
    rows = Rows.of(
        np.array([1.0]),
        np.array([[chance, 1.0 - chance]]),
        np.array([True]),
        np.array([0]),
        np.array([0]),
        np.array([[1.0, 1.0]]),
        np.array([0.0]),
        np.array([True]),
    )
    low, high = scores(rows, Tuning(np.zeros(3), np.ones(3)), cap)
    step = (low[0, 0] - 1.0) - (high[0, 1] - 0.0)
    assert step == pytest.approx(-contrast_bound(np.array([cap]), 3, 2)[0, 0, 1], abs=1e-12)


@pytest.mark.parametrize("prior", [None, EraPrior(30.0, 0.25, np.array([0.5, 0.5]))])
@pytest.mark.parametrize("values", [(0.9, 0.4), (0.5, 0.5), (0.02, 1.0)])
def test_mean_evidence_against_the_truth_is_never_above_one(values, prior):
    """Every path of 4 rows of a two-model world, weighted by its chance: no sampling at all.

    e = 1, pi = (0.2, 0.8), centres follow the path, predictions are poor. The evidence is the
    mixture whose crossing of 1 / alpha `contrast_bounds` reports, which is checked on each path.
    """
    values, pi, caps = np.array(values), np.array([0.2, 0.8]), (0.0, 4.0, np.inf)
    tuned = Tuning(np.array([0.9, 0.2, 0.3]), np.zeros(3))
    truth = values[0] - values[1]
    bounds = np.array([2.0, 6.0])
    mean = 0.0

    def walk(moments, chance, left):
        nonlocal mean
        if left == 0:
            excess = (moments.low[:2, 0] - moments.high[:2, 1] - moments.rows[0] * truth) / bounds
            squares = moments.contrast_squares()[:2, 0, 1] / bounds**2
            exponent = LAMBDAS * excess[:, None] - PSI * squares[:, None]
            # Weights follow the level: the mean is of those of one level.
            evidence = np.exp(exponent).mean()
            if prior is not None:
                weights = tuned_weights(30.0, 0.25, np.array(caps[:2]), bounds, 0.3)
                evidence = np.exp(exponent + weights).sum()
            mean += chance * evidence
            for alpha in (0.99 / evidence, 1.01 / evidence):
                if alpha < 1.0 and prior is None:
                    lower = contrast_bounds(moments, caps, 2, alpha)[0, 1]
                    assert (lower > truth) == (evidence > 1 / alpha) or lower == -1.0
            if prior is not None:
                lower = contrast_bounds(moments, caps, 2, 0.3, prior)[0, 1]
                assert (lower > truth) == (evidence > 1 / 0.3) or lower == -1.0
            return
        for model, reward in itertools.product((0, 1), (0.0, 1.0)):
            row = Rows.of(
                np.ones(1),
                pi[None],
                np.array([True]),
                np.array([model]),
                np.zeros(1, dtype=int),
                np.zeros((1, 2)),
                np.array([reward]),
                np.array([True]),
            )
            after = moments.copy()
            after.update(row, tuned, moments.centres(), caps)
            step = pi[model] * (values[model] if reward else 1.0 - values[model])
            walk(after, chance * step, left - 1)

    walk(ScoreMoments.empty(3, 3), 1.0, 4)
    assert 0.5 < mean <= 1.0 + 1e-12


def test_minimising_is_maximising_the_mirror_image_and_relabelling_relabels():
    c, order = columns(5), np.array([2, 0, 1])
    off = Tuning.off(MODELS)
    plain, mirror, moved = (ScoreMoments.empty(3, SIZE) for _ in range(3))
    for moments, rows in (
        (plain, c.rows()),
        (mirror, c.mirrored().rows()),
        (moved, c.relabelled(order).rows()),
    ):
        moments.update(rows, off, moments.centres(), CAPS)
    low, high = value_bounds(plain, CAPS, 0.1)
    other_low, other_high = value_bounds(mirror, CAPS, 0.1)
    np.testing.assert_allclose(other_low, 1 - high, atol=1e-9)
    np.testing.assert_allclose(other_high, 1 - low, atol=1e-9)
    lower = contrast_bounds(plain, CAPS, MODELS, 0.1)
    assert (lower[~np.eye(SIZE, dtype=bool)] > -1).any()
    mirrored = contrast_bounds(mirror, CAPS, MODELS, 0.1)
    np.testing.assert_allclose(mirrored, lower.T, atol=1e-9)
    every = np.concatenate([order, np.arange(MODELS, SIZE)])
    relabelled = contrast_bounds(moved, CAPS, MODELS, 0.1)
    np.testing.assert_allclose(relabelled, lower[np.ix_(every, every)], atol=1e-9)


def test_nothing_is_known_without_rows():
    empty = ScoreMoments.empty(3, SIZE)
    low, high = value_bounds(empty, CAPS, 0.05)
    assert (low == 0).all()
    assert (high == 1).all()
    lower = contrast_bounds(empty, CAPS, MODELS, 0.05)
    assert (lower[~np.eye(SIZE, dtype=bool)] == -1).all()
    assert (np.diag(lower) == 0).all()


def test_all_rewards_missing_leave_every_end_at_the_range():
    c = columns(6, lost=1.1)
    moments = moments_of(c)
    low, high = value_bounds(moments, CAPS, 0.05)
    assert low[:MODELS].max() < 0.25
    assert high[:MODELS].min() > 0.75
    assert (contrast_bounds(moments, CAPS, MODELS, 0.05)[:MODELS, :MODELS] <= 0).all()


def test_usual_caps_are_none_the_usual_weight_and_infinity():
    assert usual_caps(4, 0.2) == (0.0, 20.0, np.inf)
