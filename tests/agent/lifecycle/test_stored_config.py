"""A store that is opened, or a daemon that reads its file again, with another configuration."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    DeclaredPolicy,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.maintenance.audit import audit
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

VERSIONS = [ModelConfig(name=name, price=0.01, version="2") for name in MODELS]


def begun(store, batches=8):
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(4))
    agent.simulate(traffic.simulations())
    run(agent, traffic, batches)
    return agent, traffic


@pytest.mark.parametrize(
    "changed",
    [
        {"models": VERSIONS},
        {"policy": PolicyConfig(assignment="uniform", rate=0.2)},
        {"policy": PolicyConfig(assignment="uniform", rate=0.3, delta=0.01)},
        {"reward": RewardConfig(low=0.0, high=1.0, window=100.0, missing=0.5)},
        {"certify": CertifyConfig(segments=[SegmentConfig(name="left", column="a", high=0.0)])},
        {
            "certify": CertifyConfig(
                policies=[
                    DeclaredPolicy(
                        name="split", column="a", at_least=0.0, model="fast", otherwise="slow"
                    )
                ]
            )
        },
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_changes_the_meaning_of_certified_sums_starts_an_era(changed, tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = begun(store)
        agent.checkpoint()
    settings = config(**changed)
    with SqliteStore(tmp_path / "log.db") as store:
        agent = Agent(settings, store, KEY, at=5.0)
        assert agent.rule.era == 1
        assert agent.state.eras.reason(1).startswith("configured anew: ")
        assert agent.answers.certified().rows == 0
        run(agent, traffic, 3)
        assert agent.answers.certified().rows == 120
        state, answer = agent.fold.to_bytes(), agent.answers.certified()
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(settings, store, KEY)
        assert again.rule.era == 1
        assert again.answers.certified().contrasts.tobytes() == answer.contrasts.tobytes()
        assert again.fold.certified.arrays().keys() == agent.fold.certified.arrays().keys()
        assert len(again.fold.to_bytes()) == len(state)
        assert stored_config.load(store) == settings.to_json()
        assert audit(store, settings, KEY).clean


def test_the_reason_of_an_era_names_the_model_and_not_its_position():
    store = MemoryStore()
    begun(store)
    models = [msgspec.structs.replace(VERSIONS[0], version=""), *VERSIONS[1:]]
    agent = Agent(config(models=models), store, KEY, at=5.0)
    named = ", ".join(f"version of {each.name}" for each in models[1:])
    assert agent.state.eras.reason(1) == f"configured anew: {named}"
    name = models[1].name
    for retired in (True, False):
        turned = [
            msgspec.structs.replace(each, retired=retired and each.name == name) for each in models
        ]
        words = stored_config.in_words("models[1].retired", config(models=turned))
        assert words == f"{name} {'retired' if retired else 'compared again'}"
    assert stored_config.in_words("models[1]", config()) == f"{name} added"
    assert stored_config.in_words("policy.delta", config()) == "policy.delta"


def test_what_may_change_at_any_time_is_taken_over_and_kept():
    store = MemoryStore()
    agent, traffic = begun(store)
    rows = agent.answers.certified().rows
    settings = config(
        policy=PolicyConfig(assignment="top-two", rate=0.3, epsilon=0.1),
        budget=BudgetConfig(requests=agent.light.randomized + 7),
    )
    found = agent.reconfigure(settings, at=9.0)
    assert {change.key for change in found} == {
        "policy.assignment",
        "policy.epsilon",
        "budget.requests",
    }
    assert agent.rule.era == 0
    assert agent.rule.allocation.assignment_name == "top-two"
    assert agent.decide(traffic.requests(300)).randomized.sum() == 7
    assert agent.answers.certified().rows == rows
    again = Agent(settings, store, KEY)
    assert again.rule.era == 0
    assert again.rule.rule_id == agent.rule.rule_id
    assert audit(store, settings, KEY).clean


def test_the_same_configuration_again_changes_nothing():
    store = MemoryStore()
    agent, _ = begun(store)
    rules = len(store.rules())
    assert agent.reconfigure(config()) == ()
    assert Agent(config(), store, KEY).rule.era == 0
    assert len(store.rules()) == rules
    assert [name for name in store.settings() if name.startswith("config")] == ["config"]


def test_an_era_is_for_the_next_start_and_says_so():
    agent, _ = begun(MemoryStore())
    with pytest.raises(AgentError, match=r"policy\.delta .*: at the next start, in a new era"):
        agent.reconfigure(config(policy=PolicyConfig(assignment="uniform", rate=0.3, delta=0.01)))
    assert agent.config == config()


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"reward": RewardConfig(low=0.0, high=5.0, window=100.0)}, r"reward\.high"),
        ({"models": config().models[::-1]}, "models"),
        ({"units": UnitsConfig(ttl=5.0)}, "units"),
        ({"name": "other"}, "name"),
    ],
)
def test_what_the_log_rests_on_is_refused_with_the_reason(changed, key):
    store = MemoryStore()
    begun(store)
    with pytest.raises(AgentError, match=rf"{key}.*start a new store"):
        Agent(config(**changed), store, KEY)
    assert Agent(config(), store, KEY).rule.era == 0


def test_a_reader_cannot_change_an_experiment():
    store = MemoryStore()
    begun(store)
    other = msgspec.structs.replace(config(), budget=BudgetConfig(requests=5))
    with pytest.raises(AgentError, match="another configuration"):
        Agent(other, store, None)


def test_an_end_between_the_era_and_the_configuration_opens_one_more_era():
    """The configuration is kept last: the change is found again, and nothing is mixed."""
    store = MemoryStore()
    agent, _ = begun(store)
    agent.controls.open_era("configured anew: policy.delta", at=3.0)
    settings = config(policy=PolicyConfig(assignment="uniform", rate=0.3, delta=0.01))
    again = Agent(settings, store, KEY, at=4.0)
    assert again.rule.era == 2
    assert Agent(settings, store, KEY).rule.era == 2
