"""Levels: every family of statements spends what was declared, and no more."""

from __future__ import annotations

import pytest

from equipoise.agent.inference import levels


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
