"""The engine: levels, the choice of the sequence, and what its answers hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.certifier import Conditions
from equipoise.agent.config import CertifyConfig, PolicyConfig, RewardConfig, SegmentConfig
from equipoise.agent.inference import asymptotic, per_model
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.levels import decision_levels
from equipoise.agent.inference.mixture import contrast_bounds, value_bounds
from equipoise.store.memory import MemoryStore

PAIRS = 4 * 3
"""Ordered pairs of three models and today's routing."""


def settled(batches=45, **changes):
    agent, traffic = Agent(config(**changes), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    agent.simulate(traffic.simulations())
    run(agent, traffic, batches, size=60)
    return agent


def prior_of(agent):
    return agent.state.certifier.prior_in_force(agent.answers.view().certified, agent.rule)


def test_bounded_is_read_at_the_level_of_all_pairs():
    agent = settled()
    certified, sums = agent.answers.certified(), agent.answers.view().certified.overall
    caps = agent.state.certifier.spec.caps
    prior = prior_of(agent)
    assert prior.requests > 1.0
    expected = contrast_bounds(sums.score, caps, 3, 0.05 / PAIRS, prior)
    np.testing.assert_array_equal(certified.contrasts, expected)
    low, high = value_bounds(sums.score, caps, 0.05 / 8, prior)
    np.testing.assert_array_equal(certified.lower, low)
    np.testing.assert_array_equal(certified.upper, high)
    alpha = np.full((4, 4), 0.05)
    alpha[:3, :3] = decision_levels(0.05, np.ones(3, dtype=bool), prior)
    decision = contrast_bounds(sums.score, caps, 3, alpha, prior)
    np.testing.assert_array_equal(certified.decision, decision[:3, :3])
    assert certified.sequence is Sequence.BOUNDED


def test_per_model_speaks_of_models_and_bounded_of_the_rest():
    agent = settled(certify=CertifyConfig(sequence="per-model"))
    certified, sums = agent.answers.certified(), agent.answers.view().certified.overall
    assert certified.sequence is Sequence.PER_MODEL
    assert per_model.ASSUMPTION in certified.assumptions
    alpha = 0.05 / PAIRS
    expected = per_model.contrast_bounds(sums.rewards, 0.9 * alpha)
    np.testing.assert_array_equal(certified.contrasts[:3, :3], expected)
    even = per_model.contrast_bounds(sums.rewards, 0.9 * 0.05 / 2)
    np.testing.assert_allclose(certified.decision, even, atol=1e-12)
    caps, prior = agent.state.certifier.spec.caps, prior_of(agent)
    bounded = contrast_bounds(sums.score, caps, 3, alpha - 0.9 * alpha, prior)
    np.testing.assert_allclose(certified.contrasts[3], bounded[3], rtol=1e-12)
    low, high = per_model.value_bounds(sums.rewards, 0.9 * 0.05 / 8)
    np.testing.assert_array_equal(certified.lower[:3], low)
    np.testing.assert_array_equal(certified.upper[:3], high)
    level = 0.05 / 8 - 0.9 * 0.05 / 8
    low, high = value_bounds(sums.score, caps, level, prior)
    np.testing.assert_allclose((certified.lower[3], certified.upper[3]), (low[3], high[3]))


def test_per_model_falls_back_once_a_rule_looked_at_requests():
    policy = PolicyConfig(assignment="thompson", rate=0.3, estimator="hierarchical")
    agent = settled(batches=12, certify=CertifyConfig(sequence="per-model"), policy=policy)
    certified = agent.answers.certified()
    assert certified.sequence is Sequence.BOUNDED
    assert "looked at requests" in certified.reason


@pytest.mark.parametrize("declared", ["per-model", "asymptotic"])
def test_alarms_fall_back_to_the_bounded_sequence_at_what_it_kept(declared):
    agent = settled(certify=CertifyConfig(sequence=declared))
    sums, rule = agent.answers.view().certified, agent.rule
    for conditions in (
        Conditions(context_free=True, widened=True),
        *([Conditions(context_free=True, drift_alarm=True)] if declared == "per-model" else []),
    ):
        certified = agent.state.certifier.certified(sums, rule, conditions)
        assert certified.sequence is Sequence.BOUNDED
        caps = agent.state.certifier.spec.caps
        level = 0.05 / PAIRS - 0.9 * 0.05 / PAIRS
        expected = contrast_bounds(sums.overall.score, caps, 3, level, prior_of(agent))
        np.testing.assert_allclose(certified.contrasts, expected, rtol=1e-9)


def test_asymptotic_opens_once_and_is_frozen_with_the_rule():
    settings = {"certify": CertifyConfig(sequence="asymptotic", tuned_rows=5000)}
    agent, traffic = (
        Agent(config(**settings), MemoryStore(), KEY),
        Traffic(np.random.default_rng(1)),
    )
    openings = []
    for _ in range(90):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(60))))
        # The condition may hold here, but no rule has opened the sequence: bounded it stays.
        opened = agent.rule.frozen[0].opening is not None
        assert (agent.answers.certified().sequence is Sequence.ASYMPTOTIC) == opened
        agent.refresh()
        openings.append(agent.rule.frozen[0].opening)
    first = next(index for index, opening in enumerate(openings) if opening is not None)
    assert first > 3
    for opening in openings[first:]:
        np.testing.assert_array_equal(opening.contrast, openings[first].contrast)
    again = Agent(config(**settings), agent.store, KEY)
    assert (
        again.answers.certified().contrasts.tobytes()
        == agent.answers.certified().contrasts.tobytes()
    )
    sums = agent.answers.view().certified.overall
    expected = asymptotic.contrast_bounds(sums.score, openings[-1], 0.9 * 0.05 / PAIRS)
    np.testing.assert_array_equal(agent.answers.certified().contrasts, expected)


