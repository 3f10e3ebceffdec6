"""Whom the product asks: the second draw of the uniform, and what enters of those asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed
from scipy import stats
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import RewardConfig
from equipoise.agent.inference.rated import asked
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import OutcomeBatch
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Request

WORD = (1 << 64) - 1
SHARE = 0.3
REWARD = RewardConfig(low=0.0, high=1.0, missing="asked", ask=SHARE, window=100.0)


def by_hand(uniform: float, share: float) -> bool:
    """splitmix64's finalizer in whole numbers."""
    z = (int(uniform * 2**53) + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    z ^= z >> 31
    return (z >> 11) / 2**53 < share


def test_it_is_splitmix64_of_the_bits_of_the_uniform():
    uniform = np.concatenate([[0.0, 1.0 - 2.0**-53], np.random.default_rng(0).random(500)])
    for share in (0.05, 0.5, 1.0):
        expected = [by_hand(each, share) for each in uniform.tolist()]
        assert asked(uniform, share).tolist() == expected
    assert asked(uniform, 1.0).all()
    assert not asked(uniform, 0.0).any()


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_asking_says_nothing_of_what_else_the_uniform_drew(share):
    """Over 64 equal parts of [0, 1), and over 64 parts of a ten-thousandth of it: chi-square of a
    seeded draw, right with probability .999."""
    rng = np.random.default_rng(1)
    for scale in (1.0, 1e-4):
        uniform = np.floor(rng.random(200_000) * scale * 2.0**53) * 2.0**-53
        part = np.minimum((uniform / scale * 64).astype(int), 63)
        heard = asked(uniform, share)
        counts = np.bincount(part, heard, 64), np.bincount(part, minlength=64)
        table = np.stack([counts[0], counts[1] - counts[0]])
        assert stats.chi2_contingency(table).pvalue > 0.001
        assert abs(heard.mean() - share) < 4.0 * np.sqrt(share * (1 - share) / len(uniform))


def lived(answer_of_others):
    """An agent whose users answer with .8 if asked; others as given, None for not at all."""
    agent, traffic = (
        Agent(config(reward=REWARD), MemoryStore(), KEY),
        Traffic(np.random.default_rng(3)),
    )
    rng = np.random.default_rng(4)
    for _ in range(12):
        decided = agent.decide(traffic.requests(60))
        outcomes = traffic.outcomes(decided)
        heard = asked(decided.uniform, SHARE)
        answers = heard & (rng.random(60) < 0.8)
        reward = np.where(answers, (outcomes.reward > 0.5).astype(float), np.nan)
        if answer_of_others is not None:
            reward = np.where(heard, reward, answer_of_others)
        told: OutcomeBatch = replace(outcomes, reward=reward)
        agent.observe(told)
        agent.expire(float(decided.at.max()) + 200.0)
        agent.refresh()
    return agent


def test_ratings_of_those_who_were_not_asked_change_no_answer():
    agents = [lived(answer) for answer in (None, 1.0, 0.0)]
    certified = [agent.answers.view().certified for agent in agents]
    assert certified[0].overall.rows > 300
    for other in certified[1:]:
        np.testing.assert_array_equal(other.overall.rated.draws, certified[0].overall.rated.draws)
    arms = [agent.answers.view().moments.arms for agent in agents]
    for other in arms[1:]:
        np.testing.assert_array_equal(other.mean, arms[0].mean)
        np.testing.assert_array_equal(other.count, arms[0].count)
    fitted = [agent.answers.view().moments for agent in agents]
    for later in fitted[1:]:
        np.testing.assert_array_equal(later.exp.count, fitted[0].exp.count)
        np.testing.assert_array_equal(later.obs.count, fitted[0].obs.count)
    drawn, rated = certified[0].overall.rated.draws
    assert 0.6 < rated.sum() / drawn.sum() < 0.95, "of those asked, not of all"


def test_a_row_enters_by_the_chance_of_being_drawn_and_asked():
    """Sum of S R over chance, of one model, out of the log: no prediction is in force at cap 0."""
    agent = lived(None)
    sums, table = agent.answers.view().certified, agent.light.pending
    count = sums.watermark
    model, heard = table.model[:count], asked(table.uniform[:count], SHARE)
    known = table.has_reward[:count] & heard & table.randomized[:count]
    chance = SHARE * table.rate[:count] * table.probabilities[:count, 1]
    by_hand_ = (np.where(known & (model == 1), table.reward[:count], 0.0) / chance).sum()
    # At cap 0 the low score is W Y: its fixed part is W S R.
    assert sums.overall.rated.low[0, 0, 1] == pytest.approx(by_hand_, rel=1e-12)
    assert sums.spec.caps[1] == pytest.approx(3.0 / (agent.config.policy.rate * SHARE))


def test_the_answer_says_whom_to_ask_and_says_it_again():
    agent = Agent(config(reward=REWARD), MemoryStore(), KEY)
    adapter = RecordAdapter(agent, lambda: 1000.0)
    columns = agent.config.features.context_columns()
    features = dict.fromkeys(columns, 0.1)
    requests = [
        Request(request_id=f"r{index}", routed="cheap", features=features) for index in range(200)
    ]
    many = adapter.decide(requests[:120])
    single = [adapter.decide_one(each) for each in requests[120:]]
    said = [each.ask for each in [*many, *single]]
    assert said == [by_hand(each.uniform, SHARE) for each in [*many, *single]]
    assert 30 < sum(said) < 95
    assert [each.ask for each in adapter.decide(requests[:120])] == said[:120]
    plain = Agent(config(reward=changed(REWARD, missing=0.0, ask=None)), MemoryStore(), KEY)
    assert RecordAdapter(plain, lambda: 1000.0).decide(requests[:2])[0].ask is None
