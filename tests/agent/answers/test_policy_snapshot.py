"""The snapshot against the rows it was made from, and the traffic it is calibrated on."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.policy_snapshot import (
    FEW,
    RECENT,
    KnownRewards,
    OutputMaps,
    recent_contexts,
)
from equipoise.agent.config import BudgetConfig, PolicyConfig
from equipoise.store.batches import DecisionBatch, ObservationBatch, OutcomeBatch
from equipoise.store.memory import MemoryStore

POLICY = PolicyConfig(gate="contrast", assignment="contrast", rate=0.3)


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(np.random.default_rng(5))


@pytest.fixture
def agent(traffic: Traffic) -> Agent:
    found = Agent(config(policy=POLICY), MemoryStore(), KEY)
    found.ingest(traffic.observations(300))
    found.simulate(traffic.simulations())
    run(found, traffic, 12)
    return found


def test_the_scorers_values_are_the_estimates(agent: Agent) -> None:
    snapshot = agent.answers.snapshot()
    scorer = snapshot.scorer
    np.testing.assert_allclose(scorer.value_design @ scorer.theta, snapshot.values, atol=1e-9)
    rows = agent.light.simulated.contexts(2, 50)
    assert rows.shape == (50, 2)
    mean = np.concatenate([[1.0], rows.mean(axis=0)])
    at_mean = np.einsum("f,kfp->kp", mean, scorer.design)
    np.testing.assert_allclose(at_mean, scorer.value_design, atol=1e-9)


def test_the_spread_is_that_of_the_replays_around_their_regression(agent: Agent) -> None:
    scorer = agent.answers.snapshot().scorer
    context = np.arange(50)
    x = Traffic.context(context)
    for model in range(len(MODELS)):
        phi = np.column_stack([np.ones(50), x, Traffic.outputs(context, np.full(50, model))])
        left = phi - np.column_stack([np.ones(50), x]) @ scorer.design[model][:, : phi.shape[1]]
        np.testing.assert_allclose(
            scorer.spread[model][: phi.shape[1], : phi.shape[1]], left.T @ left / 50, atol=1e-9
        )
        assert not scorer.spread[model][phi.shape[1] :].any()


def test_prices_count_only_under_a_budget_in_money(traffic: Traffic) -> None:
    for money, expected in ((None, np.nan), (100.0, 0.01)):
        agent = Agent(config(budget=BudgetConfig(money=money)), MemoryStore(), KEY)
        np.testing.assert_array_equal(agent.answers.snapshot().costs, np.full(3, expected))


def test_recent_contexts_are_those_of_the_last_decisions(agent: Agent, traffic: Traffic) -> None:
    seen = []
    for size in (700, 1500, 3000, 2500):
        requests = traffic.requests(size)
        seen.append(requests.x)
        agent.observe(traffic.outcomes(agent.decide(requests)))
        found = recent_contexts(agent.light, agent.store)
        np.testing.assert_array_equal(found, np.concatenate(seen)[-RECENT:])
    # Whatever is still in memory: a table that dropped its closed rows, or another process.
    again = Agent(config(policy=POLICY), agent.store, KEY)
    np.testing.assert_array_equal(recent_contexts(again.light, again.store), found)
    agent.light.pending.load(
        agent.light.pending.next - 3, agent.light.pending.arrays(agent.light.pending.next - 3)
    )
    np.testing.assert_array_equal(recent_contexts(agent.light, agent.store), found)


def test_replays_stand_for_traffic_that_has_not_come(traffic: Traffic) -> None:
    agent = Agent(config(policy=POLICY), MemoryStore(), KEY)
    assert recent_contexts(agent.light, agent.store) is None
    agent.simulate(traffic.simulations())
    np.testing.assert_array_equal(
        recent_contexts(agent.light, agent.store), Traffic.context(np.arange(50))
    )
    agent.decide(traffic.requests(FEW))
    assert len(recent_contexts(agent.light, agent.store)) == FEW


def test_a_gates_rates_average_to_the_budget_over_traffic_to_come(traffic: Traffic) -> None:
    """4,000 more requests: the mean rate within 3% of the target, the spread of rates not 0."""
    agent = Agent(config(policy=replace(POLICY, rate=0.1)), MemoryStore(), KEY)
    agent.simulate(traffic.simulations())
    run(agent, traffic, 40)
    decided = agent.decide(traffic.requests(4000))
    assert decided.rate.std() > 1e-3
    assert abs(decided.rate.mean() / 0.1 - 1.0) < 0.03
    assert decided.rate.min() >= agent.config.limits.rate_min


def test_regressions_of_outputs_are_renewed_when_replays_come_and_only_then():
    traffic = Traffic(np.random.default_rng(4))
    agent = Agent(config(), MemoryStore(), KEY)
    agent.simulate(traffic.simulations(20))
    kept = OutputMaps()
    first = kept.of(agent.answers.view().moments)
    decided = agent.decide(traffic.requests(300))
    agent.observe(traffic.outcomes(decided))
    assert kept.of(agent.answers.view().moments) is first, "live rows teach nothing about replays"
    agent.simulate(traffic.simulations(60))
    again = kept.of(agent.answers.view().moments)
    assert again is not first
    fresh = OutputMaps().of(agent.answers.view().moments)
    for mine, theirs, old in zip(again, fresh, first, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert not np.array_equal(mine, old)


def test_known_rewards_are_those_of_the_rows_logged_and_randomized(agent: Agent) -> None:
    """Every row with its complete outcome, out of the log."""
    known, rewards = KnownRewards.of(agent.answers.view().moments), [[] for _ in MODELS]
    drawn: dict[int, int] = {}
    for segment in agent.store.read(0, agent.light.next_seq):
        batch = segment.batch
        if isinstance(batch, DecisionBatch):
            drawn |= dict(zip(batch.number.tolist(), batch.model.tolist(), strict=True))
        elif isinstance(batch, ObservationBatch):
            for model, reward in zip(batch.routed.tolist(), batch.reward.tolist(), strict=True):
                rewards[model].append(reward)
        elif isinstance(batch, OutcomeBatch):
            for number, reward in zip(batch.number.tolist(), batch.reward.tolist(), strict=True):
                if np.isfinite(reward):
                    rewards[drawn[number]].append(reward)
    np.testing.assert_allclose(known.counts, [len(each) for each in rewards])
    np.testing.assert_allclose(known.means[:-1], [np.mean(each) for each in rewards])
    np.testing.assert_allclose(known.means[-1], np.mean(np.concatenate(rewards)))
    assert 0.5 < known.variance / np.var(np.concatenate(rewards)) < 2.0
    values, covariance = known.beliefs(1.0)
    np.testing.assert_array_equal(values, known.means[:-1])
    assert (np.diag(covariance) > 0.04 * known.variance).all()
