"""`ipw`, the naive log and today's routing against the rows themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.estimators import estimate
from equipoise.agent.estimators.ipw import naive_log, routing_value


def weighted_means(source, weight, models):
    return np.array(
        [
            np.average(source.reward[source.model == m], weights=weight[source.model == m])
            for m in range(models)
        ]
    )


@pytest.mark.parametrize("exp", [150, 40])
def test_hajek_means_and_their_jackknife(simulate, exp):
    """40 rows leave some groups empty."""
    rows = simulate(seed=1, exp=exp).without_obs()

    def values(rows):
        return weighted_means(rows.exp, rows.exp.weight, rows.models)

    got = estimate(rows.moments(), ["ipw"])["ipw"]
    np.testing.assert_allclose(got.values, values(rows), rtol=1e-10)
    np.testing.assert_allclose(
        got.covariance, rows.jackknife(values, contexts=False), rtol=1e-8, atol=1e-12
    )
    for model in range(rows.models):
        weight = rows.exp.weight[rows.exp.model == model]
        assert got.diagnostics["effective_rows"][model] == pytest.approx(
            weight.sum() ** 2 / (weight**2).sum()
        )


def test_constant_probabilities_give_plain_means(simulate):
    """Each model was always drawn with one probability: weighting it changes nothing."""
    rows = simulate(seed=2)
    constant = np.array([3.0, 11.0, 40.0, 7.0])[rows.exp.model % 4]
    rows = replace(rows, exp=replace(rows.exp, weight=constant))

    def values(rows):
        return weighted_means(rows.exp, np.ones(len(rows.exp)), rows.models)

    got = estimate(rows.moments(), ["ipw"])["ipw"]
    np.testing.assert_allclose(got.values, values(rows), rtol=1e-10)
    np.testing.assert_allclose(
        got.covariance, rows.jackknife(values, contexts=False), rtol=1e-8, atol=1e-12
    )


def test_a_constant_has_no_width_whatever_the_weights(simulate):
    """Numerator and denominator of a self-normalised mean move together: resampling the one and
    keeping the other would give a constant an interval with width."""
    rows = simulate(seed=6).rescaled(0.0, 0.7)
    weight = 10.0 ** np.random.default_rng(6).uniform(0.0, 3.0, len(rows.exp))
    moments = replace(rows, exp=replace(rows.exp, weight=weight)).moments()
    got = estimate(moments, ["ipw"])["ipw"]
    np.testing.assert_allclose(got.values, 0.7, rtol=1e-12)
    np.testing.assert_allclose(got.covariance, 0.0, atol=1e-24)
    value, variance = routing_value(moments)
    assert value == pytest.approx(0.7, rel=1e-12)
    assert variance == pytest.approx(0.0, abs=1e-24)


def test_naive_log_is_the_mean_reward_of_each_model_on_obs(simulate):
    rows = simulate(seed=3)

    def values(rows):
        return weighted_means(rows.obs, np.ones(len(rows.obs)), rows.models)

    got = naive_log(rows.moments())
    np.testing.assert_allclose(got.values, values(rows), rtol=1e-10)
    np.testing.assert_allclose(
        got.covariance, rows.jackknife(values, contexts=False), rtol=1e-8, atol=1e-12
    )


def test_routing_value_is_a_weighted_mean(simulate):
    rows = simulate(seed=4)
    moments = rows.moments()
    weight = np.random.default_rng(4).uniform(1.0, 1.3, len(rows.obs))
    moments.routing = type(moments.routing).empty(20)
    moments.routing.update(rows.obs.group, weight, rows.obs.reward)

    def mean(kept):
        return np.average(rows.obs.reward[kept], weights=weight[kept])

    value, variance = routing_value(moments)
    replicates = np.array([mean(rows.obs.group != group) for group in range(20)])
    assert value == pytest.approx(mean(rows.obs.group >= 0), rel=1e-12)
    expected = 19 / 20 * ((replicates - replicates.mean()) ** 2).sum()
    assert variance == pytest.approx(expected, rel=1e-9)


def test_routing_value_without_rows_and_with_one_group(simulate):
    rows = simulate(seed=5)
    value, variance = routing_value(rows.without_obs().moments())
    assert np.isnan(value)
    assert variance == np.inf
    one = rows.part(rows.obs.group == 3, rows.exp.group >= 0, rows.sim_group >= 0)
    value, variance = routing_value(one.moments())
    assert value == pytest.approx(one.obs.reward.mean())
    assert variance == np.inf
