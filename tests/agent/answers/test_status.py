"""The decision status: what certified contrasts allow to say, and its life cycle."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.answers.statements import Progress, Situation, decision
from equipoise.agent.answers.status import RESTARTING_ROWS, Activity, Standing, State

NAMES = ("a", "b", "c")


def standing(decision, pairs=None, active=(True, True, True), epsilon=0.0):
    decision = np.array(decision, dtype=float)
    pairs = decision if pairs is None else np.array(pairs, dtype=float)
    return Standing(NAMES, decision, pairs, np.array(active), epsilon)


WIDE = [[0, -0.3, -0.3], [-0.3, 0, -0.3], [-0.3, -0.3, 0]]
A_BEST = [[0, 0.02, 0.1], [-0.2, 0, -0.1], [-0.3, -0.2, 0]]
A_AND_B = [[0, -0.02, 0.1], [-0.01, 0, 0.1], [-0.3, -0.3, 0]]


def said(one, paused=None, era_reason="", randomized=500):
    doing = Activity.RANDOMIZING if paused is None else Activity.PAUSED
    progress = Progress(randomized, randomized, 1 if era_reason else 0, era_reason)
    claim = one.claim(0.05, np.full(len(one.names), -np.inf))
    return decision(
        claim, progress, Situation(doing, paused or ""), epsilon=one.epsilon, delta=0.05
    )


def test_nothing_certified_is_exploring():
    status = said(standing(WIDE))
    assert (status.state, status.models) == (State.EXPLORING, ())
    assert "500 randomized" in status.sentence


def test_a_model_above_all_others_is_decided():
    status = said(standing(A_BEST))
    assert (status.state, status.models) == (State.DECIDED, ("a",))
    assert "at least 0.02" in status.sentence


def test_a_lead_is_said_at_the_level_of_all_pairs():
    """Delta pays for "better than all others"; "by at least" is one comparison more."""
    pairs = [[0, 0.005, 0.08], [-0.21, 0, -0.12], [-0.32, -0.22, 0]]
    assert "by at least 0.005 (" in said(standing(A_BEST, pairs)).sentence
    pairs = [[0, -0.01, 0.08], [-0.21, 0, -0.12], [-0.32, -0.22, 0]]
    status = said(standing(A_BEST, pairs))
    assert status.state is State.DECIDED
    assert "at least" not in status.sentence.replace("at most", "")
    assert status.sentence.startswith("a is certified best of the models (")


def test_a_tie_at_zero_is_not_decided():
    assert said(standing([[0, 0.0, 0.1], [-0.2, 0, 0], [-1, -1, 0]])).state is State.EXPLORING


def test_a_model_within_epsilon_of_the_best_is_decided_as_such():
    status = said(standing([[0, -0.02, 0.1], [-0.2, 0, -0.1], [-0.3, -0.2, 0]], epsilon=0.03))
    assert (status.state, status.models) == (State.DECIDED, ("a",))
    assert "within 0.03 of the best" in status.sentence


def test_models_left_within_epsilon_of_each_other_are_equivalent():
    status = said(standing(A_AND_B, epsilon=0.03))
    assert (status.state, status.models) == (State.EQUIVALENT, ("a", "b"))
    assert said(standing(A_AND_B, epsilon=0.015)).state is not State.EQUIVALENT
    assert said(standing(A_AND_B, epsilon=0.0)).state is State.EXPLORING


def test_equivalence_needs_the_level_of_all_pairs():
    """Enough for a decision, not for all pairs: within epsilon of the best, no more."""
    wider = np.array(A_AND_B) - 0.05
    np.fill_diagonal(wider, 0.0)
    status = said(standing(A_AND_B, pairs=wider, epsilon=0.03))
    assert (status.state, status.models) == (State.DECIDED, ("b",))


def test_a_model_that_is_certified_best_is_not_called_alike():
    """Better by less than epsilon: what is certified of all others says more."""
    decision = [[0, 0.001, 0.1], [-0.01, 0, 0.1], [-0.3, -0.3, 0]]
    pairs = [[0, -0.002, 0.08], [-0.012, 0, 0.08], [-0.32, -0.32, 0]]
    status = said(standing(decision, pairs, epsilon=0.03))
    assert (status.state, status.models) == (State.DECIDED, ("a",))
    assert "a is certified best of the models (" in status.sentence


def test_models_that_an_era_left_out_neither_win_nor_lose():
    status = said(standing(A_BEST, active=(False, True, True)))
    assert status.state is State.EXPLORING
    best_b = [[0, -1, -1], [-1, 0, 0.05], [-1, -0.3, 0]]
    assert said(standing(best_b, active=(False, True, True))).models == ("b",)


def test_paused_says_why_and_keeps_what_was_certified():
    status = said(standing(A_BEST), paused="the owner asked")
    assert (status.state, status.models) == (State.PAUSED, ("a",))
    assert "the owner asked" in status.sentence
    assert "a is certified best" in status.sentence


def test_a_new_era_is_restarted_until_it_has_some_rows():
    few = said(standing(WIDE), era_reason="drift: rewards fell", randomized=RESTARTING_ROWS - 1)
    assert few.state is State.RESTARTED
    assert "drift: rewards fell" in few.sentence
    enough = said(standing(WIDE), era_reason="drift", randomized=RESTARTING_ROWS)
    assert enough.state is State.EXPLORING
    assert said(standing(A_BEST), era_reason="drift", randomized=5).state is State.DECIDED


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_relabelling_models_relabels_the_answer(order):
    order = list(order)
    names = tuple(NAMES[i] for i in order)
    for table, epsilon in ((A_BEST, 0.0), (A_AND_B, 0.03), (WIDE, 0.1)):
        moved = np.array(table, dtype=float)[np.ix_(order, order)]
        plain = said(standing(table, epsilon=epsilon))
        other = said(Standing(names, moved, moved, np.ones(3, dtype=bool), epsilon))
        assert (plain.state, set(plain.models)) == (other.state, set(other.models))
