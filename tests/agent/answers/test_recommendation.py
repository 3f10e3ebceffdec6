"""A recommendation says no more than is known: errors beside values, ties named, nothing served
that is not certified."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.answers.recommendation import KEEP, KEEP_ROUTING, Backing, recommend
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.service.analyst.reports import report
from equipoise.store.memory import MemoryStore

NAMES = ("large", "small", "tiny")


def said(values, errors, routing=(0.4, 0.05), sign=1, **more):
    covariance = np.diag(np.square(np.array(errors, dtype=float)))
    estimate = Estimate("ipw", np.array(values, dtype=float), covariance)
    return recommend(NAMES, estimate, (routing[0], routing[1] ** 2), sign, **more)


def test_a_value_comes_with_its_error_and_is_not_certified():
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03])
    assert (answer.action, answer.leaning, answer.model) == (KEEP, "large", "large")
    assert answer.sentence == (
        "Not certified: large looks best, worth 0.700 ± 0.020, +0.300 ± 0.054 against today's"
        " routing (0.400 ± 0.050)."
    )


def test_one_rating_is_too_little_to_say():
    answer = said([1.0, 0.0, np.nan], [np.nan, np.nan, np.nan])
    assert (answer.action, answer.leaning) == (KEEP, None)
    assert "too few different rewards of large to say what is best" in answer.sentence
    assert np.isnan(answer.value), "no value without its error"
    assert answer.model == "large", "what a replay scores stays"


def test_rewards_that_never_differed_are_no_certainty():
    """Three thumbs up have a sample variance of 0."""
    assert said([1.0, 0.3, 0.4], [0.0, 0.2, 0.2]).leaning is None


def test_errors_beyond_the_range_recommend_nothing():
    answer = said([0.98, 0.5, 0.4], [4.69, 0.2, 0.2])
    assert (answer.action, answer.leaning) == (KEEP, None)
    assert "0.980 ± 4.690" in answer.sentence
    assert "nothing can be said" in answer.sentence
    wide = said([0.98, 0.5, 0.4], [4.69, 0.2, 0.2], low=0.0, high=10.0)
    assert wide.leaning == "large"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1e6, 1e6 + 1.0), (-1e-3, 1e-3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_chooses_no_model(low, high, sign):
    middle, span = (low + high) / 2, high - low
    noise = 1e-12 * span + 4 * np.spacing(abs(middle))
    routing = low if sign > 0 else high
    values = np.array([middle, middle + sign * noise, middle - 0.2 * sign * span])
    answer = said(values, [0.01 * span] * 3, (routing, 0.01 * span), sign, low=low, high=high)
    assert (answer.action, answer.leaning, answer.model) == (KEEP, None, "large")
    assert "large and small tie at" in answer.sentence
    values[1] += 0.01 * sign * span
    answer = said(values, [0.01 * span] * 3, (routing, 0.01 * span), sign, low=low, high=high)
    assert answer.leaning == "small", "a hundredth of the range is no rounding"


def test_a_tie_with_today_s_routing_is_named():
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.7 + 1e-16, 0.01))
    assert answer.leaning is None
    assert "large and today's routing tie at 0.700 ± 0.020" in answer.sentence


def test_routing_that_looks_better_is_kept():
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.8, 0.01))
    assert (answer.action, answer.leaning, answer.favoured) == (KEEP, KEEP, KEEP_ROUTING)
    assert "large, is worth 0.700 ± 0.020, today's routing 0.800 ± 0.010" in answer.sentence


def test_what_is_certified_is_served_and_said_first():
    held = Backing(("large",), 0.05, 0.05, -0.02, 0.0, 0.05)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], backing=held)
    assert answer.action == "large"
    assert answer.sentence.startswith(
        "Serve large: large is certified best of the models, by at least 0.05 (wrong in at most"
        " 0.05 of such experiments). Against today's routing nothing is certified:"
    )
    sure = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], backing=replace(held, over_routing=0.1))
    assert "and at least 0.1 better than today's routing" in sure.sentence
    near = said(
        [0.7, 0.5, 0.6], [0.02, 0.02, 0.03], backing=replace(held, lead=-0.01, epsilon=0.02)
    )
    assert "certified within 0.02 of the best model" in near.sentence
    assert "certified best" not in near.sentence


def test_the_best_model_may_still_be_worse_than_what_is_deployed():
    held = Backing(("large",), 0.05, 0.05, -0.3, 0.0, 0.05)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.8, 0.01), backing=held)
    assert answer.action == KEEP
    assert answer.sentence.startswith("Keep today's routing: large is certified best of the models")


def test_models_that_are_alike_are_no_action():
    held = Backing(("large", "tiny"), 0.0, 0.0, -np.inf, 0.1, 0.05)
    answer = said([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], backing=held)
    assert answer.action == KEEP
    assert answer.sentence.startswith("large, tiny are certified within 0.1 of each other")


_VALUE = st.one_of(st.floats(-3, 3), st.just(0.5), st.just(float("nan")))
_ERROR = st.one_of(st.floats(0, 6), st.sampled_from([0.0, float("nan"), float("inf")]))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(_VALUE, min_size=3, max_size=3),
    st.lists(_ERROR, min_size=3, max_size=3),
    _VALUE,
    _ERROR,
    st.sampled_from([1, -1]),
)
def test_no_sentence_holds_a_value_without_its_error(values, errors, routing, error, sign):
    answer = said(values, errors, (routing, error), sign)
    assert answer.action == KEEP
    assert answer.sentence.startswith("Not certified: ")
    assert not re.search(r"nan|inf|unknown ±|± unknown", answer.sentence)
    rest = re.sub(r"[+-]?\d+\.\d{3} ± \d+\.\d{3}", "", answer.sentence)
    assert not re.search(r"\d\.\d", rest), "a number without an error"
    assert np.isfinite(answer.value) == np.isfinite(answer.error)
    if answer.leaning not in (None, KEEP):
        place = NAMES.index(answer.leaning)
        assert 0.0 < errors[place] <= 1.0
        others = [sign * each for each in values if np.isfinite(each)]
        assert sign * values[place] >= max(others) - 1e-9


def test_an_agent_serves_nothing_until_it_is_certified_and_then_that():
    policy = PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw")
    agent = Agent(config(policy=policy), MemoryStore(), KEY)
    traffic, seen = Traffic(np.random.default_rng(2)), set()
    for _ in range(60):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(100))))
        agent.refresh()
        answer, winner = agent.answers.recommendation(), agent.answers.certified_winner()
        assert answer.action in ({KEEP} if winner is None else {winner, KEEP})
        assert answer.sentence.startswith("Not certified: ") == (winner is None)
        told = report(agent, [], 0.0).recommendations["ipw"]
        assert (told.action, told.leaning) == (answer.action, answer.leaning)
        seen.add(answer.action)
    assert seen == {KEEP, "cheap"}


@pytest.mark.parametrize("maximise", [True, False])
def test_certified_over_routing_is_the_certified_contrast(maximise):
    policy = PolicyConfig(assignment="uniform", rate=0.8, estimator="ipw")
    reward = RewardConfig(low=0.0, high=1.0, window=100.0, maximise=maximise)
    agent = Agent(config(policy=policy, reward=reward), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(4))
    for _ in range(20):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(500))))
        agent.refresh()
    certified = agent.answers.certified()
    winner = "cheap" if maximise else "slow"
    place = agent.models.index(winner)
    # V(m) - V(routing) from below, or V(routing) - V(m) where smaller is better.
    lower = certified.contrasts[place, 3] if maximise else certified.contrasts[3, place]
    assert lower > 0.0
    assert agent.answers.recommendation().action == winner
    assert (
        f"at least {lower:.4g} better than today's routing"
        in agent.answers.recommendation().sentence
    )