def test_what_is_thought_is_of_before_the_first_certified_row_and_stays_for_the_era():
    """A log says the first model is best; later rules may think otherwise, the levels do not."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    opened = prior_of(agent)
    np.testing.assert_allclose(opened.best, 1.0 / 3.0)
    # Rows of the first rule: what it thought holds, whatever later rules think.
    run(agent, traffic, 3, size=60)
    assert agent.rule.prior.encode() == opened.encode()
    assert prior_of(agent).encode() == opened.encode()
    # A new era, before any of its rows: what is known by now.
    agent.controls.open_era("a new one")
    thought = prior_of(agent)
    assert thought.encode() == agent.rule.prior.encode()
    assert thought.best.sum() == pytest.approx(1.0)
    assert thought.best.argmax() == 2, "the best of the three so far"
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(60))))
    for _ in range(4):
        run(agent, traffic, 4, size=60)
        assert prior_of(agent).encode() == thought.encode()
    again = Agent(config(), agent.store, KEY)
    assert prior_of(again).encode() == thought.encode()


def logged(traffic, count=300, mirror=False):
    """A log that says the first model is best, larger being better; a mirror image of it."""
    log = traffic.observations(count)
    reward = (traffic.rng.random(count) < 0.9 - 0.35 * log.routed).astype(float)
    return replace(log, reward=1.0 - reward if mirror else reward)


def test_what_is_thought_is_that_of_the_first_row_and_not_of_the_first_that_closes(short_chunks):
    """A log comes while the rows of the first rule still wait: their era keeps what was thought
    when they were drawn, after a restart from a checkpoint as well."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    opened = agent.rule.prior
    waiting = [agent.decide(traffic.requests(60))]
    agent.ingest(logged(traffic))
    agent.refresh(review=False)
    assert agent.rule.prior.best[0] > 0.8
    waiting.append(agent.decide(traffic.requests(60)))
    for decided in waiting:
        agent.observe(traffic.outcomes(decided))
    assert agent.answers.view().certified.overall.rows == 120
    assert prior_of(agent).encode() == opened.encode()
    assert np.isnan(agent.fold.certified.prior).all(), "a view is a copy"
    agent.refresh(review=False)
    assert agent.rule.prior.encode() == opened.encode()
    run(agent, traffic, 12, size=60)
    agent.checkpoint()
    assert np.isfinite(agent.fold.certified.prior).all()
    again = Agent(config(), agent.store, KEY)
    assert prior_of(again).encode() == opened.encode()
    assert again.fold.to_bytes() == agent.fold.to_bytes()


