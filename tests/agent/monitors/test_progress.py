"""The plan: an alarm once it is used up and nothing is decided, by itself and through the agent."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig
from equipoise.agent.monitors import Action
from equipoise.agent.monitors.progress import plan
from equipoise.store.memory import MemoryStore


@pytest.mark.parametrize(
    ("randomized", "decided", "status"),
    [
        (0, False, "unknown"),
        (79, False, "ok"),
        (80, False, "watch"),
        (100, False, "watch"),
        (101, False, "alarm"),
        (101, True, "ok"),
    ],
)
def test_the_status_follows_the_share_of_the_plan(randomized, decided, status):
    check = plan(100, randomized, decided)
    assert check.status == status
    assert check.sentence.endswith(".")
    assert check.figures["share"] == pytest.approx(randomized / 100)


@pytest.mark.parametrize(
    ("foreseen", "status"),
    [
        ((50.0, 99.0), "ok"),
        ((50.0, 101.0), "watch"),
        ((101.0, 200.0), "alarm"),
        ((50.0, np.inf), "watch"),
        ((np.inf, np.inf), "alarm"),
    ],
)
def test_a_forecast_beyond_the_plan_is_heard_before_it_is_used_up(foreseen, status):
    check = plan(100, 20, False, foreseen)
    assert check.status == status
    assert not any(word in check.sentence for word in ("nan", "inf"))
    assert plan(100, 20, True, foreseen).status == "ok"
    assert plan(100, 0, False, foreseen).status == "unknown"


def test_a_plan_that_slips_is_reported_and_nothing_else_happens():
    agent = Agent(config(budget=BudgetConfig(planned=50)), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(0))
    assert "plan" in [check.name for check in agent.answers.checks()]
    run(agent, traffic, 9)
    assert agent.answers.certified().randomized > 50
    (done,) = agent.controls.review(3.0)
    assert (done.check.name, done.action) == ("plan", Action.REPORT)
    assert agent.rule.era == 0
    assert [alert.check for alert in agent.store.alerts() if alert.status == "alarm"] == ["plan"]


def test_without_a_plan_nothing_is_said_of_one():
    agent = Agent(config(), MemoryStore(), KEY)
    assert "plan" not in [check.name for check in agent.answers.checks()]
