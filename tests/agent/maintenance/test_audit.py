"""The audit passes an honest log and names what was tampered with."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, PolicyConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.audit_chain import check_chain
from equipoise.store.sqlite import SqliteStore


@pytest.fixture(params=["uniform", "thompson", "top-two"])
def settings(request):
    policy = PolicyConfig(gate="fixed-rate", assignment=request.param, rate=0.3)
    return config(policy=policy, budget=BudgetConfig(requests=150))


@pytest.fixture
def log(tmp_path, settings):
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(4))
        agent.simulate(traffic.simulations())
        agent.ingest(traffic.observations(100))
        run(agent, traffic, 16)
    return path


def audited(path, settings, key=KEY):
    with SqliteStore(path, read_only=True) as store:
        return audit(store, settings, key)


def test_an_honest_log_is_clean(log, settings):
    result = audited(log, settings)
    assert result.faults == []
    assert result.clean
    assert result.uniforms_redrawn
    assert (result.decisions, result.outcomes, result.randomized) == (640, 640, 150)
    assert result.capped > 0


@pytest.mark.forges
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("uniform = uniform / 2", "uniform the key does not give"),
        ("rate = rate * 1.001", "rate that rule"),
        ("model = (model + 1) % 3", "does not follow from its own uniform"),
        ("randomized = 1 - randomized", "does not follow from its own uniform"),
        ("probabilities = '[0.4,0.3,0.3]'", "probabilities that rule"),
    ],
)
def test_a_changed_decision_is_found(log, settings, change, says):
    with sqlite3.connect(log) as connection:
        changed = connection.execute(f"UPDATE decisions SET {change} WHERE number = 77").rowcount
    assert changed == 1
    result = audited(log, settings)
    assert not result.clean
    assert any("d77" in fault and says in fault for fault in result.faults)


@pytest.mark.forges
def test_a_capped_decision_that_claims_a_rate_is_found(log, settings):
    with sqlite3.connect(log) as connection:
        (number,) = connection.execute(
            "SELECT number FROM decisions WHERE capped = 1 AND uniform > 0.4 LIMIT 1"
        ).fetchone()
        connection.execute("UPDATE decisions SET rate = 0.3 WHERE number = ?", (number,))
    faults = audited(log, settings).faults
    assert [fault for fault in faults if f"d{number} has a rate that rule" in fault]


def test_another_key_is_not_the_stores(log, settings):
    with pytest.raises(AgentError, match=r"log\.db\.key is not the key of log\.db"):
        audited(log, settings, bytes(32))


def test_without_the_key_uniforms_are_taken_as_logged(log, settings):
    result = audited(log, settings, None)
    assert result.clean
    assert not result.uniforms_redrawn


@pytest.mark.forges
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DELETE FROM chain WHERE kind = 'log' AND position = 512", "the digest after 512 rows is"),
        ("DELETE FROM simulations WHERE seq = 20", "rows 0 to 255 are not those that were written"),
    ],
)
def test_what_is_missing_is_named_once(log, change, says):
    with sqlite3.connect(log) as connection:
        assert connection.execute(change).rowcount == 1
    with SqliteStore(log, read_only=True) as store:
        (fault,) = check_chain(store).faults
    assert fault.startswith(says)
