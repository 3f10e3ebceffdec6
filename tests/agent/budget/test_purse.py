"""Budgets through the real Agent: hard stops, charges, pacing, and what a restart remembers."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.status import Activity
from equipoise.agent.budget.purse import Exhausted, harm_charges, money_charges
from equipoise.agent.config import (
    BudgetConfig,
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    PolicyConfig,
)
from equipoise.store.batches import DecisionBatch
from equipoise.store.memory import MemoryStore

DOCS = Path(__file__).parents[3] / "docs"
DAY = 86_400.0
PRICES = (0.01, 0.02, 0.05)
UNIFORM = PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.3)


def agent_of(budget: BudgetConfig, policy: PolicyConfig = UNIFORM, **changes: object) -> Agent:
    models = [ModelConfig(name=n, price=p) for n, p in zip(MODELS, PRICES, strict=True)]
    settings = {"models": models, "budget": budget, "policy": policy, **changes}
    return Agent(config(**settings), MemoryStore(), KEY)


def money(decisions: DecisionBatch) -> float:
    return float(np.array(PRICES)[decisions.model[decisions.randomized]].sum())


@pytest.mark.parametrize("size", [1, 7, 400])
def test_money_is_never_overspent_and_nearly_all_spent(size: int) -> None:
    agent, traffic = agent_of(BudgetConfig(money=1.0)), Traffic(np.random.default_rng(0))
    spent, rows = 0.0, 0
    while rows < 800:
        decisions = agent.decide(traffic.requests(size))
        spent, rows = spent + money(decisions), rows + size
        assert spent <= 1.0 + 1e-12
        (found,) = agent.answers.spending()
        assert found.spent == pytest.approx(spent, abs=1e-12)
    assert spent > 1.0 - max(PRICES)
    assert decisions.capped.all()
    assert (decisions.rate == 0.0).all()
    assert not decisions.randomized.any()


def test_how_requests_are_batched_changes_no_stop() -> None:
    budget = BudgetConfig(money=0.8, requests=45)
    answers = []
    for sizes in ([400], [1] * 400, [13] * 30 + [10]):
        agent, traffic = agent_of(budget), Traffic(np.random.default_rng(1))
        whole = traffic.requests(400)
        start, parts = 0, []
        for size in sizes:
            rows = slice(start, start + size)
            columns = ("unit", "context", "at", "x", "routed")
            part = replace(whole, **{name: getattr(whole, name)[rows] for name in columns})
            parts.append(agent.decide(part))
            start += size
        answers.append(
            [np.concatenate([getattr(p, n) for p in parts]) for n in ("model", "capped", "rate")]
        )
    for other in answers[1:]:
        for ours, theirs in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert answers[0][1].any()


def test_the_first_limit_reached_stops() -> None:
    traffic = Traffic(np.random.default_rng(2))
    agent = agent_of(BudgetConfig(money=100.0, requests=9))
    decisions = agent.decide(traffic.requests(400))
    assert decisions.randomized.sum() == 9
    by_name = {each.resource: each for each in agent.answers.spending()}
    assert by_name["requests"].left == 0
    assert by_name["money"].spent == pytest.approx(money(decisions))


def test_harm_is_what_the_estimates_say_was_lost() -> None:
    traffic = Traffic(np.random.default_rng(3))
    agent = agent_of(BudgetConfig(harm=20.0))
    agent.ingest(traffic.observations(400))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 12)
    agent.refresh()
    values = agent.answers.estimates(["hierarchical"])["hierarchical"].values
    ledger = agent.light.ledger
    expected = sum(
        ledger.spent[routed, model] * max(values[routed] - values[model], 0.0)
        for routed in range(3)
        for model in range(3)
    )
    (found,) = agent.answers.spending()
    assert found.spent == pytest.approx(expected)
    assert 0 < found.spent < 20.0
    # Under one set of estimates the limit holds; later ones may value the past anew.
    decisions = agent.decide(traffic.requests(3000))
    assert 19.0 < agent.answers.spending()[0].spent <= 20.0
    assert decisions.capped[-1]


def test_charges() -> None:
    np.testing.assert_array_equal(
        money_charges(np.array([0.1, np.nan, 0.3])), np.tile([0.1, 0.3, 0.3], (3, 1))
    )
    assert np.isinf(money_charges(np.full(2, np.nan))).all()
    values = np.array([0.5, 0.2, np.nan])
    expected = [[0.0, 0.3, 2.0], [0.0, 0.0, 2.0], [2.0, 2.0, 0.0]]
    np.testing.assert_allclose(harm_charges(values, 1, 2.0), expected)
    np.testing.assert_allclose(harm_charges(-values, -1, 2.0), expected)


def test_nothing_is_randomized_for_money_while_no_price_is_known() -> None:
    traffic = Traffic(np.random.default_rng(4))
    agent = agent_of(BudgetConfig(money=1.0), models=[ModelConfig(name=n) for n in MODELS])
    assert agent.decide(traffic.requests(50)).capped.all()
    assert agent.answers.spending()[0].spent == 0.0
    agent.simulate(traffic.simulations())  # they cost 0.02 each
    agent.refresh()
    decisions = agent.decide(traffic.requests(400))
    assert decisions.randomized.sum() == 50
    assert agent.answers.spending()[0].spent == pytest.approx(1.0)


@pytest.mark.parametrize(
    "budget",
    [BudgetConfig(requests=12), BudgetConfig(money=0.3), BudgetConfig(money=0.5, harm=9.0)],
)
def test_exhausted_is_said_when_the_next_request_is_not_covered(budget: BudgetConfig) -> None:
    """By asking about every draw the next request could get."""
    agent, traffic = agent_of(budget), Traffic(np.random.default_rng(6))
    pairs = np.array([(r, m) for r in range(3) for m in range(3)])
    words = []
    for _ in range(200):
        agent.decide(traffic.requests(1))
        purse = agent.state.purse
        covered = [
            purse.stopped(pair[:1], pair[1:], np.ones(1, dtype=bool)) is None for pair in pairs
        ]
        words.append(purse.exhausted)
        assert covered == [purse.exhausted is None] * len(pairs)
    assert words[0] is None
    assert words[-1] is Exhausted.SPENT
    unpriced = agent_of(BudgetConfig(money=1.0), models=[ModelConfig(name=n) for n in MODELS])
    assert unpriced.state.purse.exhausted is Exhausted.UNPRICED
    assert unpriced.answers.activity() is Activity.UNPRICED


def test_spending_survives_a_restart() -> None:
    traffic = Traffic(np.random.default_rng(5))
    agent = agent_of(BudgetConfig(money=3.0, horizon=500.0))
    run(agent, traffic, 9)
    agent.checkpoint()
    run(agent, traffic, 3)
    again = Agent(agent.config, agent.store, KEY)
    assert again.answers.spending() == agent.answers.spending()
    assert again.state.purse.rate(0.5) == agent.state.purse.rate(0.5)
    assert again.fold.to_bytes() == agent.fold.to_bytes()


def hours(days: int, requests: int, burst_at: float, seed: int) -> np.ndarray:
    """Arrival times over `days`: a 10:1 swing between day and night, 30 minutes at 20 times."""
    rng = np.random.default_rng(seed)
    edges = np.arange(0.0, days * DAY, 300.0)
    level = np.sqrt(10.0) ** np.sin(2.0 * np.pi * edges / DAY - 1.3)
    burst = (edges >= burst_at * DAY) & (edges < burst_at * DAY + 1800.0)
    level[burst] *= 20.0
    counts = rng.poisson(requests * level / level.sum())
    return np.sort(np.repeat(edges, counts) + rng.random(counts.sum()) * 300.0)


@pytest.mark.parametrize(
    ("budget", "policy"),
    [
        (BudgetConfig(requests=1500), UNIFORM),
        (BudgetConfig(money=40.0), UNIFORM),
        (
            BudgetConfig(requests=1500),
            PolicyConfig(gate="contrast", assignment="contrast", rate=0.3),
        ),
    ],
    ids=["requests", "money", "contrast"],
)
def test_a_horizon_is_spent_within_two_percent(budget: BudgetConfig, policy: PolicyConfig) -> None:
    """Five days, 20,000 requests, a rule every 100; burst on day 3; never above the limit."""
    horizon = 5 * DAY
    amounts = {"requests": budget.requests, "money": budget.money, "horizon": horizon}
    agent = agent_of(BudgetConfig(**amounts), policy)
    traffic = Traffic(np.random.default_rng(6))
    agent.simulate(traffic.simulations())
    arrivals = 1e9 + hours(5, 20_000, burst_at=2.6, seed=7)
    worst = 0.0
    for start in range(0, len(arrivals), 100):
        at = arrivals[start : start + 100]
        decisions = agent.decide(replace(traffic.requests(len(at)), at=at))
        agent.observe(traffic.outcomes(decisions))
        agent.refresh()
        (found,) = agent.answers.spending()
        assert found.spent <= found.limit * (1 + 1e-9)
        if at[0] > arrivals[0] + DAY:
            worst = max(worst, abs(found.spent - found.planned) / found.limit)
    assert found.spent >= 0.98 * found.limit
    assert found.expected == pytest.approx(found.spent, rel=0.1)
    # After the first day the pace follows the traffic, through the burst too.
    assert worst < 0.12
    rates = np.concatenate(
        [s.batch.rate for s in agent.store.read() if isinstance(s.batch, DecisionBatch)]
    )
    assert ((rates == 0.0) | (rates >= agent.config.limits.rate_min)).all()


def test_after_the_horizon_only_the_floor_is_left() -> None:
    traffic = Traffic(np.random.default_rng(8))
    agent = agent_of(BudgetConfig(requests=10_000, horizon=100.0))
    agent.decide(replace(traffic.requests(50), at=np.linspace(0.0, 60.0, 50)))
    agent.refresh()
    # 10,000 in 40 seconds: as much as the policy may.
    assert agent.rule.allocation.gate.rate == agent.config.limits.rate_max
    agent.decide(replace(traffic.requests(50), at=np.full(50, 100.0)))
    agent.refresh()
    assert agent.rule.allocation.gate.rate == agent.config.limits.rate_min


def test_a_horizon_needs_an_amount() -> None:
    for budget, says in (
        (BudgetConfig(horizon=10.0), "horizon together with requests, money or harm"),
        (BudgetConfig(money=0.0), "budget.money"),
        (BudgetConfig(harm=-1.0), "budget.harm"),
        (BudgetConfig(requests=5, horizon=float("inf")), "budget.horizon"),
    ):
        with pytest.raises(ConfigError, match=says):
            config(budget=budget).checked()


def test_the_examples_of_the_pages_are_configurations() -> None:
    policy, budget, after, second = (
        example
        for page in ("policies.md", "budget.md")
        for example in re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    )
    found = ExperimentConfig.from_builtins(tomllib.loads(policy + budget))
    assert found.budget == BudgetConfig(money=500.0, requests=40_000, horizon=14 * DAY)
    assert found.models[1].max_requests == 20_000
    assert ExperimentConfig.from_builtins(tomllib.loads(policy + after)).budget.after == "stop"
    prompt = {"type": "text", "name": "prompt", "statistics": ["words", "code"]}
    rest = {
        "name": "x",
        "models": [{"name": "a"}, {"name": "b"}],
        "features": {"context": [prompt]},
    }
    limits = ExperimentConfig.from_builtins({**rest, **tomllib.loads(second)}).budget
    assert [segment.max_requests for segment in limits.segments] == [2000]
    assert limits.per_user is not None
    assert limits.per_user.share == 0.25
