"""Certified sums of a real agent against a plain loop over its log; what enters, and when."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from raw_scores import Log, raw_sums
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import (
    CertifyConfig,
    DeclaredPolicy,
    PolicyConfig,
    RewardConfig,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.policies.kernels import ConstantRate
from equipoise.store.memory import MemoryStore

CERTIFY = CertifyConfig(
    segments=[
        SegmentConfig(name="left", column="a", high=0.1),
        SegmentConfig(name="middle", column="b", low=-0.5, high=0.5),
    ],
    policies=[
        DeclaredPolicy(name="split", column="a", at_least=0.2, model="fast", otherwise="cheap")
    ],
)


def experiment(**changes):
    policy = PolicyConfig(assignment="top-two", rate=0.4, estimator="hierarchical")
    return config(**{"certify": CERTIFY, "policy": policy, **changes})


def lively(settings, seed=4):
    """Rows with and without SIM, late SIM rows, lost rewards, undelivered ones, closed models."""
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 100)
    low, high = settings.reward.low, settings.reward.high
    log = traffic.observations(200)
    agent.ingest(replace(log, reward=low + log.reward * (high - low)))
    simulations = traffic.simulations()
    early = simulations.context < 25
    for some in (early, None):
        if some is not None:
            agent.simulate(picked(simulations, some))
        for _ in range(6):
            requests = traffic.requests(60)
            eligible = rng.random((60, 3)) < 0.97
            decided = agent.decide(replace(requests, eligible=eligible))
            outcomes = traffic.outcomes(decided)
            # Rewards that outputs explain, so that the prediction has something to say.
            mean = 0.5 + 0.45 * outcomes.outputs[:, 0]
            hit = (rng.random(60) < mean).astype(float)
            outcomes = replace(outcomes, reward=low + hit * (high - low))
            lost = rng.random(60) < 0.1
            outcomes.reward[lost] = np.nan
            outcomes = replace(outcomes, delivered=rng.random(60) > 0.05)
            agent.observe(outcomes)
            traffic.at += 300.0
            agent.expire(traffic.at)
            agent.refresh()
        if some is not None:
            # Contexts that requests have met before: too late for those.
            agent.simulate(picked(simulations, ~early))
            agent.refresh()
    return agent


def picked(batch, rows):
    return type(batch)(
        **{
            name: value[rows] if isinstance(value := getattr(batch, name), np.ndarray) else value
            for name in batch.__slots__
        }
    )


RANGES = [(0.0, 1.0), (1.0, 5.0), (0.0, 100.0), (-3.0, -1.0)]


MISSING = ["worst-case", 0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("missing", "scale", "sticky"),
    # Every two of the three settings together.
    [
        (missing, scale, (row + column) % 2 == 1)
        for row, missing in enumerate(MISSING)
        for column, scale in enumerate(RANGES)
    ],
)
def test_sums_equal_a_loop_over_the_raw_log(missing, scale, sticky):
    """For every range of rewards and meaning of a missing one; `missing` is a share of the range.

    The loop takes the declared number through the range itself, so nothing is scaled twice.
    """
    low_end, high_end = scale
    value = None if missing == "worst-case" else low_end + missing * (high_end - low_end)
    settings = experiment(
        reward=RewardConfig(
            low=low_end,
            high=high_end,
            window=100.0,
            missing="worst-case" if value is None else value,
        ),
        units=UnitsConfig(ttl=250.0) if sticky else None,
    )
    agent = lively(settings)
    certified = agent.answers.view().certified
    log = Log(agent.store, agent.state.transform)
    for part in range(3):
        rows, low, high, low_squares, high_squares, contrast = raw_sums(
            log,
            certified.spec,
            certified.watermark,
            settings.limits.rate_min,
            part,
            None if missing == "worst-case" else missing,
            sticky,
        )
        score = certified.sums[part].score
        assert certified.watermark == 720
        assert certified.sums[part].rows == rows > (20 if sticky else 50)
        np.testing.assert_allclose(score.low, low, rtol=1e-9)
        np.testing.assert_allclose(score.high, high, rtol=1e-9)
        np.testing.assert_allclose(score.low_squares, low_squares, rtol=1e-9)
        np.testing.assert_allclose(score.high_squares, high_squares, rtol=1e-9)
        off = ~np.eye(score.low.shape[1], dtype=bool)
        np.testing.assert_allclose(
            score.contrast_squares()[:, off], contrast[:, off], rtol=1e-7, atol=1e-9
        )


SEQUENCES = ["bounded", "per-model", "asymptotic"]


@pytest.mark.parametrize(
    ("missing", "maximise", "scale", "sequence"),
    # Every sequence with every meaning and both signs; every range with each of them.
    [
        (("worst-case", 0.3)[row], (True, False)[sign], RANGES[1 + (row + sign + column) % 3], name)
        for row, sign, (column, name) in product(range(2), range(2), enumerate(SEQUENCES))
    ],
)
def test_certified_ends_follow_the_range(missing, maximise, scale, sequence):
    """What is certified of low + (high - low) R is the image of what is certified of R, whatever
    a missing reward counts as: the interval round a true 50 of 0 to 100 is not that of 0 to 1."""

    def answer(low, high):
        value = missing if missing == "worst-case" else low + missing * (high - low)
        reward = RewardConfig(low=low, high=high, window=100.0, missing=value, maximise=maximise)
        # Without policies and eligible models, so that each sequence may be the certified one.
        policy = PolicyConfig(assignment="uniform", rate=0.4, estimator="ipw")
        certify = CertifyConfig(sequence=sequence, segments=CERTIFY.segments)
        agent = lively(experiment(reward=reward, policy=policy, certify=certify))
        return agent, [agent.answers.certified(part) for part in range(3)]

    plain, (low, high) = answer(0.0, 1.0)[1], scale
    agent, scaled = answer(low, high)
    for one, other in zip(plain, scaled, strict=True):
        spread = high - low
        np.testing.assert_allclose((other.lower - low) / spread, one.lower, atol=1e-6)
        np.testing.assert_allclose((other.upper - low) / spread, one.upper, atol=1e-6)
        np.testing.assert_allclose(other.contrasts / spread, one.contrasts, atol=1e-6)
        np.testing.assert_allclose(other.decision / spread, one.decision, atol=1e-6)
        assert other.missing == one.missing
    assert scaled[0].missing > 0
    assert agent.rule.missing == (None if missing == "worst-case" else low + 0.3 * (high - low))


def test_the_prediction_takes_part():
    """Otherwise the loop above would only have compared running means."""
    agent = lively(experiment())
    assert (agent.rule.frozen[0].tuning.factor > 0.0).any()
    assert agent.rule.prediction is not None


def test_sim_rows_that_come_after_a_decision_predict_nothing_of_it():
    """The same log but for the moment of the SIM rows gives other sums, as it must: a row is
    predicted from what was known when it was decided."""
    settings = experiment()
    late, early = Traffic(np.random.default_rng(1)), Traffic(np.random.default_rng(1))
    sums = []
    for traffic, first in ((early, True), (late, False)):
        agent = Agent(settings, MemoryStore(), KEY)
        agent.simulate(picked(traffic.simulations(), slice(0, 60)))
        agent.ingest(traffic.observations(300))
        run(agent, traffic, 9)
        if first:
            agent.simulate(picked(traffic.simulations(), slice(60, None)))
        decided = agent.decide(traffic.requests(50))
        if not first:
            agent.simulate(picked(traffic.simulations(), slice(60, None)))
        agent.observe(traffic.outcomes(decided))
        log = Log(agent.store, agent.state.transform)
        spec, watermark = agent.state.certifier.spec, agent.answers.view().watermark
        expected = raw_sums(log, spec, watermark, settings.limits.rate_min)
        score = agent.answers.view().certified.overall.score
        np.testing.assert_allclose(score.low, expected[1], rtol=1e-9)
        sums.append(score.low)
    assert not np.allclose(sums[0], sums[1], rtol=1e-9)


def test_rows_enter_in_decision_order_behind_the_watermark():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(30)))
    agent.observe(picked(outcomes, np.arange(30) != 3))
    assert agent.answers.view().watermark == 3
    assert agent.answers.view().certified.overall.rows == 3
    agent.observe(picked(outcomes, np.arange(30) == 3))
    assert agent.answers.view().certified.overall.rows == 30


def test_rows_that_are_not_randomized_wait_for_their_rewards_too():
    """A row enters when every earlier one is closed, randomized or not: whether it was is no
    secret, but its reward must not decide when the others are seen."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    decided = agent.decide(traffic.requests(30))
    outcomes = traffic.outcomes(decided)
    first = int(np.flatnonzero(~decided.randomized)[0])
    agent.observe(picked(outcomes, np.arange(30) != first))
    assert agent.answers.view().watermark == first


