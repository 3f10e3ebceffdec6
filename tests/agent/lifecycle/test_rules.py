"""Rules: the same bits after the store, and an id that follows the content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import CertifyConfig, PolicyConfig, SegmentConfig
from equipoise.agent.inference.asymptotic import Opening
from equipoise.agent.inference.prediction import Prediction
from equipoise.agent.lifecycle.rules import Rule, RuleBook, rule_id
from equipoise.store.memory import MemoryStore
from equipoise.store.records import RuleRecord


def a_rule():
    """A rule with everything in it: a scorer, tuned predictions, an opening, a segment."""
    settings = config(
        certify=CertifyConfig(segments=[SegmentConfig(name="left", column="a", high=0.0)]),
        policy=PolicyConfig(assignment="top-two", rate=0.4),
    )
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 9, size=60)
    rule = agent.rule
    size = len(rule.frozen[0].centres.low[0])
    odd = np.full((size, size), np.inf)
    odd[0, 1] = 1 / 3
    opening = Opening(np.full(size, 0.1), np.array([np.inf] * size), odd)
    opened = replace(rule.frozen[0], opening=opening)
    direct = rule.prediction.direct.copy()
    direct[1] = np.nan
    prediction = replace(rule.prediction, direct=direct)
    return replace(rule, frozen=(opened, rule.frozen[1]), prediction=prediction, widened=True)


def bits(rule):
    parts = [rule.prediction.theta, rule.prediction.effects, rule.prediction.direct, rule.active]
    for frozen in rule.frozen:
        parts += [frozen.tuning.offset, frozen.tuning.factor, frozen.tuning.usual]
        parts += [frozen.centres.low, frozen.centres.high]
        parts += [frozen.rewards.low, frozen.rewards.high]
        if frozen.opening is not None:
            parts += [frozen.opening.low, frozen.opening.high, frozen.opening.contrast]
    return [part.tobytes() for part in parts] + [rule.era, rule.since, rule.widened]


def test_a_rule_comes_back_bit_for_bit():
    rule = a_rule()
    body = rule.encode()
    again = Rule.decode(RuleRecord(rule_id=rule_id(body), era=0, at=0.0, body=body))
    assert bits(again) == bits(rule)
    assert again.encode() == body
    assert again.frozen[1].opening is None
    assert again.prior.encode() == rule.prior.encode()
    before = replace(rule, prior=None)
    assert '"prior"' not in before.encode(), "rules of before are written as they were"


def test_the_id_follows_the_content_and_a_rule_is_kept_once():
    store = MemoryStore()
    book = RuleBook(store)
    rule = a_rule()
    first, second = book.add(rule, 1.0), book.add(rule, 2.0)
    assert first.rule_id == second.rule_id
    assert len(store.rules()) == 1
    for change in ({"since": 99}, {"widened": False}, {"active": np.array([True, True, False])}):
        assert book.add(replace(rule, **change), 3.0).rule_id != first.rule_id


def test_a_prediction_is_the_scorer_on_the_unit_scale():
    """theta in reward units on [-2, 6]: a SIM row of its own, else the regression, else NaN."""
    rng = np.random.default_rng(0)
    theta = np.append(rng.normal(size=4), [0.5, -0.25])
    maps = rng.normal(size=(2, 4, 3))
    maps[:, 0] = [1.0, 0.0, 0.0]  # the intercept of phi is 1 at every context
    maps[1, 1:] = np.nan
    found = Prediction.of(theta, 2, True, maps, -2.0, 6.0)
    x, phi = rng.normal(size=(5, 2)), rng.normal(size=(5, 2, 3))
    known = np.array([[True, True], [True, False], [False, True], [False, False], [True, True]])
    raw = found.raw(x, phi, known)
    for row in range(5):
        for model in range(2):
            features = np.append(1.0, phi[row, model])
            if not known[row, model]:
                features = maps[model] @ np.append(1.0, x[row])
            value = features @ theta[:4] + theta[4 + model]
            np.testing.assert_allclose(raw[row, model], (value + 2.0) / 8.0, rtol=1e-12)
    assert found.usable
    assert theta[0] == Prediction.of(theta, 2, True, maps, 0.0, 1.0).theta[0]
