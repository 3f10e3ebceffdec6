"""Drift: when it happens, what it moves, and that the running average of the truth is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.worlds import Hidden, World, WorldOptions
from equipoise.store.batches import Floats

FALSE_ALARM = 1e-6
KINDS = ("all", "best", "worst", "contexts")


@pytest.fixture(scope="module")
def table() -> Benchmark:
    return load("semisynthetic", contexts=101, models=4, misfit=0.6, seed=2)


def drifting(of: str, size: float, shape: str = "linear", **others: Any) -> WorldOptions:
    options = WorldOptions(confounding=0.8, routing_skill=0.6, drift=size, drift_of=of)
    return replace(options, drift_shape=shape, drift_over=400, **others)


def misses(sample: Floats, truth: float) -> float:
    """Standard errors between a sample mean and the truth."""
    return float(abs(sample.mean() - truth) / (sample.std(ddof=1) / np.sqrt(len(sample))))


class TestTime:
    def test_linear_drift_takes_its_time(self, table: Benchmark) -> None:
        drift = World(table, drifting("all", 0.5)).drift
        share = drift.share(np.array([-5, 0, 100, 399, 400, 9000]))
        np.testing.assert_array_equal(share, [0, 0, 0.25, 399 / 400, 1, 1])

    def test_a_change_comes_at_once(self, table: Benchmark) -> None:
        drift = World(table, drifting("all", 0.5, "change")).drift
        np.testing.assert_array_equal(
            drift.share(np.array([-5, 0, 399, 400, 401])), [0, 0, 0, 1, 1]
        )


class TestTruth:
    @pytest.mark.parametrize("of", KINDS)
    @pytest.mark.parametrize("size", [0.7, -0.7])
    def test_is_an_enumeration_of_the_world_as_it_is_then(
        self, table: Benchmark, of: str, size: float
    ) -> None:
        """Every context, type and model one by one, at a share of 0.3."""
        world = World(table, drifting(of, size))
        share, count = 0.3, len(table.x)
        target = {"all": range(4), "best": [int(np.argmax(world.values))], "contexts": []}
        target["worst"] = [int(np.argmin(world.values))]
        ranked = sorted(range(count), key=lambda c: world.base[c].mean())
        half = set(ranked[50:] if size > 0 else ranked[:51])
        values, routing = np.zeros(4), 0.0
        for c in range(count):
            weight = 1 / count
            if of == "contexts":
                weight = (1 - share * 0.7) / count + share * 0.7 * (c in half) / len(half)
            for u in range(4):
                for m in range(4):
                    mean = world.means[c, u, m]
                    if m in target[of]:
                        mean += share * 0.7 * ((1.0 if size > 0 else 0.0) - mean)
                    values[m] += weight / 4 * mean
                    routing += weight / 4 * world.choice[c, u, m] * mean
        assert len(half) == 51
        truth = world.truth(share)
        np.testing.assert_allclose(truth.values, values, atol=1e-12)
        assert truth.routing == pytest.approx(routing, abs=1e-12)

    @pytest.mark.parametrize("of", KINDS)
    @pytest.mark.parametrize("shape", ["linear", "change"])
    def test_running_average_agrees_with_traffic(
        self, table: Benchmark, of: str, shape: str
    ) -> None:
        """600 requests, 200 times; false alarm rate 1e-6 over the values and the routing."""
        world = World(table, drifting(of, -0.8, shape))
        truth = world.truth(float(world.drift.share(np.arange(600)).mean()))
        rng = np.random.default_rng(7)
        rewards: list[list[Floats]] = [[] for _ in range(5)]
        for _ in range(200):
            batch, hidden = world.requests(600, rng)
            for m in range(4):
                rewards[m].append(world.serve(hidden, np.full(600, m), rng)[1])
            rewards[4].append(world.serve(hidden, batch.routed, rng)[1])
        limit = norm.isf(FALSE_ALARM / 2 / 5)
        for m in range(5):
            expected = truth.values[m] if m < 4 else truth.routing
            assert misses(np.concatenate(rewards[m]), expected) < limit
        before = world.truth().values[int(np.argmax(world.values))]
        if of in ("all", "best"):
            assert misses(np.concatenate(rewards[int(np.argmax(world.values))]), before) > 50

    @pytest.mark.parametrize("of", KINDS)
    def test_averages_are_values_at_the_average_share(self, table: Benchmark, of: str) -> None:
        world = World(table, drifting(of, 0.6, noncompliance=0.2))
        share = world.drift.share(np.arange(550))
        each = np.array([world.truth(float(s)).values for s in share])
        np.testing.assert_allclose(
            world.truth(float(share.mean())).values, each.mean(axis=0), atol=1e-12
        )


class TestMoves:
    def test_one_model_alone_can_lose_its_lead(self, table: Benchmark) -> None:
        world = World(table, drifting("best", -0.9))
        best = int(np.argmax(world.values))
        after = world.truth(1.0).values
        others = np.arange(4) != best
        np.testing.assert_allclose(after[others], world.values[others], atol=1e-12)
        assert after[best] == pytest.approx(0.1 * world.values[best], abs=1e-12)
        assert np.argmax(after) != best

    @pytest.mark.parametrize(("size", "end"), [(1.0, 1.0), (-1.0, 0.0)])
    def test_rewards_stay_in_range_to_the_very_end(
        self, table: Benchmark, size: float, end: float
    ) -> None:
        world = World(table, drifting("all", size, reward="bounded"))
        _, hidden = world.requests(200, np.random.default_rng(0), first=400)
        _, reward = world.serve(hidden, np.zeros(200, dtype=np.int64), np.random.default_rng(1))
        np.testing.assert_array_equal(reward, end)

    def test_contexts_come_from_the_worse_half(self, table: Benchmark) -> None:
        """All of them under a drift of -1; requests carry the features of their new context."""
        world = World(table, drifting("contexts", -1.0, "change"))
        batch, hidden = world.requests(3000, np.random.default_rng(0), first=400)
        worth = world.base.mean(axis=1)
        assert worth[hidden.rows].max() <= np.sort(worth)[50]
        assert len(set(hidden.rows.tolist())) == 51
        np.testing.assert_array_equal(batch.x, table.x[hidden.rows])
        np.testing.assert_array_equal(batch.context, hidden.rows)
        chosen = np.eye(4)[batch.routed] - world.choice[hidden.rows, hidden.types]
        assert np.abs(chosen.mean(axis=0)).max() < 0.05  # 5 standard errors

    @pytest.mark.parametrize("of", KINDS)
    def test_log_and_replays_are_from_before(self, table: Benchmark, of: str) -> None:
        still, moving = World(table, drifting(of, 0.0)), World(table, drifting(of, 0.9, "change"))
        np.testing.assert_array_equal(moving.values, still.values)
        np.testing.assert_array_equal(moving.naive_limit, still.naive_limit)
        np.testing.assert_array_equal(moving.simulations().outputs, still.simulations().outputs)
        log = moving.observations(100_000, np.random.default_rng(5))
        for m in range(4):
            # False alarm rate 1e-6.
            mine = log.reward[log.routed == m]
            assert misses(mine, moving.naive_limit[m]) < norm.isf(FALSE_ALARM / 8)

    def test_harm_is_what_it_costs_by_then(self, table: Benchmark) -> None:
        world = World(table, drifting("all", -0.5, "change"))
        batch, hidden = world.requests(50, np.random.default_rng(0), first=400)
        earlier = Hidden(hidden.rows, hidden.types)
        model = np.full(50, 2)
        np.testing.assert_allclose(
            world.harm(hidden, batch.routed, model), 0.5 * world.harm(earlier, batch.routed, model)
        )


def test_without_drift_there_is_one_truth(table: Benchmark) -> None:
    world = World(table, WorldOptions(drift_of="best", drift_over=1))
    assert world.truth(0.7) is world.truth()
    assert world.requests(5, np.random.default_rng(0), first=9)[1].drifted is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drift": 1.1}, "drift is 1.1, must be at most 1"),
        ({"drift_of": "users"}, "drift_of is 'users', must be one of all, best, worst, contexts"),
        ({"drift_shape": "step"}, "drift_shape is 'step', must be one of linear, change"),
        ({"drift_over": 0}, "drift_over is 0, must be at least 1"),
    ],
)
def test_refuses_with_name_value_and_limit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldOptions(**changes)