def test_capped_rows_and_bulk_rows_stay_out():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    run(agent, traffic, 3)
    rows = agent.answers.view().certified.overall.rows
    agent.controls.pause("a person said so")
    run(agent, traffic, 3)
    agent.ingest(traffic.observations(500))
    assert agent.answers.view().certified.overall.rows == rows == 120
    agent.controls.resume()
    run(agent, traffic, 1)
    assert agent.answers.view().certified.overall.rows == rows + 40


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-4), (-3e4, 7e4)])
def test_the_scale_of_rewards_changes_nothing_but_the_scale(low, high):
    """Certified ends of R and of low + (high - low) R are images of each other, to 1e-6."""
    answers = []
    for scale in ((0.0, 1.0), (low, high)):
        settings = experiment(reward=RewardConfig(low=scale[0], high=scale[1], window=100.0))
        agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(7))
        agent.simulate(traffic.simulations())
        for index in range(12):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(60)))
            reward = scale[0] + (scale[1] - scale[0]) * outcomes.reward
            agent.observe(replace(outcomes, reward=reward))
            if index % 3 == 2:
                agent.refresh()
        answers.append(agent.answers.certified())
    plain, scaled = answers
    np.testing.assert_allclose(scaled.contrasts / (high - low), plain.contrasts, atol=1e-6)
    np.testing.assert_allclose((scaled.lower - low) / (high - low), plain.lower, atol=1e-6)


