"""A comparison leans to nothing where too little is known; nothing is served that is not
certified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.answers.recommendation import KEEP, KEEP_ROUTING, compare, favoured
from equipoise.agent.answers.statements import at_least
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.experiment import Experiment
from equipoise.agent.service.analyst.reports import report
from equipoise.store.memory import MemoryStore

NAMES = ("large", "small", "tiny")


def compared(values, errors, routing=(0.4, 0.05), sign=1, **more):
    covariance = np.diag(np.square(np.array(errors, dtype=float)))
    estimate = Estimate("ipw", np.array(values, dtype=float), covariance)
    return compare(NAMES, estimate, (routing[0], routing[1] ** 2), sign, **more)


def test_rewards_that_never_differed_are_no_certainty():
    """Three thumbs up have a sample variance of 0."""
    one = compared([1.0, 0.3, 0.4], [0.0, 0.2, 0.2])
    assert (one.kind, one.leaning, one.unknown) == ("few", None, ["large"])
    assert np.isnan(one.errors[0])
    assert favoured(one, 0.4) == "large", "what a replay scores stays"


def test_errors_beyond_the_range_lean_to_nothing():
    one = compared([0.98, 0.5, 0.4], [4.69, 0.2, 0.2])
    assert (one.kind, one.leaning) == ("wide", None)
    assert compared([0.98, 0.5, 0.4], [4.69, 0.2, 0.2], low=0.0, high=10.0).leaning == "large"


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1e6, 1e6 + 1.0), (1e9, 1e9 + 1.0), (-1e-3, 1e-3)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_chooses_no_model(low, high, sign):
    middle, span = (low + high) / 2, high - low
    noise = 1e-12 * span + 4 * np.spacing(abs(middle))
    routing = low if sign > 0 else high
    values = np.array([middle, middle + sign * noise, middle - 0.2 * sign * span])
    one = compared(values, [0.01 * span] * 3, (routing, 0.01 * span), sign, low=low, high=high)
    assert (one.kind, one.leaning, one.top) == ("tie", None, (0, 1))
    values[1] += 0.01 * sign * span
    one = compared(values, [0.01 * span] * 3, (routing, 0.01 * span), sign, low=low, high=high)
    assert one.leaning == "small", "a hundredth of the range is no rounding"


def test_a_tie_with_today_s_routing_leans_to_nothing():
    one = compared([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.7 + 1e-16, 0.01))
    assert (one.kind, one.leaning) == ("tie-with-routing", None)


@pytest.mark.parametrize("error", [2.0, float("inf"), 0.0])
def test_no_tie_with_a_routing_whose_worth_is_not_known(error):
    one = compared([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.7, error))
    assert (one.kind, one.leaning) == ("leads", "large")
    assert np.isnan(one.routing)


def test_an_error_that_is_rounding_is_none():
    one = compared([0.7, 0.5, 0.6], [1e-10, 0.02, 0.03])
    assert (one.kind, one.unknown) == ("few", ["large"])
    assert compared([0.7, 0.5, 0.6], [1e-8, 0.02, 0.03]).leaning == "large"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_replay_scores_routing_where_it_is_worth_as_much(sign):
    values = sign * np.array([0.7, 0.5, 0.6])
    one = compared(values, [0.02] * 3, (0.0, 0.02), sign, low=-1.0, high=1.0)
    assert favoured(one, sign * 0.65, sign) == "large"
    assert favoured(one, sign * 0.7, sign) == KEEP_ROUTING
    assert favoured(one, sign * 0.75, sign) == KEEP_ROUTING


def test_routing_that_looks_better_is_kept():
    one = compared([0.7, 0.5, 0.6], [0.02, 0.02, 0.03], (0.8, 0.01))
    assert (one.kind, one.leaning, favoured(one, 0.8)) == ("routing", KEEP, KEEP_ROUTING)


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
def test_a_leaning_is_the_best_of_those_whose_errors_are_known(
    values, errors, routing, error, sign
):
    one = compared(values, errors, (routing, error), sign)
    mirrored = compared(-np.array(values), errors, (-routing, error), -sign)
    assert (one.kind, one.leaning, one.top) == (mirrored.kind, mirrored.leaning, mirrored.top)
    assert np.isfinite(one.routing) == np.isfinite(one.routing_error)
    if one.leaning not in (None, KEEP):
        place = NAMES.index(one.leaning)
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
        told = report(agent, [], 0.0).recommendation()
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
        f"at least {at_least(lower)} better than today's routing"
        in agent.answers.recommendation().sentence
    )


@pytest.mark.parametrize("estimator", ["hierarchical", "doubly-robust", "grounded"])
def test_a_family_that_knows_no_error_without_replays_is_named_and_ipw_speaks(estimator):
    """Without features it has values from the first reward on, and never an error."""
    declared = {
        "name": "chat",
        "models": [{"name": "a"}, {"name": "b"}],
        "policy": {"assignment": "uniform", "rate": 0.5, "estimator": estimator},
    }
    rng = np.random.default_rng(0)
    with Experiment.open(None, declared) as chat:
        for number in range(300):
            choice = chat.decide(f"r{number}", routed="ab"[number % 2], features=[])
            right = {"a": 0.8, "b": 0.3}[choice.model]
            chat.outcome(choice, reward=float(rng.random() < right))
        own = chat.estimates()[estimator]
        assert np.isfinite(own.values).all()
        assert np.isinf(np.diagonal(own.covariance)).all()
        said = chat.recommendation()
        assert (said.family, said.leaning) == ("ipw", "a")
        assert "too few" not in said.sentence
        assert f"({estimator} waits for replays (SIM) of a, b" in said.sentence
        spent = chat.spent()
        assert spent.family == "ipw"
        assert spent.gained is not None
        assert spent.gained_error > 0.0
        assert chat.recommendation(estimator).family == estimator, "asked for by name it speaks"
