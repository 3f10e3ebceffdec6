"""Levels: every family of statements spends what was declared, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.inference import levels
from equipoise.agent.inference.levels import EraPrior, chances_of_best, decision_levels


@pytest.mark.parametrize("models", [2, 3, 10])
def test_every_division_adds_up_to_delta(models):
    delta = 0.05
    assert (models - 1) * levels.decision_level(delta, models) == pytest.approx(delta)
    assert models * (models - 1) * levels.pair_level(delta, models) == pytest.approx(delta)
    assert 2 * models * levels.value_level(delta, models) == pytest.approx(delta)


@pytest.mark.parametrize("segments", [1, 7])
def test_segments_share_half_of_delta(segments):
    overall, each = levels.segment_levels(0.05, segments)
    assert overall == 0.025
    assert overall + segments * each == pytest.approx(0.05)


def test_without_segments_all_of_delta_is_overall():
    assert levels.segment_levels(0.05, 0) == (0.05, 0.0)


def test_eras_of_a_lifetime_spend_delta_in_the_limit():
    spent = [levels.era_level(0.05, era) for era in range(1, 20_001)]
    assert spent[0] == pytest.approx(0.05 * 0.6079271018540267)
    assert spent == sorted(spent, reverse=True)
    assert 0.05 - 2e-6 < sum(spent) < 0.05


def test_an_era_before_the_first_is_refused():
    with pytest.raises(ValueError, match="era is 0"):
        levels.era_level(0.05, 0)


def test_a_split_level_spends_all_of_it():
    preferred, fallback = levels.split_level(0.01)
    assert preferred + fallback == pytest.approx(0.01)
    assert 0 < fallback < preferred


def test_a_single_model_or_candidate_divides_nothing():
    assert levels.decision_level(0.05, 1) == levels.pair_level(0.05, 1) == 0.05
    assert levels.value_level(0.05, 0) == 0.025


@pytest.mark.parametrize("seed", range(20))
def test_whichever_model_is_best_the_levels_against_it_spend_delta(seed):
    """The whole proof that a prior costs no validity: any prior, one-hot ones too."""
    rng = np.random.default_rng(seed)
    models = int(rng.integers(2, 9))
    best = rng.dirichlet(np.full(models, 0.2)) if seed % 4 else np.eye(models)[0]
    active = rng.random(models) < 0.8
    active[:2] = True
    found = decision_levels(0.05, active, EraPrior(1e3, 0.25, best))
    others = active & ~np.eye(models, dtype=bool)
    for b in np.flatnonzero(active):
        against = found[others[b], b]
        assert against.sum() == pytest.approx(0.05)
        assert (against >= levels.EVEN_SHARE * 0.05 / (active.sum() - 1) - 1e-15).all()
    order = rng.permutation(models)
    moved = decision_levels(0.05, active[order], EraPrior(1e3, 0.25, best[order]))
    np.testing.assert_allclose(moved, found[np.ix_(order, order)], rtol=1e-12)


def test_levels_without_a_prior_are_even_and_a_likely_winner_gets_the_most():
    active = np.array([True, True, True, False])
    even = decision_levels(0.06, active, None)
    assert even[:3, :3][~np.eye(3, dtype=bool)] == pytest.approx(0.03)
    told = decision_levels(0.06, active, EraPrior(1.0, 0.25, np.array([0.8, 0.1, 0.1, 0.0])))
    assert told[0, 1] == pytest.approx(0.06 * (0.3 / 2 + 0.7 * 0.8 / 0.9))
    assert told[1, 0] == told[2, 0] == pytest.approx(0.03)


def test_the_chance_of_being_best_is_that_of_gaussian_draws():
    values = np.array([0.50, 0.55, 0.60, 0.40, 9.0])
    covariance = np.diag([0.05, 0.03, 0.06, 0.02, 1.0]) ** 2
    active = np.array([True, True, True, True, False])
    found = chances_of_best(values, covariance, active)
    draws = values + np.random.default_rng(0).standard_normal((200_000, 5)) * np.sqrt(
        np.diag(covariance)
    )
    counts = np.bincount(draws[:, :4].argmax(axis=1), minlength=5) / 200_000
    np.testing.assert_allclose(found, counts, atol=0.004)
    unknown = np.full(5, np.nan)
    nothing = chances_of_best(unknown, np.full((5, 5), np.nan), active)
    np.testing.assert_allclose(nothing, np.where(active, 0.25, 0.0))
    one = chances_of_best(np.array([0.5, np.nan, 0.6, 0.4, 0.0]), covariance, active)
    assert 0.1 < one[1] < 0.6, "a model of which nothing is known may be the best"


def test_what_is_uncertain_of_all_models_alike_says_nothing_of_which_is_best():
    """As where replays tell models apart and nobody has rated one yet."""
    values, own = np.array([0.50, 0.55, 0.60, np.nan]), np.diag([0.05, 0.03, 0.06, np.inf]) ** 2
    active = np.array([True, True, True, False])
    shared = own + 25.0
    found = chances_of_best(values, shared, active)
    np.testing.assert_allclose(found, chances_of_best(values, own, active), rtol=1e-9)
    assert found[2] > 0.6
    alone = np.array([True, False, False, False])
    assert chances_of_best(values, shared, alone).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_plan_finds_its_effect_or_spends_its_budget():
    plan = EraPrior.planned(5, 0.05, 0.1)
    # Twice 2 log(1 / alpha) sd^2 / effect^2 of a contrast's variance 2 K v, by hand.
    assert plan.requests == pytest.approx(4 * np.log(80) * 10 * 0.25 / 0.05**2 / 0.1)
    assert EraPrior.planned(5, 0.05, 0.1, budget=100.0).requests == pytest.approx(1000.0)
    assert EraPrior.planned(5, 0.05, 0.5, declared=300.0).requests == pytest.approx(600.0)
    wide = EraPrior.planned(5, 0.05, 0.1, epsilon=0.05)
    assert wide.requests == pytest.approx(plan.requests / 4.0)
    again = EraPrior.of_array(plan.array())
    assert (again.requests, again.best.tolist()) == (plan.requests, plan.best.tolist())
    assert EraPrior.decode(plan.encode()).encode() == plan.encode()
    assert EraPrior.of_array(np.full(7, np.nan)) is None
