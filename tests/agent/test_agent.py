"""The agent at its door: what it refuses, what it repeats, what a budget stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, ModelConfig, PolicyConfig
from equipoise.agent.controls import Controls
from equipoise.agent.errors import AgentError, ConflictError, UnknownDecisionError
from equipoise.policies.registry import PRESETS
from equipoise.store.errors import FullStoreError
from equipoise.store.memory import MemoryStore


@pytest.fixture
def agent():
    return Agent(config(), MemoryStore(), KEY)


@pytest.fixture
def traffic():
    return Traffic(np.random.default_rng(3))


def test_not_randomized_means_served_as_routed(agent, traffic):
    batch = agent.decide(traffic.requests(400))
    assert (batch.model[~batch.randomized] == batch.routed[~batch.randomized]).all()


def test_share_randomized_follows_the_rate(agent, traffic):
    """Binomial(4000, .3) within 5 standard deviations: false-alarm rate below 1e-6."""
    batch = agent.decide(traffic.requests(4000))
    assert abs(batch.randomized.sum() - 1200) < 5 * np.sqrt(4000 * 0.21)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("x", np.array([[0.0, np.nan]]), "b"),
        ("x", np.zeros((1, 3)), "3"),
        ("routed", np.array([7]), "model 7"),
        ("routed", np.array([-1]), "model -1"),
        ("unit", np.array([1, 2]), "unit"),
    ],
)
def test_requests_that_are_refused_leave_no_row(agent, traffic, column, value, says):
    bad = replace(traffic.requests(1), **{column: value})
    with pytest.raises(ValueError, match=says):
        agent.decide(bad)
    assert agent.store.next_seq == 0


def test_reward_outside_its_range_is_refused_with_the_range(agent, traffic):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(5)))
    outcomes.reward[3] = 1.5
    with pytest.raises(AgentError, match=r"reward row 3: 1.5 .* \[0.0, 1.0\]"):
        agent.observe(outcomes)
    assert agent.store.next_seq == 5


def test_infinite_reward_is_refused(agent, traffic):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(2)))
    outcomes.reward[0] = np.inf
    with pytest.raises(AgentError, match="inf"):
        agent.observe(outcomes)


def test_outcome_of_a_decision_that_was_never_made(agent, traffic):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(2)))
    with pytest.raises(UnknownDecisionError, match="d9 does not exist"):
        agent.observe(replace(outcomes, number=np.array([1, 9])))


def test_the_same_outcome_again_is_dropped_and_counted(agent, traffic):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(20)))
    agent.observe(outcomes)
    rows = agent.store.next_seq
    accepted = agent.observe(outcomes)
    assert (accepted.rows, accepted.duplicates) == (0, 20)
    assert agent.store.next_seq == rows
    assert (
        agent.answers.view().moments.exp.count.sum() + agent.answers.view().moments.obs.count.sum()
        == 20
    )


def test_an_outcome_that_contradicts_itself_is_a_conflict(agent, traffic):
    outcomes = traffic.outcomes(agent.decide(traffic.requests(20)))
    agent.observe(outcomes)
    other = replace(outcomes, reward=1.0 - outcomes.reward)
    with pytest.raises(ConflictError, match="reward of decision d0"):
        agent.observe(other)


def test_repeats_are_known_even_after_they_left_the_table(short_chunks, agent, traffic):
    first = traffic.outcomes(agent.decide(traffic.requests(20)))
    agent.observe(first)
    run(agent, traffic, 60, size=200)
    assert agent.light.pending.base > 20
    accepted = agent.observe(first)
    assert (accepted.rows, accepted.duplicates) == (0, 20)
    with pytest.raises(ConflictError, match="d0"):
        agent.observe(replace(first, reward=1.0 - first.reward))


def test_rewards_after_expiry_are_counted_and_not_used(agent, traffic):
    decided = agent.decide(traffic.requests(10))
    assert agent.expire(traffic.at + 1000.0) == 10
    accepted = agent.observe(traffic.outcomes(decided))
    assert (accepted.rows, accepted.late) == (0, 10)
    assert agent.late == 10
    moments = agent.answers.view().moments
    assert moments.exp.count.sum() + moments.obs.count.sum() == 0
    assert agent.answers.view().certified.overall.missing == 10


def test_undelivered_assignments_become_observations(agent, traffic):
    decided = agent.decide(traffic.requests(400))
    outcomes = replace(traffic.outcomes(decided), delivered=~decided.randomized)
    agent.observe(outcomes)
    moments = agent.answers.view().moments
    assert decided.randomized.any()
    assert moments.exp.count.sum() == 0
    assert moments.obs.count.sum() == 400


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_budget_is_never_exceeded_by_one_and_is_fully_spent(traffic, size):
    agent = Agent(config(budget=BudgetConfig(requests=50)), MemoryStore(), KEY)
    decided = [agent.decide(traffic.requests(size)) for _ in range(1000 // size)]
    randomized = np.concatenate([batch.randomized for batch in decided])
    capped = np.concatenate([batch.capped for batch in decided])
    rate = np.concatenate([batch.rate for batch in decided])
    assert randomized.sum() == 50
    last = np.flatnonzero(randomized)[-1]
    # Capped from the request after the last randomized one on: a rule known before each draw.
    assert not capped[: last + 1].any()
    assert capped[last + 1 :].all()
    assert (rate[capped] == 0).all()


def test_batch_size_does_not_change_a_decision(traffic):
    requests = traffic.requests(64)
    whole = Agent(config(), MemoryStore(), KEY).decide(requests)
    single = Agent(config(), MemoryStore(), KEY)
    for row in range(64):
        columns = {name: getattr(requests, name) for name in requests.__slots__}
        one = type(requests)(
            **{k: v if v is None else v[row : row + 1] for k, v in columns.items()}
        )
        decision = single.decide(one)
        assert decision.model[0] == whole.model[row]
        assert decision.uniform[0] == whole.uniform[row]
        assert (decision.probabilities[0] == whole.probabilities[row]).all()


def test_observing_only_randomizes_nothing_and_certifies_nothing(agent, traffic):
    agent.state.observing_only = True
    run(agent, traffic, 10)
    assert agent.light.randomized == 0
    assert agent.answers.view().certified.overall.rows == 0


def test_another_configuration_is_refused_on_the_same_store(agent):
    with pytest.raises(AgentError, match="another configuration: name"):
        Agent(config(name="other"), agent.store, KEY)


def test_another_key_is_refused_on_the_same_store(agent):
    with pytest.raises(AgentError, match="the key is that of another store"):
        Agent(config(), agent.store, bytes(32))


def test_an_agent_without_its_key_reads_but_does_not_decide(agent, traffic):
    run(agent, traffic, 3)
    reader = Agent(config(), agent.store, None)
    assert reader.fold.to_bytes() == agent.fold.to_bytes()
    with pytest.raises(AgentError, match="without its key"):
        reader.decide(traffic.requests(1))


def test_simulations_count_once_and_contradictions_are_refused(agent, traffic):
    rows = traffic.simulations()
    assert agent.simulate(rows).rows == 150
    again = agent.simulate(rows)
    assert (again.rows, again.duplicates) == (0, 150)
    with pytest.raises(ConflictError, match="other outputs"):
        agent.simulate(replace(rows, outputs=rows.outputs + 1.0))
    assert (agent.answers.view().moments.simulation.count.sum(axis=0) == 50).all()


def test_ineligible_models_are_never_drawn_and_such_rows_not_certified(agent, traffic):
    eligible = np.ones((600, len(MODELS)), dtype=bool)
    eligible[::2, 1] = False
    eligible[::3] = False
    decided = agent.decide(replace(traffic.requests(600), eligible=eligible))
    drawn = np.flatnonzero(decided.randomized)
    assert eligible[drawn, decided.model[drawn]].all()
    assert (decided.rate[::3] == 0).all()
    agent.observe(traffic.outcomes(decided))
    assert agent.answers.view().certified.overall.rows == eligible.all(axis=1).sum()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_runs_a_whole_stream(preset, traffic):
    gate, assignment = PRESETS[preset]
    policy = PolicyConfig(gate=gate, assignment=assignment, rate=0.3, estimator="hierarchical")
    agent = Agent(config(policy=policy), MemoryStore(), KEY)
    agent.simulate(traffic.simulations())
    agent.ingest(traffic.observations(200))
    agent.refresh()
    run(agent, traffic, 12, size=60)
    assert agent.answers.recommendation().model in MODELS
    assert agent.light.randomized > 100


def test_no_single_model_beats_skilled_routing(agent, traffic):
    """Users who pick the right model for each context beat every single model."""
    rng = np.random.default_rng(9)
    for _ in range(20):
        requests = traffic.requests(200)
        skilled = (requests.context % len(MODELS)).astype(np.int64)
        decided = agent.decide(replace(requests, routed=skilled))
        right = decided.model == skilled
        reward = (rng.random(200) < np.where(right, 0.9, 0.3)).astype(float)
        agent.observe(replace(traffic.outcomes(decided), reward=reward))
    answer = agent.answers.recommendation("ipw")
    assert (answer.action, answer.leaning, answer.favoured) == ("keep", "keep", "(today's routing)")
    assert "no model looks better than today's routing" in answer.sentence
    assert answer.routing_value == pytest.approx(0.9, abs=0.03)


def test_rows_that_the_store_refuses_are_not_in_the_state(agent, traffic, monkeypatch):
    def refuse(batch):
        raise FullStoreError("the disk is full")

    agent.decide(traffic.requests(5))
    before = agent.fold.to_bytes()
    with monkeypatch.context() as failing:
        failing.setattr(agent.store, "append", refuse)
        with pytest.raises(FullStoreError):
            agent.decide(traffic.requests(5))
    assert agent.fold.to_bytes() == before
    assert agent.decide(traffic.requests(5)).number[0] == 5


def test_a_change_that_was_not_carried_out_is_found_again(agent, traffic, monkeypatch):
    def refuse(*_):
        raise FullStoreError("the disk is full")

    run(agent, traffic, 1)
    models = [ModelConfig(name=name, price=0.01, retired=name == "fast") for name in MODELS]
    changed = config(models=models)
    with monkeypatch.context() as failing:
        failing.setattr(Controls, "open_era", refuse)
        with pytest.raises(FullStoreError):
            Agent(changed, agent.store, KEY)
    again = Agent(changed, agent.store, KEY)
    assert again.rule.era == 1
    assert again.rule.active.tolist() == [True, False, True]
