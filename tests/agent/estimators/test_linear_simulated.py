"""What SIM says: means and regressions per model, with and without groups of contexts."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from equipoise.agent.estimators.linear import mean_features, mean_features_replicated, regressions
from equipoise.agent.moments.scorer import SimulationMoments

ALL = np.ones((1, 20))


def test_means_with_and_without_each_group(simulate):
    rows = simulate(seed=51, contexts=200)
    simulation = rows.moments().simulation
    np.testing.assert_allclose(mean_features(simulation), rows.mean_phi(), rtol=1e-10)
    expected = [rows.without_contexts(group).mean_phi() for group in range(20)]
    np.testing.assert_allclose(mean_features_replicated(simulation), expected, rtol=1e-10)


def test_regression_along_directions_is_the_whole_one_projected(simulate):
    rows = simulate(seed=52)
    simulation = rows.moments().simulation
    whole = regressions(ALL, simulation, rows.context)[0]
    for model in range(rows.models):
        phi = rows.sim_phi[rows.sim_model == model]
        x = phi[:, : rows.context]
        slopes = Ridge(alpha=1.0).fit(x / x.std(axis=0), phi[:, rows.context :]).coef_.T
        expected = np.hstack([np.eye(rows.context), slopes / x.std(axis=0)[:, None]])
        np.testing.assert_allclose(whole[model], expected, rtol=1e-9, atol=1e-12)
    directions = np.random.default_rng(52).normal(size=(4, rows.features))
    projected = regressions(ALL, simulation, rows.context, directions)[0]
    np.testing.assert_allclose(projected, whole @ directions.T, rtol=1e-9, atol=1e-12)


def test_x_that_varies_by_rounding_alone_has_no_slope():
    """Group means of a constant one unit in the last place apart must not become a slope."""
    simulation = SimulationMoments.empty(20, 1, 4)
    rng = np.random.default_rng(53)
    for group in range(20):
        level = 0.1 if group % 2 else np.nextafter(0.1, 1.0)
        rows = np.column_stack([np.full(6, level), rng.normal(size=(6, 2))])
        simulation.update(np.full(6, group), np.zeros(6, dtype=np.int64), rows, np.full(6, np.nan))
    slopes = regressions(ALL, simulation, context=1)
    np.testing.assert_array_equal(slopes[0, 0, 0], [1.0, 0.0, 0.0])
