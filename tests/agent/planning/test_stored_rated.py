"""Rewards that never come mean in a plan and in a forecast what they mean in the certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.errors import PlanError
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.rated import LONE
from equipoise.agent.monitors.lost_rows import smallest_certifiable
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.forecast import forecast
from equipoise.agent.planning.plan import make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.stored import of_experiment
from equipoise.agent.planning.tables import Tables
from equipoise.store.memory import MemoryStore

ASKED = {"models": 2, "traffic": 1000.0, "reward_rate": 0.6, "effect": 0.2, "policies": ["uniform"]}


def planned(**changes):
    return make_plan(Problem.of_numbers(read_request({**ASKED, **changes})), most=60)


def test_a_declared_zero_is_a_reward_of_zero():
    """Thumbs of 40% of the users, the others count as 0: rewards of 0 and 1 again, so the plan is
    that of the share of all requests that gets a thumb up."""
    told = planned(rated=0.4, missing=0.0)
    same = planned(reward_rate=0.24, effect=0.08)
    assert [row.randomized for row in told.goals] == [row.randomized for row in same.goals]
    assert [row.harm for row in told.goals] == [row.harm for row in same.goals]
    assert told.goals[0].effect == pytest.approx(0.2), "of the requests whose reward comes"
    turned = planned(rated=0.4, missing=1.0, maximise=False, reward_rate=0.4)
    # 1 - R of the one is R of the other.
    pairs = zip(turned.goals, told.goals, strict=True)
    for mine, theirs in pairs:
        assert mine.randomized.needed == pytest.approx(theirs.randomized.needed, rel=1e-6)


def test_the_close_lever_and_the_question_are_of_what_is_certified():
    """Within 0.1 of the best of all requests would be any model, where the lead is 0.08 of them."""
    told, same = planned(rated=0.4, missing=0.0), planned(reward_rate=0.24, effect=0.08)
    mine, theirs = ({each.kind: each for each in plan.levers} for plan in (told, same))
    assert mine["epsilon"].value == pytest.approx(theirs["epsilon"].value) == pytest.approx(0.04)
    assert mine["epsilon"].row.randomized == theirs["epsilon"].row.randomized
    assert "by 0.2 among rated requests (0.08 over all, as its lead below)?" in told.answers[0]
    assert "among rated" not in same.answers[0]
    assert "among rated" not in planned(rated=0.99).answers[0], "the worst case is no other scale"


def test_any_other_value_leaves_the_variance_of_the_mixture():
    """Of 200,000 draws of reward-or-value, three standard errors wide."""
    problem = Problem.of_numbers(read_request({**ASKED, "rated": 0.7, "missing": 0.3}))
    values, variances = problem.over_all(np.array([[0.8, 0.6]]))
    rng = np.random.default_rng(1)
    for index, rate in enumerate((0.8, 0.6)):
        reward = np.where(rng.random(200_000) < 0.7, rng.random(200_000) < rate, 0.3)
        assert values[0, index] == pytest.approx(reward.mean(), abs=0.004)
        assert variances[0, index] == pytest.approx(reward.var(), abs=0.002)


@pytest.mark.parametrize("sequence", [each.value for each in Sequence])
def test_the_worst_case_costs_what_it_takes_off_the_lead(sequence):
    """1% lost takes .01 + .2 x .01 off a lead of .2, and 15% nearly all of it: by the square."""
    plain, few, many = (
        planned(sequence=sequence, rated=rated).goals[0].requests.median
        for rated in (1.0, 0.99, 0.9)
    )
    assert 0.9 * plain < few < 1.6 * plain
    lead = 0.2 * 0.9 - 0.1
    assert 0.5 * (0.2 / lead) ** 2 < many / plain < 2.0 * (0.2 / lead) ** 2


REFUSED = [
    ({"rated": 0.08}, "rated is 0.08, expected more than 0.8333: a difference of 0.2"),
    ({"rated": 0.83}, "rated is 0.83, expected more than 0.8333"),
    ({"rated": 0.9, "effect": None, "half_width": 0.05}, "expected more than 0.95: the leader's"),
    ({"rated": 0.5, "effect": None, "regret": 0.1}, "nothing is certified within 0.1 of the best"),
    ({"rated": 0.3, "effect": None, "budget_requests": 1e4}, "is never certified"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_the_worst_case_rules_out_is_refused_with_the_cure(changes, said):
    with pytest.raises(PlanError) as error:
        planned(**changes)
    assert said in str(error.value)
    assert "declare what one means (--missing VALUE, or rated; reward.missing" in str(error.value)


def test_the_limit_that_is_named_is_the_limit():
    assert planned(rated=0.84).goals
    assert planned(rated=0.3, missing=0.5).goals, "a declared value is the cure"


def lived(rows, lost, missing="worst-case", seed=2, refresh=50):
    policy = PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw")
    reward = RewardConfig(window=100.0, missing=missing)
    agent = Agent(config(policy=policy, reward=reward), MemoryStore(), KEY)
    traffic, draws = Traffic(np.random.default_rng(seed)), np.random.default_rng([seed, 1])
    for _ in range(rows // refresh):
        step(agent, traffic, draws, lost, refresh)
    return agent, traffic, draws


def step(agent, traffic, draws, lost, rows):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(rows)))
    silent = draws.random(rows) < lost
    agent.observe(replace(outcomes, reward=np.where(silent, np.nan, outcomes.reward)))
    traffic.at += 200.0
    agent.expire(traffic.at)
    agent.refresh(traffic.at)


def test_where_nothing_can_be_decided_the_reason_is_the_true_one():
    agent, *_ = lived(2000, 0.6)
    made = forecast(agent.answers, 0.0)
    assert made.total.median is None
    assert "of the randomized requests have no reward, and as each counts as the worst case" in (
        made.sentence
    )
    assert "declare what a missing reward means (reward.missing)" in made.sentence
    plan = plan_request({"traffic": 100.0}, agent.answers)
    assert "have no reward, and as each counts as the worst case" in plan["sentence"]
    assert plan["stored"]["lost"] == pytest.approx(0.6, abs=0.05)
    # What if it were declared? Then there is a plan, of an era of its own.
    cured = plan_request({"traffic": 100.0, "missing": 0.0}, agent.answers)
    assert cured["recommended"] is not None


def test_a_declared_value_is_among_the_rewards_already():
    agent, *_ = lived(1000, 0.6, missing=0.0)
    plan = plan_request({"effect": 0.1, "traffic": 100.0}, agent.answers)
    assert plan["stored"]["lost"] == 0.0
    assert plan["recommended"] is not None
    for name in ("rated", "missing"):
        with pytest.raises(PlanError, match=f"{name} is 0.5, expected nothing beside a store"):
            plan_request({"effect": 0.1, "traffic": 100.0, name: 0.5}, agent.answers)


LOST = 0.07


def test_a_forecast_counts_the_share_that_was_lost():
    """Of eight streams at 300 requests, against the same streams with all of their rewards. Their
    lead is some .15, of which the worst case leaves .15 x .93 - .07: the typical forecast must be
    well beyond the 1.1 that the sums so far make of it by themselves."""
    ratios = []
    for seed in range(8):
        some, whole = (
            forecast(lived(300, lost, seed=seed)[0].answers, 0.0).total for lost in (LOST, 0.0)
        )
        ratios.append(np.inf if some.median is None else some.median / whole.median)
    assert np.median(ratios) > 1.5, ratios


def test_experiments_end_inside_the_band_about_as_often_as_it_says():
    """Eight streams of which 4% of the rewards never come, forecast at 400 requests: of bands of
    80%, fewer than 4 hits have probability 0.01."""
    hits = 0
    for seed in range(8):
        agent, traffic, draws = lived(400, 0.04, seed=seed)
        band = forecast(agent.answers, 0.0).total
        while agent.answers.certified_winner() is None and agent.light.pending.next < 8_000:
            step(agent, traffic, draws, 0.04, 200)
        spent = agent.answers.certified().randomized
        hits += band.low * 0.95 <= spent <= (np.inf if band.high is None else band.high * 1.05)
    assert hits >= 4


@pytest.mark.parametrize(("lost", "status"), [(0.92, "alarm"), (0.3, "alarm"), (0.03, "ok")])
def test_the_check_alarms_where_nothing_can_ever_be_certified(lost, status):
    """The best model leads by some .15: with 3% lost it can be certified, with 30% no difference
    below .43 can, and with 92% none."""
    agent, *_ = lived(1200, lost)
    (check,) = [each for each in agent.answers.checks() if each.name == "missingness"]
    assert check.status == status
    if status == "alarm":
        assert "declare what a missing reward means (reward.missing" in check.sentence
    declared, *_ = lived(1200, lost, missing=0.0)
    (check,) = [each for each in declared.answers.checks() if each.name == "missingness"]
    assert check.status == "ok"


@pytest.mark.parametrize("lost", [0.03, 0.2, 0.4])
def test_the_least_difference_is_where_a_certificate_of_endless_data_stops(lost):
    """By the ends of the interval themselves: with endless data the lower end of a lead is the mean
    of the best with its lost rewards as 0, less that of the other with its as 1."""
    least, epsilon = smallest_certifiable(lost, 0.01), 0.01
    for difference, certified in ((least * 0.999, False), (least * 1.001, True)):
        lower = (1 - lost) * difference - ((1 - lost) * 0.0 + lost)
        assert (lower > -epsilon) is certified


def rated_by_few(maximise):
    """An agent a quarter of whose users rate."""
    settings = config(
        reward=RewardConfig(window=100.0, missing="rated", maximise=maximise),
        policy=PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw"),
    )
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(2))
    for _ in range(10):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(200)))
        reward = outcomes.reward if maximise else 1.0 - outcomes.reward
        told = np.where(traffic.rng.random(200) < 0.25, reward, np.nan)
        agent.observe(replace(outcomes, reward=told))
        traffic.at += 300.0
        agent.expire(traffic.at)
    return agent


def test_the_start_of_those_who_rate_is_the_same_for_a_mirror_image():
    starts = []
    for maximise in (True, False):
        problem, _ = of_experiment(rated_by_few(maximise).answers, {"effect": 0.2})
        assert 0.5 < problem.missing < 0.8
        assert problem.start(1, 2).rows[0] == 2000.0
        starts.append((problem.missing, problem.start(1, 2)))
        # What the plan takes of a contrast's level is what its own test has of it.
        design = problem.design("uniform", Sequence.BOUNDED, [Tables(problem).base(0.2)], 1)
        assert design.delta == pytest.approx(0.05 * (1.0 - 2.0 * LONE))
    (worth, one), (mirror, other) = starts
    assert mirror == pytest.approx(worth)
    for name in ("count", "lost", "total", "own", "ends", "end_squares", "cross"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-6)