@pytest.mark.parametrize("sequence", ["bounded", "asymptotic"])
def test_minimising_is_maximising_also_in_what_is_thought_and_its_levels(sequence):
    """A log that is sure of a model, right or wrong: levels of pairs are far from even."""
    lives = []
    for maximise in (True, False):
        reward = RewardConfig(low=0.0, high=1.0, window=100.0, maximise=maximise)
        settings = config(
            reward=reward,
            certify=CertifyConfig(sequence=sequence),
            policy=PolicyConfig(assignment="uniform", rate=0.3, estimator="ipw"),
        )
        agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(1))
        agent.ingest(logged(traffic, mirror=not maximise))
        agent.controls.open_era("a log came")
        for _ in range(12):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
            told = outcomes.reward if maximise else 1.0 - outcomes.reward
            agent.observe(replace(outcomes, reward=told))
            agent.refresh(review=False)
        lives.append(agent)
    one, other = lives
    assert prior_of(one).best[0] > 0.9
    np.testing.assert_allclose(prior_of(other).array(), prior_of(one).array(), rtol=1e-9)
    left, right = one.answers.certified(), other.answers.certified()
    np.testing.assert_allclose(right.decision, left.decision, atol=1e-9)
    np.testing.assert_allclose(right.contrasts.T, left.contrasts, atol=1e-9)
    if sequence == "bounded":
        caps, alpha = one.state.certifier.spec.caps, np.full((4, 4), 0.05)
        alpha[:3, :3] = decision_levels(0.05, np.ones(3, dtype=bool), prior_of(one))
        sums = one.answers.view().certified.overall.score
        expected = contrast_bounds(sums, caps, 3, alpha, prior_of(one))[:3, :3]
        np.testing.assert_array_equal(left.decision, expected)


def test_what_is_thought_knows_the_scale_of_rewards():
    thought = []
    for low, scale in ((0.0, 1.0), (-50.0, 200.0)):
        settings = config(
            reward=RewardConfig(low=low, high=low + scale, window=100.0),
            policy=PolicyConfig(assignment="uniform", epsilon=0.02 * scale),
        )
        agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(1))
        log = logged(traffic)
        agent.ingest(replace(log, reward=low + scale * log.reward))
        agent.controls.open_era("a log came")
        thought.append(agent.rule.prior)
    assert 0.2 < thought[0].variance < 0.25
    np.testing.assert_allclose(thought[1].array(), thought[0].array(), rtol=1e-9)


def test_sums_of_a_version_without_a_prior_keep_equal_weights():
    """The rules of its era had none, so its first row brought none."""
    agent = settled()
    sums, rule = agent.answers.view().certified, replace(agent.rule, prior=None)
    old = sums.copy()
    old.prior[:] = np.nan
    certifier, conditions = agent.state.certifier, Conditions(context_free=True)
    assert certifier.prior_in_force(old, rule) is None
    certified, caps = certifier.certified(old, rule, conditions), certifier.spec.caps
    expected = contrast_bounds(sums.overall.score, caps, 3, 0.05 / PAIRS)
    np.testing.assert_array_equal(certified.contrasts, expected)
    decision = contrast_bounds(sums.overall.score, caps, 3, np.full((4, 4), 0.05 / 2))
    np.testing.assert_array_equal(certified.decision, decision[:3, :3])


def test_segments_get_half_of_delta_together_and_their_own_rows():
    segments = [
        SegmentConfig(name="left", column="a", high=0.0),
        SegmentConfig(name="right", column="a", low=0.0),
    ]
    agent = settled(certify=CertifyConfig(segments=segments))
    whole, left, right = (agent.answers.certified(part) for part in range(3))
    assert whole.rows == left.rows + right.rows == 2700
    assert (whole.delta, left.delta, right.delta) == (0.025, 0.0125, 0.0125)
    assert (whole.segment, left.segment, right.segment) == (None, "left", "right")
    assert agent.answers.status(1).delta == 0.0125


