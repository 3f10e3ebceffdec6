"""What may be wrong between a world and its agent: the simulator, and the view of outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.worlds import World, WorldOptions


@pytest.fixture(scope="module")
def table() -> Benchmark:
    return load("semisynthetic", contexts=400, models=5, misfit=0.6, seed=2)


class TestSimulator:
    def test_without_faults_a_replay_is_the_live_output(self, table: Benchmark) -> None:
        world = World(table, WorldOptions())
        rows = world.simulations()
        assert len(rows) == 400 * 5
        np.testing.assert_array_equal(rows.outputs, world.outputs[rows.context, rows.model])
        np.testing.assert_array_equal(rows.x, table.x[rows.context])
        np.testing.assert_array_equal(rows.cost, table.cost[rows.context, rows.model])
        assert rows.context_id is not None
        assert rows.context_id[7] == table.context_ids[rows.context[7]]

    def test_faults_never_touch_live_traffic(self, table: Benchmark) -> None:
        faulty = WorldOptions(simulator_drift=1.0, simulator_truncation=0.5, simulator_missing=0.5)
        right, wrong = (
            World(table, options).observations(1000, np.random.default_rng(1))
            for options in (WorldOptions(), faulty)
        )
        np.testing.assert_array_equal(wrong.outputs, right.outputs)
        np.testing.assert_array_equal(wrong.reward, right.reward)

    def test_drift_has_its_size_and_a_direction_per_model(self, table: Benchmark) -> None:
        world = World(table, WorldOptions(simulator_drift=0.5))
        replayed = world.simulations().outputs.reshape(400, 5, -1)
        shift = (replayed - table.outputs) / table.outputs.std(axis=(0, 1))
        np.testing.assert_allclose(shift.std(axis=0), 0, atol=1e-12)
        size = np.sqrt((shift.mean(axis=0) ** 2).mean(axis=1))
        np.testing.assert_allclose(size, 0.5, atol=1e-12)
        alike = np.corrcoef(shift.mean(axis=0))[np.triu_indices(5, 1)]
        assert np.median(np.abs(alike)) < 0.8

    def test_truncation_cuts_its_share_of_the_longest(self, table: Benchmark) -> None:
        world = World(table, WorldOptions(simulator_truncation=0.3))
        replayed = world.simulations().outputs.reshape(400, 5, -1)
        cut = (replayed != table.outputs).any(axis=2)
        assert cut.mean() == 0.3
        assert np.all(replayed <= table.outputs)
        z = (table.outputs - table.outputs.mean(axis=(0, 1))) / table.outputs.std(axis=(0, 1))
        assert z.mean(axis=2)[cut].min() >= z.mean(axis=2)[~cut].max()

    @pytest.mark.parametrize("share", [0.3, 0.8])
    @pytest.mark.parametrize("tilt", [0.0, 1.0])
    def test_missing_rows_have_their_share(
        self, table: Benchmark, share: float, tilt: float
    ) -> None:
        """Share within 4.5 standard errors: false alarm rate below 1e-5 for other seeds."""
        options = WorldOptions(simulator_missing=share, simulator_missing_tilt=tilt)
        world = World(table, options)
        rows = world.simulations()
        absent = np.ones((400, 5), dtype=bool)
        absent[rows.context, rows.model] = False
        assert abs(absent.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / absent.size)
        gap = world.base[~absent].mean() - world.base[absent].mean()
        if tilt:
            assert gap > 0.04
        else:
            assert abs(gap) < 4.5 * world.base.std() / np.sqrt(absent.size * share * (1 - share))

    def test_equal_worth_is_equally_likely_to_be_absent(self, table: Benchmark) -> None:
        """Ties may not be broken by position; 4.5 standard errors as above."""
        flat = replace(table, outcome=np.full((400, 5), 0.5))
        options = WorldOptions(alpha=1.0, simulator_missing=0.5, simulator_missing_tilt=1.0)
        rows = World(flat, options).simulations().context
        early = np.count_nonzero(rows < 200)
        assert abs(early - 500) < 4.5 * np.sqrt(1000 * 0.25)


class TestView:
    def test_withholds_the_most_telling_features_first(self, table: Benchmark) -> None:
        full = World(table, WorldOptions())
        worth = full.base.ravel()
        telling = [
            abs(np.corrcoef(y.ravel(), worth)[0, 1]) for y in np.moveaxis(table.outputs, 2, 0)
        ]
        ranked = [table.output_names[i] for i in np.argsort(telling)[::-1]]
        for hidden in (1, 3, 7):
            world = World(table, WorldOptions(hidden_outputs=hidden))
            kept = [name for name in table.output_names if name not in ranked[:hidden]]
            assert list(world.output_names) == kept
            assert world.simulations().outputs.shape[1] == len(kept)
            assert world.observations(5, np.random.default_rng(0)).outputs.shape == (5, len(kept))
            np.testing.assert_array_equal(world.values, full.values)

    def test_warp_bends_live_and_replayed_outputs_alike(self, table: Benchmark) -> None:
        world = World(table, WorldOptions(warp=2.0))
        rows = world.simulations()
        np.testing.assert_array_equal(rows.outputs, world.outputs[rows.context, rows.model])
        mean, deviation = table.outputs.mean(axis=(0, 1)), table.outputs.std(axis=(0, 1))
        bent = mean + deviation * np.tanh(2 * (table.outputs - mean) / deviation) / 2
        np.testing.assert_allclose(world.outputs, bent, atol=1e-12)
        nearly = World(table, WorldOptions(warp=1e-4)).outputs
        np.testing.assert_allclose(nearly, table.outputs, atol=1e-6)

    def test_taste_is_linear_in_outputs_and_does_not_know_the_outcome(self) -> None:
        table = load("semisynthetic", misfit=1.0)
        world = World(table, WorldOptions(alpha=0.0))
        inside = (world.base > 0) & (world.base < 1)
        assert 0.98 < inside.mean() < 1
        design = np.column_stack([np.ones(inside.sum()), table.outputs[inside]])
        theta = np.linalg.lstsq(design, world.base[inside], rcond=None)[0]
        np.testing.assert_allclose(design @ theta, world.base[inside], atol=1e-10)
        other = World(replace(table, outcome=1 - table.outcome), WorldOptions(alpha=0.0))
        np.testing.assert_array_equal(other.base, world.base)
        assert not np.allclose(World(table, WorldOptions(alpha=0.0, world_seed=1)).base, world.base)

    def test_a_feature_that_never_varies_is_harmless(self, table: Benchmark) -> None:
        outputs = table.outputs.copy()
        outputs[:, :, 0] = 0.1
        world = World(replace(table, outputs=outputs), WorldOptions(warp=1.0, hidden_outputs=2))
        assert np.isfinite(world.outputs).all()
        flat = World(replace(table, outputs=np.zeros_like(outputs)), WorldOptions(alpha=0.0))
        np.testing.assert_array_equal(flat.base, 0.5)
