"""The embedded benchmark: real classifiers, the same table everywhere, and a log that misleads."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from river import datasets

from equipoise.replay.benchmarks import Benchmark, load
from equipoise.replay.benchmarks.imagesegments import CANDIDATES, _classifiers, _probabilities
from equipoise.replay.worlds import World, WorldOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(folder: Path) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return load("imagesegments")


def fingerprint(table: Benchmark) -> str:
    """A hash of the table, and of traffic drawn in a world with every random option in use."""
    digest = sha256("\0".join((*table.models, *table.context_ids)).encode())
    for array in (table.x, table.outputs, table.outcome, table.cost):
        digest.update(array.tobytes())
    options = WorldOptions(
        reward="bounded", missing=0.1, simulator_missing=0.2, simulator_drift=0.3
    )
    world, rng = World(table, options), np.random.default_rng(1)
    batch, hidden = world.requests(500, rng)
    outputs, reward = world.serve(hidden, batch.routed, rng)
    replays = world.simulations()
    for array in (batch.unit, batch.x, outputs, reward, replays.context, replays.outputs):
        digest.update(array.tobytes())
    return digest.hexdigest()


def test_best_two_models_are_a_few_points_apart(table: Benchmark) -> None:
    second, best = np.sort(table.outcome.mean(axis=0))[-2:]
    assert 0.02 <= best - second <= 0.05
    assert len(table.models) == 7
    assert table.outcome.mean(axis=0).min() > 0.6


def test_outputs_are_features_of_probabilities(table: Benchmark) -> None:
    column = dict(zip(table.output_names, np.moveaxis(table.outputs, 2, 0), strict=True))
    six = sum(column[name] for name in table.output_names if name.startswith("p-"))
    assert np.all(six <= 1 + 1e-6)
    for name in ("top", "margin", "entropy", "judge"):
        assert column[name].min() >= 0
        assert column[name].max() <= 1 + 1e-9
    assert np.all(column["margin"] <= column["top"])
    assert np.corrcoef(column["judge"].ravel(), table.outcome.ravel())[0, 1] > 0.5
    design = np.column_stack([np.ones(table.outcome.size), table.outputs.reshape(-1, 10)])
    assert np.linalg.matrix_rank(design) == 11
    np.testing.assert_allclose(table.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(table.x.std(axis=0), 1, atol=1e-12)


def test_training_segments_are_no_contexts_and_are_counted(table: Benchmark) -> None:
    assert len(table.x) + sum(table.exclusions.values()) == 2310
    assert len(set(table.context_ids)) == len(table.x)


def test_another_process_builds_the_same_table_and_world(table: Benchmark, tmp_path: Path) -> None:
    """Built from nothing, under other string hashes."""
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('here', {__file__!r});"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here);"
        "print(here.fingerprint(here.load('imagesegments')))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "20"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fingerprint(table)


def test_second_load_comes_from_the_cache_without_river(table: Benchmark, folder: Path) -> None:
    code = (
        "import sys; from equipoise.replay.benchmarks import load;"
        "print(load('imagesegments').outcome.sum(), 'river' in sys.modules)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(table.outcome.sum()), "False"]


def test_self_selection_makes_the_log_recommend_a_clearly_wrong_model(table: Benchmark) -> None:
    """Exact limits of the naive comparison, no sampling."""
    for alpha in (0.0, 0.5, 1.0):
        world = World(table, WorldOptions(confounding=1.0, alpha=alpha))
        regret = world.values.max() - world.values[np.argmax(world.naive_limit)]
        assert regret > 0.05
        unconfounded = World(table, WorldOptions(confounding=0.0, alpha=alpha))
        np.testing.assert_array_equal(unconfounded.values, world.values)
        np.testing.assert_allclose(unconfounded.naive_limit, world.values, atol=1e-12)


def test_scoring_by_the_representation_finds_the_best_model(table: Benchmark) -> None:
    """The limit of a linear scorer fitted on randomized traffic: its winner costs nothing."""
    contexts, models = table.outcome.shape
    x = np.repeat(table.x[:, None], models, axis=1)
    design = np.concatenate([np.ones((contexts, models, 1)), x, table.outputs], axis=2)
    for alpha in (0.0, 0.5, 1.0):
        world = World(table, WorldOptions(alpha=alpha))
        reward = world.means.mean(axis=1).ravel()
        theta = np.linalg.lstsq(design.reshape(len(reward), -1), reward, rcond=None)[0]
        values = (design @ theta).mean(axis=0)
        assert np.argmax(values) == np.argmax(world.values)


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_predictions_do_not_depend_on_the_order_of_contexts(name: str) -> None:
    """Scalers of river learn while they predict if one lets them; an output of a model would then
    know which requests came before."""
    segments = list(datasets.ImageSegments())[::30]
    training, contexts = segments[:40], segments[40:]
    forth = _probabilities(_classifiers()[name], training, contexts)
    back = _probabilities(_classifiers()[name], training, contexts[::-1])
    np.testing.assert_array_equal(forth, back[::-1])
