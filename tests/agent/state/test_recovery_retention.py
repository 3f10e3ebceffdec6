"""A log that was cut short answers, decides and audits as the whole one does."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from traffic import KEY, MODELS, SETTINGS, Traffic, config, steps

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    CertifyConfig,
    ModelConfig,
    PolicyConfig,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.audit import audit
from equipoise.store.sqlite import SqliteStore

LEFT = SegmentConfig(name="left", column="a", high=0.1)


def played(path, settings, trimming):
    """The stream of test_interrupted; with `trimming` old rows go and the store is opened anew."""
    store = SqliteStore(path)
    agent, answers = Agent(settings, store, KEY), []
    calls = steps(agent)
    next(calls)
    call, number = calls.send(None), 0
    while True:
        name, argument = call
        result = attrgetter(name)(agent)(argument)
        number += 1
        answers.append(
            [
                agent.answers.certified(part).contrasts.tobytes()
                for part in range(agent.state.certifier.parts)
            ]
        )
        if trimming and number % 9 == 0:
            # What is trimmed is what was kept one round before, so that rows stay in between.
            store.truncation.trim(number - 9.0, float(number), None)
            store.keep_base(agent.light.next_seq, agent.fold.to_bytes(), float(number))
            store.close()
            store = SqliteStore(path)
            agent = Agent(settings, store, KEY)
        try:
            call = calls.send(result)
        except StopIteration:
            break
    state, begins = agent.fold.to_bytes(), store.truncation.begins
    result = audit(store, settings, KEY)
    store.close()
    return answers, state, begins, result


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_was_removed_is_not_missed(kind, tmp_path):
    settings = config(**SETTINGS[kind])
    answers, state, _, whole = played(tmp_path / "whole.db", settings, False)
    mine, kept, begins, cut = played(tmp_path / "cut.db", settings, True)
    assert begins > 1000
    assert mine == answers
    assert kept == state
    assert whole.clean
    assert cut.clean, cut.faults
    assert cut.begins == begins
    assert cut.rows + begins == whole.rows
    assert cut.decisions < whole.decisions
    assert cut.unchecked == 0, "units have closed before their rows go"


def test_who_follows_a_removed_decision_is_counted_and_not_accused(tmp_path):
    settings = config(units=UnitsConfig(ttl=1e6))
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(0))
        first = traffic.requests(40)
        agent.decide(first)
        store.keep_base(agent.light.next_seq, agent.fold.to_bytes(), 1.0)
        agent.decide(replace(traffic.requests(40), unit=first.unit))
        agent.decide(traffic.requests(5))
        store.truncation.trim(1.0, 2.0, None)
        found = audit(store, settings, KEY)
        assert found.clean, found.faults
        assert (found.decisions, found.unchecked) == (45, 40)


@pytest.mark.forges
def test_an_audit_still_finds_what_was_changed(tmp_path):
    settings = config(**SETTINGS["top-two"])
    played(tmp_path / "cut.db", settings, True)
    with SqliteStore(tmp_path / "cut.db") as store:
        store._session.connection.execute("UPDATE decisions SET uniform = uniform / 2")
        found = audit(store, settings, KEY)
    assert found.fault_count >= found.decisions


def test_a_state_of_another_version_is_no_beginning(tmp_path):
    settings = config()
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(0))
        agent.decide(traffic.requests(50))
        store.keep_base(agent.light.next_seq, b"of another version", 1.0)
        store.truncation.trim(1.0, 2.0, None)
        with pytest.raises(AgentError, match="the log begins at row 50, and the state before it"):
            Agent(settings, store, KEY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": [ModelConfig(name=n) for n in (*MODELS, "new")]}, "models[3]"),
        ({"certify": CertifyConfig(segments=[LEFT])}, "certify.segments"),
        ({"policy": PolicyConfig(rate=0.45)}, None),
        ({"models": [ModelConfig(name=n, version="2") for n in MODELS]}, None),
    ],
)
def test_what_needs_the_removed_rows_is_refused_by_name(tmp_path, changes, said):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(0))
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(300))))
        store.keep_base(agent.light.next_seq, agent.fold.to_bytes(), 1.0)
        store.truncation.trim(1.0, 2.0, None)
        if said is None:
            assert Agent(config(**changes), store, KEY).rule.era == 1
        else:
            with pytest.raises(AgentError, match=re.escape(said) + ".*retention removed"):
                Agent(config(**changes), store, KEY)
            assert Agent(config(), store, KEY).rule.era == 0, "nothing was kept of it"


def test_contexts_of_recent_traffic_are_those_that_are_left(tmp_path):
    """A policy that looks at traffic finds what the log still has, or does without."""
    settings = config(**SETTINGS["top-two"])
    with SqliteStore(tmp_path / "log.db") as store:
        agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(0))
        for _ in range(8):
            agent.observe(traffic.outcomes(agent.decide(traffic.requests(100))))
        store.keep_base(agent.light.next_seq, agent.fold.to_bytes(), 1.0)
        store.truncation.trim(1.0, 2.0, None)
        assert store.base_snapshot().decisions == 800
        again = Agent(settings, store, KEY)
        again.refresh()
        assert len(again.decide(traffic.requests(10))) == 10
