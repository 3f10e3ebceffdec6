"""Delayed rewards: how long they take, which of them come in time, and what that does to a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.worlds import World, WorldOptions
from equipoise.store.batches import Floats

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def table() -> Benchmark:
    return load("semisynthetic", contexts=200, models=4, misfit=0.6, seed=2)


def agrees(sample: Floats, truth: float, tests: int) -> bool:
    """Whether a sample mean is within its Monte Carlo error of the truth, over so many tests."""
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return abs(sample.mean() - truth) <= error * norm.isf(FALSE_ALARM / (2 * tests))


def seconds(world: World, model: int, reward: float, count: int = 50_000) -> Floats:
    return world.delays.draw(
        np.full(count, model), np.full(count, reward), np.random.default_rng(1)
    )


@pytest.mark.parametrize("pattern", ["same", "opposite"])
def test_mean_delays_follow_reward_and_model(table: Benchmark, pattern: str) -> None:
    """Against the definition; false alarm rate 1e-6. A reward of 1/2 is of either kind."""
    world = World(table, WorldOptions(delay=60, delay_by_reward=0.75, delay_pattern=pattern))
    good = world.served_values >= world.served_values.mean()
    for model in range(4):
        sign = 1 if good[model] or pattern == "same" else -1
        assert agrees(seconds(world, model, 1.0), 60 * (1 + 0.75 * sign), 12)
        assert agrees(seconds(world, model, 0.0), 60 * (1 - 0.75 * sign), 12)
        assert agrees(seconds(world, model, 0.5), 60, 12)


def test_delays_are_exponential(table: Benchmark) -> None:
    """Chance of coming within a window, per kind of reward and model; false alarm rate 1e-6."""
    options = WorldOptions(delay=60, delay_by_reward=-0.5, delay_pattern="opposite", window=45)
    world = World(table, options)
    for kind, chance in enumerate(world.delays.in_time()):
        for model in range(4):
            came = seconds(world, model, float(kind)) <= 45
            assert agrees(came.astype(float), chance[model], 8)


def test_the_fastest_rewards_take_no_time(table: Benchmark) -> None:
    world = World(table, WorldOptions(delay=60, delay_by_reward=1.0, window=30))
    assert seconds(world, 0, 0.0, 100).max() == 0
    failures, successes = world.delays.in_time()
    np.testing.assert_array_equal(failures, 1.0)
    np.testing.assert_allclose(successes, 1 - np.exp(-30 / 120), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "window"),
    [({}, 1.0), ({"delay": 30.0}, 600.0), ({"delay": 30.0, "window": 45.0}, 45.0)],
)
def test_the_window_waits_for_nothing_or_for_twenty_delays(
    table: Benchmark, options: dict[str, Any], window: float
) -> None:
    world = World(table, WorldOptions(**options))
    assert world.delays.window == window
    assert world.delays.timed == bool(options)


@pytest.mark.parametrize("reward", ["bernoulli", "bounded"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_limit_of_a_log_counts_what_comes_in_time(
    table: Benchmark, reward: str, missing: float
) -> None:
    """Exact against 300,000 rows of log that the window has cut; false alarm rate 1e-6."""
    options = WorldOptions(
        reward=reward,
        concentration=2.0,
        missing=0.1,
        missing_by_reward=missing,
        delay=100,
        delay_by_reward=0.9,
        delay_pattern="opposite",
        window=60,
    )
    world = World(table, options)
    log = world.observations(300_000, np.random.default_rng(3))
    kept = ~np.isnan(log.reward)
    for model in range(4):
        mine = log.reward[kept & (log.routed == model)]
        assert agrees(mine, world.naive_limit[model], 4)
    untimed = World(table, WorldOptions(reward=reward, concentration=2.0))
    assert np.abs(world.naive_limit - untimed.naive_limit).max() > 0.05


def test_delays_that_all_come_in_time_change_no_limit(table: Benchmark) -> None:
    at_once = World(table, WorldOptions(reward="bounded", missing_by_reward=0.3))
    patient = World(table, WorldOptions(reward="bounded", missing_by_reward=0.3, delay=1e-9))
    np.testing.assert_allclose(patient.naive_limit, at_once.naive_limit, atol=1e-8)
    np.testing.assert_array_equal(patient.values, at_once.values)


def test_a_draw_takes_as_much_randomness_whatever_came(table: Benchmark) -> None:
    world = World(table, WorldOptions(delay=60, delay_by_reward=1.0))
    after = []
    for model, reward in ((0, 1.0), (3, 0.0), (2, np.nan)):
        rng = np.random.default_rng(4)
        world.delays.draw(np.full(32, model), np.full(32, reward), rng)
        after.append(rng.random())
    assert len(set(after)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay": -1.0}, "delay is -1.0, must be at least 0"),
        ({"delay_by_reward": 1.5}, "delay_by_reward is 1.5, must be at most 1"),
        ({"delay_pattern": "mixed"}, "delay_pattern is 'mixed', must be one of same, opposite"),
        ({"window": -1.0}, "window is -1.0, must be at least 0"),
    ],
)
def test_refuses_with_name_value_and_limit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldOptions(**changes)
