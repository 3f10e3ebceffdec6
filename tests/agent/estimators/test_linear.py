"""Families 2 to 5 against scikit-learn's ridge on raw rows, folds and jackknife included."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from equipoise.agent.estimators import FAMILIES, estimate
from equipoise.agent.estimators.linear import PENALTIES
from equipoise.agent.estimators.scorers import LAMBDAS

LINEAR = ("obs-only", "representation-exp", "cvci", "grounded")


def ridge(z, reward, penalty, weight=None):
    fit = Ridge(alpha=penalty, solver="cholesky").fit(z, reward, sample_weight=weight)
    return np.concatenate([[fit.intercept_], fit.coef_])


def predict(z, theta):
    return theta[0] + z @ theta[1:]


class Reference:
    """The linear families from raw rows, in the units of the full sample's SIM."""

    def __init__(self, rows):
        self.rows = rows
        self.scale = rows.sim_phi.std(axis=0)

    def z(self, source):
        return source.phi / self.scale

    def obs_only(self, rows, _choice=None):
        return ridge(self.z(rows.obs), rows.obs.reward, 1.0)

    def representation_exp(self, rows, penalty):
        return ridge(self.z(rows.exp), rows.exp.reward, penalty)

    def cvci(self, rows, share):
        exp, obs = rows.exp, rows.obs
        of_exp, of_obs = (1 - share) / len(exp), share / len(obs)
        weight = np.repeat([of_exp, of_obs], [len(exp), len(obs)])
        z = np.vstack([self.z(exp), self.z(obs)])
        return ridge(z, np.concatenate([exp.reward, obs.reward]), of_exp + of_obs, weight)

    def grounded(self, rows, penalty):
        base = self.obs_only(rows)
        z = self.z(rows.exp)
        return base + ridge(z, rows.exp.reward - predict(z, base), penalty)

    def choose(self, fit, grid):
        """The grid's value with the least squared error on held-out EXP rows."""
        rows = self.rows
        obs, sim = np.ones(len(rows.obs), bool), np.ones(len(rows.sim_group), bool)
        errors = []
        for choice in grid:
            error = 0.0
            for fold in range(5):
                held = rows.exp.group % 5 == fold
                theta = fit(rows.part(obs, ~held, sim), choice)
                test = rows.exp.take(held)
                error += ((test.reward - predict(self.z(test), theta)) ** 2).sum()
            errors.append(error / len(rows.exp))
        return grid[int(np.argmin(errors))], np.array(errors)

    def values(self, fit, choice):
        return lambda rows: predict(rows.mean_phi() / self.scale, fit(rows, choice))


