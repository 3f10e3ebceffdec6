"""Eras: certified sums start afresh, estimators go on, and a restart finds the same."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.policy_snapshot import KnownRewards
from equipoise.agent.answers.status import State
from equipoise.agent.config import CertifyConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.state.certified_sums import Spec
from equipoise.store.memory import MemoryStore
from equipoise.store.sqlite import SqliteStore


def two_eras(store, active=None):
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(2))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 9)
    agent.controls.open_era("drift: rewards fell", at=9.0, active=active)
    return agent, traffic


def test_certified_sums_start_afresh_and_estimates_go_on():
    agent, traffic = two_eras(MemoryStore())
    before = agent.answers.view().moments.exp.count.sum()
    assert agent.answers.certified().rows == 0
    assert agent.answers.status().state is State.RESTARTED
    assert (agent.answers.certified().contrasts <= 0.0).all()
    run(agent, traffic, 2)
    assert agent.answers.certified().rows == 80
    assert agent.answers.view().moments.exp.count.sum() > before


def test_a_row_belongs_to_the_era_it_was_decided_in():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(2))
    old = agent.decide(traffic.requests(30))
    agent.controls.open_era("a new version of fast")
    new = agent.decide(traffic.requests(20))
    agent.observe(traffic.outcomes(new))
    assert agent.answers.certified().rows == 0
    agent.observe(traffic.outcomes(old))
    assert agent.answers.certified().rows == 20


def test_of_an_old_era_only_what_is_expected_is_frozen_into_a_new_one():
    """Centres and predictions are the mean rewards known so far, on which no validity rests."""
    agent, traffic = two_eras(MemoryStore())
    known = KnownRewards.of(agent.answers.view().moments).means
    for _ in range(2):
        frozen = agent.rule.frozen[0]
        assert (frozen.tuning.factor == 0.0).all()
        np.testing.assert_allclose(frozen.tuning.offset, known)
        np.testing.assert_allclose(frozen.centres.low, np.broadcast_to(known, (3, 4)))
        assert frozen.seen is None or not frozen.seen.any()
        agent.refresh()
    run(agent, traffic, 3)
    assert not np.allclose(agent.rule.frozen[0].centres.low, known)


def test_a_model_that_is_left_out_is_never_drawn_and_the_others_stay_certified():
    agent, traffic = two_eras(MemoryStore(), active=np.array([True, False, True]))
    for _ in range(20):
        decided = agent.decide(traffic.requests(60))
        assert not (decided.randomized & (decided.model == 1)).any()
        agent.observe(traffic.outcomes(decided))
        agent.refresh()
    certified = agent.answers.certified()
    assert certified.rows == 1200
    assert certified.contrasts[0, 1] == -1.0
    assert (certified.lower[1], certified.upper[1]) == (0.0, 1.0)
    assert certified.contrasts[2, 0] > -0.9
    assert np.isfinite(certified.contrasts).all()
    assert audit(agent.store, config(), KEY).clean


def test_an_era_needs_two_models():
    agent, _ = two_eras(MemoryStore())
    with pytest.raises(AgentError, match="two models"):
        agent.controls.open_era("everything is on fire", active=np.array([True, False, False]))


def test_a_restart_finds_the_era_its_models_and_the_same_bits(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = two_eras(store, active=np.array([True, False, True]))
        run(agent, traffic, 4)
        state, answer = agent.fold.to_bytes(), agent.answers.certified()
        agent.controls.pause("for the night", at=5.0)
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(config(), store, KEY)
        assert again.fold.to_bytes() == state
        assert again.rule.era == 1
        assert again.rule.active.tolist() == [True, False, True]
        assert again.answers.certified().contrasts.tobytes() == answer.contrasts.tobytes()
        assert again.answers.status().state is State.PAUSED
        assert not again.decide(Traffic(np.random.default_rng(1)).requests(50)).randomized.any()
        again.controls.resume(at=6.0)
        again.controls.resume(at=7.0)
    with SqliteStore(tmp_path / "log.db") as store:
        assert Agent(config(), store, KEY).state.paused is None


def test_an_era_that_was_opened_and_never_got_a_rule_gets_one():
    """As if the process had ended right after the era was kept."""
    store = MemoryStore()
    agent, _ = two_eras(store)
    newest = agent.state.eras.newest
    agent.state.eras.open(2, "drift again", 12.0, np.ones(3, dtype=bool), newest)
    again = Agent(config(), store, KEY)
    assert again.rule.era == 2
    assert again.answers.certified().rows == 0


def test_a_lifetime_promise_spends_less_in_every_era():
    """6 / (pi^2 j^2) of delta in era j = 1, 2, ...: never more than delta in all."""
    agent, _ = two_eras(MemoryStore())
    spec = Spec.of(config())
    assert spec.neutral()
    plain = [agent.state.certifier.delta(era, 0) for era in range(50)]
    lifetime = Agent(config(certify=CertifyConfig(lifetime=True)), MemoryStore(), KEY)
    spent = [lifetime.state.certifier.delta(era, 0) for era in range(50)]
    assert set(plain) == {0.05}
    assert spent[0] == pytest.approx(0.05 * 6 / np.pi**2)
    assert spent[1] == pytest.approx(spent[0] / 4)
    assert sum(spent) < 0.05
