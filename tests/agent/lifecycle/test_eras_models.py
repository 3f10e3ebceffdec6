"""Adding, retiring and replacing a model mid-flight: what is known about the others stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError, ModelConfig, PolicyConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.export import tables
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore

OLD = [ModelConfig(name=name, price=0.01) for name in MODELS]
POLICY = PolicyConfig(assignment="top-two", rate=0.4)


def experiment(models):
    return config(models=models, policy=POLICY)


def with_fourth(traffic, agent, n=60):
    """Requests and outcomes among four models; Traffic itself knows three."""
    requests = traffic.requests(n)
    decided = agent.decide(replace(requests, routed=requests.routed % 3))
    agent.observe(traffic.outcomes(decided))
    return decided


@pytest.fixture
def begun(tmp_path):
    """A store after 600 requests among three models, with a checkpoint."""
    path, traffic = tmp_path / "log.db", Traffic(np.random.default_rng(3))
    with SqliteStore(path) as store:
        agent = Agent(experiment(OLD), store, KEY)
        agent.ingest(traffic.observations(300))
        agent.simulate(traffic.simulations())
        run(agent, traffic, 10, size=60)
        agent.checkpoint()
        state = agent.answers.view().moments
        counts = state.exp.count.sum(axis=0), state.obs.count.sum(axis=0)
        values = agent.answers.estimates(["ipw"])["ipw"].values
    return path, traffic, counts, values


def test_a_model_that_is_added_starts_an_era_and_forgets_nothing_of_the_others(begun):
    path, traffic, counts, values = begun
    settings = experiment([*OLD, ModelConfig(name="new", price=0.02)])
    with SqliteStore(path) as store:
        agent = Agent(settings, store, KEY, at=9.0)
        assert agent.rule.era == 1
        assert agent.rule.active.tolist() == [True] * 4
        moments = agent.answers.view().moments
        np.testing.assert_array_equal(moments.exp.count.sum(axis=0), [*counts[0], 0])
        np.testing.assert_array_equal(moments.obs.count.sum(axis=0), [*counts[1], 0])
        np.testing.assert_allclose(
            agent.answers.estimates(["ipw"])["ipw"].values[:3], values, rtol=1e-12
        )
        decided = [with_fourth(traffic, agent) for _ in range(10)]
        drawn = np.concatenate([batch.model[batch.randomized] for batch in decided])
        assert (drawn == 3).any()
        agent.refresh()
        assert agent.answers.certified().rows == 600
        assert np.isfinite(agent.answers.estimates(["ipw"])["ipw"].values[3])
        assert all(check.status != "alarm" for check in agent.answers.checks())
        state = agent.fold.to_bytes()
    with SqliteStore(path) as store:
        again = Agent(settings, store, KEY)
        assert again.rule.era == 1
        assert again.fold.to_bytes() == state
        assert audit(store, settings, KEY).clean
        frame = tables(store, settings)["decisions"]
        assert frame["p_new"].isna().sum() == 600
        assert frame["p_new"].notna().sum() == 600


def test_a_retired_model_gets_nothing_more_and_the_others_go_on(begun):
    path, traffic, counts, _ = begun
    settings = experiment([OLD[0], ModelConfig(name="fast", price=0.01, retired=True), OLD[2]])
    with SqliteStore(path) as store:
        agent = Agent(settings, store, KEY, at=9.0)
        assert agent.rule.active.tolist() == [True, False, True]
        for _ in range(10):
            decided = agent.decide(traffic.requests(60))
            assert not (decided.randomized & (decided.model == 1)).any()
            agent.observe(traffic.outcomes(decided))
        assert agent.answers.view().moments.exp.count.sum(axis=0)[1] == counts[0][1]
        assert agent.answers.certified().rows == 600
        assert audit(store, settings, KEY).clean
    with SqliteStore(path) as store:
        back = Agent(experiment(OLD), store, KEY, at=10.0)
        assert back.rule.era == 2
        assert back.rule.active.all()


def test_a_model_is_replaced_by_adding_one_and_retiring_another(begun):
    path, traffic, _, _ = begun
    settings = experiment(
        [
            OLD[0],
            ModelConfig(name="fast", price=0.01, retired=True),
            OLD[2],
            ModelConfig(name="fast-2"),
        ]
    )
    with SqliteStore(path) as store:
        agent = Agent(settings, store, KEY, at=9.0)
        assert agent.rule.active.tolist() == [True, False, True, True]
        assert "fast retired" in agent.state.eras.reason(1)
        assert "fast-2 added" in agent.state.eras.reason(1)
        decided = with_fourth(traffic, agent, 400)
        assert set(decided.model[decided.randomized]) == {0, 2, 3}


def test_a_guardrail_that_took_a_model_out_is_not_undone_by_adding_another(begun):
    path, _, _, _ = begun
    with SqliteStore(path) as store:
        agent = Agent(experiment(OLD), store, KEY)
        agent.controls.open_era("guardrail: slow is too slow", active=np.array([False, True, True]))
    with SqliteStore(path) as store:
        agent = Agent(experiment([*OLD, ModelConfig(name="new")]), store, KEY)
        assert agent.rule.active.tolist() == [False, True, True, True]


def test_models_that_move_or_vanish_are_refused(begun):
    path, _, _, _ = begun
    for models in (OLD[:2], [OLD[1], OLD[0], OLD[2]]):
        with SqliteStore(path) as store, pytest.raises(AgentError, match="added at the end"):
            Agent(experiment(models), store, KEY)


def test_two_models_must_be_left():
    models = [ModelConfig(name="a"), ModelConfig(name="b", retired=True)]
    with pytest.raises(ConfigError, match="a not retired, expected 2 or more"):
        experiment(models).checked()


def test_a_model_that_is_retired_from_the_beginning_stays_out():
    models = [OLD[0], ModelConfig(name="fast", price=0.01, retired=True), OLD[2]]
    agent, traffic = (
        Agent(experiment(models), MemoryStore(), KEY),
        Traffic(np.random.default_rng(6)),
    )
    run(agent, traffic, 2)
    agent.refresh()
    assert agent.rule.active.tolist() == [True, False, True]
    assert agent.state.eras.active(0).tolist() == [True, False, True]
