"""`hierarchical` against the dense multivariate t marginal likelihood of the raw rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from equipoise.agent.estimators import estimate
from equipoise.agent.estimators.evidence import (
    INTERCEPT_WIDTH,
    PRIOR_SHAPE,
    TAU_MODEL,
    TAU_SCORER,
    log_prior_tau_model,
)
from equipoise.agent.estimators.hierarchical import ENOUGH_ROWS


def centred(source, scale, within_models=None):
    z, reward = source.phi / scale, source.reward
    if within_models is None:
        return z - z.mean(axis=0), reward - reward.mean()
    z, reward = z.copy(), reward.copy()
    for model in range(within_models):
        rows = source.model == model
        if rows.any():
            z[rows] -= z[rows].mean(axis=0)
            reward[rows] -= reward[rows].mean()
    return z, reward


def slope_priors(rows, scale):
    """(mean, covariance per sigma^2 apart from tau^2) of zero, pooled and within."""
    size = rows.features
    priors = [(np.zeros(size), np.zeros((size, size)))]
    for within in (None, rows.models) if len(rows.obs) else ():
        z, reward = centred(rows.obs, scale, within)
        precision = z.T @ z + np.eye(size)
        priors.append((np.linalg.solve(precision, z.T @ reward), np.linalg.inv(precision)))
    return priors


def prior_variance(rows, scale):
    """EXP's variance of rewards, or while EXP is small the residual variance of the pooled log."""
    if len(rows.exp) >= ENOUGH_ROWS or not len(rows.obs):
        return rows.exp.reward.var(ddof=1)
    z, reward = centred(rows.obs, scale)
    inverse = np.linalg.inv(z.T @ z + np.eye(rows.features))
    residual = reward - z @ inverse @ z.T @ reward
    spent = 1.0 + np.trace(inverse @ z.T @ z)
    return residual @ residual / (len(reward) - spent)


def dense(rows):
    """Values, covariance (without SIM's part), weights: one Gaussian update per grid point.

    A flat intercept: evidence is the multivariate t density of n - 1 orthonormal contrasts of
    the rewards (degrees of freedom 2a, shape b/a times the covariance); the posterior is that of
    the joint (intercept, slopes, effects) given all n rows.
    """
    scale = rows.sim_phi.std(axis=0)
    exp, models = rows.exp, rows.models
    n, size = len(exp), rows.features
    z, effects = exp.phi / scale, np.eye(models)[exp.model]
    contrasts = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, : n - 1]]))[0][:, 1:].T
    variance = prior_variance(rows, scale)
    rate = variance * (PRIOR_SHAPE - 1)
    target = np.column_stack([np.ones(models), rows.mean_phi() / scale, np.eye(models)])
    design = np.column_stack([np.ones(n), z, effects])
    logs, means, spreads, sigmas, of_model = [], [], [], [], []
    for mean, own in slope_priors(rows, scale):
        for tau_scorer in TAU_SCORER:
            slopes = tau_scorer**2 * np.eye(size) + own
            for at, tau_model in enumerate(TAU_MODEL):
                shape = np.eye(n) + z @ slopes @ z.T + tau_model**2 * effects @ effects.T
                shape = contrasts @ shape @ contrasts.T
                reward = contrasts @ (exp.reward - z @ mean)
                log = multivariate_t.logpdf(
                    reward, shape=rate / PRIOR_SHAPE * shape, df=2 * PRIOR_SHAPE
                )
                logs.append(log + log_prior_tau_model(models)[at])
                # Joint posterior with a flat intercept, precisions in units of 1 / sigma^2.
                precision = np.zeros((1 + size + models,) * 2)
                precision[1 : 1 + size, 1 : 1 + size] = np.linalg.inv(slopes)
                precision[1 + size :, 1 + size :] = np.eye(models) / tau_model**2
                shift = precision[:, 1 : 1 + size] @ mean
                spread = np.linalg.inv(precision + design.T @ design)
                theta = spread @ (shift + design.T @ exp.reward)
                squares = reward @ np.linalg.solve(shape, reward)
                sigma = (rate + squares / 2) / (PRIOR_SHAPE + (n - 1) / 2 - 1)
                means.append(target @ theta)
                spreads.append(sigma * target @ spread @ target.T)
                sigmas.append(sigma)
                of_model.append(tau_model)
    weight = np.exp(np.array(logs) - logsumexp(logs))
    value = weight @ np.array(means)
    deviation = np.array(means) - value
    covariance = np.tensordot(weight, spreads, 1) + (weight[:, None] * deviation).T @ deviation
    by_prior = weight.reshape(-1, len(TAU_SCORER) * len(TAU_MODEL)).sum(axis=1)
    return value, covariance, by_prior, weight @ sigmas, weight @ of_model


def sim_part(rows, slopes):
    """Jackknife of the SIM means along fixed slopes, in original coordinates."""
    return rows.jackknife(lambda part: part.mean_phi() @ slopes, units=False)


