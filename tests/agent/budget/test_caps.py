"""Caps per model and excluded users, through the real Agent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError, ModelConfig, PolicyConfig
from equipoise.agent.maintenance.audit import audit
from equipoise.store.batches import text_key
from equipoise.store.memory import MemoryStore

UNIFORM = PolicyConfig(gate="fixed-rate", assignment="uniform", rate=0.5)


def capped(*caps: int | None) -> Agent:
    models = [ModelConfig(name=n, max_requests=c) for n, c in zip(MODELS, caps, strict=True)]
    return Agent(config(models=models, policy=UNIFORM), MemoryStore(), KEY)


@pytest.mark.parametrize("sizes", [[600], [1] * 600, [7] * 85 + [5]])
def test_a_full_model_gets_nothing_more(sizes: list[int]) -> None:
    agent, traffic = capped(20, None, 35), Traffic(np.random.default_rng(0))
    whole = traffic.requests(600)
    counts, start = np.zeros(3), 0
    models = []
    for size in sizes:
        rows = slice(start, start + size)
        columns = ("unit", "context", "at", "x", "routed")
        part = replace(whole, **{name: getattr(whole, name)[rows] for name in columns})
        decided = agent.decide(part)
        before = counts.copy()
        counts += np.bincount(decided.model[decided.randomized], minlength=3)
        assert counts[0] <= 20
        assert counts[2] <= 35
        if before[0] == 20 and before[2] == 35:
            assert (decided.probabilities[:, 1] == 1.0).all()
            assert not decided.eligible[:, [0, 2]].any()
        models.append(decided.model)
        start += size
    assert counts[0] == 20
    assert counts[2] == 35
    assert counts[1] > 150
    # How requests are batched changes no draw.
    np.testing.assert_array_equal(np.concatenate(models), capped(20, None, 35).decide(whole).model)
    assert audit(agent.store, agent.config, KEY).clean


def test_requests_a_full_model_could_not_get_are_not_certified() -> None:
    agent, traffic = capped(5, None, None), Traffic(np.random.default_rng(1))
    decided = agent.decide(traffic.requests(400))
    closed = ~decided.eligible.all(axis=1)
    assert 0 < closed.sum() < 400
    agent.observe(traffic.outcomes(decided))
    certified = agent.answers.view().certified
    assert agent.light.masked == closed.sum()
    assert certified.overall.rows == 400 - closed.sum()


def test_no_requests_are_no_decisions() -> None:
    traffic = Traffic(np.random.default_rng(4))
    for agent in (capped(5, None, None), capped(None, None, None)):
        assert len(agent.decide(traffic.requests(0))) == 0


def test_without_caps_nothing_is_masked() -> None:
    agent, traffic = capped(None, None, None), Traffic(np.random.default_rng(2))
    assert agent.decide(traffic.requests(50)).eligible is None


def test_excluded_users_are_served_as_routed() -> None:
    policy = PolicyConfig(rate=1.0, exclude=["ann", "bob"])
    agent, traffic = (
        Agent(config(policy=policy), MemoryStore(), KEY),
        Traffic(np.random.default_rng(3)),
    )
    requests = traffic.requests(60)
    names = np.array(["ann", "cat", "bob"])[np.arange(60) % 3]
    unit = np.array([text_key("unit", name) for name in names])
    decided = agent.decide(replace(requests, unit=unit))
    out = names != "cat"
    np.testing.assert_array_equal(decided.randomized, ~out)
    np.testing.assert_array_equal(decided.capped, out)
    np.testing.assert_array_equal(decided.model[out], decided.routed[out])
    assert (decided.rate[out] == 0.0).all()
    assert audit(agent.store, agent.config, KEY).clean


def test_what_cannot_be_declared() -> None:
    for changes, says in (
        (
            {"models": [ModelConfig(name="a", max_requests=0), ModelConfig(name="b")]},
            "max_requests",
        ),
        ({"policy": PolicyConfig(exclude=["no line\nends"])}, "policy.exclude"),
    ):
        with pytest.raises(ConfigError, match=says):
            config(**changes).checked()