GRIDS = {
    "obs-only": ([None], ""),
    "representation-exp": (PENALTIES, "penalty"),
    "cvci": (LAMBDAS, "lambda"),
    "grounded": (PENALTIES, "penalty"),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", LINEAR)
def test_against_scikit_learn(simulate, name, seed):
    rows = simulate(seed=seed, exp=120 + 400 * (seed == 2))
    reference = Reference(rows)
    fit = getattr(reference, name.replace("-", "_"))
    grid, key = GRIDS[name]
    choice, errors = reference.choose(fit, grid)
    got = FAMILIES[name](rows.moments())
    if key:
        assert got.diagnostics[key] == choice
        np.testing.assert_allclose(got.diagnostics["errors"], errors, rtol=1e-8)
    values = reference.values(fit, choice)
    np.testing.assert_allclose(got.values, values(rows), rtol=1e-8)
    expected = rows.jackknife(values)
    np.testing.assert_allclose(got.covariance, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_scorer_is_in_original_coordinates(simulate, name):
    rows = simulate(seed=3)
    reference = Reference(rows)
    fit = getattr(reference, name.replace("-", "_"))
    choice, _ = reference.choose(fit, GRIDS[name][0])
    theta = fit(rows, choice)
    scorer = FAMILIES[name](rows.moments()).scorer
    np.testing.assert_allclose(scorer.theta[1:], theta[1:] / reference.scale, rtol=1e-7)
    assert scorer.theta[0] == pytest.approx(theta[0], rel=1e-7)
    assert not scorer.model_effects


def design(z):
    return np.column_stack([np.ones(len(z)), z])


def original(spread, scale):
    """Covariance of coefficients on z = phi / scale as one of coefficients on phi."""
    change = np.diag(np.concatenate([[1.0], 1.0 / scale]))
    return change @ spread @ change


@pytest.mark.parametrize(("name", "penalty"), [("obs-only", 1.0), ("representation-exp", None)])
def test_scorer_covariance_is_the_ridge_posterior(simulate, name, penalty):
    rows = simulate(seed=4)
    reference = Reference(rows)
    got = FAMILIES[name](rows.moments())
    source = rows.obs if name == "obs-only" else rows.exp
    penalty = penalty or got.diagnostics["penalty"]
    z = design(reference.z(source))
    prior = penalty * np.diag([0.0] + [1.0] * rows.features)
    inverse = np.linalg.inv(z.T @ z + prior)
    theta = inverse @ z.T @ source.reward
    spent = np.trace(z @ inverse @ z.T)
    variance = ((source.reward - z @ theta) ** 2).sum() / (len(source) - spent)
    assert got.scorer.residual_variance == pytest.approx(variance, rel=1e-8)
    # The prior's centre for slopes is 0 in either coordinate, so the two posteriors are one.
    np.testing.assert_allclose(
        got.scorer.covariance, original(variance * inverse, reference.scale), rtol=1e-6, atol=1e-12
    )


def test_cvci_scorer_covariance_is_the_sandwich(simulate):
    rows = simulate(seed=5, exp=300)
    reference = Reference(rows)
    got = FAMILIES["cvci"](rows.moments())
    share = got.diagnostics["lambda"]
    prior = np.diag([0.0] + [1.0] * rows.features)
    bread, meat = 0.0, 0.0
    for source, weight in ((rows.exp, 1 - share), (rows.obs, share)):
        z = design(reference.z(source))
        bread = bread + weight / len(source) * (z.T @ z + prior)
        meat = meat + (weight / len(source)) ** 2 * (z.T @ z + prior)
    inverse = np.linalg.inv(bread)
    z = design(reference.z(rows.exp))
    spent = (1 - share) / len(rows.exp) * np.trace(inverse @ z.T @ z)
    residual = rows.exp.reward - z @ reference.cvci(rows, share)
    variance = (residual**2).sum() / (len(rows.exp) - spent)
    assert got.scorer.residual_variance == pytest.approx(variance, rel=1e-7)
    expected = original(variance * inverse @ meat @ inverse, reference.scale)
    np.testing.assert_allclose(got.scorer.covariance, expected, rtol=1e-6, atol=1e-12)


def test_grounded_scorer_covariance_carries_the_error_of_obs(simulate):
    """delta = P X'(r - X theta_OBS): var = var(P-posterior) + (I - P X'X) var_OBS (I - P X'X)'."""
    rows = simulate(seed=6)
    reference = Reference(rows)
    got = FAMILIES["grounded"](rows.moments())
    prior = np.diag([0.0] + [1.0] * rows.features)
    z_obs, z_exp = design(reference.z(rows.obs)), design(reference.z(rows.exp))
    of_obs = np.linalg.inv(z_obs.T @ z_obs + prior)
    spread = np.linalg.inv(z_exp.T @ z_exp + got.diagnostics["penalty"] * prior)
    held = np.eye(len(prior)) - spread @ z_exp.T @ z_exp
    expected = got.scorer.residual_variance * (spread + held @ of_obs @ held.T)
    np.testing.assert_allclose(
        got.scorer.covariance, original(expected, reference.scale), rtol=1e-6, atol=1e-12
    )


def test_special_cases_are_equalities(simulate):
    """Without EXP cvci and grounded are obs-only; without OBS they are fits of EXP."""
    rows = simulate(seed=7)
    log_only = estimate(rows.without_exp().moments())
    for name in ("cvci", "grounded"):
        for field in ("values", "covariance"):
            expected = getattr(log_only["obs-only"], field)
            np.testing.assert_allclose(getattr(log_only[name], field), expected, rtol=1e-9)
    assert log_only["cvci"].diagnostics["lambda"] == 1.0
    exp_only = estimate(rows.without_obs().moments())
    pair = exp_only["grounded"], exp_only["representation-exp"]
    np.testing.assert_allclose(pair[0].values, pair[1].values, rtol=1e-10)
    np.testing.assert_allclose(pair[0].covariance, pair[1].covariance, rtol=1e-9)
    np.testing.assert_allclose(pair[0].scorer.covariance, pair[1].scorer.covariance, rtol=1e-9)
    assert exp_only["cvci"].diagnostics["lambda"] == 0.0


def test_too_little_exp_for_the_folds_takes_the_strongest_prior(simulate):
    rows = simulate(seed=8)
    few = rows.part(rows.obs.group >= 0, rows.exp.group % 5 != 2, rows.sim_group >= 0).moments()
    assert FAMILIES["representation-exp"](few).diagnostics["penalty"] == PENALTIES[-1]
    assert FAMILIES["grounded"](few).diagnostics["penalty"] == PENALTIES[-1]
    assert FAMILIES["cvci"](few).diagnostics["lambda"] == 1.0


def test_scale_of_exp_stands_in_where_there_is_no_simulation(simulate):
    rows = simulate(seed=10)
    bare = rows.part(rows.obs.group >= 0, rows.exp.group >= 0, rows.sim_group < 0)
    got = FAMILIES["representation-exp"](bare.moments())
    assert np.isnan(got.values).all()
    scale = rows.exp.phi.std(axis=0)
    theta = ridge(rows.exp.phi / scale, rows.exp.reward, got.diagnostics["penalty"])
    np.testing.assert_allclose(got.scorer.theta[1:], theta[1:] / scale, rtol=1e-7)
