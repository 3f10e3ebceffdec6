"""The check of outputs, alone and over a log whose client sends rewards and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig
from equipoise.agent.monitors.progress import outputs
from equipoise.store.memory import MemoryStore


@pytest.mark.parametrize(
    ("rewarded", "complete", "status"),
    [(29, 0, "unknown"), (30, 30, "ok"), (100, 95, "ok"), (100, 94, "watch"), (100, 49, "alarm")],
)
def test_the_share_decides(rewarded, complete, status):
    check = outputs(rewarded, complete)
    assert check.status == status
    assert ("send `outputs`" in check.sentence) == (status in ("watch", "alarm"))


def test_rewards_without_outputs_have_values_and_an_alarm():
    """Means by hand from the same rewards: `ipw` needs no output, and the check says who does."""
    policy = PolicyConfig(assignment="uniform", rate=0.5, estimator="hierarchical")
    agent, traffic = (
        Agent(config(policy=policy), MemoryStore(), KEY),
        Traffic(np.random.default_rng(3)),
    )
    total, count = np.zeros(3), np.zeros(3)
    for _ in range(30):
        decided = agent.decide(traffic.requests(40))
        outcomes = traffic.outcomes(decided)
        agent.observe(replace(outcomes, outputs=np.full_like(outcomes.outputs, np.nan)))
        drawn = decided.model[decided.randomized]
        total += np.bincount(drawn, outcomes.reward[decided.randomized], 3)
        count += np.bincount(drawn, minlength=3)
    estimate = agent.answers.estimates(["ipw"])["ipw"]
    np.testing.assert_allclose(estimate.values, total / count, rtol=1e-12)
    checks = {check.name: check for check in agent.answers.checks()}
    assert checks["outputs"].status == "alarm"
    agent.simulate(traffic.simulations())
    assert "hierarchical waits for outputs" in agent.answers.recommendation().sentence
    # Outputs that come after the reward complete the request, and count once.
    late = traffic.outputs(decided.context, decided.model)
    agent.observe(replace(outcomes, outputs=late, reward=np.full(40, np.nan)))
    assert agent.answers.view().moments.exp.count.sum() == np.count_nonzero(decided.randomized)
    assert agent.answers.view().moments.arms.count.sum() == count.sum()