def test_more_rows_decide_and_the_answer_is_right():
    """Models worth about .4, .55, .7: 12,000 requests at 30% decide for the last one."""
    agent = settled(batches=200)
    status = agent.answers.status()
    assert status.models == ("cheap",)
    assert agent.answers.certified_winner() == "cheap"
    certified = agent.answers.certified()
    assert certified.contrasts[2, 0] > 0.0
    assert certified.lower[2] <= 0.7 <= certified.upper[2]


def test_the_fixed_interval_is_narrower_and_labelled_a_comparison():
    agent = settled()
    certified = agent.answers.certified()
    width = -(certified.contrasts + certified.contrasts.T) / 2
    off = ~np.eye(4, dtype=bool)
    assert (certified.fixed[off] < width[off]).all()


def test_epsilon_is_in_reward_units():
    settings = config()
    wide = replace_policy(settings, epsilon=0.9)
    agent = Agent(wide, MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(1))
    run(agent, traffic, 20, size=60)
    assert agent.answers.certified_winner() is not None


def replace_policy(settings, **changes):
    import msgspec

    return msgspec.structs.replace(
        settings, policy=msgspec.structs.replace(settings.policy, **changes)
    )


def test_no_row_certifies_nothing():
    agent = Agent(config(), MemoryStore(), KEY)
    certified = agent.answers.certified()
    assert (certified.contrasts[~np.eye(4, dtype=bool)] == -1.0).all()
    assert (certified.lower == 0.0).all()
    assert (certified.upper == 1.0).all()
    assert agent.answers.status().state == "exploring"


@pytest.mark.parametrize("sequence", ["bounded", "asymptotic"])
def test_intervals_follow_a_drift_and_are_not_intersected(sequence):
    """The first model falls from .9 to .1. Each interval is about the average so far: it moves on,
    is never empty, and the intervals of all moments have nothing in common."""
    policy = PolicyConfig(assignment="uniform", rate=1.0)
    certify = CertifyConfig(sequence=sequence)
    agent = Agent(config(policy=policy, certify=certify), MemoryStore(), KEY)
    rng = np.random.default_rng(5)
    traffic, spans, total, rows = Traffic(rng), [], 0.0, 0
    for step in range(80):
        worth = np.array([0.9 if step < 25 else 0.1, 0.5, 0.5])
        outcomes = traffic.outcomes(agent.decide(traffic.requests(120)))
        reward = (rng.random(len(outcomes)) < worth[outcomes.served]).astype(float)
        agent.observe(replace(outcomes, reward=reward))
        agent.refresh(review=False)
        total, rows = total + 120 * worth, rows + 120
        certified = agent.answers.certified()
        assert (certified.lower <= certified.upper).all()
        assert (certified.contrasts + certified.contrasts.T <= 1e-9).all()
        average = total / rows
        assert (certified.lower[:3] <= average).all()
        assert (average <= certified.upper[:3]).all()
        spans.append((certified.lower[0], certified.upper[0]))
    assert agent.rule.era == 0
    assert certified.sequence is Sequence(sequence)
    highest, lowest = max(low for low, _ in spans), min(high for _, high in spans)
    assert highest > lowest, "a running intersection would be empty"


@pytest.mark.parametrize("sequence", ["bounded", "per-model", "asymptotic"])
@pytest.mark.parametrize("maximise", [True, False])
def test_every_end_is_on_its_side_of_the_estimate(sequence, maximise):
    """A one-sided end on the wrong side would leave out what it is about."""
    reward = RewardConfig(low=0.0, high=1.0, window=100.0, maximise=maximise)
    agent = settled(certify=CertifyConfig(sequence=sequence), reward=reward)
    values = agent.answers.estimates(["ipw"])["ipw"].values
    certified = agent.answers.certified()
    assert certified.sequence is Sequence(sequence)
    difference = values[:, None] - values[None, :]
    assert (certified.contrasts[:3, :3] <= difference).all()
    assert (certified.decision <= certified.sign * difference + 1e-12).all()
    assert (certified.lower[:3] <= values).all()
    assert (values <= certified.upper[:3]).all()
    # They say something: the best of the three is told from the worst.
    assert np.abs(certified.contrasts[:3, :3]).min(where=difference != 0, initial=1.0) < 0.25
