"""Family `hierarchical`: a scorer that may start from the log, plus a random effect per model."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import Estimate, Scorer, family
from equipoise.agent.estimators.evidence import (
    TAU_MODEL,
    TAU_SCORER,
    Experiment,
    SlopePriors,
    posterior,
)
from equipoise.agent.estimators.frame import Frame, common_frame
from equipoise.agent.estimators.jackknife import (
    covariance,
    total_covariance,
    unknown_covariance,
)
from equipoise.agent.estimators.linear import extrapolated, unknown_estimate
from equipoise.agent.estimators.ridge import (
    PSEUDO_ROW,
    posterior_spread,
    residual_variance,
    ridge,
    rows,
)
from equipoise.agent.estimators.simulated import mean_features, mean_features_replicated
from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats

PRIORS = ("zero", "pooled", "within")
ENOUGH_ROWS = 10
"""EXP rows from which its own variance, rather than that of OBS, scales the prior of sigma^2."""


@family("hierarchical")
def hierarchical(moments: Moments) -> Estimate:
    """R = phi (beta_0 + delta) + a_m + error, mixed over priors and scales by evidence on EXP.

    delta ~ N(0, sigma^2 (tau_scorer^2 I + G_OBS^-1)) on standardized slopes, a_m ~ N(0, sigma^2
    tau_model^2), sigma^2 inverse gamma and integrated out, the intercept flat. beta_0 is zero
    (then without G_OBS), the ridge of pooled OBS, or the ridge of OBS with a fixed effect per
    model. V(m) = mean phi_m beta + a_m; the covariance is the mixture's, plus the jackknife over
    contexts of SIM. Before the first EXP row the intercept is that of OBS, ten sigma wide.
    Diagnostics: `prior_weights` by name, `tau_model` and `tau_scorer` posterior means in units of
    sigma, `residual_variance`, `model_effects` (K,).
    """
    frame = common_frame(moments, moments.exp, moments.obs)
    if frame is None:
        return unknown_estimate("hierarchical", moments)
    experiment = _experiment(moments.exp, frame)
    priors, obs_variance = _slope_priors(moments.obs, frame)
    scale = _prior_variance(experiment, obs_variance)
    known = scale > 0
    # Without any spread of rewards the unit is arbitrary: values stand, variances are unknown.
    result = posterior(experiment, priors, scale if known else 1.0)

    models = moments.dimensions.models
    phi = frame.standardize(mean_features(moments.simulation))
    design = np.hstack([np.ones((models, 1)), phi, np.eye(models)])
    values = frame.origin[-1] + design @ result.mean
    replicated = frame.standardize(mean_features_replicated(moments.simulation))
    contexts = replicated @ result.mean[1 : 1 + phi.shape[1]]
    spread = total_covariance(values, design @ result.covariance @ design.T, covariance(contexts))

    jacobian = frame.jacobian(len(result.mean))
    of_theta = jacobian @ result.covariance @ jacobian.T
    variance = result.residual_variance
    if not known:
        spread, of_theta = unknown_covariance(models), unknown_covariance(len(jacobian))
        variance = np.inf
    weights = result.weights
    return Estimate(
        family="hierarchical",
        values=values,
        covariance=0.5 * (spread + spread.T),
        diagnostics={
            "extrapolated": extrapolated(moments),
            "rows": experiment.rows,
            "prior_weights": {
                name: float(weights[at].sum()) if at < len(weights) else 0.0
                for at, name in enumerate(PRIORS)
            },
            "tau_model": float(weights.sum(axis=(0, 1)) @ TAU_MODEL),
            "tau_scorer": float(weights.sum(axis=(0, 2)) @ TAU_SCORER),
            "residual_variance": variance,
            "model_effects": result.mean[1 + phi.shape[1] :],
        },
        scorer=Scorer(
            theta=frame.original(result.mean),
            covariance=0.5 * (of_theta + of_theta.T),
            residual_variance=variance,
            model_effects=True,
        ),
    )


def _experiment(exp: ScorerMoments, frame: Frame) -> Experiment:
    products = frame.products(exp).sum(axis=0)
    n = float(rows(products))
    size = max(n, 1e-300)
    centre = products[0, 1:] / size
    scatter = products[1:, 1:] - n * centre[:, None] * centre
    count, mean = _model_means(exp, frame)
    return Experiment(n, centre, scatter, count, count[:, None] * (mean - centre))


def _model_means(source: ScorerMoments, frame: Frame) -> tuple[Floats, Floats]:
    """Rows (K,) and means (K, p) of [z, r] per model over all groups."""
    unit = np.append(frame.unit, 1.0)
    count = source.weight.sum(axis=0)
    offset = (source.weight[..., None] * (source.mean - frame.origin)).sum(axis=0) * unit
    return count, offset / np.maximum(count, 1e-300)[:, None]


def _slope_priors(obs: ScorerMoments, frame: Frame) -> tuple[SlopePriors, float]:
    """Priors in the order of PRIORS, zero alone where OBS is empty; OBS residual variance."""
    features = len(frame.unit)
    means = [np.zeros(features)]
    precisions = [np.full((features, features), np.inf)]
    blocks = frame.products(obs).sum(axis=0)
    n = float(rows(blocks))
    if n == 0:
        return SlopePriors.of(means, precisions), np.inf
    centre = blocks[0, 1:] / n
    pooled = blocks[1:, 1:] - n * centre[:, None] * centre
    count, mean = _model_means(obs, frame)
    offset = mean - centre
    within = pooled - (count[:, None] * offset).T @ offset
    for scatter in (pooled, within):
        precision = scatter[:-1, :-1] + PSEUDO_ROW * np.eye(features)
        means.append(np.linalg.solve(precision, scatter[:-1, -1]))
        precisions.append(precision)
    theta = ridge(blocks, PSEUDO_ROW)
    _, spent = posterior_spread(blocks, PSEUDO_ROW)
    return SlopePriors.of(means, precisions), residual_variance(blocks, theta, spent)


def _prior_variance(experiment: Experiment, obs_variance: float) -> float:
    """Prior mean of sigma^2; 0 where nothing tells. OBS's is taken while EXP is small, and only
    then, so that a log on another scale cannot widen what a real experiment says."""
    own = experiment.reward_variance
    if not np.isfinite(obs_variance) or obs_variance <= 0:
        return own
    return own if experiment.rows >= ENOUGH_ROWS and own > 0 else obs_variance
