"""What one report asks several times is computed once, and anew for the next row."""

from __future__ import annotations

from collections import Counter

import numpy as np
from traffic import KEY, Traffic, config, run

import equipoise.agent.answers.answers as module
from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig
from equipoise.agent.service.analyst.reports import report
from equipoise.store.memory import MemoryStore


def experiment(**policy):
    settings = {"assignment": "top-two", "rate": 0.4, "estimator": "hierarchical", **policy}
    agent = Agent(config(policy=PolicyConfig(**settings)), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(4))
    agent.ingest(traffic.observations(100))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 6)
    return agent, traffic


def test_a_report_computes_every_family_once():
    agent, traffic = experiment()
    asked: Counter[str] = Counter()
    agent.answers.before = lambda family: asked.update([family])
    for rows in (1, 2):
        run(agent, traffic, 1)
        report(agent, [], 1.0)
        report(agent, ["doubly-robust"], 1.0)
        del asked[""]
        assert asked == dict.fromkeys(
            ("hierarchical", "ipw", "representation-exp", "doubly-robust"), rows
        )


def test_a_family_that_is_off_and_on_again_is_told_from_itself():
    agent, _ = experiment()
    known = agent.answers.estimates(["hierarchical"])["hierarchical"]
    agent.answers.off = {"hierarchical": "it was slow"}
    off = agent.answers.estimates(["hierarchical"])["hierarchical"]
    assert off.diagnostics["failed"] == "it was slow"
    agent.answers.off = {}
    assert agent.answers.estimates(["hierarchical"])["hierarchical"] is known


def test_the_winner_is_that_of_the_whole_answer(monkeypatch):
    agent, _ = experiment(epsilon=0.9)
    alone = agent.answers.certified_winner()
    assert alone is not None
    agent.answers.certified()
    monkeypatch.setattr(type(agent.state.certifier), "winner", None)
    assert agent.answers.certified_winner() == alone


def test_contexts_are_read_for_policies_that_look_at_them(monkeypatch):
    reads = []

    def recent(*given):
        reads.append(given)

    monkeypatch.setattr(module, "recent_contexts", recent)
    experiment()
    assert not reads
    experiment(gate="contrast", assignment="contrast")
    assert reads


def test_an_era_is_read_from_the_store_once(monkeypatch):
    agent, traffic = experiment()
    agent.controls.open_era("a new version", 1.0)
    run(agent, traffic, 3)
    report(agent, [], 1.0)
    reads = []
    with monkeypatch.context() as patch:
        for name in ("settings", "eras", "alerts", "controls", "rules", "bodies", "rule_ids"):
            patch.setattr(agent.store, name, lambda name=name: reads.append(name))
        run(agent, traffic, 3)
        report(agent, [], 2.0)
    assert reads == []
