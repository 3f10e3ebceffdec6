"""What is kept of replays holds for the same replays, and for no others."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.linear import mean_features, mean_features_replicated
from equipoise.agent.moments.scorer import SimulationMoments, kept_for_replays


def moments(rng, rows=30):
    result = SimulationMoments.empty(4, 2, 3)
    add(result, rng, rows)
    return result


def add(simulation, rng, rows):
    group, model = rng.integers(0, 4, rows), rng.integers(0, 2, rows)
    simulation.update(group, model, rng.normal(size=(rows, 2)), np.full(rows, np.nan))


def test_the_same_object_gives_the_same_answer_until_a_row_comes():
    rng, calls = np.random.default_rng(0), []
    known = kept_for_replays(lambda simulation: calls.append(0) or simulation.mean.sum())
    simulation = moments(rng)
    first = known(simulation)
    assert known(simulation) == first
    assert len(calls) == 1
    add(simulation, rng, 1)
    assert known(simulation) == simulation.mean.sum() != first
    other = moments(rng)
    assert known(other) == other.mean.sum()
    assert len(calls) == 3


def test_moments_in_turns_are_told_apart():
    rng = np.random.default_rng(1)
    one = moments(rng)
    two = one.copy()
    two.mean += 1.0
    for function in (mean_features, mean_features_replicated):
        for _ in range(2):
            np.testing.assert_allclose(function(two) - function(one), 1.0)
