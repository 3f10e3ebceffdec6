"""What is shown of a value lies in the range of rewards, and certified ends do to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.estimators import FAMILIES
from equipoise.agent.inference.projection import within_range
from equipoise.agent.service.analyst.reports import report
from equipoise.store.memory import MemoryStore


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(-1e6, 1e6), st.floats(-100, 100), st.floats(0.01, 100), st.floats(0, 1))
def test_a_projection_is_never_farther_from_a_truth_in_the_range(value, low, span, place):
    high, truth = low + span, min(low + place * span, low + span)
    shown = float(within_range(value, low, high))
    assert low <= shown <= high
    assert abs(shown - truth) <= abs(value - truth)
    assert math.isnan(within_range(np.nan, low, high))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.3), (-7.3, 0.7), (100.0, 101.1)])
def test_every_value_that_a_report_shows_lies_in_the_range(low, high):
    """Rewards near an end and few of them: some family's estimate or error bar leaves the range."""
    policy = PolicyConfig(assignment="top-two", rate=0.5, estimator="doubly-robust")
    reward = RewardConfig(low=low, high=high, window=100.0)
    agent = Agent(config(policy=policy, reward=reward), MemoryStore(), KEY)
    traffic, left = Traffic(np.random.default_rng(3)), 0
    agent.simulate(traffic.simulations())
    log = traffic.observations(60)
    agent.ingest(replace(log, reward=np.where(log.reward < 0.9, low, high)))
    for _ in range(8):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(20)))
        rare = np.where(traffic.rng.random(20) < 0.05, high, low)
        agent.observe(replace(outcomes, reward=rare))
        agent.refresh()
        raw = agent.answers.estimates(FAMILIES)
        for estimate in raw.values():
            ends = estimate.values - 1.96 * np.sqrt(np.diagonal(estimate.covariance))
            left += int((ends < low).sum() + (estimate.values < low).sum())
        made = report(agent, list(FAMILIES), 0.0).estimates
        rows = [*made.models, made.todays_routing]
        rows += [row for family in made.families.values() for row in family]
        for row in rows:
            shown = [row.value, *(row.interval or ())]
            shown += [getattr(row, "lower", None), getattr(row, "upper", None)]
            assert all(low <= each <= high for each in shown if each is not None), row
            if row.interval is not None:
                assert row.interval[0] <= row.value <= row.interval[1]
        certified = agent.answers.certified()
        assert (certified.lower >= low).all()
        assert (certified.upper <= high).all()
    assert left > 20, "the traffic of this test makes no estimate leave the range"
