"""A reward that never comes and has a declared value counts as that value, in every answer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from msgspec import UNSET
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.estimators import FAMILIES
from equipoise.agent.lifecycle.rules import RuleBook
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.memory import MemoryStore

LOW, HIGH, VALUE = 2.0, 6.0, 3.0


def settings(missing=VALUE, **policy):
    return config(
        reward=RewardConfig(low=LOW, high=HIGH, window=100.0, missing=missing),
        policy=PolicyConfig(
            **{"assignment": "top-two", "rate": 0.5, "estimator": "hierarchical", **policy}
        ),
    )


def experiment(sent, config=None, seed=5, store=None):
    """Most rewards are worth VALUE; `sent` says whether the client sends those too."""
    agent = Agent(config or settings(), MemoryStore() if store is None else store, KEY)
    traffic = Traffic(np.random.default_rng(seed))
    log = traffic.observations(300)
    agent.ingest(replace(log, reward=LOW + log.reward * (HIGH - LOW)))
    agent.simulate(traffic.simulations())
    for _ in range(40):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(50)))
        silent = traffic.rng.random(50) < 0.7 - 0.1 * outcomes.served
        reward = np.where(silent, VALUE, LOW + outcomes.reward * (HIGH - LOW))
        if not sent:
            reward = np.where(silent, np.nan, reward)
        agent.observe(replace(outcomes, reward=reward))
        traffic.at += 500.0
        agent.expire(traffic.at)
        agent.refresh(traffic.at)
    # Fill the chunk, so that the checks have seen all of it.
    log = traffic.observations(CHUNK)
    agent.ingest(replace(log, reward=LOW + log.reward * (HIGH - LOW)))
    return agent


@cache
def silent_and_loud():
    """The same experiment without the rewards and with them, to be read only.

    Uniform draws, so that both logs hold the same decisions.
    """
    return [experiment(sent, settings(assignment="uniform")) for sent in (False, True)]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_counts_it_as_if_it_had_been_sent(family):
    silent, loud = silent_and_loud()
    one, other = (agent.answers.estimates([family])[family] for agent in (silent, loud))
    assert np.isfinite(one.values).all()
    np.testing.assert_allclose(one.values, other.values, rtol=1e-7)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-6, atol=1e-12)


def test_every_answer_is_as_if_it_had_been_sent():
    """The recommendation, what is certified, the value of today's routing, the snapshot that
    policies see, and the checks but for the one that counts what did not come."""
    silent, loud = silent_and_loud()
    assert silent.answers.recommendation().model == loud.answers.recommendation().model
    np.testing.assert_allclose(silent.answers.routing(), loud.answers.routing(), rtol=1e-9)
    one, other = silent.answers.snapshot(), loud.answers.snapshot()
    np.testing.assert_allclose(one.values, other.values, rtol=1e-7)
    np.testing.assert_allclose(one.sample_means, other.sample_means, rtol=1e-9)
    np.testing.assert_allclose(one.sample_variances, other.sample_variances, rtol=1e-9)
    np.testing.assert_allclose(
        silent.answers.certified().contrasts, loud.answers.certified().contrasts, rtol=1e-6
    )
    for mine, theirs in zip(silent.answers.checks(), loud.answers.checks(), strict=True):
        if mine.name == "missingness":
            assert mine.figures["share"] > 0.4
            assert theirs.figures["share"] == 0.0
            assert (mine.status, theirs.status) == ("ok", "ok")
            assert "count as 3, as declared" in mine.sentence
        else:
            assert (mine.name, mine.status) == (theirs.name, theirs.status)
    drift = [
        next(c for c in agent.answers.checks() if c.name == "drift") for agent in (silent, loud)
    ]
    assert drift[0].figures["rows"] == drift[1].figures["rows"]


def test_the_means_are_those_of_the_raw_log():
    """Reward-or-value by hand, over the randomized requests of each model."""
    agent = experiment(False)
    table = agent.light.pending
    assert table.base == 0
    rows = slice(0, table.size)
    drawn = table.randomized[rows]
    reward = np.where(table.has_reward[rows], table.reward[rows], VALUE)[drawn]
    weight = 1.0 / (table.rate[rows] * table.propensity[rows])[drawn]
    model = table.model[rows][drawn]
    expected = np.bincount(model, weight * reward) / np.bincount(model, weight)
    np.testing.assert_allclose(agent.answers.estimates(["ipw"])["ipw"].values, expected, rtol=1e-9)


def test_what_was_declared_when_a_row_was_decided_counts():
    """After the declaration changes, rows of before keep their meaning, and state made anew from
    the log is the live state bit for bit."""
    store = MemoryStore()
    experiment(False, store=store)
    changed = settings(5.0)
    agent = Agent(changed, store, KEY, at=1e6)
    traffic = Traffic(np.random.default_rng(6), at=1e6)
    for _ in range(10):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(50)))
        agent.observe(replace(outcomes, reward=np.full(50, np.nan)))
        traffic.at += 500.0
        agent.expire(traffic.at)
    table = agent.light.pending
    filled = table.reward[: table.size][table.filled[: table.size]]
    assert set(np.unique(filled)) == {VALUE, 5.0}
    assert Agent(changed, store, KEY).fold.to_bytes() == agent.fold.to_bytes()


@pytest.mark.parametrize("share", [0.2, 0.6, 0.93])
def test_from_a_checkpoint_it_is_the_same_state(share):
    store = MemoryStore()
    whole = experiment(False, store=store)
    again = Agent(settings(), MemoryStore(), KEY)
    for record in [*store.eras(), *store.rules()]:
        again.store.put(record)
    again = Agent(settings(), again.store, None)
    stop = int(share * whole.light.next_seq)
    for segment in store.read():
        if again.light.next_seq >= stop:
            break
        again.fold.apply(segment.seq, segment.batch)
    kept = again.fold.to_bytes()
    fresh = Agent(settings(), again.store, None)
    fresh.fold.load_bytes(kept)
    assert fresh.fold.to_bytes() == kept
    for segment in store.read(since=fresh.light.next_seq):
        fresh.fold.apply(segment.seq, segment.batch)
    assert fresh.fold.to_bytes() == whole.fold.to_bytes()


@pytest.mark.parametrize(
    ("low", "high", "missing", "undelivered", "void"),
    [
        (2.0, 6.0, 3.0, False, True),
        (0.0, 1.0, 0.5, False, False),
        (0.0, 1.0, 0.5, True, True),
        (2.0, 6.0, "worst-case", True, False),
    ],
)
def test_answers_of_a_version_that_counted_wrongly_are_void(
    monkeypatch, low, high, missing, undelivered, void
):
    """Rules of that version do not say what a missing reward is worth."""
    add = RuleBook.add
    monkeypatch.setattr(RuleBook, "add", lambda s, r, at: add(s, replace(r, missing=UNSET), at))
    declared = config(reward=RewardConfig(low=low, high=high, window=100.0, missing=missing))
    store = MemoryStore()
    agent, traffic = Agent(declared, store, KEY), Traffic(np.random.default_rng(1))
    for _ in range(12):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
        delivered = traffic.rng.random(100) < (0.9 if undelivered else 2.0)
        reward = low + outcomes.reward * (high - low)
        agent.observe(replace(outcomes, reward=reward, delivered=delivered))
    monkeypatch.undo()
    again = Agent(declared, store, KEY, at=5.0)
    assert again.rule.era == (1 if void else 0)
    if void:
        assert "what it certified of the era before is void" in again.answers.status().sentence
    once_more = Agent(declared, store, KEY, at=6.0)
    assert once_more.rule.era == again.rule.era


def test_families_do_not_run_ahead_of_silence():
    """Clicks come at once and silence is known only when the window ends. Half way through the
    first window nothing is known of anybody; afterwards requests count in the order they were
    made, each with what it got, so that a mean is never that of those who clicked."""
    agent = Agent(settings(LOW, assignment="uniform", estimator="ipw"), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(8))
    clicked, decided = np.zeros(0), []
    for turn in range(40):
        traffic.at = 10.0 * turn
        made = agent.decide(traffic.requests(50))
        decided.append(made)
        outcomes = traffic.outcomes(made)
        click = traffic.rng.random(50) < 0.2 + 0.1 * made.model
        clicked = np.append(clicked, click)
        reward = np.where(click, HIGH, np.nan)
        agent.observe(replace(outcomes, reward=reward))
        agent.expire(traffic.at)
        known = agent.answers.view().watermark
        values = agent.answers.estimates(["ipw"])["ipw"].values
        if turn < 5:
            assert np.isnan(values).all() or known > 0
        if known < 600:
            continue
        model = np.concatenate([each.model for each in decided])[:known]
        drawn = np.concatenate([each.randomized for each in decided])[:known]
        worth = np.where(clicked[:known] > 0, HIGH, LOW)
        expected = [worth[drawn & (model == m)].mean() for m in range(3)]
        np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert known > 1000
