"""Fallbacks and lost answers: who answers, what is recorded, and what that makes of the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.worlds import World, WorldError, WorldOptions

FALSE_ALARM = 1e-6
COUNT = 150_000


@pytest.fixture(scope="module")
def table() -> Benchmark:
    return load("semisynthetic", contexts=200, models=4, misfit=0.6, seed=2)


def far(hits: int, count: int, share: float) -> bool:
    """Whether a count is off its binomial mean, at a false alarm rate of 1e-6 over 10 tests."""
    spread = np.sqrt(count * share * (1 - share))
    return bool(abs(hits - count * share) > spread * norm.isf(FALSE_ALARM / 20))


@pytest.mark.parametrize("fallback", ["routed", "one"])
def test_truth_is_what_requests_sent_to_a_model_return(table: Benchmark, fallback: str) -> None:
    """Monte Carlo of intention to treat, the values and the routing; false alarm rate 1e-6."""
    name = "routed" if fallback == "routed" else table.models[1]
    options = WorldOptions(confounding=1.0, noncompliance=0.3, fallback=name)
    world, rng = World(table, options), np.random.default_rng(3)
    batch, hidden = world.requests(COUNT, rng)
    limit = norm.isf(FALSE_ALARM / 2 / 5)
    for m in range(5):
        sent = np.full(COUNT, m) if m < 4 else batch.routed
        service = world.compliance.serve(sent, batch.routed, rng)
        _, reward = world.serve(hidden, service.model, rng)
        truth = world.values[m] if m < 4 else world.routing_value
        assert abs(reward.mean() - truth) < limit * reward.std() / np.sqrt(COUNT)
    itself = World(table, WorldOptions(confounding=1.0))
    np.testing.assert_array_equal(world.served_values, itself.values)
    np.testing.assert_array_equal(world.choice, itself.choice)
    np.testing.assert_allclose(world.contrasts, 0.7 * itself.contrasts, atol=1e-12)


@pytest.mark.parametrize("fallback", [None, 2])
def test_truth_is_a_sum_over_contexts_types_and_failures(
    table: Benchmark, fallback: int | None
) -> None:
    name = "routed" if fallback is None else table.models[fallback]
    world = World(table, WorldOptions(confounding=1.0, noncompliance=0.3, fallback=name))
    values, routing = np.zeros(4), 0.0
    for mean, choice in zip(world.means.reshape(-1, 4), world.choice.reshape(-1, 4), strict=True):
        instead = choice @ mean if fallback is None else mean[fallback]
        values += 0.7 * mean + 0.3 * instead
        routing += 0.7 * choice @ mean + 0.3 * instead
    np.testing.assert_allclose(world.values, values / 800, atol=1e-12)
    assert world.routing_value == pytest.approx(routing / 800, abs=1e-12)


def test_fallbacks_are_recorded_as_second_attempts(table: Benchmark) -> None:
    """Shares at a false alarm rate of 1e-6."""
    options = WorldOptions(noncompliance=0.2, fallback=table.models[3], undelivered=0.1)
    world, rng = World(table, options), np.random.default_rng(4)
    asked, routed = rng.integers(3, size=COUNT), rng.integers(4, size=COUNT)
    service = world.compliance.serve(asked, routed, rng)
    second, lost = service.attempt == 2, ~service.delivered
    assert set(service.attempt.tolist()) == {1, 2}
    assert (service.model[second] == 3).all()
    assert (service.model[lost & ~second] == routed[lost & ~second]).all()
    assert (service.model[service.as_assigned] == asked[service.as_assigned]).all()
    assert not far(int(second.sum()), COUNT, 0.2)
    assert not far(int(lost.sum()), COUNT, 0.1)
    assert not far(int((second & lost).sum()), COUNT, 0.02)


def test_falling_back_to_routing_serves_the_routed_model(table: Benchmark) -> None:
    world, rng = World(table, WorldOptions(noncompliance=0.5)), np.random.default_rng(4)
    asked, routed = rng.integers(4, size=1000), rng.integers(4, size=1000)
    service = world.compliance.serve(asked, routed, rng)
    np.testing.assert_array_equal(service.model, np.where(service.attempt == 2, routed, asked))
    assert service.delivered.all()


def test_a_log_records_who_answered(table: Benchmark) -> None:
    """Rows and rewards per model against the exact limits; false alarm rate 1e-6."""
    options = WorldOptions(confounding=1.0, noncompliance=0.3, fallback=table.models[1])
    world = World(table, options)
    log = world.observations(COUNT, np.random.default_rng(5))
    shares = 0.7 * world.choice.mean(axis=(0, 1)) + 0.3 * np.eye(4)[1]
    for m in range(4):
        mine = log.reward[log.routed == m]
        assert not far(len(mine), COUNT, shares[m])
        error = mine.std() / np.sqrt(len(mine))
        assert abs(mine.mean() - world.naive_limit[m]) < error * norm.isf(FALSE_ALARM / 8)
    unconfounded = World(table, WorldOptions(confounding=1.0)).naive_limit
    assert abs(world.naive_limit[1] - unconfounded[1]) > 0.01
    error = log.reward.std() / np.sqrt(COUNT)
    assert abs(log.reward.mean() - world.routing_value) < error * norm.isf(FALSE_ALARM / 2)


def test_lost_answers_leave_truth_and_log_alone(table: Benchmark) -> None:
    plain, lossy = (World(table, WorldOptions(undelivered=share)) for share in (0.0, 0.4))
    np.testing.assert_array_equal(lossy.values, plain.values)
    np.testing.assert_array_equal(lossy.naive_limit, plain.naive_limit)
    assert lossy.routing_value == plain.routing_value


def test_a_world_without_faults_carries_out_every_decision(table: Benchmark) -> None:
    world, rng = World(table, WorldOptions()), np.random.default_rng(0)
    asked = np.arange(4)
    service = world.compliance.serve(asked, np.zeros(4, dtype=np.int64), rng)
    assert service.model is asked
    assert service.as_assigned.all()
    assert world.values is world.served_values
    assert rng.random() == np.random.default_rng(0).random()


def test_serving_takes_as_much_randomness_whatever_is_asked(table: Benchmark) -> None:
    world = World(table, WorldOptions(noncompliance=0.5, undelivered=0.5))
    after = []
    for m in range(4):
        rng = np.random.default_rng(4)
        world.compliance.serve(np.full(32, m), np.zeros(32, dtype=np.int64), rng)
        after.append(rng.random())
    assert len(set(after)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noncompliance": 1.1}, "noncompliance is 1.1, must be at most 1"),
        ({"undelivered": -0.1}, "undelivered is -0.1, must be at least 0"),
    ],
)
def test_refuses_with_name_value_and_limit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldOptions(**changes)


def test_refuses_a_fallback_that_is_no_model(table: Benchmark) -> None:
    with pytest.raises(WorldError, match="fallback is 'gpt', must be one of routed, "):
        World(table, WorldOptions(noncompliance=0.1, fallback="gpt"))
