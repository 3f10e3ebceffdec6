"""`hierarchical` against dense Gaussian algebra on the raw rows, one component at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from equipoise.agent.estimators import FAMILIES
from equipoise.agent.estimators.evidence import (
    ABSOLUTE,
    CHANGE_WEIGHTS,
    CHANGES,
    INTERCEPT_WIDTH,
    PRIOR_SHAPE,
    REAL,
    REAL_WEIGHTS,
    RELATIVE,
    RELATIVE_WEIGHTS,
    SIZES,
    TRUST,
    Grid,
    absolute_share,
    least_large,
    posterior,
)
from equipoise.agent.estimators.hierarchical import ENOUGH_ROWS
from equipoise.agent.estimators.log_prior import MOST_SPREADS, NEGLIGIBLE, SPREADS, LogPrior, Sample

CASES = [
    (1, {"exp": 24}),
    (2, {"exp": 16, "models": 2}),
    (3, {"exp": 20, "models": 6, "confounding": 0.0}),
    (4, {"exp": 6}),
    (5, {"exp": 12, "outputs": 1}),
    (6, {"exp": 20, "models": 5, "missing": 1}),
    (7, {"exp": 0}),
    (8, {"exp": 1}),
    (1, {"exp": 24, "obs": 0}),
    (2, {"exp": 6, "obs": 0, "models": 2}),
]


def world(simulate, seed, missing=None, **arguments):
    """`missing`: a model that EXP never drew."""
    rows = simulate(seed=seed, **{"obs": 120, **arguments})
    exp = rows.exp.take(rows.exp.model != missing)
    if not arguments["exp"]:
        rows = rows.without_exp()
    return rows if missing is None else replace(rows, exp=exp)


def contrasts(n):
    """(n - 1, n) orthonormal rows, each orthogonal to the constant."""
    return np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, : n - 1]]))[0][:, 1:].T


def log_density(reward, cover, shape, rate):
    """Of n - 1 contrasts of rewards with covariance sigma^2 cover, sigma^2 ~ IG(shape, rate)."""
    across = contrasts(len(reward))
    spread = rate / shape * across @ cover @ across.T
    return multivariate_t.logpdf(across @ reward, shape=spread, df=2 * shape)


def left_of_the_log(rows, scale):
    """Residual variance of the pooled ridge of OBS, its parameters taken off."""
    n = len(rows.obs)
    z = rows.obs.phi / scale
    z, reward = z - z.mean(axis=0), rows.obs.reward - rows.obs.reward.mean()
    hat = z @ np.linalg.solve(z.T @ z + np.eye(rows.features), z.T)
    residual = reward - hat @ reward
    return residual @ residual / (n - 1.0 - np.trace(hat))


def readings(rows, scale):
    """(slopes, their covariance, f, noise, spread, log-weight, informed) of every reading of OBS.

    One Gaussian update of (intercept, slopes, effects) by all rows for each spread of effects.
    """
    size, models = rows.features, rows.models
    ignorant = (np.zeros(size), np.zeros((size, size)), np.zeros(models), 0.0, 0.0)
    n = len(rows.obs)
    if n == 0:
        return [(*ignorant, 0.0, False)]
    z, which = rows.obs.phi / scale, np.eye(models)[rows.obs.model]
    design = np.column_stack([np.ones(n), z, which])
    found, logs = [], []
    for spread in SPREADS:
        cover = np.eye(n) + z @ z.T + spread**2 * which @ which.T
        logs.append(log_density(rows.obs.reward, cover, 1.0, left_of_the_log(rows, scale) / 2))
        prior = np.concatenate([[0.0], np.ones(size), np.full(models, spread**-2)])
        covariance = np.linalg.inv(design.T @ design + np.diag(prior))
        theta = covariance @ design.T @ rows.obs.reward
        across = contrasts(models)
        noise = np.mean(np.diag(across @ covariance[1 + size :, 1 + size :] @ across.T)) ** 0.5
        slopes = slice(1, 1 + size)
        found.append((theta[slopes], covariance[slopes, slopes], theta[1 + size :], noise, spread))
    weight = np.exp(np.array(logs) - logsumexp(logs))
    least = max(NEGLIGIBLE, np.sort(weight)[-MOST_SPREADS])
    total = weight[weight >= least].sum()
    kept = [
        (*reading, np.log(TRUST * share / total), True)
        for reading, share in zip(found, weight, strict=True)
        if share >= least
    ]
    return [*kept, (*ignorant, np.log(1 - TRUST), False)]


def components(rows, scale):
    """Every component: (reading, slopes' covariance, rho, tau, log prior weight)."""
    share = absolute_share(rows.models)
    falling = ABSOLUTE**-0.7 / (ABSOLUTE**-0.7).sum()
    for reading in readings(rows, scale):
        own, noise, spread, log_weight, informed = reading[1], *reading[3:]
        if informed:
            changes = list(zip(CHANGES, CHANGE_WEIGHTS, strict=True))
            sizes = list(zip(RELATIVE * spread, (1 - share) * RELATIVE_WEIGHTS, strict=True))
            sizes += list(zip(ABSOLUTE, share * falling, strict=True))
        else:
            changes = [(size, 0.2) for size in SIZES]
            sizes = [(0.0, weight / 6) for weight in RELATIVE_WEIGHTS]
            sizes += [(tau, 1 / 6) for tau in ABSOLUTE]
        for (change, of_change), (rho, of_rho), (tau, of_tau) in product(
            changes, zip(REAL, REAL_WEIGHTS, strict=True), sizes
        ):
            prior = log_weight + np.log(of_change * of_rho * of_tau)
            slopes = own + change**2 * np.eye(rows.features)
            yield reading, slopes, rho, np.hypot(tau, rho * noise), prior


def prior_variance(rows, scale):
    if len(rows.exp) >= ENOUGH_ROWS or not len(rows.obs):
        return rows.exp.reward.var(ddof=1)
    return left_of_the_log(rows, scale)


def dense(rows):
    """Mixture over components: values, covariance without SIM's part, weights, diagnostics.

    Each component is a linear mixed model in its n x n covariance, with the intercept by
    generalized least squares.
    """
    scale = rows.sim_phi.std(axis=0)
    n, size, models = len(rows.exp), rows.features, rows.models
    which = np.column_stack([rows.exp.phi / scale, np.eye(models)[rows.exp.model]])
    target = np.column_stack([rows.mean_phi() / scale, np.eye(models)])
    rate = prior_variance(rows, scale) * (PRIOR_SHAPE - 1)
    logs, means, spreads, sigmas, of_model, real = [], [], [], [], [], []
    for reading, slopes, rho, tau, log in components(rows, scale):
        mean = np.concatenate([reading[0], rho * reading[2]])
        prior = np.zeros((size + models,) * 2)
        prior[:size, :size], prior[size:, size:] = slopes, tau**2 * np.eye(models)
        if n:
            cover = np.eye(n) + which @ prior @ which.T
            left = rows.exp.reward - which @ mean
            inverse = np.linalg.inv(cover)
            level = inverse.sum(axis=0) @ left / inverse.sum()
            gain = target @ prior @ which.T @ inverse
            missed = 1.0 - gain.sum(axis=1)
            means.append(level + target @ mean + gain @ (left - level))
            spread = target @ prior @ target.T - gain @ which @ prior @ target.T
            spread += np.outer(missed, missed) / inverse.sum()
            squares = (left - level) @ inverse @ (left - level)
        else:
            offset = target - np.append(rows.obs.phi.mean(axis=0) / scale, np.zeros(models))
            means.append(rows.obs.reward.mean() + offset @ mean)
            spread, squares = offset @ prior @ offset.T + INTERCEPT_WIDTH**2, 0.0
        sigma = (rate + squares / 2) / (PRIOR_SHAPE + max(n - 1, 0) / 2 - 1)
        logs.append(log + (log_density(left, cover, PRIOR_SHAPE, rate) if n > 1 else 0.0))
        spreads.append(sigma * spread)
        sigmas.append(sigma)
        of_model.append(tau)
        real.append(rho * reading[-1])
    weight = np.exp(np.array(logs) - logsumexp(logs))
    value = weight @ np.array(means)
    deviation = np.array(means) - value
    covariance = np.tensordot(weight, spreads, 1) + (weight[:, None] * deviation).T @ deviation
    return (
        value,
        covariance,
        weight,
        {
            "residual_variance": weight @ sigmas,
            "tau_model": weight @ of_model,
            "real": weight @ real,
        },
    )


def sim_part(rows, slopes):
    """Jackknife of the SIM means along fixed slopes, in original coordinates."""
    return rows.jackknife(lambda part: part.mean_phi() @ slopes, units=False)


def sample(source, scale, models):
    """Moments straight from the rows."""
    table = np.column_stack([source.phi / scale, source.reward])
    offset = table - table.mean(axis=0) if len(table) else table
    which = np.eye(models)[source.model]
    return Sample(
        rows=float(len(table)),
        centre=table.mean(axis=0) if len(table) else np.zeros(table.shape[1]),
        scatter=offset.T @ offset,
        count=which.sum(axis=0),
        model_sums=which.T @ offset,
    )


@pytest.mark.parametrize(("seed", "arguments"), CASES)
def test_against_dense_covariances_of_the_rows(simulate, seed, arguments):
    rows = world(simulate, seed, **arguments)
    value, covariance, weight, diagnostics = dense(rows)
    got = FAMILIES["hierarchical"](rows.moments())
    np.testing.assert_allclose(got.values, value, rtol=1e-8, atol=1e-9)
    for name, expected in diagnostics.items():
        assert got.diagnostics[name] == pytest.approx(expected, rel=1e-8), name
    ignorant = weight[-len(SIZES) * len(REAL) * (len(RELATIVE) + len(ABSOLUTE)) :].sum()
    assert got.diagnostics["log_weight"] == pytest.approx(1.0 - ignorant, rel=1e-8, abs=1e-12)
    part = sim_part(rows, got.scorer.theta[1 : 1 + rows.features])
    np.testing.assert_allclose(got.covariance, covariance + part, rtol=1e-8, atol=1e-9)

    scale = rows.sim_phi.std(axis=0)
    prior = LogPrior.of(sample(rows.obs, scale, rows.models), TRUST)
    inner = posterior(sample(rows.exp, scale, rows.models), prior, prior_variance(rows, scale))
    np.testing.assert_allclose(inner.weights.ravel(), weight, rtol=1e-7, atol=1e-14)
    by_change = inner.weights.sum(axis=2)
    scales = np.vstack([CHANGES] * (len(by_change) - 1) + [SIZES])
    assert got.diagnostics["tau_scorer"] == pytest.approx((by_change * scales).sum(), rel=1e-8)


@pytest.mark.parametrize(("exp", "least"), [(40, 0.3), (600, 0.3 / 2.25), (60_000, 0.3 / 22500)])
def test_caution_keeps_large_effects_in_play_while_rewards_are_few(simulate, exp, least):
    """The floor is .3 up to 100 rewards a model and falls with their square; 4 models."""
    rows = simulate(seed=5, models=4, obs=400, exp=min(exp, 600))
    scale = rows.sim_phi.std(axis=0)
    prior = LogPrior.of(sample(rows.obs, scale, rows.models), TRUST)
    some = replace(sample(rows.exp, scale, rows.models), rows=float(exp))
    assert least_large(some) == pytest.approx(least)
    plain = posterior(some, prior, 1.0)
    wary = posterior(some, prior, 1.0, cautious=True)
    large = np.broadcast_to((Grid.of(prior).model >= 0.12)[:, None], plain.weights.shape)
    together = plain.weights[large].sum()
    assert wary.weights.sum() == pytest.approx(1.0)
    assert wary.weights[large].sum() == pytest.approx(max(least, together))
    # Within large and small effects the evidence decides as before.
    for part in (large, ~large):
        shares = [each.weights[part] / each.weights[part].sum() for each in (plain, wary)]
        np.testing.assert_allclose(*shares, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(
    ("seed", "arguments"),
    [
        (11, {"obs": 300}),
        (12, {"obs": 30}),
        (13, {"obs": 200, "models": 6}),
        (14, {"obs": 250, "confounding": 0.0, "models": 2}),
        (15, {"obs": 2}),
        (16, {"obs": 400, "models": 16}),
    ],
)
def test_readings_of_the_log(simulate, seed, arguments):
    rows = simulate(seed=seed, exp=5, **arguments)
    scale = rows.sim_phi.std(axis=0)
    got = LogPrior.of(sample(rows.obs, scale, rows.models), TRUST)
    expected = readings(rows, scale)
    slopes, covariance, effects, noise, spread, log_weight, informed = zip(*expected, strict=True)
    assert len(got.informed) == (2 if rows.models > 12 else 1 + MOST_SPREADS)
    np.testing.assert_array_equal(got.informed, informed)
    np.testing.assert_array_equal(got.spread, spread)
    np.testing.assert_allclose(got.slopes, slopes, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got.effects, effects, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got.noise, noise, rtol=1e-8)
    np.testing.assert_allclose(got.log_weight, log_weight, rtol=1e-8, atol=1e-10)
    assert np.exp(got.log_weight).sum() == pytest.approx(1.0)
    of_slopes = (got.vectors * got.variances[:, None]) @ got.vectors.swapaxes(1, 2)
    np.testing.assert_allclose(of_slopes, covariance, rtol=1e-8, atol=1e-11)
    assert got.residual_variance == pytest.approx(left_of_the_log(rows, scale), rel=1e-8)
    shown = FAMILIES["hierarchical"](rows.moments()).diagnostics["log_effects"]
    share = np.exp(np.array(log_weight[:-1])) / TRUST
    np.testing.assert_allclose(shown, share @ np.array(effects[:-1]), rtol=1e-8, atol=1e-10)


def test_scorer_holds_the_posterior_of_values(simulate):
    rows = simulate(seed=6)
    got = FAMILIES["hierarchical"](rows.moments())
    scorer = got.scorer
    assert scorer.model_effects
    design = np.column_stack([np.ones(rows.models), rows.mean_phi(), np.eye(rows.models)])
    np.testing.assert_allclose(design @ scorer.theta, got.values, rtol=1e-9)
    np.testing.assert_array_equal(scorer.theta[-rows.models :], got.diagnostics["model_effects"])
    part = sim_part(rows, scorer.theta[1 : 1 + rows.features])
    expected = design @ scorer.covariance @ design.T + part
    np.testing.assert_allclose(got.covariance, expected, rtol=1e-8)


@pytest.mark.parametrize("models", [2, 5, 9, 20])
def test_prior_weights_of_a_reading_sum_to_one(simulate, models):
    rows = simulate(seed=16, models=models, obs=300)
    scale = rows.sim_phi.std(axis=0)
    grid = Grid.of(LogPrior.of(sample(rows.obs, scale, models), TRUST))
    np.testing.assert_allclose(np.exp(grid.log_scorer).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.exp(grid.log_model).sum(axis=1), 1.0, rtol=1e-12)


def test_scales_of_their_own_weigh_more_where_models_are_few():
    """0.2 (1 + 3 c) against 0.77, c = min(1, 4 / (K - 1))^2."""
    for models, weight in ((2, 0.8), (5, 0.8), (9, 0.35), (17, 0.2375)):
        assert absolute_share(models) == pytest.approx(weight / (0.77 + weight))
