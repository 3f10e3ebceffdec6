"""What goes on after the decision: nothing, the smallest share, or all; as a rule says it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.answers.status import Activity, Standing, State
from equipoise.agent.config import BudgetConfig, ExperimentConfig, PolicyConfig, UnitsConfig
from equipoise.agent.experiment import Experiment
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.opening import with_after_decision
from equipoise.agent.lifecycle.rules import Rule
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import Closure, DecisionBatch
from equipoise.store.contract import Store
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

POLICY = PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.5, estimator="ipw")


def settings(after, **changes) -> ExperimentConfig:
    return config(budget=BudgetConfig(after_decision=after), policy=POLICY, **changes)


def play(agent, traffic, batches, size=100):
    """Decide and observe: the last model is always best. Returns the decisions."""
    made = []
    for _ in range(batches):
        decisions = agent.decide(traffic.requests(size))
        best = (decisions.model == 2).astype(float)
        agent.observe(replace(traffic.outcomes(decisions), reward=best))
        made.append(decisions)
    return made


def decided(after, store: Store | None = None, **changes):
    """An agent whose status is decided, right after the rule that was frozen then."""
    agent = Agent(settings(after, **changes), store or MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(3))
    for _ in range(20):
        play(agent, traffic, 1)
        agent.refresh(review=False)
        if agent.answers.status().state is State.DECIDED:
            return agent, traffic
    raise AssertionError("it was not decided")


def clean(agent):
    found = audit(agent.store, agent.config, KEY)
    assert found.faults == []
    assert not [why for why in found.unproven if why.startswith("why")]


def test_stop_randomizes_nothing_from_the_rule_that_is_frozen_then(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = decided("stop", store)
        before = agent.answers.certified()
        (made,) = play(agent, traffic, 1)
        assert not made.randomized.any()
        assert not made.rate.any()
        assert (made.model == made.routed).all()
        assert made.capped.all()
        assert set(made.closed_by.tolist()) == {Closure.DECIDED}
        # The rule says it, and with which probabilities it would have drawn.
        assert agent.rule.stops
        assert (made.probabilities > 0.0).all()
        assert agent.answers.activity() is Activity.DECIDED
        agent.refresh(review=False)
        # What is certified is about the draws, and stands as it was.
        after = agent.answers.certified()
        assert after.rows == before.rows
        np.testing.assert_array_equal(after.contrasts, before.contrasts)
        assert agent.answers.status().state is State.DECIDED
        clean(agent)
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(agent.config, store, KEY)
        assert again.rule.stops
        assert again.answers.activity() is Activity.DECIDED
        (made,) = play(again, traffic, 1)
        assert not made.randomized.any()
        floors = next(each for each in again.answers.checks() if each.name == "floors")
        assert "after the decision" in floors.sentence
        assert floors.status == "ok"
        again.controls.open_era("somebody wants to know again")
        assert again.answers.activity() is Activity.RANDOMIZING
        (made,) = play(again, traffic, 1)
        assert 30 < np.count_nonzero(made.randomized) < 70
        clean(again)


def test_what_is_served_as_routed_is_still_watched_and_drift_begins_an_era_that_randomizes():
    agent, traffic = decided("stop")
    for _ in range(30):
        play(agent, traffic, 1)
    agent.refresh()
    assert agent.rule.era == 0
    for _ in range(30):
        decisions = agent.decide(traffic.requests(100))
        rare = (traffic.rng.random(100) < 0.02).astype(float)
        agent.observe(replace(traffic.outcomes(decisions), reward=rare))
    agent.refresh()
    assert agent.state.eras.reason(agent.rule.era).startswith("drift: Rewards of traffic as")
    assert agent.answers.activity() is Activity.RANDOMIZING
    (made,) = play(agent, traffic, 1)
    assert made.randomized.any()


def test_ramp_goes_on_at_the_smallest_rate_for_the_checks_alone():
    agent, traffic = decided("ramp")
    lowest, before = agent.config.limits.rate_min, agent.answers.certified()
    values = agent.answers.estimates(["ipw", "doubly-robust"])
    made = play(agent, traffic, 20)
    rates = np.concatenate([each.rate for each in made])
    assert (rates == lowest).all()
    assert lowest == 0.01
    assert sum(np.count_nonzero(each.randomized) for each in made) > 0
    assert not any(each.capped.any() for each in made)
    assert agent.answers.activity() is Activity.RAMP
    # Their weights are fifty times those of the rows before: in the sums they would drown them.
    after, again = agent.answers.certified(), agent.answers.estimates(["ipw", "doubly-robust"])
    assert (after.rows, after.randomized) == (before.rows, before.randomized)
    np.testing.assert_array_equal(after.contrasts, before.contrasts)
    np.testing.assert_array_equal(again["ipw"].values, values["ipw"].values)
    np.testing.assert_array_equal(again["ipw"].covariance, values["ipw"].covariance)
    for _ in range(20):
        play(agent, traffic, 5)
        agent.refresh()
        assert agent.answers.status().state is State.DECIDED, "it stays decided"
        assert agent.rule.after_decision == "ramp"
    clean(agent)


def test_a_model_that_changes_under_ramp_is_noticed():
    policy = msgspec.structs.replace(POLICY, rate_min=0.2)
    agent = Agent(
        config(budget=BudgetConfig(after_decision="ramp"), policy=policy), MemoryStore(), KEY
    )
    traffic = Traffic(np.random.default_rng(3))
    for _ in range(60):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(100))))
        agent.refresh()
    assert agent.rule.after_decision == "ramp"
    (winner,) = (agent.models.index(name) for name in agent.answers.status().models)
    for _ in range(60):
        decisions = agent.decide(traffic.requests(100))
        outcomes = traffic.outcomes(decisions)
        # Only draws of the winner change, so traffic as routed shows nothing.
        changed = decisions.randomized & (decisions.model == winner)
        agent.observe(replace(outcomes, reward=np.where(changed, 0.0, outcomes.reward)))
    agent.refresh()
    assert agent.state.eras.reason(agent.rule.era).startswith("drift")
    assert agent.rule.after_decision is None


def test_without_a_choice_an_agent_goes_on():
    agent, traffic = decided("continue")
    (made,) = play(agent, traffic, 1)
    assert made.randomized.any()
    assert agent.rule.after_decision is None
    # And its rules are those that were frozen before there was a choice, to the byte.
    other, _ = decided(None)
    assert other.rule.rule_id == agent.rule.rule_id
    assert "after_decision" not in agent.rule.encode()
    assert agent.config.to_json() == other.config.to_json()
    assert "after_decision" not in agent.config.to_json()


@pytest.mark.forges
def test_the_audit_finds_a_draw_that_the_rule_had_stopped(monkeypatch):
    agent, traffic = decided("stop")
    with monkeypatch.context() as patch:
        patch.setattr(Rule, "stops", property(lambda rule: False))
        (made,) = play(agent, traffic, 1)
    assert made.randomized.any()
    found = audit(agent.store, agent.config, KEY)
    assert any("is not capped, and a stop stood" in str(fault) for fault in found.faults)


def test_a_unit_that_was_drawn_before_keeps_its_model():
    """Served otherwise from then on, it would count against what it had drawn."""
    agent = Agent(settings("stop", units=UnitsConfig(ttl=50.0)), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(5))
    for _ in range(30):
        play(agent, traffic, 1)
        requests = traffic.requests(40)
        opened: DecisionBatch = agent.decide(requests)
        agent.observe(traffic.outcomes(opened))
        traffic.at += 60.0
        agent.expire(traffic.at)
        agent.refresh(review=False)
        if agent.rule.stops:
            break
    assert agent.rule.stops
    fresh, known = traffic.requests(40), replace(requests, at=requests.at + 1.0)
    followed, new = agent.decide(known), agent.decide(fresh)
    assert opened.randomized.any()
    np.testing.assert_array_equal(followed.randomized, opened.randomized)
    np.testing.assert_array_equal(
        followed.model[opened.randomized], opened.model[opened.randomized]
    )
    assert not new.randomized.any()
    assert set(new.closed_by.tolist()) == {Closure.DECIDED}
    clean(agent)


@pytest.mark.parametrize(
    ("stored", "declared", "means"),
    [
        ("new", None, "stop"),
        ("new", "ramp", "ramp"),
        (None, None, "continue"),
        (None, "stop", "stop"),
        ("stop", None, "stop"),
        ("ramp", None, "ramp"),
        ("ramp", "continue", "continue"),
    ],
)
def test_what_is_left_out_is_what_the_store_has(stored, declared, means):
    """A store from before there was a choice says nothing, and goes on as it did."""
    store = MemoryStore()
    if stored != "new":
        Agent(settings(stored), store, KEY)
        assert ("after_decision" in stored_config.load(store)) is (stored is not None)
    asked = with_after_decision(settings(declared), store)
    agent = Agent(asked, store, KEY)
    assert agent.config.budget.after == means
    kept = msgspec.json.decode(stored_config.load(store))["budget"]
    assert kept.get("after_decision", "continue") == means


def test_the_front_door_stops_by_itself_and_says_so(tmp_path):
    declared = {
        "name": "chat",
        "models": [{"name": "large"}, {"name": "small"}],
        "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "ipw"},
    }
    with Experiment.open(tmp_path / "chat.db", declared) as chat:
        for number in range(600):
            choice = chat.decide(f"r{number}", routed="small", features=[])
            chat.outcome(choice, reward=1.0 if choice.model == "large" else 0.0)
        assert chat.activity() is Activity.RANDOMIZING
        assert chat.refresh().state is State.DECIDED
        assert chat.activity() is Activity.DECIDED
        assert not any(
            chat.decide(f"s{number}", routed="small", features=[]).randomized
            for number in range(50)
        )
    with Experiment.open(tmp_path / "chat.db", declared) as chat:
        assert chat.activity() is Activity.DECIDED


def test_models_that_are_alike_stop_it_where_none_of_them_is_near_all_others(monkeypatch):
    """Each may beat another loser: then several are left, and no single one is the winner."""
    agent, traffic = Agent(settings("stop"), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(50))))
    agent.refresh()
    assert not agent.rule.stops
    monkeypatch.setattr(Standing, "winner", lambda self: None)
    monkeypatch.setattr(Standing, "equivalent", lambda self: (0, 1))
    agent.refresh()
    assert agent.rule.stops
    assert agent.answers.status().state is State.EQUIVALENT