@pytest.mark.parametrize(
    ("seed", "arguments"),
    [
        (1, {"exp": 60}),
        (2, {"exp": 40, "models": 2}),
        (3, {"exp": 50, "models": 6, "confounding": 0.0}),
        (4, {"exp": 6}),
        (5, {"exp": 30, "outputs": 1}),
    ],
)
@pytest.mark.parametrize("log", [True, False])
def test_against_dense_marginal_likelihood(simulate, seed, arguments, log):
    rows = simulate(seed=seed, obs=300, **arguments)
    rows = rows if log else rows.without_obs()
    value, covariance, by_prior, sigma, tau = dense(rows)
    got = estimate(rows.moments(), ["hierarchical"])["hierarchical"]
    np.testing.assert_allclose(got.values, value, rtol=1e-8, atol=1e-9)
    weights = list(got.diagnostics["prior_weights"].values())
    assert sum(weights) == pytest.approx(1.0)
    np.testing.assert_allclose(weights[: len(by_prior)], by_prior, rtol=1e-6, atol=1e-12)
    assert got.diagnostics["residual_variance"] == pytest.approx(sigma, rel=1e-8)
    assert got.diagnostics["tau_model"] == pytest.approx(tau, rel=1e-8)
    part = sim_part(rows, got.scorer.theta[1 : 1 + rows.features])
    np.testing.assert_allclose(got.covariance, covariance + part, rtol=1e-7, atol=1e-10)


def test_scorer_holds_the_posterior_of_values(simulate):
    rows = simulate(seed=6)
    got = estimate(rows.moments(), ["hierarchical"])["hierarchical"]
    scorer = got.scorer
    assert scorer.model_effects
    design = np.column_stack([np.ones(rows.models), rows.mean_phi(), np.eye(rows.models)])
    np.testing.assert_allclose(design @ scorer.theta, got.values, rtol=1e-9)
    part = sim_part(rows, scorer.theta[1 : 1 + rows.features])
    expected = design @ scorer.covariance @ design.T + part
    np.testing.assert_allclose(got.covariance, expected, rtol=1e-8)


def test_before_any_randomized_row_contrasts_rest_on_obs_and_the_level_is_wide(simulate):
    rows = simulate(seed=7).without_exp()
    got = estimate(rows.moments(), ["hierarchical"])["hierarchical"]
    assert got.diagnostics["extrapolated"].all()
    weights = got.diagnostics["prior_weights"]
    np.testing.assert_allclose(list(weights.values()), 1 / 3)
    scale = rows.sim_phi.std(axis=0)
    slopes = np.mean([mean for mean, _ in slope_priors(rows, scale)], axis=0)
    offset = (rows.mean_phi() - rows.obs.phi.mean(axis=0)) / scale
    np.testing.assert_allclose(got.values, rows.obs.reward.mean() + offset @ slopes, rtol=1e-8)
    sigma = got.diagnostics["residual_variance"]
    assert (np.diagonal(got.covariance) > INTERCEPT_WIDTH**2 * sigma).all()
    contrast = np.array([1.0, -1.0, 0.0])
    assert contrast @ got.covariance @ contrast < 10 * sigma


def test_an_effect_that_outputs_do_not_carry_goes_to_the_models(simulate):
    """A5 broken: model 0 earns one reward unit beyond what its outputs say."""
    rows = simulate(seed=8, exp=3000, contexts=300)
    rows = rows.without_obs()
    plain = estimate(rows.moments(), ["hierarchical"])["hierarchical"]
    shifted = rows.exp.reward + 1.0 * (rows.exp.model == 0)
    moved = estimate(rows.with_rewards(exp=shifted).moments())
    effects = moved["hierarchical"].diagnostics["model_effects"]
    assert moved["hierarchical"].diagnostics["tau_model"] > 1.5 * plain.diagnostics["tau_model"]
    assert effects[0] - effects[1:].mean() > 0.8
    truth = rows.truth + np.array([1.0, 0.0, 0.0])
    error = moved["hierarchical"].values - (truth)
    assert (np.abs(error) < 4.5 * np.sqrt(np.diagonal(moved["hierarchical"].covariance))).all()
    pooled = moved["representation-exp"].values - (truth)
    assert np.abs(pooled).max() > 3 * np.abs(error).max()


def test_evidence_leaves_a_log_whose_slopes_are_wrong(simulate):
    """OBS rewards reversed: the evidence of 800 EXP rows lies with the zero prior."""
    rows = simulate(seed=9, exp=800, obs=2000)
    right = estimate(simulate(seed=9, exp=800, obs=2000, confounding=0.0).moments())
    reversed_log = rows.with_rewards(obs=-3.0 * rows.obs.reward)
    wrong = estimate(reversed_log.moments(), ["hierarchical"])["hierarchical"]
    assert wrong.diagnostics["prior_weights"]["zero"] > 0.9
    assert right["hierarchical"].diagnostics["prior_weights"]["zero"] < 0.1


def test_prior_of_the_model_effects_keeps_off_zero_where_models_are_few():
    """c_K [log tau - log(1 + (tau / .2)^2)]: c = 2 up to five models, then falling."""
    expected = np.log(TAU_MODEL) - np.log(1 + (TAU_MODEL / 0.2) ** 2)
    for models, strength in ((2, 2.0), (5, 2.0), (9, 0.5), (17, 0.125)):
        np.testing.assert_allclose(log_prior_tau_model(models), strength * expected, rtol=1e-12)
