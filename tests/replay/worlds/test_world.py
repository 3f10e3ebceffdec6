"""Worlds: the truth is exact, and every option does what it says and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.worlds import World, WorldOptions
from equipoise.replay.worlds.choice import GENEROSITY, STRENGTH, attraction
from equipoise.replay.worlds.options import describe_options, parse_options
from equipoise.replay.worlds.world import START
from equipoise.store.batches import Floats

FALSE_ALARM = 1e-6
BUSY = WorldOptions(
    confounding=1.0,
    alpha=0.3,
    routing_skill=0.7,
    routing_context=0.8,
    reward="bounded",
    concentration=4.0,
    missing=0.1,
    missing_by_reward=0.5,
)


@pytest.fixture(scope="module")
def table() -> Benchmark:
    return load("semisynthetic", contexts=400, models=5, misfit=0.6, seed=2)


def relabelled(table: Benchmark, order: list[int]) -> Benchmark:
    return replace(
        table,
        models=tuple(table.models[m] for m in order),
        outputs=table.outputs[:, order],
        outcome=table.outcome[:, order],
        cost=table.cost[:, order],
    )


def agrees(sample: Floats, truth: float, tests: int) -> bool:
    """Whether a sample mean is within its Monte Carlo error of the truth, over so many tests."""
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return abs(sample.mean() - truth) < error * norm.isf(FALSE_ALARM / (2 * tests))


class TestTruth:
    def test_is_the_sum_over_contexts_types_and_choices(self) -> None:
        """An independent enumeration of the definitions, one cell at a time."""
        table = load("semisynthetic", contexts=7, models=3, misfit=0.5)
        world = World(table, WorldOptions(confounding=0.8, alpha=0.4, routing_skill=0.5))
        rating, cells = 0.15, []
        badness = -(world.values - world.values.mean()) / world.values.std()
        for c in range(7):
            z = (world.base[c] - world.base[c].mean()) / world.base[c].std()
            for generosity in GENEROSITY:
                logits = 0.8 * STRENGTH * generosity * badness + 0.5 * z
                p = np.exp(logits) / np.exp(logits).sum()
                mean = [rating + 0.7 * base + rating * generosity for base in world.base[c]]
                cells.append((p, np.array(mean)))
        p, mean = (np.array(part) for part in zip(*cells, strict=True))
        np.testing.assert_allclose(world.values, mean.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(world.routing_value, (p * mean).sum() / len(p), atol=1e-12)
        naive = (p * mean).sum(axis=0) / p.sum(axis=0)
        np.testing.assert_allclose(world.naive_limit, naive, atol=1e-12)
        np.testing.assert_array_equal(world.contrasts[0], world.values[0] - world.values)

    @pytest.mark.parametrize(
        "options", [WorldOptions(confounding=0.5), BUSY], ids=["plain", "busy"]
    )
    def test_agrees_with_traffic(self, table: Benchmark, options: WorldOptions) -> None:
        """False alarm rate 1e-6 over the values, the routing and the naive limits."""
        complete = replace(options, missing=0.0, missing_by_reward=0.0)
        world, rng = World(table, complete), np.random.default_rng(5)
        batch, hidden = world.requests(60_000, rng)
        tests = 2 * 5 + 1
        for m in range(5):
            _, reward = world.serve(hidden, np.full(len(batch), m), rng)
            assert agrees(reward, world.values[m], tests)
        _, reward = world.serve(hidden, batch.routed, rng)
        assert agrees(reward, world.routing_value, tests)
        world = World(table, options)
        log = world.observations(200_000, rng)
        for m in range(5):
            reward = log.reward[log.routed == m]
            assert agrees(reward[~np.isnan(reward)], world.naive_limit[m], tests)

    def test_choices_are_drawn_with_their_probabilities(self, table: Benchmark) -> None:
        """Choice given the type, and contexts and types themselves; false alarm rate 1e-6."""
        world = World(table, WorldOptions(confounding=1.0, routing_skill=1.0))
        batch, hidden = world.requests(200_000, np.random.default_rng(6))
        for u in range(4):
            picked = hidden.types == u
            assert agrees(picked.astype(float), 0.25, 24)
            for m in range(5):
                chosen = (batch.routed[picked] == m) - world.choice[hidden.rows[picked], u, m]
                assert agrees(chosen, 0.0, 24)
        counts = np.bincount(hidden.rows, minlength=400)
        assert ((counts - 500) ** 2).sum() / 500 < 399 + 5 * np.sqrt(2 * 399)

    def test_means_stay_in_range_without_clipping(self, table: Benchmark) -> None:
        for rating in (0.0, 0.15, 0.5):
            world = World(table, WorldOptions(rating=rating))
            assert world.means.min() >= 0
            assert world.means.max() <= 1
            np.testing.assert_allclose(
                world.means.mean(axis=1), rating + (1 - 2 * rating) * world.base, atol=1e-12
            )

    def test_harm_and_cost_of_a_request(self, table: Benchmark) -> None:
        world = World(table, WorldOptions())
        batch, hidden = world.requests(50, np.random.default_rng(0))
        model = np.full(50, 3)
        lost = world.expected(hidden, batch.routed) - world.expected(hidden, model)
        np.testing.assert_array_equal(world.harm(hidden, batch.routed, model), lost)
        np.testing.assert_array_equal(world.cost(hidden, model), table.cost[hidden.rows, 3])


class TestSelection:
    def test_without_confounding_choice_ignores_the_type(self, table: Benchmark) -> None:
        world = World(table, WorldOptions(confounding=0.0, routing_skill=0.8))
        np.testing.assert_array_equal(world.choice, world.choice[:, :1].repeat(4, axis=1))
        blind = World(table, WorldOptions(confounding=0.0))
        np.testing.assert_allclose(blind.choice, 0.2, atol=1e-15)
        np.testing.assert_allclose(blind.naive_limit, blind.values, atol=1e-12)

    def test_generous_users_pick_worse_models(self, table: Benchmark) -> None:
        world = World(table, WorldOptions(confounding=1.0))
        by_type = (world.choice[0] * world.values).sum(axis=1)
        assert np.all(np.diff(by_type) < 0)
        best, worst = np.argmax(world.values), np.argmin(world.values)
        assert world.naive_limit[worst] > world.naive_limit[best]

    def test_more_confounding_misleads_more(self, table: Benchmark) -> None:
        gaps = []
        for confounding in (0.0, 0.25, 0.5, 0.75, 1.0):
            world = World(table, WorldOptions(confounding=confounding))
            best, worst = np.argmax(world.values), np.argmin(world.values)
            gaps.append(world.naive_limit[best] - world.naive_limit[worst])
        assert gaps == sorted(gaps, reverse=True)

    def test_skill_makes_routing_beat_every_single_model(self, table: Benchmark) -> None:
        skilled = World(table, WorldOptions(confounding=0.0, routing_skill=5.0))
        assert skilled.routing_value > skilled.values.max()
        clumsy = World(table, WorldOptions(confounding=0.0, routing_skill=-5.0))
        assert clumsy.routing_value < clumsy.values.min()

    def test_choice_can_follow_what_everybody_sees(self, table: Benchmark) -> None:
        """A logit-linear router on x, one direction per model, the same for all types."""
        world = World(table, WorldOptions(confounding=0.0, routing_context=2.0))
        logits = np.log(world.choice)
        np.testing.assert_allclose(logits, logits[:, :1].repeat(4, axis=1), atol=1e-12)
        logits = logits[:, 0] - logits[:, :1, 0]
        design = np.column_stack([np.ones(400), table.x])
        fit = np.linalg.lstsq(design, logits, rcond=None)[0]
        np.testing.assert_allclose(design @ fit, logits, atol=1e-9)
        drawn = attraction(table.x, table.models, 0)
        np.testing.assert_allclose(logits, 2.0 * (drawn - drawn[:, :1]), atol=1e-9)
        units = np.array([0.01, 1.0, 1e4, 3.0, 7.0])
        np.testing.assert_allclose(attraction(table.x * units, table.models, 0), drawn, atol=1e-9)
        np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(drawn.std(axis=0), 1, atol=1e-12)
        assert np.abs(np.corrcoef(drawn.T)[np.triu_indices(5, 1)]).min() < 0.9

    def test_context_that_does_not_vary_attracts_nobody(self, table: Benchmark) -> None:
        options = WorldOptions(confounding=0.0, routing_context=2.0)
        for count in (0, 3):
            flat = replace(table, x=np.ones((400, count)), context_names=("a", "b", "c")[:count])
            world = World(flat, options)
            np.testing.assert_allclose(world.choice, 0.2, atol=1e-15)

    def test_equal_models_attract_equally(self, table: Benchmark) -> None:
        same = replace(
            table,
            outputs=np.repeat(table.outputs[:, :1], 5, axis=1),
            outcome=np.repeat(table.outcome[:, :1], 5, axis=1),
        )
        blind = replace(BUSY, routing_context=0.0)
        np.testing.assert_allclose(World(same, blind).choice, 0.2, atol=1e-12)


class TestRelabelling:
    @pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]], ids=["mirror", "mixed"])
    def test_models_carry_their_truth_and_their_faults(
        self, table: Benchmark, order: list[int]
    ) -> None:
        options = replace(
            BUSY,
            simulator_drift=0.5,
            simulator_truncation=0.2,
            simulator_missing=0.3,
            simulator_missing_tilt=0.5,
            hidden_outputs=2,
            warp=1.0,
        )
        world, other = World(table, options), World(relabelled(table, order), options)
        np.testing.assert_allclose(other.values, world.values[order], atol=1e-12)
        np.testing.assert_allclose(other.naive_limit, world.naive_limit[order], atol=1e-12)
        np.testing.assert_allclose(other.choice, world.choice[:, :, order], atol=1e-12)
        assert other.routing_value == pytest.approx(world.routing_value, abs=1e-12)
        assert other.output_names == world.output_names

        def replays(of: World) -> dict[tuple[int, str], Floats]:
            rows = of.simulations()
            names = [of.models[m] for m in rows.model.tolist()]
            return dict(
                zip(zip(rows.context.tolist(), names, strict=True), rows.outputs, strict=True)
            )

        first, second = replays(world), replays(other)
        assert set(first) == set(second)
        for key, outputs in first.items():
            np.testing.assert_allclose(second[key], outputs, atol=1e-12)


class TestRewards:
    def test_kinds_have_the_same_mean_and_their_own_spread(self, table: Benchmark) -> None:
        """Means at false alarm rate 1e-6; variances within 5%, over 15 standard errors."""
        for kind, shrink in (("bernoulli", 1.0), ("bounded", 1 / 11)):
            world = World(table, WorldOptions(reward=kind))
            _, hidden = world.requests(1, np.random.default_rng(0))
            many = type(hidden)(hidden.rows.repeat(400_000), hidden.types.repeat(400_000))
            model = np.zeros(len(many), dtype=np.int64)
            mean = world.expected(hidden, model[:1])[0]
            _, reward = world.serve(many, model, np.random.default_rng(1))
            assert agrees(reward, mean, 2)
            assert reward.var() == pytest.approx(mean * (1 - mean) * shrink, rel=0.05)
            assert reward.min() >= 0
            assert reward.max() <= 1
            assert set(np.unique(reward)) == {0.0, 1.0} or kind == "bounded"

    def test_bounded_rewards_exist_at_the_ends_of_the_range(self, table: Benchmark) -> None:
        ends = replace(table, outcome=np.repeat([[0.0, 1.0, 0.0, 1.0, 0.0]], 400, axis=0))
        options = WorldOptions(alpha=1.0, rating=0.0, reward="bounded", concentration=1.0)
        world = World(ends, options)
        _, hidden = world.requests(200, np.random.default_rng(0))
        for model, expected in ((0, 0.0), (1, 1.0)):
            _, reward = world.serve(hidden, np.full(200, model), np.random.default_rng(0))
            np.testing.assert_array_equal(reward, expected)

    @pytest.mark.parametrize(("by_reward", "at_0", "at_1"), [(0.4, 0.5, 0.1), (-0.4, 0.1, 0.5)])
    def test_missing_follows_the_reward(
        self, table: Benchmark, by_reward: float, at_0: float, at_1: float
    ) -> None:
        """False alarm rate 1e-6; the full rewards come from the same draws without missing."""
        full = World(table, WorldOptions())
        some = World(table, WorldOptions(missing=0.1, missing_by_reward=by_reward))
        _, hidden = full.requests(100_000, np.random.default_rng(2))
        model = np.zeros(len(hidden), dtype=np.int64)
        _, reward = full.serve(hidden, model, np.random.default_rng(3))
        _, seen = some.serve(hidden, model, np.random.default_rng(3))
        missing = np.isnan(seen)
        np.testing.assert_array_equal(seen[~missing], reward[~missing])
        assert agrees(missing[reward == 0].astype(float), at_0, 2)
        assert agrees(missing[reward == 1].astype(float), at_1, 2)

    def test_a_draw_takes_as_much_randomness_whatever_is_served(self, table: Benchmark) -> None:
        for options in (WorldOptions(), BUSY):
            world = World(table, options)
            _, hidden = world.requests(64, np.random.default_rng(0))
            after = []
            for model in range(5):
                rng = np.random.default_rng(4)
                world.serve(hidden, np.full(64, model), rng)
                after.append(rng.random())
            assert len(set(after)) == 1


class TestTraffic:
    def test_batches_have_the_shapes_and_types_of_the_store(self, table: Benchmark) -> None:
        world, rng = World(table, WorldOptions()), np.random.default_rng(0)
        batch, hidden = world.requests(10, rng, first=30)
        outputs, reward = world.serve(hidden, batch.routed, rng)
        np.testing.assert_array_equal(batch.at, START + 30 + np.arange(10))
        np.testing.assert_array_equal(batch.context, hidden.rows)
        np.testing.assert_array_equal(batch.x, table.x[hidden.rows])
        np.testing.assert_array_equal(outputs, table.outputs[hidden.rows, batch.routed])
        for column in (batch.unit, batch.context, batch.routed, hidden.rows, hidden.types):
            assert column.dtype == np.int64
            assert column.shape == (10,)
            assert column.min() >= 0
        assert len(set(batch.unit.tolist())) == 10
        assert reward.dtype == batch.x.dtype == outputs.dtype == np.float64
        log = world.observations(20, rng)
        assert len(log) == 20
        assert log.at.max() < START
        assert len(world.requests(0, rng)[0]) == 0

    def test_a_world_travels_between_processes(self, table: Benchmark) -> None:
        world = World(table, BUSY)
        copy = pickle.loads(pickle.dumps(world))
        np.testing.assert_array_equal(copy.naive_limit, world.naive_limit)
        log, again = (w.observations(50, np.random.default_rng(0)) for w in (world, copy))
        np.testing.assert_array_equal(log.reward, again.reward)
        assert copy.benchmark.models == table.models

    def test_the_same_generator_gives_the_same_traffic(self, table: Benchmark) -> None:
        first, again = (
            World(table, BUSY).observations(100, np.random.default_rng(9)) for _ in "ab"
        )
        np.testing.assert_array_equal(first.reward, again.reward)
        np.testing.assert_array_equal(first.unit, again.unit)


class TestOptions:
    def test_every_option_is_explained(self) -> None:
        for option in fields(WorldOptions):
            assert len(option.metadata["explanation"]) > 20, option.name

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"confounding": -0.1}, "confounding is -0.1, must be at least 0"),
            ({"alpha": 1.1}, "alpha is 1.1, must be at most 1"),
            ({"rating": 0.6}, "rating is 0.6, must be at most 0.5"),
            ({"routing_skill": float("inf")}, "routing_skill is inf, must be finite"),
            ({"reward": "gaussian"}, "reward is 'gaussian', must be one of bernoulli, bounded"),
            ({"concentration": 0.5}, "concentration is 0.5, must be at least 1"),
            ({"missing": 1.0}, r"missing \+ \|missing_by_reward\| is 1.0, must be below 1"),
            ({"missing": 0.5, "missing_by_reward": -0.6}, "is 1.1, must be below 1"),
            ({"hidden_outputs": 1.0}, "hidden_outputs is 1.0, must be a whole number"),
        ],
    )
    def test_refuses_with_name_value_and_limit(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WorldOptions(**changes)

    def test_the_list_for_people_names_defaults_units_and_limits(self) -> None:
        rows = {row["option"]: row for row in describe_options()}
        assert set(rows) == {option.name for option in fields(WorldOptions)}
        assert rows["delay"]["unit"] == "seconds"
        assert rows["drift_over"]["default"] == "1000"
        limits = {name: rows[name]["limits"] for name in ("delay", "drift", "drift_shape")}
        assert limits == {"delay": "0 or more", "drift": "-1 to 1", "drift_shape": "linear, change"}
        assert rows["routing_skill"]["limits"] == ""

    def test_options_are_read_from_text_as_what_they_are(self) -> None:
        texts = ["delay=30", "drift_over=50", "fallback=mine", "drift=-0.5"]
        expected = WorldOptions(delay=30.0, drift_over=50, fallback="mine", drift=-0.5)
        assert parse_options(texts) == expected

    def test_cannot_hide_every_feature(self, table: Benchmark) -> None:
        with pytest.raises(ValueError, match="hidden_outputs is 8, must be below 8"):
            World(table, WorldOptions(hidden_outputs=8))
