"""The forecast of a running experiment: it goes on from what is known, and the plan hears of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, PolicyConfig
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.forecast import forecast
from equipoise.store.memory import MemoryStore


def lived(rows, seed=2, **changes):
    policy = PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw")
    agent = Agent(config(policy=policy, **changes), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(seed))
    for _ in range(rows // 50):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(50))))
        agent.refresh()
    return agent, traffic


def test_it_says_what_the_planner_says_of_the_same_store():
    agent, _ = lived(600)
    made, planned = (
        forecast(agent.answers, 7.0),
        plan_request({"effect": 0.1}, agent.answers)["stored"],
    )
    assert made.state == "pending"
    assert planned["unit"] == "hours"
    for name in ("median", "low", "high"):
        assert getattr(made.hours, name) == planned["remaining"][name]
    assert (made.at, made.era, made.log_rows) == (7.0, 0, agent.light.next_seq)
    assert made.randomized == agent.answers.certified().randomized


def test_what_was_spent_is_part_of_the_total():
    agent, _ = lived(600)
    made = forecast(agent.answers, 0.0)
    # Half of 50 requests a second are randomized, and their rewards come at once.
    coming = made.hours.median * 3600.0 * 25.0
    assert made.total.median == pytest.approx(made.randomized + coming, rel=0.1)
    assert f"{made.randomized:,} of them certified" in made.sentence


def test_experiments_end_inside_the_band_about_as_often_as_it_says():
    """Twelve streams, forecast at 300 requests: of bands of 80%, fewer than 6 hits have probability
    0.004. Rewards of these streams may favour a model by chance, and the band knows that."""
    hits = 0
    for seed in range(12):
        agent, traffic = lived(300, seed)
        band = forecast(agent.answers, 0.0).total
        while agent.answers.certified_winner() is None and agent.light.pending.next < 8000:
            agent.observe(traffic.outcomes(agent.decide(traffic.requests(50))))
            agent.refresh()
        spent = agent.answers.certified().randomized
        hits += band.low * 0.95 <= spent <= (np.inf if band.high is None else band.high * 1.05)
    assert hits >= 6


def test_too_few_rewards_are_said_to_be_too_few():
    agent, _ = lived(0)
    made = forecast(agent.answers, 0.0)
    assert (made.state, made.total, made.hours) == ("unknown", None, None)
    assert "the least tried model has 0 rewards of randomized requests" in made.sentence


def test_a_decision_leaves_nothing_to_forecast():
    agent, _ = lived(6000)
    assert agent.answers.certified_winner() is not None
    made = forecast(agent.answers, 0.0)
    assert (made.state, made.total) == ("decided", None)
    assert agent.answers.certified_winner() in made.sentence


def test_a_plan_that_will_slip_is_an_alarm_long_before_it_does():
    agent, _ = lived(600, budget=BudgetConfig(planned=400))

    def check():
        (found,) = [each for each in agent.answers.checks() if each.name == "plan"]
        return found

    assert check().status != "alarm"
    made = forecast(agent.answers, 0.0)
    assert made.randomized < 400
    agent.answers.forecast = replace_total(made, low=410.0).foreseen
    assert check().status == "alarm"
    assert "will slip" in check().sentence
    agent.answers.forecast = replace_total(made, low=390.0, median=410.0).foreseen
    assert check().status == "watch"
    # What was foreseen of an era that has ended says nothing of this one.
    agent.answers.forecast = replace_total(made, low=410.0, era=made.era - 1).foreseen
    assert check().status != "alarm"


def replace_total(made, era=None, **changes):
    total = msgspec.structs.replace(made.total, **changes)
    era = made.era if era is None else era
    return msgspec.structs.replace(made, total=total, era=era)
