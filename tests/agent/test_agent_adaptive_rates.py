"""Gates and shares that follow the context, through the real Agent: what weights must undo."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import DecisionBatch, OutcomeBatch
from equipoise.store.memory import MemoryStore

CONTEXTS = 50


def truth() -> np.ndarray:
    """(3,) values of the models of `Traffic.outcomes` over its contexts."""
    context, model = np.meshgrid(np.arange(CONTEXTS), np.arange(3), indexing="ij")
    outputs = Traffic.outputs(context.ravel(), model.ravel())
    mean = 0.4 + 0.15 * model.ravel() + 0.1 * outputs[:, 0]
    return mean.reshape(CONTEXTS, 3).mean(axis=0)


@pytest.fixture(scope="module", params=["contrast+contrast", "active+uniform", "active+thompson"])
def ran(request) -> Agent:
    """8,000 requests, a rule every 200."""
    gate, _, assignment = request.param.partition("+")
    policy = PolicyConfig(gate=gate, assignment=assignment, rate=0.3, floor=0.05)
    agent = Agent(config(policy=policy), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(11))
    agent.simulate(traffic.simulations())
    for _ in range(40):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(200))))
        agent.refresh()
    return agent


def columns(agent: Agent) -> tuple[DecisionBatch, np.ndarray, np.ndarray]:
    """Every decision's propensity of the model it got, whether randomized, and its reward."""
    decisions = [s.batch for s in agent.store.read() if isinstance(s.batch, DecisionBatch)]
    outcomes = [s.batch for s in agent.store.read() if isinstance(s.batch, OutcomeBatch)]
    rate = np.concatenate([each.rate for each in decisions])
    shares = np.concatenate([each.probabilities for each in decisions])
    model = np.concatenate([each.model for each in decisions])
    randomized = np.concatenate([each.randomized for each in decisions])
    reward = np.concatenate([each.reward for each in outcomes])
    weight = randomized / (rate * shares[np.arange(len(model)), model])
    return model, weight, reward


def test_weights_make_up_for_what_gate_and_assignment_prefer(ran: Agent) -> None:
    """Means of W and of W R per model within 4 standard errors: false-alarm rate below 4e-4."""
    model, weight, reward = columns(ran)
    for arm, value in enumerate(truth()):
        own = np.where(model == arm, weight, 0.0)
        for scores, expected in ((own, 1.0), (own * reward, value)):
            error = scores.std() / np.sqrt(len(scores))
            assert abs(scores.mean() - expected) < 4 * error


def test_the_certified_contrasts_hold_the_truth(ran: Agent) -> None:
    """At level 5% for all pairs together, one stream each: conservative, so no miss is expected."""
    values = truth()
    lower = ran.answers.certified().contrasts[:3, :3]
    contrasts = values[:, None] - values[None, :]
    assert (lower <= contrasts + 1e-12).all()
    assert lower.max() > -0.5


def test_every_probability_recomputes(ran: Agent) -> None:
    found = audit(ran.store, ran.config, KEY)
    assert found.clean, found.faults
    assert found.decisions == 8000
