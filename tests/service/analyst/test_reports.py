"""What is shown of each model, and what is certified of its differences from the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.recommendation import KEEP_ROUTING
from equipoise.agent.config import PolicyConfig
from equipoise.agent.service.analyst.reports import comparisons, report
from equipoise.store.batches import take
from equipoise.store.memory import MemoryStore


def experiment(batches, replayed, **policy):
    """An agent after some batches of 60; only models `replayed` have replays."""
    agent = Agent(config(policy=PolicyConfig(rate=0.6, **policy)), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(4))
    agent.ingest(traffic.observations(90))
    rows = traffic.simulations()
    agent.simulate(take(rows, np.flatnonzero(np.isin(rows.model, replayed))))
    run(agent, traffic, batches, size=60)
    return agent


def test_what_the_family_does_not_value_is_shown_by_the_plain_one_and_says_why():
    agent = experiment(8, (0, 1))
    estimates = report(agent, [], 1.0).estimates
    families = agent.answers.estimates(["hierarchical", "ipw"])
    assert [each.shown.family for each in estimates.models] == ["hierarchical"] * 2 + ["ipw"]
    assert [each.waits_for for each in estimates.models] == [None, None, "replays"]
    assert estimates.models[2].value is None
    assert estimates.models[2].note == "no replays of it: hierarchical waits"
    for at, family in enumerate(("hierarchical", "hierarchical", "ipw")):
        shown, error = estimates.models[at].shown, np.sqrt(families[family].covariance[at, at])
        assert shown.value == pytest.approx(families[family].values[at])
        assert shown.standard_error == pytest.approx(error)
        assert shown.interval == pytest.approx(
            (shown.value - 1.959964 * error, shown.value + 1.959964 * error), rel=1e-6
        )
        assert estimates.models[at].log_standard_error > 0.0
    # What was not asked for is not among the families.
    assert estimates.families["hierarchical"][0].value == estimates.models[0].value


def test_nothing_is_shown_before_rewards_differ():
    agent = experiment(0, (0, 1, 2), estimator="ipw")
    traffic = Traffic(np.random.default_rng(1))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(5)))
    agent.observe(replace(outcomes, reward=np.ones(len(outcomes))))
    estimates = report(agent, [], 1.0).estimates
    assert [each.shown for each in estimates.models] == [None] * 3
    assert (estimates.leader, estimates.comparisons) == (None, [])


def test_contrasts_with_today_s_routing_are_the_certified_ones():
    agent = experiment(12, (0, 1, 2))
    estimates, certified = report(agent, [], 1.0).estimates, agent.answers.certified()
    routing = certified.names.index(KEEP_ROUTING)
    for at, each in enumerate(estimates.routing_contrasts):
        assert (each.model, each.other) == (MODELS[at], KEEP_ROUTING)
        assert each.lower == certified.contrasts[at, routing]
        assert each.upper == -certified.contrasts[routing, at]
    sums = agent.answers.view().certified.overall
    assert [each.era_draws for each in estimates.models] == sums.rewards.count.tolist()
    agent.controls.open_era("by hand", 2.0, np.array([True, False, True]))
    after = report(agent, [], 3.0).estimates
    assert [each.era_draws for each in after.models] == [0, 0, 0]
    assert [each.compared for each in after.models] == [True, False, True]
    assert "fast" not in {each.other for each in after.comparisons}


def test_a_decision_is_seen_in_its_differences():
    """Right after it the pair's own level still holds a lead of nothing; what is decided holds."""
    agent = experiment(30, (0, 1, 2))
    certified = agent.answers.certified()
    worst = certified.contrasts.copy()
    worst[2, :2] = [0.1, -0.01]
    decided = certified.decision.copy()
    decided[2, :2] = [0.1, 0.001]
    certified = replace(certified, contrasts=worst, decision=decided)
    ends = {each.other: (each.lower, each.verdict) for each in comparisons(certified, 2)}
    assert ends["slow"] == (0.1, "better")
    assert ends["fast"] == (0.0, "better")
    close = replace(certified, decision=decided - 0.1, epsilon=0.2)
    ends = {each.other: each for each in comparisons(close, 2)}
    assert (ends["fast"].lower, ends["slow"].verdict) == (-0.01, "better")
    assert ends["fast"].verdict in ("close", "alike")
