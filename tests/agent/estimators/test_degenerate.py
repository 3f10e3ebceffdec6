"""Inputs that cannot support an estimate: NaN and infinity, never an exception or a warning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.estimators import FAMILIES
from equipoise.agent.moments.state import Dimensions, Moments

every_family = pytest.mark.parametrize("name", list(FAMILIES))
SIMULATED = [name for name in FAMILIES if name != "ipw"]


def consistent(got):
    """Unknown values have infinite variances; infinite variances no covariances; no negatives."""
    variance = np.diagonal(got.covariance)
    assert not np.isnan(got.covariance).any()
    assert (variance >= 0).all()
    assert np.isinf(variance[np.isnan(got.values)]).all()
    unknown = np.isinf(variance)
    off = got.covariance.copy()
    np.fill_diagonal(off, 0.0)
    assert (off[unknown] == 0).all()
    assert (off[:, unknown] == 0).all()
    if got.scorer is not None:
        assert not np.isnan(got.scorer.theta).any()
        assert not np.isnan(got.scorer.covariance).any()
        assert got.scorer.residual_variance >= 0


def nothing_known(got):
    return np.isnan(got.values).all() and np.isinf(np.diagonal(got.covariance)).all()


@every_family
def test_empty_moments(name):
    got = FAMILIES[name](Moments.empty(Dimensions(models=3, context=2, features=5)))
    consistent(got)
    assert nothing_known(got)
    assert got.scorer is None


@every_family
def test_without_exp(simulate, name):
    got = FAMILIES[name](simulate(seed=31).without_exp().moments())
    consistent(got)
    if name in ("ipw", "representation-exp", "doubly-robust"):
        assert nothing_known(got)
    else:
        assert np.isfinite(got.values).all()
        assert np.isfinite(got.covariance).all()
        assert got.diagnostics["extrapolated"].all()


@every_family
def test_without_obs(simulate, name):
    got = FAMILIES[name](simulate(seed=32).without_obs().moments())
    consistent(got)
    if name == "obs-only":
        assert nothing_known(got)
    else:
        assert np.isfinite(got.covariance).all()


@pytest.mark.parametrize("name", SIMULATED)
def test_without_simulation(simulate, name):
    rows = simulate(seed=33)
    bare = rows.part(rows.obs.group >= 0, rows.exp.group >= 0, rows.sim_group < 0)
    got = FAMILIES[name](bare.moments())
    consistent(got)
    assert nothing_known(got)


@pytest.mark.parametrize("name", SIMULATED)
def test_one_model_without_simulation(simulate, name):
    rows = simulate(seed=34)
    some = rows.part(rows.obs.group >= 0, rows.exp.group >= 0, rows.sim_model != 1)
    some = replace(
        some, exp=replace(some.exp, simulated=some.exp.simulated & (some.exp.model != 1))
    )
    got = FAMILIES[name](some.moments())
    consistent(got)
    assert np.array_equal(np.isnan(got.values), [False, True, False])
    assert np.array_equal(np.isfinite(np.diagonal(got.covariance)), [True, False, True])


@every_family
def test_a_model_that_was_never_randomized(simulate, name):
    rows = simulate(seed=35)
    some = rows.part(rows.obs.group >= 0, rows.exp.model != 2, rows.sim_group >= 0)
    got = FAMILIES[name](some.moments())
    consistent(got)
    if name in ("ipw", "doubly-robust"):
        assert np.array_equal(np.isnan(got.values), [False, False, True])
    else:
        assert np.isfinite(got.values).all()
        assert np.isfinite(got.covariance).all()
    if name == "doubly-robust":
        assert np.isfinite(got.diagnostics["direct"]).all()
    if name != "ipw":
        assert np.array_equal(got.diagnostics["extrapolated"], [False, False, True])


@every_family
def test_variance_from_one_group_does_not_exist(simulate, name):
    rows = simulate(seed=36)
    one = rows.part(rows.obs.group == 4, rows.exp.group == 4, rows.sim_group >= 0)
    got = FAMILIES[name](one.moments())
    consistent(got)
    if not name.startswith("hierarchical"):
        assert np.isinf(np.diagonal(got.covariance)).all()


@pytest.mark.parametrize("name", SIMULATED)
def test_variance_from_one_group_of_contexts_does_not_exist(simulate, name):
    rows = simulate(seed=37)
    kept = rows.sim_group == rows.sim_group[0]
    one = rows.part(rows.obs.group >= 0, rows.exp.group >= 0, kept)
    got = FAMILIES[name](one.moments())
    consistent(got)
    assert np.isfinite(got.values).all()
    assert np.isinf(np.diagonal(got.covariance)).all()


@every_family
def test_constant_rewards(simulate, name):
    rows = simulate(seed=38)
    same = rows.rescaled(0.0, 1e6 + 0.1)
    for moments in (same.moments(), same.without_obs().moments()):
        got = FAMILIES[name](moments)
        consistent(got)
        known = np.isfinite(got.values)
        np.testing.assert_allclose(got.values[known], 1e6 + 0.1, rtol=1e-12)
        if name.startswith("hierarchical"):
            assert np.isinf(np.diagonal(got.covariance)).all()


@every_family
def test_features_that_never_vary(simulate, name):
    """Their coefficient is 0, whatever their level; the values are those without them."""
    rows = simulate(seed=39, context=1)

    def widened(phi):
        level = np.array([0.1, 1e8])
        return np.column_stack([phi, np.tile(level, (len(phi), 1))])

    wide = replace(
        rows,
        obs=replace(rows.obs, phi=widened(rows.obs.phi)),
        exp=replace(rows.exp, phi=widened(rows.exp.phi), predicted=widened(rows.exp.predicted)),
        sim_phi=widened(rows.sim_phi),
    )
    plain, got = FAMILIES[name](rows.moments()), FAMILIES[name](wide.moments())
    consistent(got)
    np.testing.assert_allclose(got.values, plain.values, rtol=1e-9)
    np.testing.assert_allclose(got.covariance, plain.covariance, rtol=1e-7, atol=1e-12)
    if got.scorer is not None:
        at = rows.features + 1
        assert (got.scorer.theta[at : at + 2] == 0).all()


@every_family
def test_contexts_that_never_vary(simulate, name):
    """A constant x has no slope in the SIM regression either."""
    rows = simulate(seed=40, context=2, covered=0.3)

    def held(phi):
        return np.column_stack([np.full(len(phi), 0.1), phi[:, 1:]])

    same = replace(
        rows,
        obs=replace(rows.obs, phi=held(rows.obs.phi)),
        exp=replace(rows.exp, phi=held(rows.exp.phi), predicted=held(rows.exp.predicted)),
        sim_phi=held(rows.sim_phi),
    )
    halves = [
        same.part(rows.obs.group % 2 == i, rows.exp.group % 2 == i, rows.sim_group % 2 == i)
        for i in range(2)
    ]
    got = FAMILIES[name](halves[0].moments() + halves[1].moments())
    consistent(got)
    assert np.isfinite(got.covariance).all()
    assert np.abs(got.values).max() < 20


@every_family
def test_identical_features(simulate, name):
    """Two copies of every output: no singular system."""
    rows = simulate(seed=41)

    def twice(phi):
        return np.column_stack([phi, phi[:, rows.context :]])

    doubled = replace(
        rows,
        obs=replace(rows.obs, phi=twice(rows.obs.phi)),
        exp=replace(rows.exp, phi=twice(rows.exp.phi), predicted=twice(rows.exp.predicted)),
        sim_phi=twice(rows.sim_phi),
    )
    got = FAMILIES[name](doubled.moments())
    consistent(got)
    assert np.isfinite(got.covariance).all()


@every_family
@pytest.mark.parametrize(
    "shape",
    [
        {"models": 2, "context": 0, "outputs": 1},
        {"models": 20, "context": 20, "outputs": 43, "obs": 1500, "exp": 600},
        {"models": 2, "context": 20, "outputs": 43, "obs": 30, "exp": 12},
        {"models": 2, "context": 0, "outputs": 0},
    ],
)
def test_sizes(simulate, name, shape):
    rows = simulate(seed=42, **shape)
    got = FAMILIES[name](rows.moments())
    consistent(got)
    assert np.isfinite(got.values).all() or name in ("ipw", "doubly-robust")


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    models=st.integers(2, 4),
    obs=st.integers(0, 8),
    exp=st.integers(0, 8),
    contexts=st.integers(0, 3),
    binary=st.booleans(),
)
def test_a_handful_of_rows(simulate, seed, models, obs, exp, contexts, binary):
    rows = simulate(seed=seed, models=models, obs=obs, exp=exp, contexts=contexts)
    if binary:
        rows = rows.with_rewards(
            (rows.obs.reward > 0).astype(float), (rows.exp.reward > 0).astype(float)
        )
    moments = rows.moments()
    for compute in FAMILIES.values():
        consistent(compute(moments))
