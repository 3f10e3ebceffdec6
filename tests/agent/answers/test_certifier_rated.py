"""Answers about those who rate, of an agent whose log is known."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.answers.certifier import Certified
from equipoise.agent.config import CertifyConfig, PolicyConfig, RewardConfig
from equipoise.agent.inference import per_model
from equipoise.agent.inference.levels import split_level, value_level
from equipoise.agent.inference.per_model import RewardMoments
from equipoise.store.memory import MemoryStore

GOOD, RATED = np.array([0.3, 0.5, 0.8]), np.array([0.2, 0.3, 0.4])


def lived(sequence="bounded", missing="rated", maximise=True, batches=60, **reward):
    """An agent after `batches` of 150 requests, and the parts (randomized, model, R or NaN)."""
    settings = config(
        reward=RewardConfig(window=100.0, missing=missing, maximise=maximise, **reward),
        policy=PolicyConfig(assignment="uniform", rate=0.6, estimator="ipw", delta=0.1),
        certify=CertifyConfig(sequence=sequence),
    )
    store = MemoryStore()
    agent, traffic = Agent(settings, store, KEY), Traffic(np.random.default_rng(0))
    rng, rows = np.random.default_rng(1), []
    for index in range(batches):
        decided = agent.decide(traffic.requests(150))
        outcomes, model = traffic.outcomes(decided), decided.model
        good = rng.random(150) < GOOD[model]
        told = rng.random(150) < RATED[model]
        reward = np.where(good == maximise, 1.0, 0.0)
        outcomes = replace(outcomes, reward=np.where(told, reward, np.nan))
        agent.observe(outcomes)
        traffic.at += 300.0
        agent.expire(traffic.at)
        rows.append((decided.randomized, model, outcomes.reward))
        if index % 4 == 3:
            agent.refresh()
    return agent, tuple(np.concatenate(part) for part in zip(*rows, strict=True))


@pytest.fixture(scope="module")
def life():
    return lived()


def test_ends_are_about_those_who_rate_and_so_says_every_sentence(life):
    agent, _ = life
    certified, status = agent.answers.certified(), agent.answers.status()
    assert (certified.lower[:3] < GOOD).all()
    assert (certified.upper[:3] > GOOD).all()
    assert (certified.upper[:3] - certified.lower[:3] < 0.25).all()
    assert status.models == ("cheap",)
    sentences = [status.sentence, *agent.answers.recommendation().sentence.split(" By the ")]
    for sentence in sentences:
        assert "among those who rate" in sentence
    assert "Who rates depends on the model" in status.sentence
    assert certified.rating[2, 0] > 0.0
    assert certified.rating[2, 0] < RATED[2] - RATED[0]
    check = {each.name: each for each in agent.answers.checks()}["missingness"]
    assert check.status == "watch"
    assert "who does depends on the model" in check.sentence


def test_the_plain_family_is_the_mean_of_the_rewards_that_came(life):
    agent, (randomized, model, reward) = life
    values = agent.answers.estimates(["ipw"])["ipw"].values
    for place in range(len(MODELS)):
        came = randomized & (model == place) & ~np.isnan(reward)
        assert values[place] == pytest.approx(reward[came].mean())
    draws = agent.answers.view().certified.overall.rated.draws
    np.testing.assert_allclose(draws[0], np.bincount(model[randomized]))
    came = randomized & ~np.isnan(reward)
    np.testing.assert_allclose(draws[1], np.bincount(model[came]))


def test_minimising_is_maximising_the_mirror_image(life):
    """To what the search for an end leaves open."""
    one, other = life[0].answers.certified(), lived(maximise=False)[0].answers.certified()
    np.testing.assert_allclose(other.decision, one.decision, atol=2e-3)
    np.testing.assert_allclose(other.rating, one.rating, atol=1e-9)


def test_the_sequence_of_each_model_is_of_the_rewards_that_came():
    agent, (randomized, model, reward) = lived("per-model", batches=20)
    certified, alpha = agent.answers.certified(), value_level(0.1, 4)
    came = randomized & ~np.isnan(reward)
    sums = agent.answers.view().certified.overall.rewards
    assert sums.count.tolist() == np.bincount(model[came]).tolist()
    assert sums.low.tolist() == np.bincount(model[came], reward[came]).tolist()
    own = RewardMoments(*(array.copy() for array in sums.arrays().values()))
    low, _ = per_model.value_bounds(own, split_level(alpha)[0])
    np.testing.assert_allclose(certified.lower[:3], low)
    assert certified.sequence == "per-model"


def test_the_answer_of_an_era_and_the_state_of_a_store_keep_who_rates(life):
    agent, _ = life
    kept = agent.answers.certified().kept
    told = msgspec.json.decode(msgspec.json.encode(kept), type=type(kept))
    again = Certified.of_kept(told)
    assert again.claim == agent.answers.certified().claim
    assert again.claim.rating
    twin = Agent(agent.config, agent.store, None)
    assert twin.fold.to_bytes() == agent.fold.to_bytes()
    np.testing.assert_array_equal(
        twin.answers.certified().contrasts, agent.answers.certified().contrasts
    )


def test_a_declared_share_is_predicted_until_the_first_rating():
    """Also by rules that are frozen before it: it is no less known then than at the beginning."""
    settings = config(reward=RewardConfig(window=100.0, missing="rated", rated_share=0.04))
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    first = agent.rule.frozen[0]
    for silent in (False, True):
        decided = agent.decide(traffic.requests(100))
        if silent:
            agent.expire(float(decided.at.max()) + 200.0)
        agent.refresh()
        # Before a row enters, the same; then drawn to what was seen of the first hundred.
        frozen, close = agent.rule.frozen[0], 0.02 if silent else 1e-12
        np.testing.assert_allclose(frozen.tuning.offset, 0.04, atol=2.0 * close)
        np.testing.assert_allclose(frozen.rated.tuning.offset, 0.02, atol=close)
        if not silent:
            np.testing.assert_allclose(frozen.centres.low, first.centres.low)
            np.testing.assert_allclose(frozen.rated.low, first.rated.low)
    assert agent.answers.view().certified.overall.rows == 200


def test_another_meaning_begins_another_era():
    agent, _ = lived(batches=4)
    with_value = msgspec.structs.replace(
        agent.config, reward=RewardConfig(window=100.0, missing=0.0)
    )
    after = Agent(with_value, agent.store, KEY)
    assert after.rule.era == agent.rule.era + 1
    assert after.rule.missing == 0.0
    assert after.rule.frozen[0].rated is None
    assert agent.rule.missing == "rated"
    assert after.answers.certified().rows == 0
