"""What randomizing has cost, against the rows of the log added up one by one."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.budget.cost import spent_so_far
from equipoise.agent.config import ModelConfig, PolicyConfig, RewardConfig
from equipoise.store.batches import DecisionBatch, OutcomeBatch
from equipoise.store.memory import MemoryStore

PRICES = (0.02, 0.005, 0.001)
POLICY = PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.4, estimator="ipw")


def settings(prices=PRICES, **changes):
    models = [ModelConfig(name=n, price=p) for n, p in zip(MODELS, prices, strict=True)]
    return config(models=models, **({"policy": POLICY} | changes))


def played(configured, batches=30, store=None):
    """Every second batch keeps its rewards to itself, and an era begins in the middle."""
    agent, traffic = (
        Agent(configured, store or MemoryStore(), KEY),
        Traffic(np.random.default_rng(4)),
    )
    for index in range(batches):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(40)))
        if index % 2:
            agent.observe(outcomes)
        if index == batches // 2:
            agent.controls.open_era("another version", 1.0)
    return agent


def rows(store):
    """(routed, assigned, randomized, reward or None) of every decision, from the log alone."""
    rewards, decisions = {}, []
    for segment in store.read():
        batch = segment.batch
        if isinstance(batch, OutcomeBatch):
            rewards |= dict(zip(batch.number.tolist(), batch.reward.tolist(), strict=True))
        elif isinstance(batch, DecisionBatch):
            columns = (batch.number, batch.routed, batch.model, batch.randomized)
            decisions += list(zip(*(column.tolist() for column in columns), strict=True))
    return [(r, m, drawn, rewards.get(number)) for number, r, m, drawn in decisions]


@pytest.mark.parametrize("maximise", [True, False])
def test_costs_are_those_of_the_rows_of_the_log(maximise):
    agent = played(settings(reward=RewardConfig(window=100.0, maximise=maximise)))
    spent, log = agent.answers.spent(), rows(agent.store)
    drawn = [row for row in log if row[2]]
    # Every probability was the same, so values are plain means, and errors those of a mean.
    means = [[r for *_, m, d, r in log if d and m == model and r is not None] for model in range(3)]
    routed = [r for a, m, d, r in log if not d and r is not None]
    gained, square = 0.0, 0.0
    for model, part in enumerate(spent.models):
        mine = [row for row in drawn if row[1] == model]
        rewards = [row[3] for row in mine if row[3] is not None]
        assert (part.model, part.requests, part.rewards) == (MODELS[model], len(mine), len(rewards))
        assert part.reward_sum == pytest.approx(sum(rewards))
        assert part.usd == pytest.approx(len(mine) * PRICES[model])
        assert part.extra_usd == pytest.approx(sum(PRICES[m] - PRICES[r] for r, m, *_ in mine))
        own = len(mine) * (np.mean(means[model]) - np.mean(routed))
        gained += own
        variance = len(mine) ** 2 * np.var(means[model], ddof=1) / len(means[model])
        square += variance
        both = variance + len(mine) ** 2 * np.var(routed, ddof=1) / len(routed)
        assert part.gained == pytest.approx(own if maximise else -own, abs=0.02 * len(mine))
        assert part.gained_error == pytest.approx(math.sqrt(both), rel=0.35)
    assert spent.requests == len(drawn) == agent.light.randomized
    assert spent.usd == pytest.approx(sum(PRICES[m] for _, m, *_ in drawn))
    assert spent.extra_usd == pytest.approx(sum(PRICES[m] - PRICES[r] for r, m, *_ in drawn))
    assert spent.gained == pytest.approx(sum(part.gained for part in spent.models))
    # The error of the routing's value is in every request, so it does not average out.
    square += len(drawn) ** 2 * np.var(routed, ddof=1) / len(routed)
    assert spent.gained_error == pytest.approx(math.sqrt(square), rel=0.35)
    assert spent.gained_error < sum(part.gained_error for part in spent.models)
    assert (spent.family, spent.unpriced, spent.log_rows) == ("ipw", [], agent.light.next_seq)


def test_the_error_covers_what_was_gained():
    """Over 200 experiments whose truth is known: 95% intervals hold 90 to 99 times in a hundred."""
    rng, hits = np.random.default_rng(12), 0
    values = np.array([0.7, 0.5, 0.3])
    agent = played(settings(), batches=2)
    basis = agent.answers.basis()
    for _ in range(200):
        n, counts = 400, rng.multinomial(300, np.full(9, 1 / 9)).reshape(3, 3).astype(float)
        means = rng.binomial(n, values) / n
        served = rng.binomial(3 * n, values.mean()) / (3 * n)
        guess = msgspec.structs.replace(
            basis,
            values=means.tolist(),
            covariance=np.diag(means * (1 - means) / n).tolist(),
            routing=(served, served * (1 - served) / (3 * n)),
        )
        spent = spent_so_far(MODELS, counts, guess)
        truth = float(counts.sum(axis=0) @ (values - values.mean()))
        hits += abs(spent.gained - truth) < 1.96 * spent.gained_error
    assert 180 <= hits <= 198


def test_a_model_without_a_price_is_named_and_never_free():
    agent = played(settings((0.02, None, 0.001)))
    spent = agent.answers.spent()
    assert spent.unpriced == ["fast"]
    assert spent.usd is None
    assert spent.extra_usd is None
    slow, fast, cheap = spent.models
    assert fast.usd is None
    assert fast.extra_usd is None
    assert slow.usd == pytest.approx(slow.requests * 0.02)
    # Some of its requests would have gone to the model whose price nobody knows.
    assert slow.extra_usd is None
    assert cheap.extra_usd is None
    assert "no price: fast" in str(spent)
    assert "unknown USD" in str(spent)
    # Priced replays say what it costs.
    agent.simulate(Traffic(np.random.default_rng(1)).simulations())
    again = agent.answers.spent()
    assert again.unpriced == []
    assert again.models[1].usd == pytest.approx(0.02 * fast.requests)
    assert again.replays_usd == pytest.approx(150 * 0.02)


def test_nothing_is_known_before_it_is_and_nothing_is_lost_by_nothing():
    agent = Agent(settings(), MemoryStore(), KEY)
    spent = agent.answers.spent()
    assert (spent.requests, spent.usd, spent.extra_usd, spent.rewards) == (0, 0.0, 0.0, 0)
    assert (spent.gained, spent.gained_error) == (0.0, 0.0)
    unknown = spent_so_far(MODELS, np.eye(3), None, [1.0, 1.0, 1.0])
    assert (unknown.usd, unknown.extra_usd, unknown.gained) == (3.0, 0.0, None)
    # Rewards that never differed have no known error, so what was gained is not known either.
    traffic = Traffic(np.random.default_rng(2))
    decisions = agent.decide(traffic.requests(40))
    outcomes = traffic.outcomes(decisions)
    outcomes.reward[:] = 1.0
    agent.observe(outcomes)
    assert agent.answers.spent().gained is None


def test_a_price_that_changed_values_the_past_anew_as_a_budget_in_money_does():
    agent = played(settings())
    before = agent.answers.spent()
    agent.reconfigure(settings((0.04, 0.005, 0.001)))
    after = agent.answers.spent()
    assert after.models[0].usd == pytest.approx(2.0 * before.models[0].usd)
    assert after.models[1].usd == before.models[1].usd
    assert after.gained == before.gained
    # A price declared since the last estimate is in force at once.
    basis = agent.answers.basis()
    now = spent_so_far(MODELS, agent.light.ledger.spent, basis, [0.08, None, None])
    assert now.models[0].usd == pytest.approx(4.0 * before.models[0].usd)
    assert now.models[1].usd == before.models[1].usd


def test_costs_outlive_a_restart(tmp_path):
    store = MemoryStore()
    spent = played(settings(), store=store).answers.spent()
    assert Agent(settings(), store, KEY).answers.spent() == spent


@pytest.mark.parametrize("same", ["models", "routing", "nothing"])
def test_rewards_that_never_differed_say_no_error(same):
    """All thumbs of a model up, or all of what was served as routed: their mean is no certainty."""
    agent, traffic = Agent(settings(), MemoryStore(), KEY), Traffic(np.random.default_rng(4))
    for _ in range(10):
        decisions = agent.decide(traffic.requests(40))
        outcomes = traffic.outcomes(decisions)
        fixed = decisions.randomized & (decisions.model == 0)
        if same == "routing":
            fixed = decisions.model == decisions.routed
        if same != "nothing":
            outcomes.reward[fixed] = 0.5
        agent.observe(outcomes)
    spent = agent.answers.spent()
    known = same == "nothing"
    assert (spent.gained is not None) is known
    assert (spent.gained_error is not None) is known
    assert [part.gained is not None for part in spent.models] == [known] + 2 * [same != "routing"]