def test_minimising_the_negative_is_maximising():
    """R -> 1 - R with maximise = false: the same status, the same lead, to 1e-9."""
    answers = []
    for maximise in (True, False):
        settings = experiment(
            reward=RewardConfig(low=0.0, high=1.0, window=100.0, maximise=maximise)
        )
        agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(7))
        agent.simulate(traffic.simulations())
        for index in range(60):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(60)))
            reward = outcomes.reward if maximise else 1.0 - outcomes.reward
            agent.observe(replace(outcomes, reward=reward))
            if index % 3 == 2:
                agent.refresh()
        answers.append((agent.answers.certified().standing, agent.answers.status()))
    (one, first), (other, second) = answers
    np.testing.assert_allclose(one.decision, other.decision, atol=1e-9)
    np.testing.assert_allclose(one.pairs, other.pairs, atol=1e-9)
    assert (first.state, first.models) == (second.state, second.models)


def test_no_simulator_and_no_log_can_break_a_certified_sum():
    """Garbage in OBS and SIM changes the prediction and nothing that is predictable is trusted:
    the sums under cap 0, which never look at a prediction, are the same bit for bit."""
    sums = []
    for garbage in (False, True):
        agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(2))
        simulations, log = traffic.simulations(), traffic.observations(300)
        if garbage:
            noise = np.random.default_rng(5)
            simulations = replace(simulations, outputs=noise.normal(size=simulations.outputs.shape))
            log = replace(log, reward=noise.random(len(log.reward)))
        agent.simulate(simulations)
        agent.ingest(log)
        run(agent, traffic, 12)
        sums.append(agent.answers.view().certified.overall.score)
    assert sums[0].low[0].tobytes() == sums[1].low[0].tobytes()
    assert sums[0].high[0].tobytes() == sums[1].high[0].tobytes()


def test_where_every_unit_is_randomized_nothing_is_known_of_todays_routing():
    """A gate may raise the rate of a request to 1. Rewards are 0 where the log says 1, so that ends
    that rested on predictions would leave the truth out."""
    settings = experiment(units=UnitsConfig(ttl=1.0), certify=CertifyConfig())
    agent, rng = Agent(settings, MemoryStore(), KEY), np.random.default_rng(6)
    traffic = Traffic(rng)
    log = traffic.observations(500)
    agent.ingest(replace(log, reward=np.ones(500)))
    always = replace(agent.rule.allocation, gate=ConstantRate(1.0))
    for _ in range(6):
        agent.refresh(traffic.at)
        rule = replace(agent.rule, allocation=always, since=agent.light.pending.next)
        agent.state.rule = agent.state.rules.add(rule, traffic.at)
        requests = traffic.requests(50)
        decided = agent.decide(replace(requests, unit=rng.integers(1 << 40, size=50)))
        assert decided.randomized.all()
        outcomes = traffic.outcomes(decided)
        agent.observe(replace(outcomes, reward=np.zeros(50)))
        traffic.at += 1000.0
    agent.expire(traffic.at)
    agent.decide(traffic.requests(1))
    certified = agent.answers.certified(0)
    routing = len(agent.models)
    assert certified.rows >= 250
    assert certified.lower[routing] == pytest.approx(0.0, abs=1e-9)
    assert certified.upper[routing] == pytest.approx(1.0, abs=1e-9)
    assert certified.upper[:routing].max() < 0.9
