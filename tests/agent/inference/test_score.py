"""The score: against one row at a time, its mean over all draws, and its two ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.inference.score import Rows, Tuning
from tests.agent.inference.rows import MODELS, columns, longhand, scores, tuning

CAPS = (0.0, 1.5, 20.0, np.inf)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("missing", [None, 0.25])
def test_scores_equal_the_formula_row_by_row(cap, missing):
    c, tuned = columns(0, missing=missing), tuning(1)
    low, high = scores(c.rows(), tuned, cap)
    for t in range(len(c.rate)):
        one, two = longhand(c, t, tuned, cap)
        np.testing.assert_allclose(low[t], one, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(high[t], two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cap", CAPS)
def test_mean_over_all_draws_is_the_reward_of_each_candidate(cap):
    """Every outcome of the gate and of the draw, weighted by its chance: no sampling."""
    rng = np.random.default_rng(2)
    rate, pi = 0.3, np.array([0.7, 0.05, 0.25])
    reward, predicted, routed = rng.random(MODELS), rng.random(MODELS), 1
    shares = rng.dirichlet(np.ones(MODELS), 2)
    expected = np.zeros((2, MODELS + 3))
    outcomes = [(False, routed, 1 - rate)] + [(True, m, rate * pi[m]) for m in range(MODELS)]
    for randomized, model, chance in outcomes:
        row = Rows.of(
            np.array([rate]),
            pi[None],
            np.array([randomized]),
            np.array([model]),
            np.array([routed]),
            predicted[None],
            reward[[model]],
            np.array([True]),
            None,
            shares[None],
        )
        low, high = scores(row, tuning(3), cap)
        expected[0] += chance * low[0]
        expected[1] += chance * high[0]
    truth = np.concatenate([reward, reward[[routed]], shares @ reward])
    np.testing.assert_allclose(expected[0], truth, atol=1e-12)
    np.testing.assert_allclose(expected[1], truth, atol=1e-12)


@pytest.mark.parametrize("cap", [0.0, 1.5, 20.0])
def test_capped_scores_stay_within_the_cap_however_small_the_chance(cap):
    c = columns(4, count=4000, lost=0.1)
    c = replace(c, rate=np.where(np.arange(4000) % 2, 1e-6, c.rate))
    low, high = scores(c.rows(), tuning(5), cap)
    assert low.min() >= -cap - 1e-6
    assert high.max() <= 1 + cap + 1e-6


def test_missing_rewards_lower_the_low_score_and_raise_the_high_one():
    c = columns(6, lost=0.5)
    low, high = scores(c.rows(), tuning(7), np.inf)
    full_low, full_high = scores(replace(c, known=np.ones_like(c.known)).rows(), tuning(7), np.inf)
    np.testing.assert_array_equal(full_low, full_high)
    assert (low <= full_low + 1e-12).all()
    assert (high >= full_high - 1e-12).all()
    assert (low < full_low - 1e-6).any()


@pytest.mark.parametrize("cap", CAPS)
def test_a_chance_of_exactly_one_gives_the_reward(cap):
    count = 5
    reward = np.linspace(0, 1, count)
    rows = Rows.of(
        np.ones(count),
        np.tile([1.0, 0.0, 0.0], (count, 1)) + np.array([0.0, 1e-300, 1e-300]),
        np.ones(count, dtype=bool),
        np.zeros(count, dtype=int),
        np.zeros(count, dtype=int),
        np.full((count, MODELS), 0.3),
        reward,
        np.ones(count, dtype=bool),
    )
    low, high = scores(rows, tuning(8), cap)
    for column in (0, MODELS):
        np.testing.assert_allclose(low[:, column], reward, atol=1e-15)
        np.testing.assert_allclose(high[:, column], reward, atol=1e-15)


@pytest.mark.parametrize("cap", CAPS)
def test_relabelling_the_models_relabels_the_scores(cap):
    c, tuned, order = columns(9), tuning(10), np.array([2, 0, 1])
    candidates = np.append(order, MODELS)
    moved = Tuning(tuned.offset[candidates], tuned.factor[candidates])
    every = np.concatenate([candidates, [MODELS + 1, MODELS + 2]])
    for plain, other in zip(
        scores(c.rows(), tuned, cap), scores(c.relabelled(order).rows(), moved, cap), strict=True
    ):
        np.testing.assert_allclose(other, plain[:, every], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("missing", [None, 0.25])
def test_minimising_is_maximising_the_mirror_image(cap, missing):
    c, tuned = columns(11, missing=missing), tuning(12)
    mirrored = Tuning(1.0 - tuned.offset - tuned.factor, tuned.factor)
    low, high = scores(c.rows(), tuned, cap)
    other_low, other_high = scores(c.mirrored().rows(), mirrored, cap)
    np.testing.assert_allclose(other_low, 1.0 - high, atol=1e-9)
    np.testing.assert_allclose(other_high, 1.0 - low, atol=1e-9)


def test_no_rows_and_one_row():
    c = columns(13)
    low, high = scores(c.taken(slice(0, 0)).rows(), tuning(14), 1.0)
    assert low.shape == high.shape == (0, MODELS + 3)
    whole = scores(c.rows(), tuning(14), 1.0)[0]
    np.testing.assert_array_equal(
        scores(c.taken(slice(0, 1)).rows(), tuning(14), 1.0)[0], whole[:1]
    )


def test_a_prediction_that_is_not_a_number_does_not_reach_the_score():
    c = columns(15, policies=False)
    c.predicted[3] = np.nan
    c.predicted[4] = np.inf
    low, high = scores(c.rows(), tuning(16), np.inf)
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    assert (Tuning.off(MODELS).apply(c.rows().predicted) == 0.5).all()
